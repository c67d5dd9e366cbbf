// weft-cluster brings a real Kubernetes with weft up on this machine, and down again. `make cluster` calls it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"weft.dev/tests/cluster/api"
	"weft.dev/tests/cluster/cluster"
	"weft.dev/tests/cluster/machine"
)

const usage = `usage: weft-cluster COMMAND

  up          bring the cluster up, build and install weft
                --nodes 2  --proxy-mode nftables|iptables  --weft=false  --release
  down        end it and remove what it made
  status      what runs
  exec        run a program on a node: exec node1 ip addr
  restart     a node's containerd, kubelet or kube-proxy: restart node1 kubelet
  kubeconfig  print where the kubeconfig is
  crds        install the Gateway API's definitions, in any cluster: --kubeconfig FILE  --if-absent
  images      write the images as OCI archives: --out DIR  --release
`

func main() {
	if machine.IsInit() {
		fmt.Fprintln(os.Stderr, machine.Init())
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	var ended *exec.ExitError
	switch {
	case err == nil:
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "interrupted; `make cluster` goes on from here, `make cluster-down` removes all")
		os.Exit(130)
	case errors.Is(err, errUsage):
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	case len(os.Args) > 1 && os.Args[1] == "exec" && errors.As(err, &ended):
		os.Exit(ended.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "weft-cluster:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	c, err := cluster.New(here, os.Stderr)
	if err != nil {
		return err
	}
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	release := flags.Bool("release", false, "build weft with optimisation")
	switch command, rest := args[0], args[1:]; command {
	case "up":
		options := cluster.Options{}
		flags.IntVar(&options.Nodes, "nodes", 2, "how many nodes")
		flags.StringVar(&options.ProxyMode, "proxy-mode", "nftables", "kube-proxy's mode: nftables or iptables")
		flags.BoolVar(&options.Weft, "weft", true, "build and install weft")
		if err := flags.Parse(rest); err != nil {
			return err
		}
		options.Release = *release
		if err := needRoot(); err != nil {
			return err
		}
		if err := c.Up(ctx, options); err != nil {
			return err
		}
		kubectl, err := c.Kubectl(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("KUBECONFIG=%s\nkubectl: %s\n", c.Kubeconfig(), kubectl)
		return nil
	case "down":
		if err := needRoot(); err != nil {
			return err
		}
		return c.Down(ctx)
	case "status":
		return c.Status(os.Stdout)
	case "kubeconfig":
		fmt.Println(c.Kubeconfig())
		return nil
	case "restart":
		if len(rest) != 2 {
			return errUsage
		}
		return c.RestartUnit(rest[0], rest[1])
	case "exec":
		return execute(ctx, c, rest)
	case "crds":
		kubeconfig := flags.String("kubeconfig", c.Kubeconfig(), "of the cluster")
		ifAbsent := flags.Bool("if-absent", false, "leave alone what another has installed")
		if err := flags.Parse(rest); err != nil {
			return err
		}
		client, err := api.Open(*kubeconfig)
		if err != nil {
			return err
		}
		if *ifAbsent {
			if there, err := client.Serves("gateway.networking.k8s.io"); there || err != nil {
				return err
			}
		}
		return c.InstallGatewayAPI(ctx, client)
	case "images":
		out := flags.String("out", filepath.Join(c.Tree.Cache, "images"), "folder for the archives")
		if err := flags.Parse(rest); err != nil {
			return err
		}
		return c.Images(ctx, *out, *release)
	default:
		return errUsage
	}
}

func execute(ctx context.Context, c *cluster.Cluster, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	node, err := c.Node(args[0])
	if err != nil {
		return err
	}
	argv := args[1:]
	if argv[0] == "--" {
		argv = argv[1:]
	}
	command, err := node.Command(ctx, argv...)
	if err != nil {
		return err
	}
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	return command.Run()
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("a cluster is made of namespaces and mounts, which takes root; run it with sudo")
	}
	return nil
}
