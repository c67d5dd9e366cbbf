package build

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func tree(t *testing.T) (Tree, string) {
	t.Helper()
	source := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(source, []byte("one"), 0o644); err != nil {
		t.Fatal(err)
	}
	return Tree{Cache: t.TempDir(), Out: io.Discard}, source
}

func TestAResultIsMadeOnceForTheSameSources(t *testing.T) {
	tree, source := tree(t)
	count := 0
	build := func() string {
		dir, err := tree.once(t.Context(), "thing", []string{source}, func(dir string) error {
			count++
			return os.WriteFile(filepath.Join(dir, "result"), nil, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "result")); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	first := build()
	if again := build(); again != first || count != 1 {
		t.Errorf("%s and %s, made %d times", first, again, count)
	}
	if err := os.WriteFile(source, []byte("two"), 0o644); err != nil {
		t.Fatal(err)
	}
	if other := build(); other == first || count != 2 {
		t.Errorf("other sources: %s, made %d times", other, count)
	}
}

func TestABuildThatFailsLeavesNoResult(t *testing.T) {
	tree, source := tree(t)
	half := errors.New("interrupted")
	for range 2 {
		_, err := tree.once(t.Context(), "thing", []string{source}, func(dir string) error {
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
				t.Errorf("not begun anew: %v %v", entries, err)
			}
			if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			return half
		})
		if !errors.Is(err, half) {
			t.Errorf("got %v", err)
		}
	}
}

func TestTheVersionOfWeftIsThatOfTheWorkspace(t *testing.T) {
	dir := t.TempDir()
	manifest := "[workspace]\nmembers = []\n\n[workspace.package]\nedition = \"2024\"\nversion = \"1.2.3\"\n" +
		"\n[workspace.dependencies]\nversion = \"9\"\n"
	if err := os.WriteFile(filepath.Join(dir, "Cargo.toml"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := (Tree{Repo: dir}).WeftVersion(); err != nil || got != "1.2.3" {
		t.Errorf("%q, %v", got, err)
	}
}
