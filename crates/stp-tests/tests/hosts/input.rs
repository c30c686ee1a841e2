//! Bad input: each case is one line that names culprit and remedy, exit code 1, and leaves the storage as it was.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use stp_tests::{Host, Kind, Lab, Net, make_file, skip, skip_part};

use crate::{end, failed_well};

/// First bytes of each copy of the superblock.
const MAGIC: &[u8] = b"STPvol\r\n";

/// Where in a superblock its version stands (`docs/FORMAT.md`).
const VERSION: u64 = 16;

fn file(bytes: Option<(&str, u64)>) -> (Lab, PathBuf) {
    let mut lab = Lab::new("bad input");
    lab.host("alpha", Net::None);
    let [alpha] = lab.hosts();
    let path = alpha.path("thing");
    if let Some((kind, len)) = bytes {
        make_file(&path, 1, if kind == "random" { len } else { 0 });
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(len).unwrap();
        match kind {
            "mbr" => {
                // One Linux partition of 2048 sectors from sector 2048 on.
                let mut entry = [0; 16];
                entry[4] = 0x83;
                entry[8..12].copy_from_slice(&2048u32.to_le_bytes());
                entry[12..].copy_from_slice(&2048u32.to_le_bytes());
                file.write_all_at(&entry, 446).unwrap();
                file.write_all_at(&[0x55, 0xaa], 510).unwrap();
            }
            "gpt" => file.write_all_at(b"EFI PART", 512).unwrap(),
            _ => {}
        }
    }
    (lab, path)
}

/// A formatted volume in a file.
fn group() -> (Lab, PathBuf) {
    let (lab, path) = file(None);
    let [alpha] = lab.hosts();
    alpha
        .stp(["format"])
        .arg(&path)
        .args(["--group", "lab", "--size", "64MiB"])
        .ok();
    (lab, path)
}

/// Offsets of the superblock's copies.
fn superblocks(path: &Path) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap();
    let units = bytes.chunks(4096).enumerate();
    units
        .filter(|(_, unit)| unit.starts_with(MAGIC))
        .map(|(index, _)| index as u64 * 4096)
        .collect()
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    std::fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .write_all_at(bytes, at)
        .unwrap();
}

/// Commands that use a volume all refuse this one, and none changes it.
fn refused(host: &Host, path: &Path, words: &[&str]) {
    let before = std::fs::read(path).unwrap_or_default();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let mut words = words.to_vec();
    words.push(&name);
    for args in [
        &["info"][..],
        &["check"],
        &["engine"],
        &["cat", "-l", "7000"],
        &["ls", "beta:"],
        &["ss", "--all"],
    ] {
        let ran = host.stp(["-V"]).arg(path).args(args).run();
        failed_well(&ran, &words);
    }
    assert!(
        std::fs::read(path).unwrap_or_default() == before,
        "{} was changed",
        path.display()
    );
}

/// `stp format` refuses what holds something, and does not change it.
fn not_formatted(host: &Host, path: &Path, words: &[&str]) {
    let before = std::fs::read(path).unwrap();
    let ran = host
        .stp(["format"])
        .arg(path)
        .args(["--group", "other"])
        .run();
    failed_well(&ran, words);
    assert!(ran.err.contains("--force"), "does not name --force: {ran}");
    assert!(
        std::fs::read(path).unwrap() == before,
        "{} was changed",
        path.display()
    );
}

#[test]
fn a_volume_that_is_missing() {
    let (lab, path) = file(None);
    let [alpha] = lab.hosts();
    refused(alpha, &path, &["no such file"]);
    assert!(!path.exists());
}

#[test]
fn a_volume_that_is_too_small() {
    let (lab, path) = file(Some(("zero", 8192)));
    let [alpha] = lab.hosts();
    refused(alpha, &path, &[]);
    let ran = alpha
        .stp(["format"])
        .arg(path.with_file_name("new"))
        .args(["--group", "lab", "--size", "8KiB"])
        .run();
    failed_well(&ran, &["few"]);
}

#[test]
fn a_file_that_is_no_group() {
    let (lab, path) = file(Some(("random", 64 << 20)));
    let [alpha] = lab.hosts();
    refused(alpha, &path, &[]);
    not_formatted(alpha, &path, &[]);
}

#[test]
fn a_volume_of_another_version() {
    let (lab, path) = group();
    let [alpha] = lab.hosts();
    let copies = superblocks(&path);
    assert_eq!(copies.len(), 2);
    for at in copies {
        overwrite(&path, at + VERSION, &999u16.to_le_bytes());
    }
    refused(alpha, &path, &["version", "999"]);
    not_formatted(alpha, &path, &[]);
}

#[test]
fn one_damaged_superblock_is_told_and_survived() {
    let (lab, path) = group();
    let [alpha] = lab.hosts();
    for (index, at) in superblocks(&path).into_iter().enumerate() {
        overwrite(&path, at + 40, &[0xff; 16]);
        if index == 0 {
            alpha.stp(["info"]).arg(&path).ok();
            let ran = alpha.stp(["check"]).arg(&path).run();
            assert_eq!(ran.code(), 1, "{ran}");
            assert!(
                format!("{}{}", ran.text(), ran.err)
                    .to_lowercase()
                    .contains("superblock"),
                "{ran}"
            );
        }
    }
    refused(alpha, &path, &["superblock"]);
}

#[test]
fn a_volume_that_cannot_be_written() {
    let (lab, path) = group();
    let [alpha] = lab.hosts();
    let before = std::fs::read(&path).unwrap();
    if !rustix::process::geteuid().is_root() {
        return skip(
            "bad input: a read-only volume",
            "not root: no mount of the test's own",
        );
    }
    let program = alpha.stp([""; 0]).program().to_owned();
    let script = "mount --bind \"$2\" \"$2\" && mount -o remount,bind,ro \"$2\" && exec \"$1\" -V \"$2\" cat -l 7000";
    let ran = alpha
        .cmd("sh")
        .args(["-c", script, "sh"])
        .arg(program)
        .arg(&path)
        .run();
    failed_well(&ran, &["thing", "read-only"]);
    // Looking is allowed.
    alpha.stp(["info"]).arg(&path).ok();
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn storage_that_holds_something_else_is_not_formatted() {
    for kind in ["mbr", "gpt"] {
        let (lab, path) = file(Some((kind, 64 << 20)));
        let [alpha] = lab.hosts();
        not_formatted(alpha, &path, &["partition"]);
    }
    let (lab, path) = file(Some(("zero", 64 << 20)));
    let [alpha] = lab.hosts();
    if alpha
        .cmd("sh")
        .args(["-c", "command -v mkfs.ext4"])
        .run()
        .status
        .success()
    {
        alpha.cmd("mkfs.ext4").args(["-q", "-F"]).arg(&path).ok();
        not_formatted(alpha, &path, &["file system"]);
        refused(alpha, &path, &[]);
    } else {
        skip_part(
            "bad input: a file system on the device",
            "mkfs.ext4 is not installed",
        );
    }
}

#[test]
fn a_group_is_not_formatted_again_without_force() {
    let (lab, path) = group();
    let [alpha] = lab.hosts();
    not_formatted(alpha, &path, &["lab"]);
    alpha
        .stp(["format"])
        .arg(&path)
        .args(["--group", "new", "--force"])
        .ok();
    assert!(alpha.stp(["info"]).arg(&path).ok().text().contains("new"));
}

#[test]
fn no_free_seat() {
    let (lab, path) = file(None);
    let [alpha] = lab.hosts();
    alpha
        .stp(["format"])
        .arg(&path)
        .args(["--group", "lab", "--size", "64MiB", "--seats", "2"])
        .ok();
    let names = ["one", "two"];
    let _held: Vec<_> = names
        .iter()
        .map(|name| {
            let mut load = alpha
                .load("serve 7000")
                .env("STP_VOLUME", &path)
                .env("STP_SYSTEM", name)
                .spawn();
            load.wait_out("a listening line", |out| {
                out.contains("listening").then_some(())
            });
            load
        })
        .collect();
    let ran = alpha
        .stp(["-V"])
        .arg(&path)
        .args(["--system", "three", "cat", "-l", "7000"])
        .run();
    failed_well(&ran, &["seat", "thing"]);
}

/// Addresses that lead nowhere, and names that are none.
#[test]
fn wrong_addresses() {
    let Some(lab) = Lab::with("wrong addresses", Kind::File, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    failed_well(&alpha.stp(["cat", "nobody:7000"]).run(), &["nobody"]);
    failed_well(&alpha.stp(["cat", "beta:9"]).run(), &["beta:9", "refused"]);
    failed_well(&alpha.stp(["cat", "other/beta:9"]).run(), &["other"]);
    let long = "x".repeat(100);
    for args in [
        &["cat", &format!("{long}:9")][..],
        &["--system", &long, "cat", "-l", "7000"],
    ] {
        let ran = alpha.stp(args).run();
        assert!(
            matches!(ran.code(), 1 | 2) && ran.err.contains("63"),
            "names the limit: {ran}"
        );
    }
    let mut first = alpha.load("serve 7001").spawn();
    first.wait_out("a listening line", |out| {
        out.contains("listening").then_some(())
    });
    let ran = alpha.stp(["cat", "-l", "7001"]).run();
    failed_well(&ran, &["7001", "in use"]);
    drop(first);
    end(&lab);
}

/// Two hosts call themselves the same: the second is refused while the first lives.
#[test]
fn a_system_name_used_twice() {
    let Some(lab) = Lab::with(
        "a name used twice",
        Kind::File,
        &["alpha", "beta"],
        Net::None,
    ) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let engine = alpha.engine();
    let ran = beta.stp(["--system", "alpha", "engine"]).run();
    failed_well(&ran, &["alpha"]);
    drop(engine);
}

/// The run directory belongs to somebody else, or others may write there.
#[test]
fn a_run_directory_of_another_user() {
    let (lab, path) = group();
    let [alpha] = lab.hosts();
    let theirs = alpha.path("theirs");
    std::fs::create_dir(&theirs).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&theirs, Some(12_345), None).unwrap();
    } else {
        skip_part(
            "bad input: a run directory of another user",
            "not root: cannot make one",
        );
        std::fs::set_permissions(&theirs, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
    }
    let ran = alpha
        .stp(["-V"])
        .arg(&path)
        .args(["--run-dir", "theirs", "cat", "-l", "7000"])
        .run();
    failed_well(&ran, &["theirs"]);
}
