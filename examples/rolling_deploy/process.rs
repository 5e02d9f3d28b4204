//! Child processes that are spoken to in lines of JSON: commands to their standard input, events
//! from their standard output.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use super::meter::{self, Cause, ProcessEnd};

/// A child process. Dropping it kills it, and it ends by itself when its standard input closes, so
/// none is left behind whatever happens to the parent.
#[derive(Debug)]
pub struct Process<E> {
    name: String,
    child: Child,
    commands: ChildStdin,
    events: mpsc::Receiver<E>,
}

impl<E: DeserializeOwned + Send + 'static> Process<E> {
    /// Starts `command`. What it writes to standard error goes to the parent's.
    ///
    /// A line on its standard output that is no event is passed on to standard error.
    pub fn spawn(name: &str, mut command: Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            // A terminal's ctrl-c is for the parent, which then ends its children.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} could not be started: {command:?}"))?;
        let (Some(commands), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{name} was started without pipes");
        };
        let (sender, events) = mpsc::channel(1024);
        let of = name.to_owned();
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(event) => {
                        if sender.send(event).await.is_err() {
                            break;
                        }
                    }
                    Err(_) => eprintln!("[{of}] {line}"),
                }
            }
        });
        Ok(Self { name: name.to_owned(), child, commands, events })
    }

    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends one command.
    pub async fn send(&mut self, command: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        self.commands
            .write_all(&line)
            .await
            .with_context(|| format!("{} takes no commands any more", self.name))
    }

    /// The next event; none once the process has closed its output. Cancel-safe.
    pub async fn event(&mut self) -> Option<E> {
        self.events.recv().await
    }

    /// The next event, if one is there.
    pub fn try_event(&mut self) -> Option<E> {
        self.events.try_recv().ok()
    }

    /// Skips events until one satisfies `wanted`.
    pub async fn expect<T>(
        &mut self,
        within: Duration,
        what: &str,
        mut wanted: impl FnMut(E) -> Option<T>,
    ) -> anyhow::Result<T> {
        let search = async {
            while let Some(event) = self.events.recv().await {
                if let Some(found) = wanted(event) {
                    return Some(found);
                }
            }
            None
        };
        match tokio::time::timeout(within, search).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(anyhow!("{} ended before it said {what}", self.name)),
            Err(_) => Err(anyhow!("{} did not say {what} within {within:?}", self.name)),
        }
    }

    /// The process id; none once it has been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a signal to this one process and says when, in nanoseconds of the meter's clock.
    pub fn signal(&self, signal: Signal) -> io::Result<u64> {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id as i32));
        let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let at = meter::now();
        kill_process(pid, signal)?;
        Ok(at)
    }

    /// Waits for the process to end by itself.
    pub async fn exited(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        let status = tokio::time::timeout(within, self.child.wait()).await;
        let status = status.with_context(|| format!("{} runs after {within:?}", self.name))?;
        Ok(status?)
    }

    /// How the process ended, if it has.
    pub fn try_exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills the process, waits until it is gone, and notes both moments.
    pub async fn kill(&mut self) -> anyhow::Result<ProcessEnd> {
        let signalled = self.signal(Signal::KILL)?;
        self.child.wait().await?;
        Ok(ProcessEnd {
            node: self.name.clone(),
            cause: Cause::Sigkill,
            signalled,
            exited: meter::now(),
        })
    }

    /// Tells the process to stop, waits until it has, and notes both moments.
    pub async fn stop(&mut self, within: Duration) -> anyhow::Result<(ProcessEnd, ExitStatus)> {
        let signalled = self.signal(Signal::TERM)?;
        let status = self.exited(within).await?;
        let end = ProcessEnd {
            node: self.name.clone(),
            cause: Cause::Sigterm,
            signalled,
            exited: meter::now(),
        };
        Ok((end, status))
    }
}
