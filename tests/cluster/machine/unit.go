package machine

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Unit is a program that a machine keeps running.
type Unit struct {
	Name string   `json:"name"`
	Argv []string `json:"argv"` // the first is a path, or a name in the machine's PATH
	Env  []string `json:"env,omitempty"`
}

// UnitStatus is what process 1 knows of a unit.
type UnitStatus struct {
	PID      int `json:"pid"` // in the machine's PID namespace; 0 while it waits to be started again
	Restarts int `json:"restarts"`
}

// restartPause keeps a program that fails at once from taking the processor.
const restartPause = 500 * time.Millisecond

// stopPatience is how long a program that is told to end may take; then it is killed.
const stopPatience = 10 * time.Second

// reapPause is how often process 1 looks for a first child.
const reapPause = 10 * time.Millisecond

type running struct {
	Unit
	UnitStatus
	wanted bool
	ended  chan struct{} // closed when this run of it has ended
}

// supervisor is all that process 1 does: start units, start them again, and take leave of the dead.
type supervisor struct {
	mutex sync.Mutex
	units map[string]*running
}

func newSupervisor() *supervisor { return &supervisor{units: map[string]*running{}} }

// reap waits for every child there is: units, and what was left behind by others (a container's shim).
func (s *supervisor) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			time.Sleep(reapPause) // no child at the moment
			continue
		}
		s.ended(pid, status)
	}
}

func (s *supervisor) ended(pid int, status unix.WaitStatus) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for name, unit := range s.units {
		if unit.PID != pid {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s %s ended: status %d, signal %d\n", time.Now().Format(time.TimeOnly), name,
			status.ExitStatus(), status.Signal())
		unit.PID = 0
		close(unit.ended)
		if unit.wanted {
			time.AfterFunc(restartPause, func() { s.restart(unit) })
		} else {
			delete(s.units, name)
		}
	}
}

func (s *supervisor) restart(unit *running) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if !unit.wanted || unit.PID != 0 || s.units[unit.Name] != unit {
		return
	}
	unit.Restarts++
	if err := s.launch(unit); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", unit.Name, err)
		time.AfterFunc(restartPause, func() { s.restart(unit) })
	}
}

// start starts a unit; one that runs already stays as it is unless it is to run differently.
func (s *supervisor) start(unit Unit) error {
	s.mutex.Lock()
	old := s.units[unit.Name]
	s.mutex.Unlock()
	if old != nil {
		if slices.Equal(old.Argv, unit.Argv) && slices.Equal(old.Env, unit.Env) {
			return nil
		}
		if err := s.stop(unit.Name); err != nil {
			return err
		}
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.units[unit.Name] != nil {
		return fmt.Errorf("unit %s is being started by another; try again", unit.Name)
	}
	made := &running{Unit: unit, wanted: true}
	if err := s.launch(made); err != nil {
		return err
	}
	s.units[unit.Name] = made
	return nil
}

// launch is called with the lock held: reap must not learn of an end before the process is known.
func (s *supervisor) launch(unit *running) error {
	program, err := lookPath(unit.Argv[0])
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(logDir, unit.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	pid, err := syscall.ForkExec(program, unit.Argv, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append([]string{"PATH=" + path, "HOME=/root"}, unit.Env...),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", program, err)
	}
	unit.PID, unit.ended = pid, make(chan struct{})
	return nil
}

// stop ends a unit and returns when it has ended. Only its own process is told: what it started (containers)
// goes on, as under systemd's KillMode=process.
func (s *supervisor) stop(name string) error {
	s.mutex.Lock()
	unit := s.units[name]
	if unit == nil {
		s.mutex.Unlock()
		return nil
	}
	unit.wanted = false
	pid, ended := unit.PID, unit.ended
	if pid == 0 {
		delete(s.units, name)
	}
	s.mutex.Unlock()
	if pid == 0 {
		return nil
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		select {
		case <-ended:
			return nil
		case <-time.After(stopPatience):
		}
	}
	return fmt.Errorf("unit %s does not end, even killed", name)
}

func (s *supervisor) status() map[string]UnitStatus {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	status := map[string]UnitStatus{}
	for name, unit := range maps.All(s.units) {
		status[name] = unit.UnitStatus
	}
	return status
}

func lookPath(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range filepath.SplitList(path) {
		full := filepath.Join(dir, name)
		if info, err := os.Stat(full); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return full, nil
		}
	}
	return "", fmt.Errorf("no program %s in %s", name, path)
}
