//! What a lab needs of the machine. In: nothing. Out: nothing, or one line that says what is
//! missing and how to get it; nothing is left behind either way.

use std::{path::Path, process::Command};

use super::{
    cni,
    family::{Family, IpFamily},
    netns, programs,
};

/// Checks before anything is made.
pub(crate) fn check(mesh: bool, families: IpFamily) -> Result<(), String> {
    linux_and_root()?;
    namespaces()?;
    if families.list().contains(&Family::V6) && !Path::new("/proc/net/if_inet6").exists() {
        return Err(
            "this kernel has no IPv6 (booted with ipv6.disable=1?): use --ip-family ipv4".into(),
        );
    }
    let nft = Command::new("nft").args(["list", "tables"]).output();
    let nft =
        nft.map_err(|error| format!("nft can't be run ({error}): apt-get install nftables"))?;
    if !nft.status.success() {
        let why = String::from_utf8_lossy(&nft.stderr);
        return Err(format!(
            "this kernel has no nf_tables (nft: {}): use one built with CONFIG_NF_TABLES",
            why.trim()
        ));
    }
    let programs = std::env::current_exe().map_err(|e| format!("can't find my own path: {e}"))?;
    let programs = programs.parent().unwrap_or(Path::new("/"));
    let path = cni::search_path(programs);
    for plugin in ["bridge", "host-local"] {
        if cni::find(&path, plugin).is_none() {
            let looked: Vec<_> = path.iter().map(|p| p.display().to_string()).collect();
            return Err(format!(
                "CNI plugin {plugin} not found in {}: apt-get install containernetworking-plugins",
                looked.join(", ")
            ));
        }
    }
    if mesh {
        for program in programs::PROGRAMS {
            let file = programs.join(program);
            if !file.is_file() {
                return Err(format!(
                    "{} is missing: it belongs beside weft (make build), or use --no-mesh for a \
                     lab of plain pods",
                    file.display()
                ));
            }
        }
    }
    Ok(())
}

/// What every command on a lab needs.
pub(crate) fn linux_and_root() -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        return Err("the lab is made of network namespaces: it runs on Linux only".into());
    }
    if !nix::unistd::geteuid().is_root() {
        return Err("the lab makes network namespaces: run it as root (sudo)".into());
    }
    Ok(())
}

fn namespaces() -> Result<(), String> {
    use nix::sched::{CloneFlags, unshare};
    let probe = || unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS);
    let made = std::thread::scope(|scope| scope.spawn(probe).join());
    match made {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!(
            "network namespaces can't be made here ({error}): the lab needs CAP_SYS_ADMIN, in a \
             container --privileged"
        )),
        Err(_) => Err(format!("can't look into {}", netns::DIR)),
    }
}
