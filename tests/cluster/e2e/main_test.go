// Package e2e tests on a real cluster: the harness itself (bare), and what crosses all parts of weft.
//
//	make cluster-test                       all of it
//	make cluster-test RUN=Name KEEP=1       one test; the cluster stays up
//
// A test asks for the cluster by up(t) and makes a namespace of its own by namespace(t).
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weft.dev/tests/cluster/api"
	"weft.dev/tests/cluster/cluster"
	"weft.dev/tests/cluster/machine"
)

// upOnly makes the test program bring a cluster up and end, for tests that kill it while it does.
const upOnly = "WEFT_E2E_UP_ONLY"

// keep leaves the cluster up when the tests have ended.
const keep = "WEFT_E2E_KEEP"

func TestMain(m *testing.M) {
	if machine.IsInit() { // this program is process 1 of the machines that it starts
		fmt.Fprintln(os.Stderr, machine.Init())
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv(upOnly) != "" {
		if err := bring(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	code := m.Run()
	if os.Getenv(keep) != "" {
		return code
	}
	if err := down(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// options are what the tests run on.
var options = cluster.Options{Nodes: 2, ProxyMode: "nftables"}

func harness() (*cluster.Cluster, error) {
	here, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	return cluster.New(here, os.Stderr)
}

func bring(ctx context.Context) error {
	c, err := harness()
	if err != nil {
		return err
	}
	return c.Up(ctx, options)
}

func down(ctx context.Context) error {
	c, err := harness()
	if err != nil {
		return err
	}
	return c.Down(ctx)
}

// shared says whether the tests' cluster is up. Tests run one after another.
var shared struct {
	sync.Mutex
	up bool
}

// fixture is a cluster that is up, for one test.
type fixture struct {
	*cluster.Cluster
	*api.Client
	ctx context.Context
}

// testPatience is how long one test may take, and so how long it waits for a condition at most.
const testPatience = 5 * time.Minute

// up brings the cluster up unless an earlier test has.
func up(t *testing.T) fixture {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a cluster takes root; run the tests with sudo")
	}
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	t.Cleanup(cancel)
	c, err := harness()
	if err != nil {
		t.Fatal(err)
	}
	shared.Lock()
	defer shared.Unlock()
	if !shared.up {
		if err := c.Up(t.Context(), options); err != nil { // a first build takes what it takes
			t.Fatal(err)
		}
		shared.up = true
	}
	client, err := c.Client()
	if err != nil {
		t.Fatal(err)
	}
	return fixture{Cluster: c, Client: client, ctx: ctx}
}

// namespace makes a namespace with labels, which is deleted when the test ends.
func (f fixture) namespace(t *testing.T, name string, labels ...string) {
	t.Helper()
	manifest := fmt.Sprintf("{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {%s}}}", name,
		strings.Join(labels, ", "))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := f.Delete(ctx, manifest); err != nil {
			t.Errorf("namespace %s: %v", name, err)
		}
	})
	// One that a killed run has left would pass for this one's.
	if err := f.Delete(f.ctx, manifest); err != nil {
		t.Fatal(err)
	}
	f.apply(t, manifest)
}

func (f fixture) apply(t *testing.T, manifest string) {
	t.Helper()
	if err := f.Apply(f.ctx, manifest); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until a check returns no error.
func (f fixture) eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	if err := api.Wait(f.ctx, what, func(context.Context) error { return check() }); err != nil {
		t.Fatal(err)
	}
}

var errNotYet = errors.New("not yet")
