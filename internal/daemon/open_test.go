package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/volume"
	"bs3/internal/config"
)

// Opening a volume gives up after five minutes if the store cannot even be
// opened, but not while chunk memory holds writes for it.
func TestWaitingForAStoreAtTheStart(t *testing.T) {
	for _, holds := range []bool{false, true} {
		t.Run(map[bool]string{false: "nothing to lose", true: "writes in chunk memory"}[holds], func(t *testing.T) {
			dir := t.TempDir()
			c := config.Default()
			c.Store, c.Dir.Path, c.State.Path = config.StoreDir, filepath.Join(dir, "parent", "store"), filepath.Join(dir, "state")
			parent := filepath.Dir(c.Dir.Path)
			c.Size, c.Write.Memory, c.Write.Linger = 1, 16, 600_000
			if holds {
				v, err := openVolume(t.Context(), c, &health{}, transports(), nbdTransport(), zerolog.Nop())
				if err != nil {
					t.Fatal(err)
				}
				if err := v.WriteAt(t.Context(), make([]byte, 4096), 0); err != nil {
					t.Fatal(err)
				}
				// Chunk memory as a daemon leaves it that was killed here: the close
				// below may still get the write stored, whatever its context says.
				killed := filepath.Join(dir, "killed")
				err = errors.Join(os.CopyFS(killed, os.DirFS(c.State.Path)), v.close(t.Context()),
					os.RemoveAll(c.State.Path), os.Rename(killed, c.State.Path), os.RemoveAll(parent))
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(parent, nil, 0o600); err != nil { // in the way of the directory
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				patience := time.Hour
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				start := time.Now()
				_, err := openVolume(ctx, c, &health{}, transports(), nbdTransport(), zerolog.Nop())
				took := time.Since(start)
				switch {
				case holds && (took != patience || !errors.Is(err, context.DeadlineExceeded)):
					t.Errorf("it gave up after %v: %v", took, err)
				case !holds && (took < 5*time.Minute || took > 6*time.Minute || !errors.Is(err, volume.ErrStore)):
					t.Errorf("it gave up after %v: %v", took, err)
				}
			})
		})
	}
}
