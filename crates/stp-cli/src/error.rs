//! How a command fails: one line that says what, where and what to do.
//!
//! - The line never contains a line break, whatever a peer or a file name put into it.
//! - The exit code belongs to the error: 1 failed, 2 wrong usage.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// Why a command did not do what it was asked to do.
#[derive(Debug)]
pub struct CliError {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The line to show and the code to leave with.
    Line { text: String, code: u8 },
    /// The reader of standard output is gone: nothing to say, end by SIGPIPE.
    BrokenPipe,
    /// Everything was said already; only the code is left.
    Silent(u8),
}

impl CliError {
    /// Exit code of a failure.
    pub const FAILED: u8 = 1;
    /// Exit code of wrong usage.
    pub const USAGE: u8 = 2;

    /// A failure (exit code 1). `what` names the thing that failed and the reason: `"volume /dev/sdb:
    /// permission denied"`.
    pub fn new(what: impl fmt::Display) -> Self {
        Self::line(what, Self::FAILED)
    }

    /// Wrong usage (exit code 2) that the parser could not see.
    pub fn usage(what: impl fmt::Display) -> Self {
        Self::line(what, Self::USAGE)
    }

    /// A failure without a line, because the command has reported every part of it.
    pub fn silent() -> Self {
        Self {
            kind: Kind::Silent(Self::FAILED),
        }
    }

    /// A failed write to standard output; a reader that went away is no error to talk about.
    pub fn from_stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self {
                kind: Kind::BrokenPipe,
            };
        }
        Self::new(format_args!("standard output: {error}"))
            .remedy("check the space and permissions of where it goes")
    }

    /// The same with what to do about it, appended after `"; "`.
    #[must_use]
    pub fn remedy(mut self, remedy: impl fmt::Display) -> Self {
        if let Kind::Line { text, .. } = &mut self.kind {
            text.push_str("; ");
            text.push_str(&one_line(&remedy.to_string()));
        }
        self
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self.kind {
            Kind::Line { code, .. } | Kind::Silent(code) => code,
            // What a shell shows for a process ended by SIGPIPE.
            Kind::BrokenPipe => 141,
        }
    }

    /// Says the line on standard error and gives the exit code. Does not return after a broken pipe.
    pub fn report(&self) -> ExitCode {
        match &self.kind {
            Kind::Line { text, .. } => {
                crate::out::say(text);
            }
            Kind::BrokenPipe => {
                // Ends the process unless SIGPIPE is blocked; then the code says the same.
                let _ = signal_hook::low_level::emulate_default_handler(
                    signal_hook::consts::signal::SIGPIPE,
                );
            }
            Kind::Silent(_) => {}
        }
        ExitCode::from(self.code())
    }

    fn line(what: impl fmt::Display, code: u8) -> Self {
        let line = Self {
            kind: Kind::Line {
                text: one_line(&what.to_string()),
                code,
            },
        };
        // Any call may meet this limit, and most report what the kernel said.
        if line.to_string().ends_with(&out_of_descriptors()) {
            return line.remedy("raise the limit of open files (`ulimit -n`)");
        }
        line
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Line { text, .. } => f.write_str(text),
            Kind::BrokenPipe => f.write_str("the reader of standard output is gone"),
            Kind::Silent(_) => f.write_str("failed"),
        }
    }
}

impl std::error::Error for CliError {}

fn out_of_descriptors() -> String {
    io::Error::from(rustix::io::Errno::MFILE).to_string()
}

/// Control characters become spaces: a message is one line, and a name cannot drive the terminal.
pub fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        let error = CliError::new("file a\nb: gone").remedy("look\x1b[2J again");
        assert_eq!(error.to_string(), "file a b: gone; look [2J again");
        assert_eq!(error.code(), 1);
        assert_eq!(CliError::usage("x").code(), 2);
    }

    #[test]
    fn a_limit_of_the_process_has_its_remedy() {
        let error = CliError::new(io::Error::from_raw_os_error(24));
        let text = error.to_string();
        assert!(
            text.ends_with("; raise the limit of open files (`ulimit -n`)"),
            "{text}"
        );
        let other = CliError::new("too many open files: raise the limits");
        assert_eq!(other.to_string(), "too many open files: raise the limits");
    }

    #[test]
    fn a_broken_pipe_is_told_apart() {
        let error = CliError::from_stdout(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(error.code(), 141);
        let error = CliError::from_stdout(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(error.code(), 1);
    }
}
