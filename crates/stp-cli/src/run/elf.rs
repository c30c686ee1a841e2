//! ELF files: as much of them as `stp run` must know before it starts one or loads one.
//!
//! - What a file claims of itself is bounded and checked; a damaged one is left to the kernel, which says so.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bounds for what a file may claim of itself.
const HEADERS_MAX: usize = 4096;
const NAMES_MAX: usize = 1 << 20;
/// The longest name of a loader, and the longest section that is read whole.
const TEXT_MAX: usize = 256;

/// What of an ELF file matters here.
#[derive(Debug)]
pub(super) struct Elf {
    /// It is for this machine.
    pub(super) native: bool,
    /// What loads it.
    pub(super) loader: Option<Vec<u8>>,
    pub(super) sections: Vec<Section>,
}

/// One section.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: Vec<u8>,
    pub(super) at: u64,
    pub(super) len: u64,
}

const ELF64: bool = cfg!(target_pointer_width = "64");
const PT_INTERP: u64 = 3;

impl Elf {
    /// Whether it has a section of this name.
    pub(super) fn has(&self, name: &[u8]) -> bool {
        self.sections.iter().any(|section| section.name == name)
    }

    /// `None` if it is damaged: the kernel will say so.
    pub(super) fn read(file: &File, head: &[u8]) -> io::Result<Option<Self>> {
        let wide = head.get(4) == Some(&2);
        let little = head.get(5) == Some(&1);
        let number = |bytes: &[u8], at: usize, len: usize| -> Option<u64> {
            let bytes = bytes.get(at..at + len)?;
            let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
            Some(if little {
                bytes.iter().rev().fold(0, fold)
            } else {
                bytes.iter().fold(0, fold)
            })
        };
        let parse = || -> Option<(u64, [u64; 7])> {
            let machine = number(head, 18, 2)?;
            let word = if wide { 8 } else { 4 };
            let (phoff, shoff) = (24 + word, 24 + 2 * word);
            let rest = shoff + word + 6;
            Some((
                machine,
                [
                    number(head, phoff, word)?,
                    number(head, shoff, word)?,
                    number(head, rest, 2)?,
                    number(head, rest + 2, 2)?,
                    number(head, rest + 4, 2)?,
                    number(head, rest + 6, 2)?,
                    number(head, rest + 8, 2)?,
                ],
            ))
        };
        let Some((machine, [phoff, shoff, phsize, phcount, shsize, shcount, names_at])) = parse()
        else {
            return Ok(None);
        };
        let native = machine == native_machine() && wide == ELF64;
        let table = |at: u64, size: u64, count: u64| -> io::Result<Vec<u8>> {
            let count = count.min(HEADERS_MAX as u64);
            read_some(file, at, (size * count).min(NAMES_MAX as u64) as usize)
        };
        let word = if wide { 8 } else { 4 };
        let mut loader = None;
        let programs = table(phoff, phsize, phcount)?;
        for header in programs.chunks_exact((phsize as usize).max(1)) {
            if number(header, 0, 4) == Some(PT_INTERP) {
                let (at, size) = if wide { (8, 32) } else { (4, 16) };
                let at = number(header, at, word).unwrap_or(0);
                let size = number(header, size, word).unwrap_or(0).min(TEXT_MAX as u64);
                loader = Some(read_some(file, at, size as usize)?);
            }
        }
        let mut sections = Vec::new();
        let headers = table(shoff, shsize, shcount)?;
        let headers: Vec<&[u8]> = headers.chunks_exact((shsize as usize).max(1)).collect();
        if let Some(names) = headers.get(names_at as usize) {
            let place = if wide { (24, 32) } else { (16, 20) };
            let at = number(names, place.0, word).unwrap_or(0);
            let size = number(names, place.1, word)
                .unwrap_or(0)
                .min(NAMES_MAX as u64);
            let names = read_some(file, at, size as usize)?;
            for header in headers {
                let at = number(header, 0, 4).unwrap_or(0) as usize;
                let name = names.get(at..).unwrap_or_default();
                let name = name.split(|b| *b == 0).next().unwrap_or_default();
                let (at, len) = place;
                sections.push(Section {
                    name: name.to_vec(),
                    at: number(header, at, word).unwrap_or(0),
                    len: number(header, len, word).unwrap_or(0),
                });
            }
        }
        Ok(Some(Self {
            native,
            loader,
            sections,
        }))
    }
}

/// As many bytes as there are.
fn read_some(file: &File, at: u64, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let mut filled = 0;
    while filled < count {
        match file.read_at(&mut bytes[filled..], at.saturating_add(filled as u64))? {
            0 => break,
            more => filled += more,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The number of this machine in ELF files: this very program's.
fn native_machine() -> u64 {
    let mut head = [0; 20];
    let read = File::open("/proc/self/exe").and_then(|file| file.read_exact_at(&mut head, 0));
    match read {
        Ok(()) => u64::from(u16::from_ne_bytes([head[18], head[19]])),
        Err(_) => 0,
    }
}

/// What the section of this name holds; `None` if the file is no ELF file or has none.
pub(super) fn section(path: &Path, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let file = File::open(path)?;
    let head = read_some(&file, 0, TEXT_MAX)?;
    if !head.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    let Some(elf) = Elf::read(&file, &head)? else {
        return Ok(None);
    };
    let Some(found) = elf.sections.iter().find(|section| section.name == name) else {
        return Ok(None);
    };
    let len = found.len.min(TEXT_MAX as u64) as usize;
    read_some(&file, found.at, len).map(Some)
}
