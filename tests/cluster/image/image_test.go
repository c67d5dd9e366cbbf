package image

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
)

func spec(t *testing.T, content string) Spec {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	if err := os.WriteFile(data, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Spec{
		Name:       "weft.dev/test:1",
		Files:      []File{{From: program, To: "/usr/bin/program"}, {From: data, To: "/etc/data"}},
		Entrypoint: []string{"/usr/bin/program"},
	}
}

func archive(t *testing.T, s Spec) []byte {
	t.Helper()
	name, _, err := s.WriteArchive(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestTheSameFilesInAnyOrderOfAnyAgeAndModeGiveTheSameArchive(t *testing.T) {
	first, second := spec(t, "one"), spec(t, "one")
	second.Files[0], second.Files[1] = second.Files[1], second.Files[0]
	old := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(first.Files[0].From, old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(first.Files[1].From, 0o664); err != nil {
		t.Fatal(err)
	}
	if string(archive(t, first)) != string(archive(t, second)) {
		t.Error("two archives of the same files differ")
	}
}

func TestAChangeOfAFileOfTheEntrypointOrOfTheNameChangesTheArchive(t *testing.T) {
	was := string(archive(t, spec(t, "one")))
	changed := map[string]Spec{"file": spec(t, "two"), "entrypoint": spec(t, "one"), "name": spec(t, "one")}
	other := changed["entrypoint"]
	other.Entrypoint = []string{"/etc/data"}
	changed["entrypoint"] = other
	other = changed["name"]
	other.Name = "weft.dev/test:2"
	changed["name"] = other
	for what, s := range changed {
		if string(archive(t, s)) == was {
			t.Errorf("another %s makes no other archive", what)
		}
	}
}

func TestAnImageHoldsItsFilesWithTheirFoldersAndModes(t *testing.T) {
	made, err := spec(t, "one").Build()
	if err != nil {
		t.Fatal(err)
	}
	// The library checks the digests and sizes of what it reads back.
	path, err := layout.Write(t.TempDir(), emptyIndexWith(t, made))
	if err != nil {
		t.Fatal(err)
	}
	index, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	read, err := path.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"etc/ 755", "etc/data 644", "usr/ 755", "usr/bin/ 755", "usr/bin/program 755"}
	if got := entries(t, read); !equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	config, err := read.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if len(config.RootFS.DiffIDs) != 1 || config.Config.Entrypoint[0] != "/usr/bin/program" {
		t.Errorf("unexpected configuration %+v", config)
	}
}

func TestAPathThatIsNotAbsoluteIsRefused(t *testing.T) {
	s := spec(t, "one")
	s.Files[0].To = "program"
	if _, err := s.Build(); err == nil {
		t.Error("a relative path was accepted")
	}
}
