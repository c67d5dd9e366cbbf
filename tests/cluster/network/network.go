// Package network joins machines as one Ethernet segment. The bridge is in the control plane's machine and one
// cable leads to the host, so that the host gets one link, one address and no setting: it forwards nothing.
//
//	host (weft-cluster, 10.99.0.254) ── control plane (bridge, 10.99.0.1) ── node1 (10.99.0.11), node2 …
//
// Several clusters on one host differ by their segment's number: 10.99.0.0/24, 10.99.1.0/24 and so on.
//
// In: process ids, which stand for network namespaces. Out: links, addresses and routes. When a machine ends
// its links go with it. All calls may be repeated.
package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const (
	prefix = 24
	bridge = "weft0"
)

// Segment is a cluster's network, by its number from 0 to 255.
type Segment int

// HostLink is the host's end of the cable.
func (s Segment) HostLink() string {
	if s == 0 {
		return "weft-cluster"
	}
	return fmt.Sprintf("weft-cluster%d", s)
}

func (s Segment) address(last int) string { return fmt.Sprintf("10.99.%d.%d", s, last) }

// HostAddress is the host's.
func (s Segment) HostAddress() string { return s.address(254) }

// ControlPlaneAddress is the API server's.
func (s Segment) ControlPlaneAddress() string { return s.address(1) }

// NodeAddress is the address of the node with a number from 1.
func (s Segment) NodeAddress(number int) string { return s.address(10 + number) }

// ConnectControlPlane makes the bridge in the control plane's machine and the cable to the host.
func (s Segment) ConnectControlPlane(pid int) error {
	inside, err := in(pid)
	if err != nil {
		return err
	}
	defer inside.Close()
	attributes := netlink.NewLinkAttrs()
	attributes.Name = bridge
	if err := ignoreExisting(inside.LinkAdd(&netlink.Bridge{LinkAttrs: attributes})); err != nil {
		return fmt.Errorf("make bridge: %w", err)
	}
	if err := address(inside, bridge, s.ControlPlaneAddress()); err != nil {
		return err
	}
	if err := cable(inside, "host", s.HostLink(), os.Getpid()); err != nil {
		return fmt.Errorf("lay a cable to the host (is another of that number up? See WEFT_CLUSTER in docs/cluster.md): %w", err)
	}
	host, err := in(os.Getpid())
	if err != nil {
		return err
	}
	defer host.Close()
	return address(host, s.HostLink(), s.HostAddress())
}

// ConnectNode lays a cable from the bridge to a node, which gets the link eth0.
func (s Segment) ConnectNode(controlPlane, node, number int) error {
	hub, err := in(controlPlane)
	if err != nil {
		return err
	}
	defer hub.Close()
	if err := cable(hub, "node"+strconv.Itoa(number), "eth0", node); err != nil {
		return fmt.Errorf("lay a cable to node %d: %w", number, err)
	}
	inside, err := in(node)
	if err != nil {
		return err
	}
	defer inside.Close()
	return address(inside, "eth0", s.NodeAddress(number))
}

// Route sends a node's pods to it, on the machine of process pid.
func Route(pid int, pods *net.IPNet, via string) error {
	inside, err := in(pid)
	if err != nil {
		return err
	}
	defer inside.Close()
	route := &netlink.Route{Dst: pods, Gw: net.ParseIP(via)}
	if err := inside.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s via %s: %w", pods, via, err)
	}
	return nil
}

// DefaultRoute sends a machine's other traffic to the control plane, which answers "unreachable" at once:
// without a route the kubelet finds no address of its own.
func (s Segment) DefaultRoute(pid int) error {
	return Route(pid, &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, s.ControlPlaneAddress())
}

// Sysctls sets a machine's network sysctls, named as below /proc/sys/net.
func Sysctls(pid int, values map[string]string) error {
	// net sysctls are those of the namespace that the process which opens the file is in.
	return inNamespace(pid, func() error {
		for name, value := range values {
			if err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0); err != nil {
				return fmt.Errorf("set sysctl net/%s: %w", name, err)
			}
		}
		return nil
	})
}

// Disconnect removes the host's end of the cable. The kernel would do it with the control plane's network
// namespace, but that lives on for a minute and a half if a connection was open: TCP first gives up on the peer.
func (s Segment) Disconnect() error {
	link, err := netlink.LinkByName(s.HostLink())
	var absent netlink.LinkNotFoundError
	if errors.As(err, &absent) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", s.HostLink(), err)
	}
	return nil
}

// cable makes a pair of links: one in hub, a port of the bridge; the other in the namespace of a process.
func cable(hub *netlink.Handle, near, far string, pid int) error {
	attributes := netlink.NewLinkAttrs()
	attributes.Name = near
	veth := &netlink.Veth{LinkAttrs: attributes, PeerName: far, PeerNamespace: netlink.NsPid(pid)}
	if err := ignoreExisting(hub.LinkAdd(veth)); err != nil {
		return err
	}
	port, err := hub.LinkByName(near)
	if err != nil {
		return err
	}
	master, err := hub.LinkByName(bridge)
	if err != nil {
		return err
	}
	if err := hub.LinkSetMaster(port, master); err != nil {
		return err
	}
	return hub.LinkSetUp(port)
}

// address gives a link its address and brings it up, and the loopback link beside it.
func address(inside *netlink.Handle, name, ip string) error {
	link, err := inside.LinkByName(name)
	if err != nil {
		return err
	}
	subnet := &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(prefix, 32)}
	if err := inside.AddrReplace(link, &netlink.Addr{IPNet: subnet}); err != nil {
		return fmt.Errorf("address %s of %s: %w", ip, name, err)
	}
	loopback, err := inside.LinkByName("lo")
	if err != nil {
		return err
	}
	return errors.Join(inside.LinkSetUp(link), inside.LinkSetUp(loopback))
}

func in(pid int) (*netlink.Handle, error) {
	namespace, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	defer namespace.Close()
	return netlink.NewHandleAt(namespace)
}

func ignoreExisting(err error) error {
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
