// Package kubernetes knows how the components of a Kubernetes are told what to do: their flags, their
// configuration files and their certificates. It starts nothing: out come files below a machine's root and the
// units that the machine is to run.
package kubernetes

import (
	"fmt"
	"net"
	"os"
	"path/filepath"

	"weft.dev/tests/cluster/machine"
	"weft.dev/tests/cluster/network"
	"weft.dev/tests/cluster/pki"
)

// The address ranges. No two clusters see each other's.
const (
	PodCIDR     = "10.244.0.0/16"
	ServiceCIDR = "10.96.0.0/16"
	firstIP     = "10.96.0.1" // the Service kubernetes
	DNSAddress  = "10.96.0.10"
	Domain      = "cluster.local"
)

// configDir holds a machine's certificates and configuration files.
const configDir = "/etc/weft-cluster"

// Server is where the API is served.
func Server(segment network.Segment) string {
	return "https://" + net.JoinHostPort(segment.ControlPlaneAddress(), "6443")
}

const etcdClient = "http://127.0.0.1:2379"

// Identities makes what the control plane and its clients prove themselves with, in the control plane's
// machine. It returns the authority that signs the nodes' certificates.
func Identities(controlPlane machine.Machine, segment network.Segment) (*pki.Authority, error) {
	dir := controlPlane.Path(configDir)
	ca, err := pki.NewAuthority(dir, "ca")
	if err != nil {
		return nil, err
	}
	// Signs the API server's calls to aggregated API servers, and must not be the clients' authority.
	front, err := pki.NewAuthority(dir, "front-ca")
	if err != nil {
		return nil, err
	}
	if err := front.Sign(pki.Certificate{File: "front-client", CommonName: "front-proxy-client"}); err != nil {
		return nil, err
	}
	if err := ca.TokenKey("sa"); err != nil {
		return nil, err
	}
	for _, wanted := range []pki.Certificate{
		{File: "apiserver", CommonName: "kube-apiserver", Hosts: []string{"kubernetes", "kubernetes.default",
			"kubernetes.default.svc", "kubernetes.default.svc." + Domain, "localhost",
			segment.ControlPlaneAddress(), firstIP, "127.0.0.1"}},
		{File: "apiserver-kubelet", CommonName: "apiserver-kubelet", Organization: "system:masters"},
		{File: "admin", CommonName: "admin", Organization: "system:masters"},
		{File: "controller-manager", CommonName: "system:kube-controller-manager"},
		{File: "scheduler", CommonName: "system:kube-scheduler"},
		{File: "proxy", CommonName: "system:kube-proxy"},
	} {
		if err := ca.Sign(wanted); err != nil {
			return nil, err
		}
	}
	for _, file := range []string{"admin", "controller-manager", "scheduler", "proxy"} {
		if err := ca.Kubeconfig(file, Server(segment)); err != nil {
			return nil, err
		}
	}
	return ca, nil
}

// AdminKubeconfig is the kubeconfig of the cluster's administrator, on the host.
func AdminKubeconfig(controlPlane machine.Machine) string {
	return filepath.Join(controlPlane.Path(configDir), "admin.kubeconfig")
}

// ControlPlane is what the control plane's machine runs. The controllers start beside the API server and wait
// for it by themselves.
func ControlPlane(segment network.Segment) []machine.Unit {
	file := func(name string) string { return filepath.Join(configDir, name) }
	controllerManager, scheduler := file("controller-manager.kubeconfig"), file("scheduler.kubeconfig")
	return []machine.Unit{
		{Name: "etcd", Argv: []string{"etcd",
			"--name=weft", "--data-dir=/var/lib/etcd",
			"--unsafe-no-fsync", // a test's data may be lost in a crash of the host
			"--listen-client-urls=" + etcdClient, "--advertise-client-urls=" + etcdClient,
			"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=weft=http://127.0.0.1:2380"}},
		{Name: "kube-apiserver", Argv: []string{"kube-apiserver",
			"--etcd-servers=" + etcdClient,
			"--bind-address=0.0.0.0", "--secure-port=6443", "--advertise-address=" + segment.ControlPlaneAddress(),
			"--service-cluster-ip-range=" + ServiceCIDR,
			"--allow-privileged=true",
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--client-ca-file=" + file("ca.crt"),
			"--tls-cert-file=" + file("apiserver.crt"), "--tls-private-key-file=" + file("apiserver.key"),
			"--kubelet-client-certificate=" + file("apiserver-kubelet.crt"),
			"--kubelet-client-key=" + file("apiserver-kubelet.key"),
			"--kubelet-certificate-authority=" + file("ca.crt"),
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc." + Domain,
			"--service-account-key-file=" + file("sa.pub"),
			"--service-account-signing-key-file=" + file("sa.key"),
			"--requestheader-client-ca-file=" + file("front-ca.crt"),
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + file("front-client.crt"),
			"--proxy-client-key-file=" + file("front-client.key"),
			"--profiling=false"}},
		{Name: "kube-controller-manager", Argv: []string{"kube-controller-manager",
			"--kubeconfig=" + controllerManager, "--authentication-kubeconfig=" + controllerManager,
			"--authorization-kubeconfig=" + controllerManager,
			"--bind-address=127.0.0.1", "--leader-elect=false",
			"--root-ca-file=" + file("ca.crt"), "--service-account-private-key-file=" + file("sa.key"),
			"--use-service-account-credentials=true",
			"--cluster-signing-cert-file=" + file("ca.crt"), "--cluster-signing-key-file=" + file("ca.key"),
			"--allocate-node-cidrs=true", "--cluster-cidr=" + PodCIDR, "--service-cluster-ip-range=" + ServiceCIDR,
			"--requestheader-client-ca-file=" + file("front-ca.crt")}},
		{Name: "kube-scheduler", Argv: []string{"kube-scheduler",
			"--kubeconfig=" + scheduler, "--authentication-kubeconfig=" + scheduler,
			"--authorization-kubeconfig=" + scheduler,
			"--bind-address=127.0.0.1", "--leader-elect=false"}},
	}
}

// write replaces a file below a machine's root if it differs: kube-proxy ends when its file is written anew.
func write(m machine.Machine, inside string, content []byte, mode os.FileMode) error {
	name := m.Path(inside)
	if old, err := os.ReadFile(name); err == nil && string(old) == string(content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	temporary := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".new")
	if err := os.WriteFile(temporary, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(temporary, name)
}
