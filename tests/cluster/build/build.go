// Package build compiles what a test cluster is made of, once: each result lies in the cache under a key of the
// sources that it hangs on, and is put there as a whole, so that a compile which is interrupted leaves nothing
// that could be taken for a result.
//
// In: the checkout. Out: folders and files of the cache.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"weft.dev/tests/cluster/lock"
)

// Tree is a checkout, the cache, and where compilers may write what they have to say.
type Tree struct {
	Repo  string // the checkout
	Cache string // WEFT_CACHE
	Out   io.Writer
}

// FindRepo looks for the checkout that a folder is part of.
func FindRepo(from string) (string, error) {
	for dir := from; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "tests/cluster/kube/go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is in no checkout of weft; run make there", from)
		}
	}
}

// once makes a folder of the cache: name and the hash of the sources. make gets an empty folder to fill.
func (t Tree) once(ctx context.Context, name string, sources []string, make func(dir string) error) (string, error) {
	key, err := hash(sources)
	if err != nil {
		return "", err
	}
	parent := filepath.Join(t.Cache, "cluster")
	dir := filepath.Join(parent, name+"-"+key)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	// Two checkouts share the cache: who comes second waits, and finds it made.
	release, err := lock.Take(ctx, filepath.Join(parent, name+".lock"), func() {
		fmt.Fprintf(t.Out, "    another is building %s; waiting for it\n", name)
	})
	if err != nil {
		return "", err
	}
	defer release()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fmt.Fprintf(t.Out, "    building %s (once, into %s)\n", name, dir)
	unfinished := dir + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	if err := os.Mkdir(unfinished, 0o755); err != nil {
		return "", err
	}
	if err := make(unfinished); err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	return dir, os.Rename(unfinished, dir)
}

// hash is a key of files and of all files in folders, with their names.
func hash(sources []string) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH)
	for _, source := range slices.Sorted(slices.Values(sources)) {
		err := filepath.WalkDir(source, func(at string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			content, err := os.ReadFile(at)
			if err != nil {
				return err
			}
			relative, err := filepath.Rel(filepath.Dir(source), at)
			if err != nil {
				return err
			}
			fmt.Fprintf(sum, "%s %d\n", relative, len(content))
			sum.Write(content)
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}

// goBuild compiles commands of the module in dir: a file each, named as the last part of its package, or all
// into a folder.
func (t Tree) goBuild(ctx context.Context, dir, out string, flags []string, packages ...string) error {
	args := append([]string{"build", "-trimpath", "-o", out}, flags...)
	return t.run(ctx, dir, []string{
		"CGO_ENABLED=0", // static: the images hold nothing else
		"GOFLAGS=-buildvcs=false",
		"GOGC=400", // the compiler then spends its time on compiling
	}, "go", append(args, packages...)...)
}

func (t Tree) run(ctx context.Context, dir string, env []string, program string, args ...string) error {
	command := exec.CommandContext(ctx, program, args...)
	command.Dir, command.Env = dir, append(os.Environ(), env...)
	command.Stdout, command.Stderr = t.Out, t.Out
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	if err := command.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(append([]string{program}, args...), " "), err)
	}
	return nil
}

// moduleVersion is the version of a module that the module in dir requires.
func (t Tree) moduleVersion(ctx context.Context, dir, path string) (string, error) {
	return t.goList(ctx, dir, nil, "{{.Version}}", path)
}

// moduleDir is where the source of a module that the module in dir requires lies.
func (t Tree) moduleDir(ctx context.Context, dir string, env []string, path string) (string, error) {
	if err := t.run(ctx, dir, env, "go", "mod", "download", path); err != nil {
		return "", err
	}
	return t.goList(ctx, dir, env, "{{.Dir}}", path)
}

func (t Tree) goList(ctx context.Context, dir string, env []string, format, path string) (string, error) {
	command := exec.CommandContext(ctx, "go", "list", "-m", "-f", format, path)
	command.Dir, command.Env = dir, append(os.Environ(), env...)
	out, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("go list -m %s in %s: %w", path, dir, err)
	}
	return strings.TrimSpace(string(out)), nil
}
