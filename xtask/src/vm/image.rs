//! What a guest boots: Debian's cloud kernel and an initial file system with busybox and our static programs.
//!
//! - Packages come from where this machine's apt gets its own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::needs;
use crate::repo::{self, Error};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const INIT: &str = include_str!("init.sh");

pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initial: PathBuf,
}

/// Installs QEMU and the tools for an initial file system.
pub(super) fn install() -> Result<(), Error> {
    let tools = [
        ("busybox", "busybox-static"),
        ("cpio", "cpio"),
        ("modprobe", "kmod"),
        ("xz", "xz-utils"),
        ("zstd", "zstd"),
    ];
    let mut packages: Vec<&str> = tools
        .iter()
        .filter(|(program, _)| repo::find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !packages.contains(&"busybox-static") && !is_static_busybox() {
        packages.push("busybox-static");
    }
    let qemu = repo::find_program("qemu-system-x86_64").is_some();
    if packages.is_empty() && qemu {
        return Ok(());
    }
    if !repo::is_root() {
        let qemu = if qemu { "" } else { " qemu-system-x86" };
        return Err(format!(
            "not root: run: sudo apt-get install {}{qemu}",
            packages.join(" ")
        )
        .into());
    }
    needs::apt(&["-qq", "update"]);
    let mut install = vec!["-qq", "install", "-y", "--no-install-recommends"];
    if !packages.is_empty() {
        install.extend(&packages);
        needs::apt(&install);
    }
    if !qemu {
        let plain = [
            "-qq",
            "install",
            "-y",
            "--no-install-recommends",
            "qemu-system-x86",
        ];
        if !needs::apt(&plain) {
            install_from_backports()?;
        }
    }
    match repo::find_program("qemu-system-x86_64") {
        Some(_) => Ok(()),
        None => Err("qemu-system-x86_64 cannot be installed here".into()),
    }
}

/// A machine whose other QEMU packages are backports refuses the release's own: take the backport too, from the
/// same place as everything else, by a list of sources that only these two calls see.
fn install_from_backports() -> Result<(), Error> {
    let release = std::fs::read_to_string("/etc/os-release")?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let codename = codename.ok_or("/etc/os-release names no VERSION_CODENAME")?;
    let uri = sources_uri().ok_or("no address of packages in /etc/apt")?;
    let list = std::env::temp_dir().join(format!("stp-backports-{}.list", std::process::id()));
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    std::fs::write(
        &list,
        format!("deb [signed-by={keyring}] {uri} {codename}-backports main\n"),
    )?;
    let option = format!("Dir::Etc::sourcelist={}", list.display());
    let target = format!("{codename}-backports");
    needs::apt(&["-qq", "-o", &option, "update"]);
    let done = needs::apt(&[
        "-qq",
        "-o",
        &option,
        "install",
        "-y",
        "--no-install-recommends",
        "-t",
        &target,
        "qemu-system-x86",
    ]);
    std::fs::remove_file(&list)?;
    needs::apt(&["-qq", "update"]);
    if done {
        Ok(())
    } else {
        Err("qemu-system-x86 cannot be installed, from backports neither".into())
    }
}

/// The first address in apt's own lists, old form and new.
fn sources_uri() -> Option<String> {
    let mut paths: Vec<PathBuf> = vec!["/etc/apt/sources.list".into()];
    if let Ok(entries) = std::fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort_by_key(|path| !path.to_string_lossy().contains("debian"));
        paths.extend(more);
    }
    for path in paths.iter().filter(|path| {
        path.extension()
            .is_some_and(|e| e == "list" || e == "sources")
    }) {
        for line in std::fs::read_to_string(path).unwrap_or_default().lines() {
            let line = line.trim();
            if let Some(uris) = line.strip_prefix("URIs:") {
                return uris.split_whitespace().next().map(str::to_owned);
            }
            if line.starts_with("deb ") {
                return line
                    .split_whitespace()
                    .find(|word| word.contains("://"))
                    .map(str::to_owned);
            }
        }
    }
    None
}

/// Builds the programs and the initial file system.
pub(super) fn build(folder: &Path) -> Result<Image, Error> {
    let programs = folder.join("programs");
    let built = repo::cargo()
        .args([
            "build",
            "--locked",
            "--release",
            "--target",
            TRIPLE,
            "--package",
            "stp-cli",
            "--package",
            "stp-tests",
            "--bins",
        ])
        .env("CARGO_TARGET_DIR", &programs)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .status()?;
    if !built.success() {
        return Err(format!("cargo build of the static programs: {built}").into());
    }
    let (kernel, modules, version) = kernel(folder)?;

    let tree = folder.join("tree");
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    for name in ["bin", "proc", "sys", "dev"] {
        std::fs::create_dir_all(tree.join(name))?;
    }
    for name in ["stp", "stp-load"] {
        std::fs::copy(
            programs.join(TRIPLE).join("release").join(name),
            tree.join("bin").join(name),
        )?;
    }
    let busybox = repo::find_program("busybox").ok_or("no busybox")?;
    std::fs::copy(busybox, tree.join("bin/busybox"))?;
    std::fs::write(tree.join("init"), INIT)?;
    tool(Command::new("chmod").arg("755").arg(tree.join("init")))?;
    copy_modules(&modules, &version, &tree)?;

    let initial = folder.join("initial.gz");
    let pack = "cd \"$1\" && find . | cpio -o -H newc --quiet | gzip -1 > \"$2\"";
    tool(
        Command::new("sh")
            .args(["-c", pack, "sh"])
            .arg(&tree)
            .arg(&initial),
    )?;
    Ok(Image { kernel, initial })
}

/// The kernel's file, the folder that holds its `lib/modules`, and its version.
fn kernel(folder: &Path) -> Result<(PathBuf, PathBuf, String), Error> {
    let unpacked = folder.join("kernel");
    if !unpacked.exists() {
        let package = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"]
            .into_iter()
            .find_map(|name| {
                let output = Command::new("apt-cache")
                    .args(["depends", name])
                    .output()
                    .ok()?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                text.lines().find_map(|line| {
                    Some(line.trim().strip_prefix("Depends: linux-image")?.to_owned())
                })
            })
            .ok_or("apt knows no cloud kernel: apt-get update?")?;
        let download = folder.join("download");
        std::fs::create_dir_all(&download)?;
        tool(
            Command::new("apt-get")
                .args(["-qq", "download", &format!("linux-image{package}")])
                .current_dir(&download),
        )?;
        let deb = std::fs::read_dir(&download)?
            .flatten()
            .map(|entry| entry.path())
            .next()
            .ok_or("no package came")?;
        tool(Command::new("dpkg").arg("-x").arg(&deb).arg(&unpacked))?;
        std::fs::remove_dir_all(&download)?;
    }
    let boot = std::fs::read_dir(unpacked.join("boot"))?
        .flatten()
        .map(|entry| entry.file_name());
    let version = boot
        .filter_map(|name| {
            name.to_string_lossy()
                .strip_prefix("vmlinuz-")
                .map(str::to_owned)
        })
        .next()
        .ok_or("the package holds no kernel")?;
    let modules = if unpacked.join("lib/modules").exists() {
        unpacked.clone()
    } else {
        unpacked.join("usr")
    };
    Ok((
        unpacked.join(format!("boot/vmlinuz-{version}")),
        modules,
        version,
    ))
}

/// The disk's driver and what it needs, unpacked, with an index of their own.
fn copy_modules(from: &Path, version: &str, tree: &Path) -> Result<(), Error> {
    let place = format!("lib/modules/{version}");
    tool(
        Command::new(program("depmod")?)
            .arg("-b")
            .arg(from)
            .arg(version),
    )?;
    std::fs::create_dir_all(tree.join(&place))?;
    let mut paths = BTreeSet::new();
    for name in ["virtio_pci", "virtio_blk"] {
        let shown = Command::new(program("modprobe")?)
            .args([
                "-d",
                &from.to_string_lossy(),
                "-S",
                version,
                "--show-depends",
                name,
            ])
            .output()?;
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        paths.extend(
            text.lines()
                .filter_map(|line| Some(PathBuf::from(line.strip_prefix("insmod ")?.trim()))),
        );
    }
    for path in paths {
        let inside = path
            .strip_prefix(from)
            .map_err(|_| format!("{} is elsewhere", path.display()))?;
        let mut target = tree.join(inside);
        let unpack = match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => "xz",
            Some("zst") => "zstd",
            Some("gz") => "gzip",
            _ => "",
        };
        std::fs::create_dir_all(target.parent().ok_or("a module without a folder")?)?;
        if unpack.is_empty() {
            std::fs::copy(&path, &target)?;
        } else {
            target.set_extension("");
            let command = format!("{unpack} -dc \"$1\" > \"$2\"");
            tool(
                Command::new("sh")
                    .args(["-c", &command, "sh"])
                    .arg(&path)
                    .arg(&target),
            )?;
        }
    }
    for name in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        std::fs::copy(from.join(&place).join(name), tree.join(&place).join(name))?;
    }
    tool(
        Command::new(program("depmod")?)
            .arg("-b")
            .arg(tree)
            .arg(version),
    )
}

fn program(name: &str) -> Result<PathBuf, Error> {
    repo::find_program(name).ok_or_else(|| format!("{name} is not installed").into())
}

/// Debian's `busybox` may be linked to libraries that the guest does not have.
fn is_static_busybox() -> bool {
    let listed =
        repo::find_program("busybox").and_then(|path| Command::new("ldd").arg(path).output().ok());
    listed.is_some_and(|output| !output.status.success())
}

/// Runs a tool and insists on success.
fn tool(command: &mut Command) -> Result<(), Error> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "{name}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )
        .into());
    }
    Ok(())
}
