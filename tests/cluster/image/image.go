// Package image makes container images without a daemon and without a registry: files of this machine in one
// layer over nothing, as an OCI archive. The same input gives the same archive, byte for byte: no time, no
// user and no compressor's version is in it.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Spec says what an image is.
type Spec struct {
	Name       string   `json:"name"` // whole reference, with tag
	Files      []File   `json:"files"`
	Entrypoint []string `json:"entrypoint"`
	User       string   `json:"user,omitempty"` // empty: root
}

// File is a file of this machine and its path in the image.
type File struct {
	From string `json:"from"`
	To   string `json:"to"` // absolute
}

// ArchiveName is the file name for an image's archive: its reference without what a path can't hold.
func (s Spec) ArchiveName() string {
	return strings.NewReplacer("/", "_", ":", "_").Replace(s.Name) + ".tar"
}

// Build makes the image.
func (s Spec) Build() (v1.Image, error) {
	content, err := s.layer()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Name, err)
	}
	base := mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1)
	// Not compressed: an import is then a copy, and the digest does not hang on a compressor.
	made, err := mutate.AppendLayers(base, static.NewLayer(content, types.OCIUncompressedLayer))
	if err != nil {
		return nil, err
	}
	config, err := made.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Created = v1.Time{Time: epoch}
	config.Config = v1.Config{
		Entrypoint: s.Entrypoint,
		User:       s.User,
		Env:        []string{"PATH=/usr/local/bin:/usr/bin:/bin"},
		WorkingDir: "/",
	}
	return mutate.ConfigFile(made, config)
}

// epoch is the time of every file and image.
var epoch = time.Unix(0, 0).UTC()

// layer is the tar of the image's files: parents first, by path, owned by root.
func (s Spec) layer() ([]byte, error) {
	files := slices.Clone(s.Files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.To, b.To) })
	var buffer bytes.Buffer
	archive := tar.NewWriter(&buffer)
	made := map[string]bool{}
	for _, file := range files {
		if !path.IsAbs(file.To) {
			return nil, fmt.Errorf("path %s of %s must be absolute", file.To, file.From)
		}
		if err := folders(archive, made, path.Dir(file.To)); err != nil {
			return nil, err
		}
		content, err := os.ReadFile(file.From)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(file.From)
		if err != nil {
			return nil, err
		}
		// Of the mode only what matters counts: a checkout's umask does not.
		mode := int64(0o644)
		if info.Mode()&0o100 != 0 {
			mode = 0o755
		}
		if err := entry(archive, tar.Header{Name: file.To, Typeflag: tar.TypeReg, Mode: mode}, content); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return buffer.Bytes(), nil
}

func folders(archive *tar.Writer, made map[string]bool, dir string) error {
	if dir == "/" || made[dir] {
		return nil
	}
	if err := folders(archive, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	return entry(archive, tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
}

func entry(archive *tar.Writer, header tar.Header, content []byte) error {
	header.Name = strings.TrimPrefix(header.Name, "/")
	header.ModTime, header.Format, header.Size = epoch, tar.FormatUSTAR, int64(len(content))
	if err := archive.WriteHeader(&header); err != nil {
		return err
	}
	_, err := archive.Write(content)
	return err
}

// WriteArchive writes the image as an OCI archive into dir and returns the file's name and the digest of the
// image.
func (s Spec) WriteArchive(dir string) (string, v1.Hash, error) {
	made, err := s.Build()
	if err != nil {
		return "", v1.Hash{}, err
	}
	digest, err := made.Digest()
	if err != nil {
		return "", v1.Hash{}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", v1.Hash{}, err
	}
	unpacked, err := os.MkdirTemp(dir, ".layout-")
	if err != nil {
		return "", v1.Hash{}, err
	}
	defer os.RemoveAll(unpacked)
	index, err := layout.Write(unpacked, empty.Index)
	if err != nil {
		return "", v1.Hash{}, err
	}
	// containerd (ctr, kind, k3s) reads the name from its own annotation, others from the standard's.
	err = index.AppendImage(made, layout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          s.Name,
		"org.opencontainers.image.ref.name": s.Name,
	}), layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
	if err != nil {
		return "", v1.Hash{}, fmt.Errorf("image %s: %w", s.Name, err)
	}
	name := filepath.Join(dir, s.ArchiveName())
	return name, digest, pack(unpacked, name)
}

// pack writes a folder as a tar, in order of paths, and puts it in place as a whole.
func pack(dir, name string) error {
	file, err := os.Create(name + ".new")
	if err != nil {
		return err
	}
	defer file.Close()
	archive := tar.NewWriter(file)
	err = filepath.WalkDir(dir, func(at string, found os.DirEntry, err error) error {
		if err != nil || at == dir {
			return err
		}
		relative, err := filepath.Rel(dir, at)
		if err != nil {
			return err
		}
		if found.IsDir() {
			return entry(archive, tar.Header{Name: relative + "/", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
		}
		return copyIn(archive, relative, at)
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := archive.Close(); err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

func copyIn(archive *tar.Writer, name, from string) error {
	file, err := os.Open(from)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	header := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: info.Size(), ModTime: epoch,
		Format: tar.FormatUSTAR}
	if err := archive.WriteHeader(&header); err != nil {
		return err
	}
	_, err = io.Copy(archive, file)
	return err
}
