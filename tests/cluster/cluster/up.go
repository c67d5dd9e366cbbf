package cluster

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sync/errgroup"

	"weft.dev/tests/cluster/api"
	"weft.dev/tests/cluster/kubernetes"
	"weft.dev/tests/cluster/machine"
	"weft.dev/tests/cluster/network"
)

// Options say what to bring up.
type Options struct {
	Nodes     int
	ProxyMode string // kube-proxy's: nftables or iptables
	Weft      bool   // build weft, load its images and install its chart
	Release   bool   // build weft with optimisation
}

// patience is how long each part of coming up may take on a machine that does much else; builds take as long as
// they take.
const patience = 3 * time.Minute

//go:embed coredns.yaml
var coreDNS string

// Up brings the cluster up as the options say. What is up already stays as it is.
func (c *Cluster) Up(ctx context.Context, options Options) error {
	if options.Nodes < 1 || options.Nodes > 9 {
		return fmt.Errorf("a cluster has 1 to 9 nodes, not %d", options.Nodes)
	}
	programs, err := c.Tree.Kubernetes(ctx)
	if err != nil {
		return err
	}
	archives, err := c.baseImages(ctx, programs)
	if err != nil {
		return err
	}
	release, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer release()
	c.say("machines: control plane and %d node(s)", options.Nodes)
	var nodes []kubernetes.Node
	for number := 1; number <= options.Nodes; number++ {
		node := c.node(number)
		node.ProxyMode = options.ProxyMode
		nodes = append(nodes, node)
	}
	if err := c.startMachines(ctx, programs, nodes); err != nil {
		return err
	}
	c.say("control plane: etcd, API server, controllers, scheduler")
	if err := c.configure(nodes); err != nil {
		return err
	}
	for _, unit := range kubernetes.ControlPlane(c.segment) {
		if err := c.controlPlane().StartUnit(unit); err != nil {
			return err
		}
	}
	if err := c.load(ctx, nodes, archives); err != nil {
		return err
	}
	client, err := c.waitForAPI(ctx)
	if err != nil {
		return err
	}
	if err := c.joinNodes(ctx, client, nodes); err != nil {
		return err
	}
	if err := c.startDNS(ctx, client, len(nodes)); err != nil {
		return err
	}
	if err := c.InstallGatewayAPI(ctx, client); err != nil {
		return err
	}
	if options.Weft {
		return c.InstallWeft(ctx, options.Release)
	}
	return nil
}

// startMachines starts the machines and joins them to the network.
func (c *Cluster) startMachines(ctx context.Context, programs string, nodes []kubernetes.Node) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	machines := []machine.Machine{c.controlPlane()}
	for _, node := range nodes {
		machines = append(machines, node.Machine)
	}
	group, starting := errgroup.WithContext(ctx)
	for _, m := range machines {
		group.Go(func() error {
			if err := m.SetPrograms(programs); err != nil {
				return err
			}
			return m.Start(starting)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	hub, err := c.controlPlane().PID()
	if err != nil {
		return err
	}
	if err := c.segment.ConnectControlPlane(hub); err != nil {
		return err
	}
	// It answers for addresses that nobody has, instead of being silent about them.
	if err := network.Sysctls(hub, map[string]string{"ipv4/ip_forward": "1"}); err != nil {
		return err
	}
	for _, node := range nodes {
		pid, err := node.PID()
		if err != nil {
			return err
		}
		if err := network.Sysctls(pid, kubernetes.Sysctls()); err != nil {
			return fmt.Errorf("%s: %w", node.Name, err)
		}
		if err := c.segment.ConnectNode(hub, pid, node.Number); err != nil {
			return err
		}
		if err := c.segment.DefaultRoute(pid); err != nil {
			return err
		}
	}
	return nil
}

// configure writes certificates and configuration files for all machines.
func (c *Cluster) configure(nodes []kubernetes.Node) error {
	ca, err := kubernetes.Identities(c.controlPlane(), c.segment)
	if err != nil {
		return err
	}
	for _, node := range nodes {
		if err := node.Configure(ca); err != nil {
			return fmt.Errorf("%s: %w", node.Name, err)
		}
	}
	return nil
}

func (c *Cluster) waitForAPI(ctx context.Context) (*api.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	client, err := c.Client()
	if err != nil {
		return nil, err
	}
	err = api.Wait(ctx, "the API server (see "+c.controlPlane().Log("kube-apiserver")+")",
		func(ctx context.Context) error {
			return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		})
	if err != nil {
		return nil, err
	}
	version, err := client.Discovery().ServerVersion()
	if err != nil {
		return nil, err
	}
	c.say("API server %s is ready", version.GitVersion)
	return client, nil
}

// joinNodes makes members of the nodes, and routes between their pods.
func (c *Cluster) joinNodes(ctx context.Context, client *api.Client, nodes []kubernetes.Node) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, node := range nodes {
		if err := node.StartUnit(node.Kubelet()); err != nil {
			return err
		}
	}
	for _, node := range nodes {
		pods, err := podCIDR(ctx, client, node)
		if err != nil {
			return err
		}
		for _, other := range append([]machine.Machine{c.controlPlane()}, machines(nodes)...) {
			if other.Name == node.Name {
				continue
			}
			pid, err := other.PID()
			if err != nil {
				return err
			}
			if err := network.Route(pid, pods, node.Address()); err != nil {
				return fmt.Errorf("%s: %w", other.Name, err)
			}
		}
		if err := node.Network(pods.String()); err != nil {
			return err
		}
		if err := node.StartUnit(node.Proxy()); err != nil {
			return err
		}
		c.say("%s has registered; its pods are %s", node.Name, pods)
	}
	return nil
}

func podCIDR(ctx context.Context, client *api.Client, node kubernetes.Node) (*net.IPNet, error) {
	var pods *net.IPNet
	what := fmt.Sprintf("%s to register (see %s)", node.Name, node.Log("kubelet"))
	err := api.Wait(ctx, what, func(ctx context.Context) error {
		found, err := client.CoreV1().Nodes().Get(ctx, node.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if found.Spec.PodCIDR == "" {
			return errors.New("it has no share of the pods' addresses yet")
		}
		_, pods, err = net.ParseCIDR(found.Spec.PodCIDR)
		return err
	})
	return pods, err
}

func (c *Cluster) startDNS(ctx context.Context, client *api.Client, nodes int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	manifest := strings.NewReplacer("DOMAIN", kubernetes.Domain, "IMAGE", coreDNSImage,
		"ADDRESS", kubernetes.DNSAddress).Replace(coreDNS)
	if err := client.Apply(ctx, manifest); err != nil {
		return err
	}
	if err := client.WaitNodes(ctx, nodes); err != nil {
		return err
	}
	c.say("nodes are Ready")
	if err := client.WaitRollout(ctx, "Deployment", "kube-system", "coredns"); err != nil {
		return err
	}
	c.say("CoreDNS is Ready")
	return nil
}

func machines(nodes []kubernetes.Node) []machine.Machine {
	var all []machine.Machine
	for _, node := range nodes {
		all = append(all, node.Machine)
	}
	return all
}
