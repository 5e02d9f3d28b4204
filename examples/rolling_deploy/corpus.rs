//! What is compressed: ranges of one file, given or put together from files of this machine.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// No single file makes up more of an assembled corpus than this.
const LARGEST_FILE: u64 = 16 << 20;

/// A range of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Where the range begins.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// The input of a run.
#[derive(Debug)]
pub struct Corpus {
    /// The file that holds all of it.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// Where it comes from, for people.
    pub origin: String,
}

impl Corpus {
    /// Of a file, as it is, or of the files below a directory, put together in `scratch`.
    pub fn of(input: &Path, scratch: &Path) -> anyhow::Result<Self> {
        let about = fs::metadata(input).with_context(|| format!("no input {}", input.display()))?;
        if about.is_dir() {
            let mut corpus = Assembly::new(scratch)?;
            corpus.add_below(input, u64::MAX, u64::MAX)?;
            return corpus.finish();
        }
        let len = about.len();
        if len == 0 {
            bail!("{} is empty: there is nothing to compress", input.display());
        }
        Ok(Self {
            path: input.canonicalize()?,
            len,
            origin: format!("{} ({})", input.display(), mebibytes(len)),
        })
    }

    /// Of real files that are on this machine already: the Rust toolchain's, then the system's.
    pub fn of_this_machine(at_least: u64, scratch: &Path) -> anyhow::Result<Self> {
        // Taken from the end: the toolchain, which is there or this would not run, has to give what
        // the others could not.
        let mut roots = Vec::new();
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        if let Ok(found) = Command::new(rustc).args(["--print", "sysroot"]).output() {
            roots.push(PathBuf::from(String::from_utf8_lossy(&found.stdout).trim()));
        }
        roots.extend(["/usr/share", "/usr/lib", "/usr/bin", "/Library"].map(PathBuf::from));
        roots.retain(|root| root.is_dir());
        let mut corpus = Assembly::new(scratch)?;
        while let Some(root) = roots.pop() {
            // An equal share of what is missing; what one cannot give, the next ones do.
            let share = (at_least - corpus.len).div_ceil(roots.len() as u64 + 1);
            corpus.add_below(&root, share, LARGEST_FILE)?;
        }
        let corpus = corpus.finish()?;
        if corpus.len < at_least {
            bail!(
                "this machine's files make only {} of the {} wanted: name some with --input",
                mebibytes(corpus.len),
                mebibytes(at_least),
            );
        }
        Ok(corpus)
    }

    /// Cuts it into `parts` ranges of nearly the same length.
    pub fn split(&self, parts: u64) -> Vec<Source> {
        (0..parts)
            .map(|part| {
                let offset = self.len * part / parts;
                Source {
                    path: self.path.clone(),
                    offset,
                    len: self.len * (part + 1) / parts - offset,
                }
            })
            .collect()
    }
}

/// A length for people.
pub fn mebibytes(len: u64) -> String {
    format!("{:.1} MiB", len as f64 / f64::from(1 << 20))
}

/// A corpus in the making.
struct Assembly {
    path: PathBuf,
    file: BufWriter<File>,
    len: u64,
    files: usize,
    shares: Vec<String>,
}

impl Assembly {
    fn new(scratch: &Path) -> io::Result<Self> {
        let path = scratch.join("corpus");
        let file = BufWriter::new(File::create_new(&path)?);
        Ok(Self { path, file, len: 0, files: 0, shares: Vec::new() })
    }

    /// Adds `share` bytes of the files below a directory, at most `largest` of each. What cannot be
    /// read is left out: any real bytes will do.
    fn add_below(&mut self, root: &Path, share: u64, largest: u64) -> io::Result<()> {
        let mut left = share;
        let mut below = vec![root.to_path_buf()];
        while let (Some(directory), true) = (below.pop(), left > 0) {
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            let mut entries: Vec<_> = entries.flatten().collect();
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let kind = entry.file_type()?;
                if left == 0 {
                    break;
                } else if kind.is_dir() {
                    below.push(entry.path());
                } else if kind.is_file()
                    && let Ok(file) = File::open(entry.path())
                {
                    left -= io::copy(&mut file.take(largest.min(left)), &mut self.file)?;
                    self.files += 1;
                }
            }
        }
        let taken = share - left;
        self.len += taken;
        if taken > 0 {
            self.shares.push(format!("{} of {}", mebibytes(taken), root.display()));
        }
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<Corpus> {
        self.file.flush()?;
        // Else the first steps wait while the disk takes all this in.
        self.file.get_ref().sync_data()?;
        if self.len == 0 {
            bail!("there are no readable files to compress");
        }
        let origin = format!("{} files: {}", self.files, self.shares.join(", "));
        Ok(Corpus { path: self.path, len: self.len, origin })
    }
}
