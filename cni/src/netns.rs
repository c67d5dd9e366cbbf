//! A pod's network namespace, held by descriptor.
//!
//! Flows in: a path as the runtime gives it. Flows out: closures run on a thread that has entered
//! the namespace. Each run takes a thread of its own that ends afterwards, so no pooled thread can
//! ever be left in the wrong namespace.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    thread,
};

use rustix::fs::{Mode, OFlags};

/// `statfs` type of the file system that namespaces live on.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Why a namespace can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// There is no namespace at the path (any more).
    #[error(
        "{0} is no network namespace (any more): is the pod's sandbox gone, or /run/netns mounted here without mountPropagation HostToContainer?"
    )]
    Gone(PathBuf),
    /// It is the namespace of the host or of this process, which rules for pods must never reach.
    #[error(
        "{0} is the network namespace of the host or of the agent itself: refusing to touch it"
    )]
    NotAPod(PathBuf),
    /// A system call failed.
    #[error("can't {what} the network namespace {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The path that it was opened by.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A pod's network namespace. It lives on while this is held, whatever becomes of its path.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    path: PathBuf,
    id: Id,
}

/// What identifies a namespace: device and inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id(u64, u64);

impl NetNs {
    /// Opens the namespace of a pod; the host's and this process's own are refused.
    pub fn open(path: &Path) -> Result<Self, NetNsError> {
        let path = &here(path);
        let failed = |what| {
            move |errno: rustix::io::Errno| NetNsError::Io {
                what,
                path: path.to_owned(),
                source: errno.into(),
            }
        };
        let fd = match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Err(NetNsError::Gone(path.to_owned())),
            opened => opened.map_err(failed("open"))?,
        };
        // A bind mount that has gone leaves an empty ordinary file.
        let kind = rustix::fs::fstatfs(&fd).map_err(failed("examine"))?.f_type;
        if u64::try_from(kind) != Ok(NSFS_MAGIC) {
            return Err(NetNsError::Gone(path.to_owned()));
        }
        let stat = rustix::fs::fstat(&fd).map_err(failed("examine"))?;
        let id = Id(stat.st_dev, stat.st_ino);
        for own in [
            "/proc/self/ns/net",
            "/proc/thread-self/ns/net",
            "/proc/1/ns/net",
        ] {
            if identify(Path::new(own)) == Some(id) {
                return Err(NetNsError::NotAPod(path.to_owned()));
            }
        }
        Ok(Self {
            fd,
            path: path.to_owned(),
            id,
        })
    }

    /// Runs `work` on a thread that is in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
        let failed = |what, source| NetNsError::Io {
            what,
            path: self.path.clone(),
            source,
        };
        thread::scope(|scope| {
            let entered = thread::Builder::new()
                .name("in-pod".into())
                .spawn_scoped(scope, || {
                    rustix::thread::move_into_link_name_space(
                        self.fd.as_fd(),
                        Some(rustix::thread::LinkNameSpaceType::Network),
                    )
                    .map(|()| work())
                })
                .map_err(|source| failed("start a thread for", source))?
                .join();
            match entered {
                Ok(result) => result.map_err(|errno| failed("enter", errno.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Whether a descriptor is one of this namespace.
    pub fn is(&self, descriptor: BorrowedFd<'_>) -> bool {
        rustix::fs::fstat(descriptor).is_ok_and(|stat| Id(stat.st_dev, stat.st_ino) == self.id)
    }

    /// Whether the path that it was opened by still leads to it.
    pub fn is_still_there(&self) -> bool {
        identify(&self.path) == Some(self.id)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The path in this mount namespace. Runtimes say `/var/run`, which on a host leads to `/run`; in a
/// container the two are folders of their own, and the namespaces are in the latter.
fn here(path: &Path) -> PathBuf {
    match path.strip_prefix("/var/run") {
        Ok(rest) if !path.exists() => Path::new("/run").join(rest),
        _ => path.to_owned(),
    }
}

fn identify(path: &Path) -> Option<Id> {
    let stat = rustix::fs::stat(path).ok()?;
    Some(Id(stat.st_dev, stat.st_ino))
}
