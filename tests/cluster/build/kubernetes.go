package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// kube is the module of Kubernetes and CoreDNS.
func (t Tree) kube() string { return filepath.Join(t.Repo, "tests/cluster/kube") }

// Kubernetes compiles Kubernetes, etcd, kubectl and CoreDNS: a folder with a program of each name. Cold it
// takes a quarter of an hour of processor time.
func (t Tree) Kubernetes(ctx context.Context) (string, error) {
	return t.once(ctx, "kubernetes", []string{t.kube()}, func(dir string) error {
		version, err := t.moduleVersion(ctx, t.kube(), "k8s.io/kubernetes")
		if err != nil {
			return err
		}
		// Without inlining and debugging data it compiles in half the time.
		flags := []string{"-tags=grpcnotrace", "-gcflags=all=-l -dwarf=false", "-ldflags=" + versionFlags(version)}
		if err := t.goBuild(ctx, t.kube(), dir+"/", flags, ".", "./coredns"); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(dir, "kube"), filepath.Join(dir, "weft-kube")); err != nil {
			return err
		}
		for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler",
			"kubelet", "kube-proxy", "kubectl"} {
			if err := os.Symlink("weft-kube", filepath.Join(dir, name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// versionFlags are the linker's flags without which Kubernetes calls itself v0.0.0-master, which clients that
// ask for a version refuse.
func versionFlags(version string) string {
	part := strings.Split(strings.TrimPrefix(version, "v"), ".")
	flags := "-s -w"
	for _, where := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, value := range []string{"gitVersion=" + version, "gitMajor=" + part[0], "gitMinor=" + part[1],
			"gitTreeState=clean"} {
			flags += fmt.Sprintf(" -X %s.%s", where, value)
		}
	}
	return flags
}

// Helm compiles the helm program; it returns the program's path.
func (t Tree) Helm(ctx context.Context) (string, error) {
	module := filepath.Join(t.Repo, "tests/cluster/helm")
	dir, err := t.once(ctx, "helm", []string{module}, func(dir string) error {
		return t.goBuild(ctx, module, filepath.Join(dir, "helm"), []string{"-gcflags=all=-l -dwarf=false",
			"-ldflags=-s -w"}, "helm.sh/helm/v3/cmd/helm")
	})
	return filepath.Join(dir, "helm"), err
}

const conformanceToolchain = "go1.27.0"

// GatewayAPI is the folder with the Gateway API's resource definitions of a channel, of the conformance
// suite's own version.
func (t Tree) GatewayAPI(ctx context.Context, channel string) (string, error) {
	module := filepath.Join(t.Repo, "tests/conformance")
	// The suite is written in a newer Go than the rest; Go's own client fetches it.
	env := []string{"GOTOOLCHAIN=" + conformanceToolchain}
	dir, err := t.moduleDir(ctx, module, env, "sigs.k8s.io/gateway-api")
	return filepath.Join(dir, "config/crd", channel), err
}
