package machine

import "testing"

func TestControllersOfAVersion1HierarchyAreToldFromTheMountsOtherOptions(t *testing.T) {
	for options, want := range map[string]string{
		"rw,relatime,memory":                             "memory",
		"rw,nosuid,nodev,noexec,relatime,cpu,cpuacct":    "cpu,cpuacct",
		"rw,relatime,name=systemd":                       "none,name=systemd",
		"rw,xattr,release_agent=/lib/agent,name=systemd": "none,name=systemd",
		"rw,relatime,cpuset,clone_children":              "cpuset",
		"ro,noatime,net_cls,net_prio":                    "net_cls,net_prio",
	} {
		if got := controllers(options); got != want {
			t.Errorf("%s: got %q, want %q", options, got, want)
		}
	}
}
