//! A child's end of the pipes: commands on standard input, events on standard output, one line of
//! JSON each.

use std::io::{BufRead, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// Says something to the parent. A parent that is gone hears nothing; see [`commands`].
pub fn say(event: &impl Serialize) {
    let mut line = match serde_json::to_vec(event) {
        Ok(line) => line,
        Err(error) => return eprintln!("an event could not be said: {error}"),
    };
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
}

/// The parent's commands. Their end means that the parent is gone: then the process ends too, at
/// once and from a thread of its own, whatever else is going on.
pub fn commands<C: DeserializeOwned + Send + 'static>() -> mpsc::Receiver<C> {
    let (sender, receiver) = mpsc::channel(64);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            match serde_json::from_str(&line) {
                Ok(command) => {
                    if sender.blocking_send(command).is_err() {
                        return;
                    }
                }
                Err(error) => eprintln!("no command: {error} in {line}"),
            }
        }
        std::process::exit(1);
    });
    receiver
}
