//! `cargo xtask install --prefix DIR`: everything a user needs, in the places where tools look.
//!
//! - `lib/libstp.so.0` is linked here, of the static library, by the C compiler: its symbols are those of
//!   `stp.map`, with versions. `lib/libstp.a` needs what `pkg-config --static` names.
//! - Nothing is written outside the prefix (under `--destdir`, where given).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::repo::{self, Error};

/// What a static link needs besides, as `rustc --print native-static-libs` says for Linux with glibc.
const STATIC_LIBS: &str = "-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc";

/// The library's version: the number of `libstp.so.N`.
const SONAME: &str = "libstp.so.0";

/// What is to be installed, and where.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where it will live.
    pub prefix: PathBuf,
    /// What to put before that now; for packagers.
    pub destdir: Option<PathBuf>,
    /// Of the debug build.
    pub debug: bool,
    /// Header, libraries and pages only.
    pub library_only: bool,
}

/// `cargo xtask install --prefix DIR [--destdir DIR] [--debug] [--library-only]`
///
/// # Errors
/// When something cannot be built or written.
pub fn run(args: &[String]) -> Result<bool, Error> {
    let mut plan = Plan {
        prefix: PathBuf::new(),
        destdir: None,
        debug: false,
        library_only: false,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .map(PathBuf::from)
                .ok_or_else(|| format!("{arg} needs a folder"))
        };
        match arg.as_str() {
            "--prefix" => plan.prefix = value()?,
            "--destdir" => plan.destdir = Some(value()?),
            "--debug" => plan.debug = true,
            "--library-only" => plan.library_only = true,
            other => return Err(format!("no option {other}; see cargo xtask help").into()),
        }
    }
    if plan.prefix.as_os_str().is_empty() {
        return Err("where to? Say --prefix DIR, /usr/local for instance".into());
    }
    plan.prefix = std::path::absolute(&plan.prefix)?;
    for file in install(&plan)? {
        println!("{}", file.display());
    }
    Ok(true)
}

/// Builds and installs; the files that were written.
///
/// # Errors
/// When something cannot be built or written.
pub fn install(plan: &Plan) -> Result<Vec<PathBuf>, Error> {
    let built = build(plan)?;
    let top = match &plan.destdir {
        Some(destdir) => destdir.join(plan.prefix.strip_prefix("/").unwrap_or(&plan.prefix)),
        None => plan.prefix.clone(),
    };
    let capi = repo::root().join("crates/stp-capi");
    let mut files = Vec::new();
    let mut put = |from: &Path, to: &str, mode: u32| -> Result<(), Error> {
        let to = top.join(to);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        }
        // Beside it first: a running program keeps the file that it has.
        let beside = to.with_extension("new");
        fs::copy(from, &beside)
            .and_then(|_| fs::set_permissions(&beside, PermissionsExt::from_mode(mode)))
            .and_then(|()| fs::rename(&beside, &to))
            .map_err(|e| format!("{} -> {}: {e}", from.display(), to.display()))?;
        files.push(to);
        Ok(())
    };
    let archive = built.join("libstp_c.a");
    put(&archive, "lib/libstp.a", 0o644)?;
    let shared = built.join(SONAME);
    link(&archive, &capi.join("stp.map"), &shared)?;
    put(&shared, &format!("lib/{SONAME}"), 0o755)?;
    for header in headers(&capi)? {
        let name = header.strip_prefix(capi.join("include"))?;
        put(&header, &format!("include/{}", name.display()), 0o644)?;
    }
    let mut pages = list(&capi.join("man"))?;
    pages.retain(|page| page.extension().is_some_and(|e| e == "3" || e == "7"));
    for page in pages {
        let section = page.extension().unwrap_or_default().to_string_lossy();
        let name = page.file_name().unwrap_or_default().to_string_lossy();
        put(&page, &format!("share/man/man{section}/{name}"), 0o644)?;
        // The other calls of the page lead to it.
        for call in named(&fs::read_to_string(&page)?) {
            let alias = format!("{call}.{section}");
            if alias != name && section == "3" {
                let beside = built.join("alias.3");
                fs::write(&beside, format!(".so man3/{name}\n"))?;
                put(&beside, &format!("share/man/man3/{alias}"), 0o644)?;
            }
        }
    }
    if !plan.library_only {
        put(&built.join("stp"), "bin/stp", 0o755)?;
        let preload = built.join("libstp_preload.so");
        if preload.exists() {
            put(&preload, "lib/stp/libstp_preload.so", 0o755)?;
        }
    }
    let config = pkg_config(&plan.prefix);
    let written = built.join("stp.pc");
    fs::write(&written, config).map_err(|e| format!("{}: {e}", written.display()))?;
    put(&written, "lib/pkgconfig/stp.pc", 0o644)?;
    let link = top.join("lib/libstp.so");
    let beside = top.join("lib/libstp.so.new");
    let _ = fs::remove_file(&beside);
    std::os::unix::fs::symlink(SONAME, &beside)?;
    fs::rename(&beside, &link)?;
    files.push(link);
    Ok(files)
}

/// Builds what is needed; the folder where it lies.
fn build(plan: &Plan) -> Result<PathBuf, Error> {
    let mut cargo = repo::cargo();
    cargo.args(["build", "--locked", "--package", "stp-capi", "--lib"]);
    if !plan.library_only {
        cargo.args(["--package", "stp-cli", "--bins"]);
        if repo::root().join("crates/stp-preload/Cargo.toml").exists() {
            cargo.args(["--package", "stp-preload"]);
        }
    }
    if !plan.debug {
        cargo.arg("--release");
    }
    if !cargo.status()?.success() {
        return Err("the build failed".into());
    }
    let kind = if plan.debug { "debug" } else { "release" };
    Ok(repo::target_directory()?.join(kind))
}

/// Links the shared library: everything that `map` names, and nothing else to be seen.
fn link(archive: &Path, map: &Path, to: &Path) -> Result<(), Error> {
    // A program that is being started may have the library of before in its search path: it never sees half of one.
    let beside = to.with_extension(format!("new-{}", std::process::id()));
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut cc = Command::new(&compiler);
    cc.args([
        "-shared",
        "-Wl,--gc-sections",
        "-Wl,-z,defs",
        "-Wl,-z,relro,-z,now",
    ])
    .arg(format!("-Wl,-soname,{SONAME}"))
    .arg(format!("-Wl,--version-script={}", map.display()))
    .args(["-o".as_ref(), beside.as_os_str()]);
    for name in exports(&fs::read_to_string(map)?) {
        cc.arg(format!("-Wl,-u,{name}"));
    }
    cc.arg(archive).args(STATIC_LIBS.split_whitespace());
    let output = cc.output().map_err(|e| {
        format!(
            "{}: {e}: a C compiler is needed",
            compiler.to_string_lossy()
        )
    })?;
    if output.status.success() {
        return Ok(fs::rename(&beside, to)?);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("linking {SONAME}: {said}").into())
}

/// The names that a version map exports.
#[must_use]
pub fn exports(map: &str) -> Vec<&str> {
    let global = map.split("global:").nth(1).unwrap_or_default();
    let global = global.split("local:").next().unwrap_or_default();
    global
        .split(';')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect()
}

/// The calls in a page's NAME.
fn named(page: &str) -> Vec<String> {
    let mut lines = page.lines().skip_while(|line| *line != ".SH NAME").skip(1);
    let names = lines.next().and_then(|line| line.split_once(" \\-"));
    let (names, _) = names.unwrap_or_default();
    names.split(", ").map(str::to_owned).collect()
}

fn pkg_config(prefix: &Path) -> String {
    format!(
        "prefix={}\nlibdir=${{prefix}}/lib\nincludedir=${{prefix}}/include\n\n\
         Name: stp\nDescription: Stream sockets whose bytes travel through shared storage\n\
         Version: {}\nLibs: -L${{libdir}} -lstp\nLibs.private: {STATIC_LIBS}\nCflags: -I${{includedir}}\n",
        prefix.display(),
        env!("CARGO_PKG_VERSION"),
    )
}

fn headers(capi: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut headers = Vec::new();
    let mut folders = vec![capi.join("include")];
    while let Some(folder) = folders.pop() {
        for path in list(&folder)? {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "h") {
                headers.push(path);
            }
        }
    }
    headers.sort();
    Ok(headers)
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}
