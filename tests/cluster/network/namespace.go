package network

import (
	"runtime"

	"github.com/vishvananda/netns"
)

// inNamespace runs a function on a thread that is in the network namespace of a process. The thread is not
// used for anything else afterwards: it ends with its goroutine, which keeps it locked.
func inNamespace(pid int, do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		namespace, err := netns.GetFromPid(pid)
		if err == nil {
			defer namespace.Close()
			err = netns.Set(namespace)
		}
		if err == nil {
			err = do()
		}
		result <- err
	}()
	return <-result
}
