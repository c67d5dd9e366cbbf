package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

func emptyIndexWith(t *testing.T, made v1.Image) v1.ImageIndex {
	t.Helper()
	return mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: made})
}

// entries lists what is in the layers: "path mode".
func entries(t *testing.T, from v1.Image) []string {
	t.Helper()
	reader := mutate.Extract(from)
	defer reader.Close()
	archive := tar.NewReader(reader)
	var found []string
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		name := header.Name
		if header.Typeflag == tar.TypeDir && name[len(name)-1] != '/' {
			name += "/"
		}
		found = append(found, fmt.Sprintf("%s %o", name, header.Mode))
	}
}

func equal(a, b []string) bool { return slices.Equal(a, b) }
