package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"weft.dev/tests/cluster/lock"
)

// target is what weft's programs are built for here: static, so that an image needs nothing beside them.
const target = "x86_64-unknown-linux-gnu"

// Weft builds weft's own programs, statically, and returns the folder that they lie in. Cargo decides what is
// to be built anew; its target folder is shared by checkouts with the same dependencies.
func (t Tree) Weft(ctx context.Context, release bool) (string, error) {
	key, err := hash([]string{filepath.Join(t.Repo, "Cargo.lock"), filepath.Join(t.Repo, "Cargo.toml"),
		filepath.Join(t.Repo, "rust-toolchain.toml")})
	if err != nil {
		return "", err
	}
	dir := filepath.Join(t.Cache, "static-"+key)
	args := []string{"build", "--quiet", "--target", target, "-p", "weft-controller", "-p", "weft-cni",
		"-p", "weft-proxy", "-p", "weft-echo"}
	profile := "debug"
	if release {
		args, profile = append(args, "--release"), "release"
	}
	fmt.Fprintf(t.Out, "    building weft (%s, static, in %s)\n", profile, dir)
	// Cargo would take what another checkout has built for this one's; nor may two prepare the folder at once.
	unlock, err := lock.Take(ctx, dir+".lock", func() {
		fmt.Fprintf(t.Out, "    another is building weft; waiting for it\n")
	})
	if err != nil {
		return "", err
	}
	defer unlock()
	err = t.run(ctx, t.Repo, []string{"CARGO_TARGET_DIR=" + dir}, "scripts/cache.sh")
	if err != nil {
		return "", err
	}
	err = t.run(ctx, t.Repo, []string{
		"CARGO_TARGET_DIR=" + dir,
		"RUSTFLAGS=-C target-feature=+crt-static",
		// Symbols stay, for backtraces; the rest would double the images.
		"CARGO_PROFILE_DEV_STRIP=debuginfo",
	}, "cargo", args...)
	return filepath.Join(dir, target, profile), err
}

// WeftVersion is the version of the workspace, which is the tag of weft's images.
func (t Tree) WeftVersion() (string, error) {
	text, err := os.ReadFile(filepath.Join(t.Repo, "Cargo.toml"))
	if err != nil {
		return "", err
	}
	_, section, found := strings.Cut(string(text), "[workspace.package]")
	if found {
		for line := range strings.Lines(section) {
			if name, value, ok := strings.Cut(line, "="); ok && strings.TrimSpace(name) == "version" {
				return strings.Trim(strings.TrimSpace(value), `"`), nil
			}
		}
	}
	return "", fmt.Errorf("no version in [workspace.package] of %s/Cargo.toml", t.Repo)
}

// Echo compiles the echo server and client that the conformance suite's manifests name, and puts the
// certificate beside them that its server serves TLS with.
func (t Tree) Echo(ctx context.Context) (string, error) {
	const istio = "istio.io/istio"
	module := filepath.Join(t.Repo, "tests/cluster/echo")
	return t.once(ctx, "echo", []string{module}, func(dir string) error {
		started := time.Now()
		flags := []string{"-gcflags=all=-l -dwarf=false", "-ldflags=-s -w"}
		command := istio + "/pkg/test/echo/cmd/"
		if err := t.goBuild(ctx, module, dir+"/", flags, command+"server", command+"client"); err != nil {
			return err
		}
		source, err := t.moduleDir(ctx, module, nil, istio)
		if err != nil {
			return err
		}
		for from, to := range map[string]string{"cert-chain.pem": "cert.crt", "key.pem": "cert.key"} {
			content, err := os.ReadFile(filepath.Join(source, "tests/testdata/certs/dns", from))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, to), content, 0o644); err != nil {
				return err
			}
		}
		fmt.Fprintf(t.Out, "    echo took %s\n", time.Since(started).Round(time.Second))
		return nil
	})
}

// Pause compiles the program that holds a pod's namespaces.
func (t Tree) Pause(ctx context.Context) (string, error) {
	module := filepath.Join(t.Repo, "tests/cluster")
	source := filepath.Join(module, "cmd/pause")
	dir, err := t.once(ctx, "pause", []string{source}, func(dir string) error {
		return t.goBuild(ctx, module, filepath.Join(dir, "pause"), []string{"-ldflags=-s -w"}, "./cmd/pause")
	})
	return filepath.Join(dir, "pause"), err
}
