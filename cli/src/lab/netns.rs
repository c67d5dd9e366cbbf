//! Network namespaces: made, entered, listed and removed, under the names that `ip netns` shows.
//!
//! A thread that enters a namespace ends there; no thread of a runtime ever changes its own.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

/// Where `ip netns` keeps its names.
pub(crate) const DIR: &str = "/run/netns";
/// Says that weft made the mount at [`DIR`] and so has to remove it.
const MOUNT_MARK: &str = ".weft-netns-mount";
/// Whether new links ask whether somebody else has their IPv6 addresses.
const ACCEPT_DAD: &str = "/proc/sys/net/ipv6/conf/default/accept_dad";

/// The path of a named namespace.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Makes [`DIR`] a shared mount as `ip netns add` does, so that both may be used together.
/// `marks` is a folder that outlives the lab's own.
pub(crate) fn prepare(marks: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(DIR).with_context(|| format!("can't make {DIR}"))?;
    let none = None::<&str>;
    let share = || mount(none, DIR, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    if share().is_ok() {
        return Ok(());
    }
    mount(
        Some(DIR),
        DIR,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .with_context(|| format!("can't mount {DIR}"))?;
    fs::write(marks.join(MOUNT_MARK), "")?;
    share().with_context(|| format!("can't share the mount {DIR}"))
}

/// Undoes [`prepare`] if nobody uses the folder any more.
pub(crate) fn unprepare(marks: &Path) {
    let mark = marks.join(MOUNT_MARK);
    if mark.exists() && list().is_empty() && umount2(DIR, MntFlags::empty()).is_ok() {
        let _ = fs::remove_file(mark);
        let _ = fs::remove_dir(DIR);
    }
}

/// Makes a namespace with its loopback up.
pub(crate) fn create(name: &str) -> anyhow::Result<()> {
    let path = path(name);
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("can't make the network namespace {name}"))?;
    let made = std::thread::scope(|scope| {
        scope
            .spawn(|| -> io::Result<()> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                // Nobody else has a lab's addresses: they are of use at once, and not after the
                // second that it takes to ask around. There is no such file where IPv6 is off.
                let _ = fs::write(ACCEPT_DAD, "0");
                let none = None::<&str>;
                mount(
                    Some("/proc/thread-self/ns/net"),
                    &path,
                    none,
                    MsFlags::MS_BIND,
                    none,
                )?;
                Ok(())
            })
            .join()
            .expect("the closure does not panic")
    });
    if let Err(error) = made {
        let _ = fs::remove_file(&path);
        return Err(error).with_context(|| format!("can't make the network namespace {name}"));
    }
    super::links::loopback_up(name).with_context(|| format!("loopback of {name}"))
}

/// Removes a namespace's name; it ends with its last process. No error if there is none.
pub(crate) fn remove(name: &str) -> io::Result<()> {
    let path = path(name);
    // Repeated: `ip netns add` by someone else may have stacked a second mount upon ours.
    while umount2(&path, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All named namespaces of this machine.
pub(crate) fn list() -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIR) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

/// What tells a namespace from others in `/proc/PID/ns/net`.
pub(crate) fn inode(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|meta| meta.ino())
}

/// Runs `work` on a thread of its own inside a namespace. Processes that it starts and sockets
/// that it makes stay there.
pub(crate) fn run<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = fs::File::open(path(name))
        .map_err(|e| io::Error::new(e.kind(), format!("network namespace {name}: {e}")))?;
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Connects from inside a namespace.
pub(crate) async fn connect(name: &str, to: SocketAddr) -> io::Result<tokio::net::TcpStream> {
    let socket = run(name, || {
        let domain = socket2::Domain::for_address(to);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        io::Result::Ok(socket)
    })??;
    tokio::net::TcpSocket::from_std_stream(socket.into())
        .connect(to)
        .await
}

/// Sets a sysctl (`net/ipv4/ip_forward`) of a namespace.
pub(crate) fn sysctl(name: &str, settings: &[(&str, &str)]) -> anyhow::Result<()> {
    run(name, || {
        for (key, value) in settings {
            fs::write(Path::new("/proc/sys").join(key), value)
                .with_context(|| format!("{name}: can't set {key} to {value}"))?;
        }
        Ok(())
    })?
}
