//! Sets a network sysctl in the namespace that the calling thread is in.
//!
//! A container's `/proc/sys` is mounted read-only. A procfs of our own is not: it is mounted nowhere,
//! a descriptor alone, so nobody else sees it; and what it shows below `sys/net` is, as always, what
//! belongs to the network namespace of the thread that looks.

use std::{fs, io, io::Write, os::fd::OwnedFd, path::Path, sync::OnceLock};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};

/// Writes `value` to `/proc/sys/NAME`.
pub(crate) fn set(name: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new("/proc/sys").join(name), value) {
        // Mounted read-only; or so by a security module.
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::ROFS | Errno::ACCESS | Errno::PERM)
            ) =>
        {
            set_in(own()?, name, value)
        }
        result => result,
    }
}

fn set_in(procfs: &OwnedFd, name: &str, value: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(procfs, format!("sys/{name}"), flags, Mode::empty())?;
    fs::File::from(file).write_all(value.as_bytes())
}

/// The procfs of our own. Made once; a kernel or a profile that forbids it goes on forbidding it.
fn own() -> io::Result<&'static OwnedFd> {
    static OWN: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    OWN.get_or_init(mount)
        .as_ref()
        .map_err(|errno| io::Error::from(*errno))
}

fn mount() -> Result<OwnedFd, Errno> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NAME: &str = "net/ipv4/tcp_migrate_req";

    #[test]
    fn a_procfs_of_our_own_sets_the_namespace_of_the_thread_alone() {
        let read = || fs::read_to_string(Path::new("/proc/sys").join(NAME));
        let before = read().unwrap();
        let other = if before.trim() == "1" { "0" } else { "1" };
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            set_in(&mount().unwrap(), NAME, other).unwrap();
            assert_eq!(read().unwrap().trim(), other);
        })
        .join()
        .unwrap();
        assert_eq!(read().unwrap(), before, "another namespace was changed");
    }
}
