package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"weft.dev/tests/cluster/api"
	"weft.dev/tests/cluster/image"
	"weft.dev/tests/cluster/kubernetes"
)

const coreDNSImage = "registry.k8s.io/coredns/coredns:v1.13.1"

// EchoImage is the image that the conformance suite's manifests name.
const EchoImage = "registry.k8s.io/gateway-api/conformance/echo-advanced:v0.1.0"

// Archive is an image as a file.
type Archive struct {
	File   string // an OCI archive
	Name   string // the image's whole reference
	Digest string // of its manifest
}

// baseImages are the images that a cluster without weft needs, and the conformance suite's.
func (c *Cluster) baseImages(ctx context.Context, programs string) ([]Archive, error) {
	pause, err := c.Tree.Pause(ctx)
	if err != nil {
		return nil, err
	}
	echo, err := c.echoSpec(ctx)
	if err != nil {
		return nil, err
	}
	return c.archives(filepath.Join(c.Tree.Cache, "cluster", "images"), []image.Spec{
		program(kubernetes.PauseImage, pause, "/pause"),
		program(coreDNSImage, filepath.Join(programs, "coredns"), "/coredns"),
		echo,
	})
}

func (c *Cluster) echoSpec(ctx context.Context) (image.Spec, error) {
	dir, err := c.Tree.Echo(ctx)
	if err != nil {
		return image.Spec{}, err
	}
	spec := image.Spec{Name: EchoImage, Entrypoint: []string{"/usr/local/bin/server"}}
	for from, to := range map[string]string{"server": "/usr/local/bin/server", "client": "/usr/local/bin/client",
		"cert.crt": "/cert.crt", "cert.key": "/cert.key"} {
		spec.Files = append(spec.Files, image.File{From: filepath.Join(dir, from), To: to})
	}
	return spec, nil
}

// weftSpecs builds weft and says what its images hold.
func (c *Cluster) weftSpecs(ctx context.Context, release bool) ([]image.Spec, error) {
	bin, err := c.Tree.Weft(ctx, release)
	if err != nil {
		return nil, err
	}
	version, err := c.Tree.WeftVersion()
	if err != nil {
		return nil, err
	}
	var specs []image.Spec
	for _, name := range []string{"weft-controller", "weft-proxy", "weft-echo"} {
		specs = append(specs, program("weft.dev/"+name+":"+version, filepath.Join(bin, name), "/"+name))
	}
	cni := program("weft.dev/weft-cni:"+version, filepath.Join(bin, "weft-agent"), "/weft-agent")
	// The plugin, which the agent copies to the node.
	cni.Files = append(cni.Files, image.File{From: filepath.Join(bin, "weft-cni"), To: "/weft-cni"})
	return append(specs, cni), nil
}

func program(name, from, to string) image.Spec {
	return image.Spec{Name: name, Files: []image.File{{From: from, To: to}}, Entrypoint: []string{to}}
}

// Images writes all archives that a cluster needs for weft and for the conformance suite into a folder, for
// people who load them into clusters of their own.
func (c *Cluster) Images(ctx context.Context, dir string, release bool) error {
	specs, err := c.weftSpecs(ctx, release)
	if err != nil {
		return err
	}
	echo, err := c.echoSpec(ctx)
	if err != nil {
		return err
	}
	made, err := c.archives(dir, append(specs, echo))
	if err != nil {
		return err
	}
	for _, a := range made {
		fmt.Fprintf(c.Tree.Out, "%s\n    %s\n    %s\n", a.File, a.Name, a.Digest)
	}
	return nil
}

func (c *Cluster) archives(dir string, specs []image.Spec) ([]Archive, error) {
	made := make([]Archive, len(specs))
	var group errgroup.Group
	for i, spec := range specs {
		group.Go(func() error {
			file, digest, err := spec.WriteArchive(dir)
			made[i] = Archive{File: file, Name: spec.Name, Digest: digest.String()}
			return err
		})
	}
	return made, group.Wait()
}

// load starts each node's runtime and imports the images that it lacks.
func (c *Cluster) load(ctx context.Context, nodes []kubernetes.Node, archives []Archive) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	group, loading := errgroup.WithContext(ctx)
	for _, node := range nodes {
		group.Go(func() error {
			if err := node.StartUnit(node.Runtime()); err != nil {
				return err
			}
			count, err := importMissing(loading, node, archives)
			if count > 0 && err == nil {
				c.say("%s: %d image(s) imported", node.Name, count)
			}
			return err
		})
	}
	return group.Wait()
}

func importMissing(ctx context.Context, node kubernetes.Node, archives []Archive) (int, error) {
	there := map[string]string{}
	err := api.Wait(ctx, "containerd of "+node.Name+" (see "+node.Log("containerd")+")",
		func(ctx context.Context) error {
			list, err := run(ctx, node, "ctr", "--namespace=k8s.io", "images", "list")
			for line := range strings.Lines(list) {
				if field := strings.Fields(line); len(field) > 2 {
					there[field[0]] = field[2] // name, type, digest
				}
			}
			return err
		})
	if err != nil {
		return 0, err
	}
	count := 0
	for _, a := range archives {
		if there[a.Name] == a.Digest {
			continue
		}
		if err := importArchive(ctx, node, a); err != nil {
			return count, fmt.Errorf("import %s into %s: %w", a.Name, node.Name, err)
		}
		count++
	}
	return count, nil
}

func importArchive(ctx context.Context, node kubernetes.Node, a Archive) error {
	// The machine does not see the archive: it comes by standard input.
	file, err := os.Open(a.File)
	if err != nil {
		return err
	}
	defer file.Close()
	command, err := node.Command(ctx, "ctr", "--namespace=k8s.io", "images", "import", "-")
	if err != nil {
		return err
	}
	command.Stdin = file
	if out, err := command.CombinedOutput(); err != nil {
		return errors.Join(err, errors.New(strings.TrimSpace(string(out))))
	}
	return nil
}
