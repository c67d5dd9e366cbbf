package machine

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup hierarchy of the host. A machine with version 1 has many, one with version 2
// has one, and Debian's "hybrid" has both.
type hierarchy struct {
	at      string // where the host has it mounted
	kind    string // cgroup or cgroup2
	options string // version 1: its controllers, as mount takes them
}

func hierarchies() ([]hierarchy, error) {
	file, err := os.Open("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var found []hierarchy
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		field := strings.Fields(lines.Text())
		if len(field) < 4 || (field[2] != "cgroup" && field[2] != "cgroup2") {
			continue
		}
		h := hierarchy{at: field[1], kind: field[2]}
		if h.kind == "cgroup" {
			h.options = controllers(field[3])
		}
		found = append(found, h)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted; mount one at /sys/fs/cgroup")
	}
	return found, nil
}

// controllers are the options of a version 1 mount that say which hierarchy it is.
func controllers(options string) string {
	var named, rest []string
	for _, option := range strings.Split(options, ",") {
		switch {
		case strings.HasPrefix(option, "name="):
			named = append(named, "none", option)
		case slices.Contains([]string{"rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec"}, option),
			strings.Contains(option, "="), option == "xattr", option == "clone_children":
		default:
			rest = append(rest, option)
		}
	}
	return strings.Join(append(named, rest...), ",")
}

// unified says whether version 2 holds the controllers: then a cgroup with children may have no processes.
func unified(all []hierarchy) bool { return len(all) == 1 && all[0].kind == "cgroup2" }

// of is a machine's cgroup, named by its folder and its cluster's: names of nodes recur.
func (h hierarchy) of(m Machine) string {
	return filepath.Join(h.at, "weft-"+filepath.Base(filepath.Dir(m.Dir))+"-"+m.Name)
}

// enterCgroups makes this machine's cgroup in each hierarchy and moves this process into them.
func enterCgroups(m Machine) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := h.of(m)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
		// A new cpuset allows nothing at all, and refuses processes until it does.
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
			value, err := os.ReadFile(filepath.Join(h.at, name))
			if h.kind == "cgroup" && err == nil {
				if err := os.WriteFile(filepath.Join(dir, name), value, 0); err != nil {
					return fmt.Errorf("fill cpuset: %w", err)
				}
			}
		}
		if unified(all) {
			if err := delegate(h.at); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("enter cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// delegate lets the children of a version 2 cgroup use every controller that it has itself.
func delegate(dir string) error {
	has, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(has)) {
		order := []byte("+" + controller)
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), order, 0); err != nil {
			return fmt.Errorf("delegate cgroup controller %s: %w", controller, err)
		}
	}
	return nil
}

// mountCgroups mounts the hierarchies anew: in a cgroup namespace they begin at the machine's own cgroup.
func mountCgroups(all []hierarchy) error {
	if unified(all) {
		if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mount cgroup2: %w", err)
		}
		const leaf = "/sys/fs/cgroup/init"
		if err := os.Mkdir(leaf, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(leaf+"/cgroup.procs", []byte("0"), 0); err != nil {
			return err
		}
		return delegate("/sys/fs/cgroup")
	}
	if err := unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount over /sys/fs/cgroup: %w", err)
	}
	for _, h := range all {
		at := filepath.Join("/sys/fs/cgroup", filepath.Base(h.at))
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(h.kind, at, h.kind, 0, h.options); err != nil {
			return fmt.Errorf("mount %s hierarchy %q: %w", h.kind, h.options, err)
		}
	}
	return nil
}

// removeCgroups removes what a machine that has ended leaves in the hierarchies.
func removeCgroups(m Machine) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		var dirs []string
		err := filepath.WalkDir(h.of(m), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		if err != nil {
			return err
		}
		slices.Reverse(dirs) // children first
		for _, dir := range dirs {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
		}
	}
	return nil
}

// Cgroups lists the cgroups on the host that belong to machines of a test cluster.
func Cgroups() ([]string, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, h := range all {
		dirs, err := filepath.Glob(filepath.Join(h.at, "weft-cluster*"))
		if err != nil {
			return nil, err
		}
		found = append(found, dirs...)
	}
	return found, nil
}
