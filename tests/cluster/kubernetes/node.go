package kubernetes

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"

	"weft.dev/tests/cluster/machine"
	"weft.dev/tests/cluster/network"
	"weft.dev/tests/cluster/pki"
)

// PauseImage is the image that holds a pod's namespaces.
const PauseImage = "registry.k8s.io/pause:3.10"

// Node is a machine that is to be a node.
type Node struct {
	machine.Machine
	Number  int
	Segment network.Segment
	// ProxyMode is kube-proxy's: nftables or iptables.
	ProxyMode string
}

// Address is the node's own address.
func (n Node) Address() string { return n.Segment.NodeAddress(n.Number) }

// Sysctls are the node's, named as below /proc/sys/net: as strict as distributions set them, for a mesh must
// do with that.
func Sysctls() map[string]string {
	return map[string]string{
		"ipv4/ip_forward":                  "1",
		"ipv6/conf/all/forwarding":         "1",
		"ipv4/conf/all/rp_filter":          "1",
		"ipv4/conf/default/rp_filter":      "1",
		"ipv4/conf/all/route_localnet":     "0",
		"ipv4/conf/default/route_localnet": "0",
	}
}

// Configure writes the node's certificates and configuration files.
func (n Node) Configure(ca *pki.Authority) error {
	kubelet := pki.Certificate{File: n.Name, CommonName: "system:node:" + n.Name, Organization: "system:nodes"}
	serving := pki.Certificate{File: n.Name + "-serving", CommonName: "system:node:" + n.Name,
		Organization: "system:nodes", Hosts: []string{n.Name, n.Address()}}
	for _, wanted := range []pki.Certificate{kubelet, serving} {
		if err := ca.Sign(wanted); err != nil {
			return err
		}
	}
	if err := ca.Kubeconfig(n.Name, Server(n.Segment)); err != nil {
		return err
	}
	for from, to := range map[string]string{
		"ca.crt":               "ca.crt",
		n.Name + ".kubeconfig": "kubelet.kubeconfig",
		serving.File + ".crt":  "kubelet.crt",
		serving.File + ".key":  "kubelet.key",
		"proxy.kubeconfig":     "proxy.kubeconfig",
	} {
		content, err := os.ReadFile(ca.Path(from))
		if err != nil {
			return err
		}
		if err := write(n.Machine, filepath.Join(configDir, to), content, 0o600); err != nil {
			return err
		}
	}
	for file, config := range map[string]map[string]any{
		"kubelet.yaml": n.kubelet(), "proxy.yaml": n.proxy(),
	} {
		text, err := yaml.Marshal(config)
		if err != nil {
			return err
		}
		if err := write(n.Machine, filepath.Join(configDir, file), text, 0o644); err != nil {
			return err
		}
	}
	// Pods of dnsPolicy Default (CoreDNS itself) get this: there is no world outside to resolve.
	resolver := []byte("nameserver 192.0.2.1\n")
	if err := write(n.Machine, "/etc/resolv.conf", resolver, 0o644); err != nil {
		return err
	}
	if err := n.plugins(); err != nil {
		return err
	}
	return write(n.Machine, filepath.Join(configDir, "containerd.toml"), []byte(containerd), 0o644)
}

// Runtime is the node's container runtime: it needs no API server.
func (n Node) Runtime() machine.Unit {
	return machine.Unit{Name: "containerd", Argv: []string{"containerd", "--config", configDir + "/containerd.toml"}}
}

// Kubelet makes the node a member of the cluster.
func (n Node) Kubelet() machine.Unit {
	return machine.Unit{Name: "kubelet", Argv: []string{"kubelet", "--config=" + configDir + "/kubelet.yaml",
		"--kubeconfig=" + configDir + "/kubelet.kubeconfig", "--root-dir=/var/lib/kubelet",
		"--hostname-override=" + n.Name, "--node-ip=" + n.Address()}}
}

// Proxy makes Services of the node's API. If its Node object isn't there yet it waits for half a minute.
func (n Node) Proxy() machine.Unit {
	return machine.Unit{Name: "kube-proxy", Argv: []string{"kube-proxy", "--config=" + configDir + "/proxy.yaml"}}
}

func (n Node) kubelet() map[string]any {
	return map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false}, "webhook": map[string]any{"enabled": true},
			"x509": map[string]any{"clientCAFile": configDir + "/ca.crt"},
		},
		"authorization": map[string]any{"mode": "Webhook"},
		"tlsCertFile":   configDir + "/kubelet.crt", "tlsPrivateKeyFile": configDir + "/kubelet.key",
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"cgroupDriver":             "cgroupfs",
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"clusterDNS":               []string{DNSAddress}, "clusterDomain": Domain,
		"resolvConf":      "/etc/resolv.conf",
		"volumePluginDir": "/var/lib/kubelet/volumeplugins",
		// The disk is the host's: how full it is is no concern of the tests.
		"imageGCHighThresholdPercent": 100,
		"evictionHard": map[string]any{"memory.available": "50Mi", "nodefs.available": "0%",
			"nodefs.inodesFree": "0%", "imagefs.available": "0%"},
		"serializeImagePulls": false,
	}
}

func (n Node) proxy() map[string]any {
	return map[string]any{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": map[string]any{"kubeconfig": configDir + "/proxy.kubeconfig"},
		"mode":             n.ProxyMode,
		"clusterCIDR":      PodCIDR,
		"hostnameOverride": n.Name,
		"bindAddress":      n.Address(),
		// The limits of conntrack belong to the host: all zero leaves them alone.
		"conntrack": map[string]any{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s",
			"tcpCloseWaitTimeout": "0s"},
		// Would set route_localnet, which a node of the tests must not need.
		"iptables": map[string]any{"localhostNodePorts": false},
	}
}

// plugins copies the distribution's CNI plugins: a mesh adds its own beside them.
func (n Node) plugins() error {
	var from string
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			from = dir
			break
		}
	}
	if from == "" {
		return fmt.Errorf("no CNI plugins found; apt-get install containernetworking-plugins")
	}
	for _, name := range []string{"bridge", "host-local", "loopback", "portmap"} {
		content, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			return err
		}
		if err := write(n.Machine, filepath.Join("/opt/cni/bin", name), content, 0o755); err != nil {
			return err
		}
	}
	return nil
}

const conflist = "/etc/cni/net.d/10-weft-cluster.conflist"

// Network writes the node's primary CNI configuration, once its share of the pods' addresses is known. One
// that is there stays: others may have chained their plugins to it.
func (n Node) Network(pods string) error {
	if _, err := os.Stat(n.Path(conflist)); err == nil {
		return nil
	}
	text, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0", // what Debian's plugins and containerd know
		"name":       "weft-cluster",
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
				"ipam": map[string]any{
					"type":   "host-local",
					"ranges": []any{[]any{map[string]any{"subnet": pods}}},
					"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return err
	}
	return write(n.Machine, conflist, text, 0o644)
}

// restrict_oom_score_adj: without CAP_SYS_RESOURCE no process may lower its score below its parent's, and runc
// fails with "can't get final child's PID from pipe".
const containerd = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "` + PauseImage + `"
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
`
