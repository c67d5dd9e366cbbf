package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// BinDir is where a machine finds the programs that the harness built; the host's folder is a link in the
// machine's folder.
const BinDir = "/opt/weft-cluster/bin"

// binLink, in the machine's folder, points to the host's folder of programs.
const binLink = "bin"

// SetPrograms says which of the host's folders the machine sees as BinDir. It takes effect at Start.
func (m Machine) SetPrograms(dir string) error {
	if err := os.MkdirAll(m.Dir, 0o755); err != nil {
		return err
	}
	link := filepath.Join(m.Dir, binLink)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(dir, link)
}

// Files of the host's /etc that programs look up; the rest of /etc is the machine's own.
var etc = []string{"alternatives", "group", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "nsswitch.conf",
	"passwd", "protocols", "services"}

// What the kubelet insists on and no namespace holds: it would set these on the whole host. A file with the
// wanted value in its place satisfies it, and leaves the host alone.
var wantedSysctls = map[string]string{
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
}

// makeRoot gives the machine its own tree of mounts and cuts it off from the host's.
func (m Machine) makeRoot() error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	// Nothing that is mounted from here on may reach the host, and nothing of the host may reach us.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root := m.Root()
	if err := bind(root, root, false); err != nil { // pivot_root wants a mount
		return err
	}
	for _, name := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"} {
		if err := share(root, name); err != nil {
			return err
		}
	}
	for _, name := range etc {
		if err := share(root, filepath.Join("/etc", name)); err != nil {
			return err
		}
	}
	if err := bind("/dev", filepath.Join(root, "/dev"), false); err != nil {
		return err
	}
	programs, err := os.Readlink(filepath.Join(m.Dir, binLink))
	if err != nil {
		return err
	}
	if err := bind(programs, filepath.Join(root, BinDir), true); err != nil {
		return err
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n", m.Name)
	if err := os.WriteFile(filepath.Join(root, "etc/hosts"), []byte(hosts), 0o644); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	// The new root over the old one, then the old one away, with all that is mounted in it.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the host's mounts: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	// As systemd does it: without peer groups, volumes with mountPropagation HostToContainer fail.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	for _, mount := range []struct{ kind, at, data string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"bpf", "/sys/fs/bpf", ""},
		{"tmpfs", "/run", "mode=755"}, {"tmpfs", "/tmp", "mode=1777"},
	} {
		if err := os.MkdirAll(mount.at, 0o755); err != nil && mount.at != "/sys/fs/bpf" {
			return err
		}
		err := unix.Mount(mount.kind, mount.at, mount.kind, unix.MS_NOSUID|unix.MS_NODEV, mount.data)
		if err != nil && mount.kind != "bpf" { // a kernel may lack BPF; what needs it says so itself
			return fmt.Errorf("mount %s: %w", mount.at, err)
		}
	}
	if err := mountCgroups(all); err != nil {
		return err
	}
	for _, dir := range []string{logDir, "/run/lock", "/run/netns", "/root", "/etc/cni/net.d", "/opt/cni/bin"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.Symlink("/run", "/var/run"); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return hideSysctls()
}

// share shows a path of the host in the machine, read-only: a link as a link, everything else as a mount.
func share(root, name string) error {
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not every distribution has each
	}
	if err != nil {
		return err
	}
	inside := filepath.Join(root, name)
	if info.Mode()&fs.ModeSymlink == 0 {
		return bind(name, inside, true)
	}
	target, err := os.Readlink(name)
	if err != nil {
		return err
	}
	if err := os.Symlink(target, inside); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func bind(from, to string, readOnly bool) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(to, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(to), 0o755); err == nil {
		err = touch(to)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	if !readOnly {
		return nil
	}
	if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", to, err)
	}
	return nil
}

func touch(name string) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return file.Close()
}

func hideSysctls() error {
	const dir = "/run/weft-cluster/sysctl"
	for name, value := range wantedSysctls {
		at := filepath.Join("/proc/sys", name)
		if _, err := os.Stat(at); err != nil {
			continue
		}
		file := filepath.Join(dir, strings.ReplaceAll(name, "/", "."))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := bind(file, at, false); err != nil {
			return err
		}
	}
	return nil
}
