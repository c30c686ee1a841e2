//! What the two processes of a bench say to each other: lines of JSON, asked by the first, answered by the mate.
//!
//! - Over pipes where the mate is a process of this host, over a stream where it is on another.
//! - One line asks, one answers; whatever goes wrong is an answer, not a silence.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::CliError;

/// The longest line that is taken from the other process.
const LINE_MAX: u64 = 64 << 10;

/// What the mate is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Begin, as this system of this volume: only of a mate on this host.
    Begin {
        volume: String,
        run_dir: PathBuf,
        scratch: PathBuf,
        system: String,
    },
    /// Say who you are: of a mate that serves already.
    Hello { version: String },
    /// Serve through a shared engine too.
    Share,
    /// Echo on the bare storage.
    Echo { other: u16, size: usize, base: u64 },
    /// Open the pipes and serve one connection over them.
    Pipe,
    /// Reads and writes of the storage, and CPU seconds, so far.
    Spent,
    /// Leave.
    End,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It serves: from this seat, and on this host by this port of TCP.
    Begun {
        seat: u16,
        tcp_port: u16,
    },
    /// It serves through a shared engine, as this system.
    Shared {
        system: String,
    },
    Done,
    Spent(Spent),
    Failed(String),
}

/// What a node has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Spent {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) cpu_s: f64,
    /// Of its shared engine.
    pub(super) engine_cpu_s: f64,
}

/// The first process's end.
pub(super) struct Talk {
    to: Box<dyn Write + Send>,
    from: BufReader<Box<dyn Read + Send>>,
}

impl Talk {
    pub(super) fn new(to: Box<dyn Write + Send>, from: Box<dyn Read + Send>) -> Self {
        let from = BufReader::new(from);
        Self { to, from }
    }

    /// Says something that is not answered.
    pub(super) fn tell(&mut self, ask: &Ask) -> Result<(), CliError> {
        let text = serde_json::to_string(ask).map_err(CliError::new)?;
        writeln!(self.to, "{text}")
            .and_then(|()| self.to.flush())
            .map_err(|error| CliError::new(format_args!("the bench's other process: {error}")))
    }

    pub(super) fn ask(&mut self, ask: &Ask) -> Result<Answer, CliError> {
        self.tell(ask)?;
        let Some(line) = next_line(&mut self.from)? else {
            return Err(CliError::new("the bench's other process has ended"));
        };
        match serde_json::from_str(&line).map_err(CliError::new)? {
            Answer::Failed(why) => Err(CliError::new(why)),
            answer => Ok(answer),
        }
    }
}

/// The next line of the other process; `None` at its end.
pub(super) fn next_line(from: &mut dyn BufRead) -> Result<Option<String>, CliError> {
    let mut line = String::new();
    from.take(LINE_MAX)
        .read_line(&mut line)
        .map_err(|error| CliError::new(format_args!("the bench's other process: {error}")))?;
    Ok(line.ends_with('\n').then_some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_asked_and_answered() {
        let answer = format!("{}\n", serde_json::to_string(&Answer::Done).unwrap());
        let mut talk = Talk::new(Box::new(Vec::new()), Box::new(std::io::Cursor::new(answer)));
        assert!(matches!(talk.ask(&Ask::Spent), Ok(Answer::Done)));
        let ended = talk.ask(&Ask::Spent).unwrap_err().to_string();
        assert!(ended.contains("has ended"), "{ended}");
    }

    #[test]
    fn a_line_without_an_end_is_none() {
        let mut endless = BufReader::new(std::io::repeat(b'x'));
        assert_eq!(next_line(&mut endless).unwrap(), None);
    }
}
