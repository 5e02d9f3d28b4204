//! What stands inside a sealed frame: records, each a ping or a piece of a message. The pieces of one
//! class are in order; the two classes interleave, so that a short control message overtakes a bulk
//! transfer.

use bytes::Bytes;

/// How much a frame carries at most when sent: small, so that a control message waits for little.
pub(super) const FRAME: usize = 16 * 1024;

/// Which queue a message takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Short and urgent; goes first.
    Control,
    /// Large; fills what control leaves.
    Bulk,
}

impl Class {
    pub(super) const ALL: [Self; 2] = [Self::Control, Self::Bulk];
}

const PING: u8 = 0;
const FIRST_CONTROL: u8 = 1;
const FIRST_BULK: u8 = 2;
const MORE_CONTROL: u8 = 3;
const MORE_BULK: u8 = 4;

/// Tag, length of the whole message, length of the piece.
const FIRST_HEADER: usize = 1 + 8 + 2;
/// Tag, length of the piece.
const MORE_HEADER: usize = 1 + 2;

/// Why a peer's frame was not understood. The link is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a record has the unknown tag {0}")]
    UnknownTag(u8),
    #[error("a record ends before its length")]
    Truncated,
    #[error("a message of {declared} bytes was announced, over the limit of {limit} bytes")]
    TooLarge { declared: u64, limit: usize },
    #[error("a message has more bytes than were announced")]
    Overrun,
    #[error("a message begins inside another of its class")]
    Interrupted,
    #[error("a message goes on that never began")]
    NotBegun,
    #[error("a piece holds nothing")]
    EmptyPiece,
}

/// Appends a ping, which only shows that the sender lives.
pub(super) fn put_ping(frame: &mut Vec<u8>) {
    frame.push(PING);
}

/// Appends as much of `message` from `packed` on as the frame has room for. Returns how many bytes of
/// it are packed now, none if there was no room.
pub(super) fn put_piece(
    frame: &mut Vec<u8>,
    class: Class,
    message: &[u8],
    packed: usize,
) -> Option<usize> {
    let rest = message.get(packed..)?;
    let header = if packed == 0 { FIRST_HEADER } else { MORE_HEADER };
    let room = FRAME.checked_sub(frame.len() + header)?;
    if room == 0 && !rest.is_empty() {
        return None;
    }
    let piece = rest.get(..room).unwrap_or(rest);
    let first = packed == 0;
    frame.push(match (class, first) {
        (Class::Control, true) => FIRST_CONTROL,
        (Class::Bulk, true) => FIRST_BULK,
        (Class::Control, false) => MORE_CONTROL,
        (Class::Bulk, false) => MORE_BULK,
    });
    if first {
        frame.extend_from_slice(&(message.len() as u64).to_be_bytes());
    }
    // A piece is shorter than a frame, which is shorter than 64 KiB.
    frame.extend_from_slice(&(piece.len() as u16).to_be_bytes());
    frame.extend_from_slice(piece);
    Some(packed + piece.len())
}

/// A message of which a part has arrived.
#[derive(Debug)]
struct Partial {
    total: usize,
    bytes: Vec<u8>,
}

impl Partial {
    /// Memory grows with what has arrived, never with what was announced; the last step is exact, so
    /// that a message keeps no more than its length.
    fn append(&mut self, piece: &[u8]) -> Result<(), FrameError> {
        let len = self.bytes.len() + piece.len();
        if len > self.total {
            return Err(FrameError::Overrun);
        }
        if len > self.bytes.capacity() {
            let target = len.max(self.bytes.len() * 2).min(self.total);
            self.bytes.reserve_exact(target - self.bytes.len());
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.bytes.len() == self.total
    }
}

/// Puts messages together again.
#[derive(Debug)]
pub(super) struct Assembler {
    max_control: usize,
    max_bulk: usize,
    control: Option<Partial>,
    bulk: Option<Partial>,
}

impl Assembler {
    /// For messages of up to so many bytes of each class.
    pub(super) const fn new(max_control: usize, max_bulk: usize) -> Self {
        Self { max_control, max_bulk, control: None, bulk: None }
    }

    /// Takes the records of one frame and adds the messages they complete to `complete`.
    pub(super) fn feed(
        &mut self,
        mut frame: &[u8],
        complete: &mut Vec<Bytes>,
    ) -> Result<(), FrameError> {
        while let Some((&tag, rest)) = frame.split_first() {
            frame = rest;
            let (class, first) = match tag {
                PING => continue,
                FIRST_CONTROL => (Class::Control, true),
                FIRST_BULK => (Class::Bulk, true),
                MORE_CONTROL => (Class::Control, false),
                MORE_BULK => (Class::Bulk, false),
                unknown => return Err(FrameError::UnknownTag(unknown)),
            };
            let declared = if first {
                let (total, rest) = frame.split_first_chunk().ok_or(FrameError::Truncated)?;
                frame = rest;
                Some(u64::from_be_bytes(*total))
            } else {
                None
            };
            let (len, rest) = frame.split_first_chunk().ok_or(FrameError::Truncated)?;
            let len = usize::from(u16::from_be_bytes(*len));
            let (piece, rest) = rest.split_at_checked(len).ok_or(FrameError::Truncated)?;
            frame = rest;
            complete.extend(self.take(class, declared, piece)?);
        }
        Ok(())
    }

    fn take(
        &mut self,
        class: Class,
        declared: Option<u64>,
        piece: &[u8],
    ) -> Result<Option<Bytes>, FrameError> {
        let (limit, slot) = match class {
            Class::Control => (self.max_control, &mut self.control),
            Class::Bulk => (self.max_bulk, &mut self.bulk),
        };
        let mut partial = match (slot.take(), declared) {
            (None, Some(declared)) => Partial {
                total: usize::try_from(declared)
                    .ok()
                    .filter(|total| *total <= limit)
                    .ok_or(FrameError::TooLarge { declared, limit })?,
                bytes: Vec::new(),
            },
            (Some(partial), None) => partial,
            (Some(_), Some(_)) => return Err(FrameError::Interrupted),
            (None, None) => return Err(FrameError::NotBegun),
        };
        if piece.is_empty() && partial.total > 0 {
            return Err(FrameError::EmptyPiece);
        }
        partial.append(piece)?;
        if partial.is_complete() {
            return Ok(Some(partial.bytes.into()));
        }
        *slot = Some(partial);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    fn first(tag: u8, total: u64, piece: &[u8]) -> Vec<u8> {
        let mut record = vec![tag];
        record.extend(total.to_be_bytes());
        record.extend((piece.len() as u16).to_be_bytes());
        record.extend(piece);
        record
    }

    fn more(tag: u8, piece: &[u8]) -> Vec<u8> {
        let mut record = vec![tag];
        record.extend((piece.len() as u16).to_be_bytes());
        record.extend(piece);
        record
    }

    fn feed(assembler: &mut Assembler, frame: &[u8]) -> Result<Vec<Bytes>, FrameError> {
        let mut complete = Vec::new();
        assembler.feed(frame, &mut complete).map(|()| complete)
    }

    #[test]
    fn control_completes_between_the_pieces_of_bulk() {
        let mut assembler = Assembler::new(100, 100);
        let mut frame = first(FIRST_BULK, 6, b"abc");
        frame.extend(first(FIRST_CONTROL, 2, b"!!"));
        assert_eq!(feed(&mut assembler, &frame).unwrap(), ["!!"]);
        assert_eq!(feed(&mut assembler, &more(MORE_BULK, b"def")).unwrap(), ["abcdef"]);
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_announcement() {
        let mut assembler = Assembler::new(100, 100);
        assert!(feed(&mut assembler, &first(FIRST_BULK, 100, b"x")).unwrap().is_empty());
        let mut assembler = Assembler::new(100, 100);
        for declared in [101, 1 << 40, u64::MAX] {
            assert_eq!(
                feed(&mut assembler, &first(FIRST_BULK, declared, b"x")),
                Err(FrameError::TooLarge { declared, limit: 100 })
            );
        }
    }

    #[test]
    fn only_bulk_may_be_large() {
        let mut assembler = Assembler::new(10, 100);
        assert!(feed(&mut assembler, &first(FIRST_CONTROL, 10, b"x")).unwrap().is_empty());
        assert!(feed(&mut assembler, &first(FIRST_BULK, 100, b"x")).unwrap().is_empty());
        let mut assembler = Assembler::new(10, 100);
        assert_eq!(
            feed(&mut assembler, &first(FIRST_CONTROL, 11, b"x")),
            Err(FrameError::TooLarge { declared: 11, limit: 10 })
        );
    }

    #[test]
    fn memory_follows_what_arrived_and_ends_exact() {
        let total = 1 << 20;
        let mut partial = Partial { total, bytes: Vec::new() };
        partial.append(&[1; 1000]).unwrap();
        assert!(partial.bytes.capacity() < 4096);
        while !partial.is_complete() {
            let piece = vec![1; (total - partial.bytes.len()).min(16_000)];
            partial.append(&piece).unwrap();
        }
        assert_eq!(partial.bytes.capacity(), total);
    }

    #[test]
    fn records_out_of_place_are_refused() {
        let cases = [
            (vec![9], FrameError::UnknownTag(9)),
            (vec![FIRST_BULK, 0, 0], FrameError::Truncated),
            (vec![MORE_BULK, 0], FrameError::Truncated),
            (more(MORE_CONTROL, b"x"), FrameError::NotBegun),
            (first(FIRST_CONTROL, 2, b"abc"), FrameError::Overrun),
            (first(FIRST_CONTROL, 2, b""), FrameError::EmptyPiece),
            (
                [first(FIRST_BULK, 2, b"a"), first(FIRST_BULK, 2, b"a")].concat(),
                FrameError::Interrupted,
            ),
            ([first(FIRST_BULK, 2, b"a"), more(MORE_BULK, b"bc")].concat(), FrameError::Overrun),
            ([first(FIRST_BULK, 2, b"a"), more(MORE_BULK, b"")].concat(), FrameError::EmptyPiece),
        ];
        for (frame, error) in cases {
            assert_eq!(feed(&mut Assembler::new(100, 100), &frame), Err(error));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused_within_the_limit(
            frames in prop::collection::vec(prop::collection::vec(0..6_u8, 0..200), 0..20),
            noise in prop::collection::vec(any::<u8>(), 0..2000),
        ) {
            let mut assembler = Assembler::new(64, 64);
            for frame in frames.iter().chain([&noise]) {
                let mut complete = Vec::new();
                let result = assembler.feed(frame, &mut complete);
                prop_assert!(complete.iter().all(|message| message.len() <= 64));
                for partial in [&assembler.control, &assembler.bulk].into_iter().flatten() {
                    prop_assert!(partial.bytes.capacity() <= 64);
                }
                if result.is_err() {
                    assembler = Assembler::new(64, 64);
                }
            }
        }

        #[test]
        fn what_is_packed_is_put_together_again(
            sizes in prop::collection::vec((any::<bool>(), 0..60_000_usize), 1..8),
        ) {
            let mut assembler = Assembler::new(60_000, 60_000);
            let mut complete = Vec::new();
            let mut frame = Vec::new();
            let messages: Vec<Vec<u8>> = sizes
                .iter()
                .enumerate()
                .map(|(at, (_, len))| vec![at as u8; *len])
                .collect();
            for ((bulk, _), message) in sizes.iter().zip(&messages) {
                let class = if *bulk { Class::Bulk } else { Class::Control };
                let mut packed = None;
                while packed != Some(message.len()) {
                    match put_piece(&mut frame, class, message, packed.unwrap_or(0)) {
                        Some(now) => packed = Some(now),
                        None => {
                            prop_assert!(frame.len() <= FRAME);
                            assembler.feed(&frame, &mut complete).unwrap();
                            frame.clear();
                        }
                    }
                }
            }
            assembler.feed(&frame, &mut complete).unwrap();
            prop_assert_eq!(complete, messages);
        }
    }
}
