//! Where randomness comes from. Whatever a simulated process asks of the system's `getrandom` is
//! drawn from the seed of the thread it runs on: nonces, session ids, the keys of hash maps.

#![allow(
    unsafe_code,
    reason = "the system's function can only be replaced by one with a C signature"
)]

use std::cell::RefCell;
use std::ffi::{c_uint, c_void};
use std::mem::MaybeUninit;
use std::slice;

use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};

thread_local! {
    static SEEDED: RefCell<Option<SmallRng>> = const { RefCell::new(None) };
}

/// From now on this thread's randomness follows from the seed. Must come before anything on the
/// thread has drawn any: generators and hash maps keep what they were first given.
pub(crate) fn seed_this_thread(seed: u64) {
    SEEDED.with_borrow_mut(|seeded| *seeded = Some(SmallRng::seed_from_u64(seed)));
}

/// Takes the place of the C library's function of that name, which `std`, `getrandom` and `ring` call.
///
/// # Safety
/// `buffer` must be valid for writes of `len` bytes, as for the system's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, len: usize, _flags: c_uint) -> isize {
    // Asked with no length, and perhaps no buffer, to learn whether the call exists.
    if len == 0 {
        return 0;
    }
    // SAFETY: the caller vouches for the buffer, and `MaybeUninit` may hold anything.
    let buffer = unsafe { slice::from_raw_parts_mut(buffer.cast::<MaybeUninit<u8>>(), len) };
    let seeded = SEEDED
        .try_with(|seeded| match seeded.try_borrow_mut().as_deref_mut() {
            Ok(Some(rng)) => {
                let mut word = [0; 8];
                for chunk in buffer.chunks_mut(word.len()) {
                    rng.fill_bytes(&mut word);
                    for (to, from) in chunk.iter_mut().zip(word) {
                        to.write(from);
                    }
                }
                true
            }
            _ => false,
        })
        .unwrap_or(false);
    if seeded {
        return len as isize;
    }
    // Any other thread gets the kernel's: rustix makes the system call itself.
    match rustix::rand::getrandom(buffer, rustix::rand::GetRandomFlags::empty()) {
        Ok((filled, _)) => filled.len() as isize,
        Err(_) => -1,
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};
    use std::thread;

    use rand::Rng;

    use super::*;

    fn drawn(seed: u64) -> (u64, u64) {
        thread::spawn(move || {
            seed_this_thread(seed);
            (rand::rng().random(), RandomState::new().hash_one("key"))
        })
        .join()
        .unwrap_or_default()
    }

    #[test]
    fn generators_and_hash_maps_follow_from_the_threads_seed() {
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1).0, drawn(2).0);
        assert_ne!(drawn(1).1, drawn(2).1);
    }

    #[test]
    fn a_thread_without_a_seed_draws_from_the_system() {
        let draw = || thread::spawn(|| rand::rng().random::<u64>()).join().unwrap_or_default();
        assert_ne!(draw(), draw());
    }
}
