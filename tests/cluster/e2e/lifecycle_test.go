package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"weft.dev/tests/cluster/machine"
)

// snapshot is all of the host that a cluster could leave something in.
func snapshot(t *testing.T) []string {
	t.Helper()
	var found []string
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		found = append(found, "link "+link.Attrs().Name)
	}
	cgroups, err := machine.Cgroups()
	if err != nil {
		t.Fatal(err)
	}
	for _, cgroup := range cgroups {
		found = append(found, "cgroup "+cgroup)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[1]; strings.Contains(at, "weft") {
			found = append(found, "mount "+at)
		}
	}
	for _, name := range []string{"kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "vm/panic_on_oom",
		"kernel/keys/root_maxkeys", "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_max",
		"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/all/route_localnet"} {
		if value, err := os.ReadFile(filepath.Join("/proc/sys", name)); err == nil {
			found = append(found, "sysctl "+name+" "+strings.TrimSpace(string(value)))
		}
	}
	for _, glob := range []string{"/run/containerd/*", "/run/netns/*", "/var/lib/cni/*", "/etc/cni/net.d/*",
		"/var/lib/kubelet/*", "/usr/libexec/kubernetes/*", "/var/log/pods/*"} {
		files, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, files...)
	}
	for _, name := range processes(t) {
		found = append(found, "process "+name)
	}
	slices.Sort(found)
	return found
}

// processes of a cluster, by their programs.
func processes(t *testing.T) []string {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, line := range lines {
		text, err := os.ReadFile(line)
		if err != nil {
			continue
		}
		program := filepath.Base(strings.Split(string(text), "\x00")[0])
		for _, known := range []string{"weft-cluster-machine", "etcd", "kube", "containerd", "coredns", "pause", "runc"} {
			if strings.HasPrefix(program, known) {
				found = append(found, program)
			}
		}
	}
	return found
}

func TestKilledOrInterruptedAtAnyPointDownLeavesNothing(t *testing.T) {
	up(t) // everything is built
	shared.Lock()
	defer shared.Unlock()
	shared.up = false
	if err := down(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t)
	for _, point := range []struct {
		line   string // of progress
		signal syscall.Signal
	}{
		{"machines:", syscall.SIGKILL},
		{"control plane:", syscall.SIGINT},
		{"image(s) imported", syscall.SIGKILL},
		{"has registered", syscall.SIGKILL},
	} {
		t.Run(point.line, func(t *testing.T) {
			command := exec.Command("/proc/self/exe")
			command.Env = append(os.Environ(), upOnly+"=1")
			progress, err := command.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			reached := false
			lines := bufio.NewScanner(progress)
			for lines.Scan() {
				if !reached && strings.Contains(lines.Text(), point.line) {
					reached = true
					if err := command.Process.Signal(point.signal); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := command.Wait(); err == nil {
				t.Error("it came up in spite of the signal")
			}
			if !reached {
				t.Fatalf("there was no line of progress with %q", point.line)
			}
			if err := down(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := snapshot(t); !slices.Equal(before, after) {
				t.Errorf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
			}
		})
	}
}
