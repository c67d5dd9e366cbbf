// Package cluster brings a real Kubernetes up on one machine, and down again: a control plane and nodes, each a
// machine of its own made of namespaces, with kubelet, containerd, kube-proxy and CoreDNS as anywhere else.
//
// In: a checkout, the cache, and what to bring up. Out: a kubeconfig. Nothing is remembered but what the
// machines themselves hold, so that up and down may be called at any time, also after either was killed.
//
//	up.go       the order in which things come up
//	down.go     what is left is found and ended
//	images.go   which images there are, and into which nodes they go
//	weft.go     weft by its chart, and the Gateway API's definitions
//	node.go     what tests do on and to a node
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft.dev/tests/cluster/api"
	"weft.dev/tests/cluster/build"
	"weft.dev/tests/cluster/kubernetes"
	"weft.dev/tests/cluster/lock"
	"weft.dev/tests/cluster/machine"
	"weft.dev/tests/cluster/network"
)

// Cluster is a test cluster of this machine, by its number.
type Cluster struct {
	Tree    build.Tree
	segment network.Segment
	state   string
	start   time.Time
}

// New is the cluster of a checkout, up or not. It reads WEFT_CACHE, and WEFT_CLUSTER: the number of the cluster,
// 0 unless there are several at once.
func New(from string, out io.Writer) (*Cluster, error) {
	repo, err := build.FindRepo(from)
	if err != nil {
		return nil, err
	}
	cache := os.Getenv("WEFT_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		cache = filepath.Join(dir, "weft")
	}
	if cache, err = filepath.Abs(cache); err != nil {
		return nil, err
	}
	number, name := 0, "cluster"
	if text := os.Getenv("WEFT_CLUSTER"); text != "" && text != "0" {
		if number, err = strconv.Atoi(text); err != nil || number < 0 || number > 255 {
			return nil, fmt.Errorf("WEFT_CLUSTER is a number from 0 to 255, not %q", text)
		}
		name = fmt.Sprintf("cluster%d", number)
	}
	return &Cluster{
		Tree:    build.Tree{Repo: repo, Cache: cache, Out: out},
		segment: network.Segment(number),
		state:   filepath.Join(cache, "run", name),
		start:   time.Now(),
	}, nil
}

// Kubeconfig is the administrator's kubeconfig. It exists while the cluster is up.
func (c *Cluster) Kubeconfig() string { return kubernetes.AdminKubeconfig(c.controlPlane()) }

// Client connects to the cluster.
func (c *Cluster) Client() (*api.Client, error) { return api.Open(c.Kubeconfig()) }

const controlPlane = "control-plane"

func (c *Cluster) controlPlane() machine.Machine { return c.machine(controlPlane) }

func (c *Cluster) machine(name string) machine.Machine {
	return machine.Machine{Dir: filepath.Join(c.state, name), Name: name}
}

// Node is the node of a name, as node1.
func (c *Cluster) Node(name string) (kubernetes.Node, error) {
	digits, found := strings.CutPrefix(name, "node")
	number, err := strconv.Atoi(digits)
	if !found || err != nil || number < 1 {
		return kubernetes.Node{}, fmt.Errorf("no node %s: nodes are node1, node2 and so on", name)
	}
	return c.node(number), nil
}

func (c *Cluster) node(number int) kubernetes.Node {
	return kubernetes.Node{Machine: c.machine(fmt.Sprintf("node%d", number)), Number: number, Segment: c.segment}
}

// Nodes are the nodes that run.
func (c *Cluster) Nodes() ([]kubernetes.Node, error) {
	running, err := machine.Running(c.state)
	if err != nil {
		return nil, err
	}
	var nodes []kubernetes.Node
	for _, name := range slices.Sorted(maps.Keys(running)) {
		if name == controlPlane {
			continue
		}
		node, err := c.Node(name)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, node)
	}
	if len(nodes) == 0 {
		return nil, errors.New("no node runs; `make cluster` starts them")
	}
	return nodes, nil
}

// say prints a line of progress with the seconds since the beginning.
func (c *Cluster) say(format string, args ...any) {
	fmt.Fprintf(c.Tree.Out, "%6.1fs  %s\n", time.Since(c.start).Seconds(), fmt.Sprintf(format, args...))
}

// lock keeps two ups and downs from each other's way.
func (c *Cluster) lock(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(c.state, 0o755); err != nil {
		return nil, err
	}
	return lock.Take(ctx, c.state+".lock", func() {
		c.say("another `make cluster` or `make cluster-down` is at work; waiting for it")
	})
}
