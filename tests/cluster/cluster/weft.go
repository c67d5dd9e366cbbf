package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"weft.dev/tests/cluster/api"
)

// Namespace and Release are where weft is installed, and under which of Helm's names.
const (
	Namespace = "weft-system"
	Release   = "weft"
)

// channel is the Gateway API's channel that is installed: XMesh and other kinds that weft reads are in the
// experimental one alone.
const channel = "experimental"

// InstallGatewayAPI installs the Gateway API's definitions, of the conformance suite's own version. It works
// with any cluster.
func (c *Cluster) InstallGatewayAPI(ctx context.Context, client *api.Client) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dir, err := c.Tree.GatewayAPI(ctx, channel)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "gateway.networking.*.yaml"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no definitions in %s", dir)
	}
	var group errgroup.Group
	for _, file := range files {
		group.Go(func() error {
			if err := client.ApplyFile(ctx, file); err != nil {
				return err
			}
			return waitEstablished(ctx, client, file)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	c.say("Gateway API, channel %s: %d files applied", channel, len(files))
	return nil
}

// waitEstablished waits until the definitions of a file are served.
func waitEstablished(ctx context.Context, client *api.Client, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	objects, err := api.Objects(text)
	if err != nil {
		return err
	}
	for _, object := range objects {
		if object.GetKind() != "CustomResourceDefinition" {
			continue
		}
		err := api.Wait(ctx, object.GetName()+" to be served", func(ctx context.Context) error {
			found, err := client.Get(ctx, "CustomResourceDefinition.apiextensions.k8s.io", "", object.GetName())
			if err != nil {
				return err
			}
			if !api.Condition(found, "Established") {
				return fmt.Errorf("it is not established")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// components are the values of the chart that a workload of weft's is configured by, and its image.
var components = map[string]string{"controller": "weft-controller", "cni": "weft-cni", "proxy": "weft-proxy"}

// InstallWeft builds weft, loads its images into the nodes and installs or upgrades its chart.
func (c *Cluster) InstallWeft(ctx context.Context, release bool) error {
	archives, err := c.LoadWeft(ctx, release)
	if err != nil {
		return err
	}
	args := []string{"upgrade", Release, c.Chart(), "--install", "--namespace", Namespace, "--create-namespace",
		"--wait", "--timeout", patience.String()}
	// The tag is the version, and stays when the sources change: the digest makes a rollout of what did change.
	for component, name := range components {
		for _, a := range archives {
			if strings.Contains(a.Name, "/"+name+":") {
				args = append(args, "--set-string", component+`.podAnnotations.weft\.dev/image=`+a.Digest)
			}
		}
	}
	c.say("weft: helm upgrade --install")
	if _, err := c.Helm(ctx, args...); err != nil {
		return err
	}
	c.say("weft is installed in %s", Namespace)
	return nil
}

// Chart is the folder of weft's chart.
func (c *Cluster) Chart() string { return filepath.Join(c.Tree.Repo, "charts/weft") }

// LoadWeft builds weft and loads its images into the nodes, for tests that install it by themselves.
func (c *Cluster) LoadWeft(ctx context.Context, release bool) ([]Archive, error) {
	specs, err := c.weftSpecs(ctx, release)
	if err != nil {
		return nil, err
	}
	archives, err := c.archives(filepath.Join(c.Tree.Cache, "cluster", "images"), specs)
	if err != nil {
		return nil, err
	}
	nodes, err := c.Nodes()
	if err != nil {
		return nil, err
	}
	return archives, c.load(ctx, nodes, archives)
}

// Helm runs helm on the cluster and returns what it printed.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	helm, err := c.Tree.Helm(ctx)
	if err != nil {
		return "", err
	}
	command := exec.CommandContext(ctx, helm, append(args, "--kubeconfig", c.Kubeconfig())...)
	var trouble strings.Builder
	command.Stderr = &trouble
	out, err := command.Output()
	if err != nil {
		return string(out), fmt.Errorf("helm %s: %w: %s", args[0], err, trouble.String())
	}
	return string(out), nil
}
