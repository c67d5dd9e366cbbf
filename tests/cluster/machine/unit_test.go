package machine

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAProgramIsFoundByNameOnlyIfItCanBeRun(t *testing.T) {
	if _, err := lookPath("sh"); err != nil {
		t.Error(err)
	}
	if found, err := lookPath("no-such-program"); err == nil {
		t.Error(found)
	}
	absolute := filepath.Join(t.TempDir(), "x")
	if found, err := lookPath(absolute); err != nil || found != absolute {
		t.Error(found, err)
	}
}

func TestMachinesAreFoundByTheArgumentsOfTheirProcess1Only(t *testing.T) {
	running, err := Running(filepath.Join(os.TempDir(), "no-such-cluster"))
	if err != nil || len(running) != 0 {
		t.Error(running, err)
	}
}
