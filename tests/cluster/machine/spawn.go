package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// arg0 is how process 1 of every machine is called; the machine's folder and name follow. Together they are
// how a machine is found again.
const arg0 = "weft-cluster-machine"

// Start starts the machine unless it runs, and returns when it takes orders.
func (m Machine) Start(ctx context.Context) error {
	pid, err := m.PID()
	if err != nil {
		return err
	}
	if pid == 0 {
		if err := m.spawn(); err != nil {
			return fmt.Errorf("machine %s: %w", m.Name, err)
		}
	}
	for {
		if _, err = m.Units(); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("machine %s did not start (%w); see %s", m.Name, err, m.initLog())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (m Machine) initLog() string { return filepath.Join(m.Dir, "init.log") }

func (m Machine) spawn() error {
	if err := os.MkdirAll(m.Root(), 0o755); err != nil {
		return err
	}
	log, err := os.OpenFile(m.initLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := &exec.Cmd{
		Path: self, Args: []string{arg0, m.Dir, m.Name}, Dir: "/",
		Env:    []string{"PATH=" + path},
		Stdout: log, Stderr: log,
		SysProcAttr: &syscall.SysProcAttr{
			Setsid: true,
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
				unix.CLONE_NEWIPC,
		},
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start process 1: %w", err)
	}
	// It outlives us; if it ends first it must not stay behind as a zombie.
	go func() { _ = cmd.Wait() }()
	return nil
}

// PID is process 1 of the machine as the host numbers it; 0 if the machine is not running.
func (m Machine) PID() (int, error) {
	running, err := Running(filepath.Dir(m.Dir))
	return running[m.Name], err
}

// Running lists the machines whose folders lie in dir: process 1 by name.
func Running(dir string) (map[string]int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	found := map[string]int{}
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended meanwhile
		}
		args := bytes.Split(bytes.TrimSuffix(line, []byte{0}), []byte{0})
		if len(args) != 3 || string(args[0]) != arg0 || filepath.Dir(string(args[1])) != dir {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err == nil {
			found[string(args[2])] = pid
		}
	}
	return found, nil
}

// Stop ends the machine as a power cut would, and returns when nothing of it is left but its folder.
func (m Machine) Stop(ctx context.Context) error {
	pid, err := m.PID()
	if err != nil {
		return err
	}
	if pid != 0 {
		// When process 1 of a PID namespace ends, the kernel kills the others first and waits for them.
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill machine %s (process %d): %w", m.Name, pid, err)
		}
	}
	for {
		pid, err = m.PID()
		if err == nil && pid == 0 {
			err = removeCgroups(m)
			if err == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("machine %s does not end: process %d, %w", m.Name, pid, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
