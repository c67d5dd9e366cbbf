// Package machine makes a Linux machine out of namespaces: mounts, host name, processes, network, IPC and
// cgroups of its own, and a root folder that shares the host's programs (/usr, read-only) and nothing else that
// can be written. Process 1 supervises what the machine runs, as systemd would.
//
// In: a folder and a name. Out: a running machine, found again by the arguments of its process 1 and by nothing
// that could go stale. A machine has ended when its process 1 has: the kernel then takes every process, mount
// and link of it away, which is why nothing else needs to be undone.
//
//	spawn.go    the host's side: start, find, end
//	init.go     process 1: namespaces, root, then supervision
//	root.go     the mounts
//	cgroups.go  one cgroup a machine in each hierarchy
//	unit.go     the supervised programs
//	control.go  the socket on which the host asks for them
package machine

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
)

// Machine is a machine's place on the host. It may be running or not.
type Machine struct {
	Dir  string // the folder of this machine alone
	Name string // its host name
}

// Root is the machine's root folder as the host sees it.
func (m Machine) Root() string { return filepath.Join(m.Dir, "root") }

// Path is the host's name for a path of the machine.
func (m Machine) Path(inside string) string { return filepath.Join(m.Root(), inside) }

// Log is where a unit's output goes, as the host sees it.
func (m Machine) Log(unit string) string { return m.Path(filepath.Join(logDir, unit+".log")) }

// Command runs a program in all of the machine's namespaces. The machine must be running.
func (m Machine) Command(ctx context.Context, argv ...string) (*exec.Cmd, error) {
	pid, err := m.PID()
	if err != nil {
		return nil, err
	}
	if pid == 0 {
		return nil, fmt.Errorf("machine %s is not running; start it with `make cluster`", m.Name)
	}
	args := []string{"-t", strconv.Itoa(pid), "-m", "-u", "-i", "-n", "-p", "-C", "--"}
	return exec.CommandContext(ctx, "nsenter", append(args, argv...)...), nil
}

const (
	logDir        = "/var/log/weft-cluster"
	controlSocket = "control.sock"
)
