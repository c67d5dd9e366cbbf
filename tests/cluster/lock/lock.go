// Package lock keeps processes from each other's way by a locked file, which the kernel unlocks when its holder
// ends, however that happens.
package lock

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// poll is how often a lock that another holds is tried again.
const poll = 200 * time.Millisecond

// Take locks the file, which it makes. waiting is called once if another holds it. release gives it back.
func Take(ctx context.Context, name string, waiting func()) (release func(), err error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			file.Close()
			return nil, err
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, ctx.Err()
		case <-time.After(poll):
		}
	}
}
