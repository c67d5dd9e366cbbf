package cluster

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"weft.dev/tests/cluster/machine"
)

// endPatience is longer than patience: when a container's file system is unmounted the kernel writes out all that
// the disk below it has still to write, which is what a compiler beside us may have produced in minutes.
const endPatience = 10 * time.Minute

// Down ends the cluster and removes what it made. It looks at what there is, not at what should be: an up that
// was killed at any point leaves nothing that this does not find.
func (c *Cluster) Down(ctx context.Context) error {
	release, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	running, err := machine.Running(c.state)
	if err != nil {
		return err
	}
	// Machines that ended by themselves have left a folder, and their cgroups.
	folders, err := os.ReadDir(c.state)
	if err != nil {
		return err
	}
	for _, folder := range folders {
		if _, found := running[folder.Name()]; !found {
			running[folder.Name()] = 0
		}
	}
	c.say("ending %d machine(s)", len(running))
	group, stopping := errgroup.WithContext(ctx)
	for _, name := range slices.Sorted(maps.Keys(running)) {
		group.Go(func() error { return c.machine(name).Stop(stopping) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if len(running) > 0 { // else the link is another's
		if err := c.segment.Disconnect(); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(c.state); err != nil {
		return fmt.Errorf("remove %s: %w", c.state, err)
	}
	// The folder above stays if anything else lives in it.
	_ = os.Remove(c.state + ".lock")
	_ = os.Remove(filepath.Dir(c.state))
	c.say("the cluster is down")
	return nil
}
