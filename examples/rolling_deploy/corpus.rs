//! What is compressed: ranges of one file, given or put together from files of this machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// No single file makes up more of an assembled corpus than this.
const LARGEST_SHARE: u64 = 24 << 20;

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
            return Self::assemble(&[input.to_path_buf()], u64::MAX, u64::MAX, scratch);
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
        let mut roots = Vec::new();
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        if let Ok(found) = Command::new(rustc).args(["--print", "sysroot"]).output() {
            roots.push(PathBuf::from(String::from_utf8_lossy(&found.stdout).trim()));
        }
        roots.extend(["/usr/share", "/usr/lib", "/usr/bin", "/Library"].map(PathBuf::from));
        roots.retain(|root| root.is_dir());
        let corpus = Self::assemble(&roots, at_least, LARGEST_SHARE, scratch)?;
        if corpus.len < at_least {
            bail!(
                "this machine's files make only {} of the {} wanted: name some with --input",
                mebibytes(corpus.len),
                mebibytes(at_least),
            );
        }
        Ok(corpus)
    }

    fn assemble(roots: &[PathBuf], want: u64, share: u64, scratch: &Path) -> anyhow::Result<Self> {
        let path = scratch.join("corpus");
        let mut corpus = BufWriter::new(File::create_new(&path)?);
        let (mut len, mut files) = (0, 0);
        let mut from: BTreeMap<&Path, u64> = BTreeMap::new();
        'enough: for root in roots {
            let mut below = vec![root.clone()];
            while let Some(directory) = below.pop() {
                // What cannot be read is left out: any real bytes will do.
                let Ok(entries) = fs::read_dir(&directory) else {
                    continue;
                };
                let mut entries: Vec<_> = entries.flatten().collect();
                entries.sort_by_key(fs::DirEntry::file_name);
                for entry in entries {
                    match entry.file_type() {
                        Ok(kind) if kind.is_dir() => below.push(entry.path()),
                        Ok(kind) if kind.is_file() => {
                            let Ok(file) = File::open(entry.path()) else {
                                continue;
                            };
                            let most = share.min(want - len);
                            let taken = io::copy(&mut file.take(most), &mut corpus)?;
                            len += taken;
                            files += 1;
                            *from.entry(root).or_default() += taken;
                            if len >= want {
                                break 'enough;
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        corpus.flush()?;
        if len == 0 {
            bail!("there are no readable files in {roots:?}");
        }
        let shares: Vec<_> = from
            .iter()
            .map(|(root, len)| format!("{} of {}", mebibytes(*len), root.display()))
            .collect();
        Ok(Self { path, len, origin: format!("{files} files: {}", shares.join(", ")) })
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
