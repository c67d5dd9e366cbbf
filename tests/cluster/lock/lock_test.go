package lock

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
)

func TestASecondTakerWaitsUntilTheFirstGivesBackOrUntilItIsTiredOfIt(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	release, err := Take(t.Context(), name, func() { t.Error("waited for nobody") })
	if err != nil {
		t.Fatal(err)
	}
	tired, tire := context.WithCancel(t.Context())
	if _, err := Take(tired, name, tire); !errors.Is(err, context.Canceled) {
		t.Errorf("taken twice: %v", err)
	}
	again, err := Take(t.Context(), name, release)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
