//! What can go wrong with sources, targets and disks.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stp_cli::files::client::{self};
use stp_cli::files::wire::{Code, Kind};

use crate::support::*;

#[test]
fn failures_of_some_do_not_stop_the_others() {
    let two = Two::new();
    fs::create_dir(two.local("src")).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(two.local("src").join(name), name).unwrap();
    }
    fs::create_dir_all(two.served().join("src/b/full")).unwrap();
    let line = line(&two.served());
    assert_eq!(
        cp(&line, TREE, &[&two.local("src"), &"beta:"])
            .unwrap_err()
            .code(),
        1
    );
    assert_eq!(fs::read(two.served().join("src/a")).unwrap(), b"a");
    assert_eq!(fs::read(two.served().join("src/c")).unwrap(), b"c");
    // A file where a folder is to be: everything in it is reported once.
    fs::create_dir_all(two.local("src/d/e")).unwrap();
    fs::write(two.local("src/d/e/f"), b"f").unwrap();
    fs::write(two.served().join("src/d"), b"file").unwrap();
    fs::remove_dir_all(two.served().join("src/b")).unwrap();
    assert!(cp(&line, TREE, &[&two.local("src"), &"beta:"]).is_err());
    assert_eq!(fs::read(two.served().join("src/b")).unwrap(), b"b");
    assert_eq!(fs::read(two.served().join("src/d")).unwrap(), b"file");
    // Missing sources, folders without -r, both ways.
    assert!(
        cp(
            &line,
            PLAIN,
            &[
                &two.local("no"),
                &two.local("src"),
                &two.local("src/a"),
                &"beta:"
            ]
        )
        .is_err()
    );
    assert_eq!(fs::read(two.served().join("a")).unwrap(), b"a");
    fs::create_dir(two.local("got")).unwrap();
    assert!(
        cp(
            &line,
            PLAIN,
            &[&"beta:no", &"beta:src", &"beta:a", &two.local("got")]
        )
        .is_err()
    );
    assert_eq!(names(&two.local("got")), ["a"]);
}

#[test]
fn special_files_are_skipped_in_trees_and_refused_by_name() {
    let two = Two::new();
    fs::create_dir(two.local("src")).unwrap();
    fs::write(two.local("src/f"), b"f").unwrap();
    let fifo = two.local("src/fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let line = line(&two.served());
    cp(&line, TREE, &[&two.local("src"), &"beta:"]).unwrap();
    assert_eq!(names(&two.served().join("src")), ["f"]);
    assert!(cp(&line, PLAIN, &[&fifo, &"beta:"]).is_err());
    assert!(cp(&line, PLAIN, &[&two.local("src/f"), &"beta:src/f/x"]).is_err());
    // A pipe at the target is not opened.
    assert!(cp(&line, PLAIN, &[&"beta:src/f", &fifo]).is_err());
}

#[test]
fn a_read_only_server_takes_nothing_and_gives_everything() {
    let two = Two::new();
    fs::write(two.served().join("f"), b"f").unwrap();
    fs::write(two.local("g"), b"g").unwrap();
    let line = line_to(&two.served(), true);
    let error = cp(&line, PLAIN, &[&two.local("g"), &"beta:"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("read-only"), "{error}");
    assert_eq!(names(&two.served()), ["f"]);
    cp(&line, PLAIN, &[&"beta:f", &two.local("f")]).unwrap();
    assert_eq!(fs::read(two.local("f")).unwrap(), b"f");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let two = Two::new();
    fs::write(two.local("f"), b"f").unwrap();
    fs::write(two.local("g"), b"g").unwrap();
    let line = line(&two.served());
    let f = two.local("f");
    assert_eq!(
        cp(&line, PLAIN, &[&"beta:a", &"beta:b"])
            .unwrap_err()
            .code(),
        2
    );
    assert_eq!(
        cp(&line, PLAIN, &[&f, &two.local("h")]).unwrap_err().code(),
        2
    );
    assert_eq!(
        cp(&line, PLAIN, &[&f, &"beta:b", &two.local("h")])
            .unwrap_err()
            .code(),
        2
    );
    assert_eq!(
        cp(&line, PLAIN, &[&f, &two.local("g"), &"beta:none"])
            .unwrap_err()
            .code(),
        1
    );
    assert_eq!(
        cp(&line, PLAIN, &[&f, &"beta:none/f"]).unwrap_err().code(),
        1
    );
    // The second of two equal names does not replace the first.
    fs::create_dir(two.local("sub")).unwrap();
    fs::write(two.local("sub/f"), b"other").unwrap();
    assert_eq!(
        cp(&line, PLAIN, &[&f, &two.local("sub/f"), &"beta:"])
            .unwrap_err()
            .code(),
        1
    );
    assert_eq!(fs::read(two.served().join("f")).unwrap(), b"f");
}

/// Acts once after so many bytes have gone over the line.
fn at(bytes: u64, act: impl Fn() + Send + Sync + 'static) -> Option<Arc<Hook>> {
    let done = std::sync::Once::new();
    Some(Arc::new(Box::new(move |passed| {
        if passed >= bytes {
            done.call_once(&act);
        }
    })))
}

#[test]
fn sources_that_vanish_or_change_are_reported_and_leave_nothing() {
    let two = Two::new();
    fs::create_dir(two.local("src")).unwrap();
    for name in ["a", "b"] {
        fs::write(two.local("src").join(name), noise(4 << 20, 3)).unwrap();
    }
    let mut line = line(&two.served());
    let (a, b) = (two.local("src/a"), two.local("src/b"));
    line.hook = at(1 << 20, move || {
        // Whichever is on its way is open already; the other is announced.
        let _ = fs::remove_file(&a);
        let _ = fs::remove_file(&b);
    });
    assert!(cp(&line, TREE, &[&two.local("src"), &"beta:"]).is_err());
    assert_eq!(
        names(&two.served().join("src")).len(),
        1,
        "{:?}",
        names(&two.served().join("src"))
    );

    let file = two.local("f");
    fs::write(&file, noise(4 << 20, 4)).unwrap();
    for shrink in [true, false] {
        let change = file.clone();
        line.hook = at(1 << 20, move || {
            let file = File::options().write(true).open(&change).unwrap();
            if shrink {
                file.set_len(3 << 20).unwrap()
            } else {
                file.set_len(8 << 20).unwrap()
            }
        });
        line.passed = Arc::default();
        assert!(cp(&line, PLAIN, &[&file, &"beta:"]).is_err());
        assert_eq!(names(&two.served()), ["src"]);
    }
}

#[test]
fn two_transfers_to_one_target_do_not_mix() {
    let two = Two::new();
    for (name, seed) in [("x", 5), ("y", 6)] {
        fs::write(two.local(name), noise(8 << 20, seed)).unwrap();
    }
    let line = line(&two.served());
    std::thread::scope(|scope| {
        for name in ["x", "y", "x", "y"] {
            let (line, source) = (&line, two.local(name));
            scope.spawn(move || cp(line, PLAIN, &[&source, &"beta:f"]).unwrap());
        }
    });
    assert_eq!(names(&two.served()), ["f"]);
    let result = fs::read(two.served().join("f")).unwrap();
    assert!(result == noise(8 << 20, 5) || result == noise(8 << 20, 6));
}

#[test]
fn a_listing_shows_what_is_there() {
    let two = Two::new();
    make_tree(&two.served().join("t"));
    symlink("/etc/passwd", two.served().join("t/away")).unwrap();
    let line = line(&two.served());
    let entries = client::list(&line, "beta", b"t").unwrap();
    let listed: Vec<&OsStr> = entries.iter().map(|(n, _)| OsStr::from_bytes(n)).collect();
    assert_eq!(listed, names(&two.served().join("t")));
    let meta = |name: &[u8]| {
        entries
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, m)| m.clone())
            .unwrap()
    };
    assert_eq!(meta(b"small").size, 5);
    assert_eq!(
        (meta(b"away").kind, meta(b"away").target),
        (Kind::Link, b"/etc/passwd".to_vec())
    );
    assert_eq!(client::list(&line, "beta", b"t/small").unwrap().len(), 1);
    assert_eq!(
        client::list(&line, "beta", b"t/away").unwrap()[0].1.kind,
        Kind::Link
    );
    assert_eq!(client::list(&line, "beta", b"t/empty").unwrap(), []);
    let error = client::list(&line, "beta", b"none")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("beta:none") && error.contains("no such file"),
        "{error}"
    );
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A small file system of its own, gone at the end.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let done = is_root()
            && std::process::Command::new("mount")
                .args([
                    "-t",
                    "tmpfs",
                    "-o",
                    &format!("size={size},mode=0755"),
                    "none",
                ])
                .arg(at)
                .status()
                .is_ok_and(|s| s.success());
        if !done {
            skip(
                "a_full_disk_keeps_what_came_and_the_rest_is_copied_later",
                "needs root to mount a small tmpfs",
            );
        }
        done.then(|| Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_keeps_what_came_and_the_rest_is_copied_later() {
    let two = Two::new();
    let Some(small) = Small::mount(&two.served().join("small"), "6m") else {
        return;
    };
    fs::create_dir(two.local("src")).unwrap();
    fs::write(two.local("src/big"), noise(8 << 20, 7)).unwrap();
    fs::write(two.local("src/little"), b"fits").unwrap();
    let line = line(&two.served());
    assert_eq!(
        cp(&line, TREE, &[&two.local("src"), &"beta:small"])
            .unwrap_err()
            .code(),
        1
    );
    let there = names(&small.0.join("src"));
    assert!(
        there.contains(&".big.stp-partial".into()) && !there.contains(&"big".into()),
        "{there:?}"
    );
    let grown = std::process::Command::new("mount")
        .args(["-o", "remount,size=20m"])
        .arg(&small.0)
        .status();
    assert!(grown.unwrap().success());
    let rest = cp(&line, TREE, &[&two.local("src"), &"beta:small"]).unwrap();
    assert!(rest.moved < 4 << 20, "{rest:?}");
    assert_eq!(names(&small.0.join("src")), ["big", "little"]);
    same_contents(&two.local("src/big"), &small.0.join("src/big"));
}

#[test]
fn what_may_not_be_read_or_written_is_said() {
    if !is_root() {
        skip(
            "what_may_not_be_read_or_written_is_said",
            "needs root to become somebody else",
        );
        return;
    }
    let two = Two::new();
    fs::create_dir(two.local("src")).unwrap();
    fs::write(two.local("src/open"), b"open").unwrap();
    fs::write(two.local("src/closed"), b"closed").unwrap();
    fs::create_dir(two.local("src/shut")).unwrap();
    fs::write(two.local("src/shut/in"), b"in").unwrap();
    for closed in ["src/closed", "src/shut"] {
        fs::set_permissions(two.local(closed), Permissions::from_mode(0o700)).unwrap();
    }
    // The server's threads inherit from the client's.
    fs::set_permissions(two.served(), Permissions::from_mode(0o777)).unwrap();
    let line = line(&two.served());
    let code = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let nobody = rustix::process::Uid::from_raw(65_534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                assert!(cp(&line, PLAIN, &[&"beta:src/x", &two.local("no")]).is_err());
                cp(&line, TREE, &[&two.local("src"), &"beta:"])
                    .unwrap_err()
                    .code()
            })
            .join()
            .unwrap()
    });
    assert_eq!(code, 1);
    assert_eq!(names(&two.served().join("src")), ["open"]);
}

#[test]
fn a_folder_that_gets_no_time_at_the_server_is_a_failure() {
    if !is_root() {
        skip(
            "a_folder_that_gets_no_time_at_the_server_is_a_failure",
            "needs root to become somebody else",
        );
        return;
    }
    let two = Two::new();
    fs::create_dir(two.local("src")).unwrap();
    fs::write(two.local("src/f"), b"f").unwrap();
    // The folder is there, writable for all, and root's: only root may set its mode and time.
    fs::create_dir(two.served().join("src")).unwrap();
    fs::set_permissions(two.served().join("src"), Permissions::from_mode(0o777)).unwrap();
    let line = line(&two.served());
    // The server's threads inherit from the client's.
    let result = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                let nobody = rustix::process::Uid::from_raw(65_534);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
                cp(&line, TREE, &[&two.local("src"), &"beta:"])
            })
            .join()
            .unwrap()
    });
    assert_eq!(result.unwrap_err().code(), 1);
    assert_eq!(fs::read(two.served().join("src/f")).unwrap(), b"f");
}

#[test]
fn messages_name_the_code() {
    // The codes are part of the protocol.
    assert_eq!(
        (
            Code::NoSpace as u16,
            Code::Checksum as u16,
            Code::Protocol as u16
        ),
        (3, 12, 16)
    );
}
