package machine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// path holds the programs of the host and, first, those that the harness brings.
const path = BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

const stageVariable = "WEFT_CLUSTER_MACHINE_STAGE"

// IsInit says whether this process was started to be process 1 of a machine; if so, main must call Init.
func IsInit() bool { return os.Args[0] == arg0 && len(os.Args) == 3 }

// Init is process 1 of a machine. It returns only on an error.
func Init() error {
	m := Machine{Dir: os.Args[1], Name: os.Args[2]}
	if os.Getenv(stageVariable) == "" {
		return m.joinCgroups()
	}
	if err := os.Unsetenv(stageVariable); err != nil {
		return err
	}
	// The socket is made under its path on the host, before that disappears.
	socket := filepath.Join(m.Dir, controlSocket)
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := m.makeRoot(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(m.Name)); err != nil {
		return fmt.Errorf("set host name %s: %w", m.Name, err)
	}
	// Taken and dropped; ignored they would be ignored by every unit, too.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	supervisor := newSupervisor()
	go supervisor.reap()
	return serve(listener, supervisor)
}

// joinCgroups is the first stage: it enters the machine's cgroups, makes them the root of a cgroup namespace,
// and starts over. A namespace is a thread's own until exec gives the thread's to the whole process.
func (m Machine) joinCgroups() error {
	runtime.LockOSThread()
	if err := enterCgroups(m); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.Setenv(stageVariable, "root"); err != nil {
		return err
	}
	return syscall.Exec(self, os.Args, os.Environ())
}
