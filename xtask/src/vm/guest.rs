//! A guest: a QEMU process, and a shell in it at the other end of our pipes.
//!
//! - The pipes are a virtual port of the guest: control, never data between guests.
//! - A guest ends with its [`Guest`].

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::HANG;
use super::image::Image;
use crate::repo::Error;

/// Ends each answer.
const MARK: &str = "=-=-end-of-answer";

/// What the guests share.
pub(super) enum Shared {
    /// One raw disk.
    Disk(PathBuf),
    /// Memory of the host: a file of this many bytes, as the BAR of an ivshmem device.
    Memory(PathBuf, u64),
}

impl Shared {
    fn devices(&self) -> [String; 4] {
        match self {
            Self::Disk(path) => [
                "-drive".into(),
                format!(
                    "file={},format=raw,if=none,id=disk,cache=none,aio=native,file.locking=off",
                    path.display()
                ),
                "-device".into(),
                "virtio-blk-pci,drive=disk,share-rw=on".into(),
            ],
            Self::Memory(path, bytes) => [
                "-object".into(),
                format!(
                    "memory-backend-file,id=shared,share=on,mem-path={},size={bytes}",
                    path.display()
                ),
                "-device".into(),
                "ivshmem-plain,memdev=shared".into(),
            ],
        }
    }
}

pub(super) struct Guest {
    name: String,
    qemu: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    number: u32,
}

impl Guest {
    /// Starts a guest called `name` on `disk`.
    pub(super) fn boot(
        image: &Image,
        shared: &Shared,
        folder: &Path,
        name: &str,
    ) -> Result<Self, Error> {
        let console = folder.join(format!("{name}.log"));
        let mut qemu = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "max",
                "-machine",
                "q35",
                "-m",
                "1024",
            ])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-monitor",
                "none",
                "-nic",
                "none",
                "-no-reboot",
            ])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-append", "console=ttyS0 quiet panic=-1"])
            .args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=port"])
            .args(["-device", "virtserialport,chardev=port,name=stp"])
            .arg("-kernel")
            .arg(&image.kernel)
            .arg("-initrd")
            .arg(&image.initial)
            .args(shared.devices())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("qemu-system-x86_64: {error}"))?;
        let input = qemu.stdin.take().ok_or("no input of QEMU")?;
        let output = qemu.stdout.take().ok_or("no output of QEMU")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line)
                    .trim_end_matches('\r')
                    .to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            name: name.to_owned(),
            qemu,
            input,
            lines,
            number: 0,
        })
    }

    /// Its name as a system.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits for the shell: what is written before it listens would be lost.
    pub(super) fn ready(&mut self) -> Result<(), Error> {
        let end = Instant::now() + HANG;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains("stp-guest-is-ready") => break,
                Ok(_) => {}
                Err(_) => {
                    let name = &self.name;
                    return Err(format!(
                        "guest {name} does not come up: see {name}.log in target/vm"
                    )
                    .into());
                }
            }
        }
        self.ok(&format!("export STP_SYSTEM={}", self.name))
            .map(drop)
    }

    /// Runs a command and insists on success; its output.
    pub(super) fn ok(&mut self, command: &str) -> Result<String, Error> {
        let (code, output) = self.ask(command, HANG)?;
        if code != 0 {
            return Err(format!(
                "guest {}: `{command}`: exit code {code}\n{output}",
                self.name
            )
            .into());
        }
        Ok(output)
    }

    /// Runs a command again and again until it succeeds.
    pub(super) fn until(&mut self, command: &str) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            let (code, output) = self.ask(command, HANG)?;
            if code == 0 {
                return Ok(());
            }
            if start.elapsed() > HANG {
                let logs = self
                    .ask("tail -n 5 /tmp/* 2>/dev/null | cut -c1-300", HANG)?
                    .1;
                return Err(format!(
                    "guest {}: `{command}` never succeeds\n{output}\n{logs}",
                    self.name
                )
                .into());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Starts a command beside; its output goes to `/tmp/NAME`, its exit code to `/tmp/NAME.code`.
    pub(super) fn start(&mut self, name: &str, command: &str) -> Result<(), Error> {
        let line = format!(
            "rm -f /tmp/{name}.code; {{ ( {command} ) > /tmp/{name} 2>&1 </dev/null; echo $? > /tmp/{name}.code; }} &"
        );
        self.ok(&line).map(drop)
    }

    /// Starts the shared engine; again while the name still belongs to an earlier life of this guest.
    pub(super) fn engine(&mut self) -> Result<(), Error> {
        self.start("engine", "until stp engine; do sleep 1; done")?;
        self.until("ls /run/stp/*/*/engine.sock")
    }

    /// Ends it as a power cut does.
    pub(super) fn kill(mut self) {
        self.end();
    }

    /// Ends it as a shutdown does.
    pub(super) fn power_off(mut self) -> Result<(), Error> {
        self.input.write_all(b"poweroff -f\n")?;
        let start = Instant::now();
        while self.qemu.try_wait()?.is_none() {
            if start.elapsed() > HANG {
                return Err(format!("guest {} does not power off", self.name).into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// One question to the shell: exit code and output.
    fn ask(&mut self, command: &str, limit: Duration) -> Result<(i32, String), Error> {
        self.number += 1;
        let number = self.number;
        // The mark is put together by the shell, so that an echo of the question is no answer.
        // Standard input is the line of questions: no command may eat it.
        let line =
            format!("{{ {command}\n}} </dev/null\ncode=$?; echo; echo {MARK}'' {number} $code\n");
        self.input.write_all(line.as_bytes())?;
        self.input.flush()?;
        let end = Instant::now() + limit;
        let mut output = String::new();
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(line) => match line
                    .strip_prefix(MARK)
                    .map(|rest| rest.split_whitespace().collect::<Vec<_>>())
                {
                    Some(words) if words.len() == 2 && words[0] == number.to_string() => {
                        return Ok((words[1].parse()?, output.trim().to_owned()));
                    }
                    // The answer to an earlier question that was given up.
                    Some(_) => output.clear(),
                    None => {
                        output.push_str(&line);
                        output.push('\n');
                    }
                },
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("guest {}: `{command}` hangs\n{output}", self.name).into());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(
                        format!("guest {}: gone during `{command}`\n{output}", self.name).into(),
                    );
                }
            }
        }
    }

    fn end(&mut self) {
        // Gone already is as good.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end();
    }
}
