package bs3

import (
	"strings"
	"testing"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// TestFsckSnapshots checks that fsck names what is wrong with a snapshot, and what of
// one nothing needs.
func TestFsckSnapshots(t *testing.T) {
	const first key.Key = 1 // has what only the snapshot needs
	gone := func(name func(w *ruleWorld) string) func(w *ruleWorld) {
		return func(w *ruleWorld) {
			if err := w.memory.Delete(w.t.Context(), []string{name(w)}); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	flip := func(name func(w *ruleWorld) string, at int) func(w *ruleWorld) {
		return func(w *ruleWorld) {
			b, _, err := volume.ReadAll(w.t.Context(), w.memory, name(w))
			if err != nil {
				w.t.Fatal(err)
			}
			b[at] ^= 1
			w.put(name(w), b)
		}
	}
	directory := func(w *ruleWorld) string { return w.names(layout.SnapshotPrefix + "0")[0] }
	pack := func(w *ruleWorld) string {
		for _, name := range w.names(layout.SnapshotPrefix) {
			if strings.Count(name, "/") == 2 {
				return name
			}
		}
		w.t.Fatal("the snapshot has no pack of its own")
		return ""
	}
	object := func(*ruleWorld) string { return first.Name() }
	for name, c := range map[string]struct {
		damage   func(w *ruleWorld)
		severity fsck.Severity
		kind     fsck.Kind
		name     func(w *ruleWorld) string
		text     string
	}{
		"directory gone":    {gone(directory), fsck.SeverityError, fsck.KindMissing, nil, "needed and not there"},
		"directory flipped": {flip(directory, 60), fsck.SeverityError, fsck.KindSnapshot, directory, "snapshot s"},
		"pack gone":         {gone(pack), fsck.SeverityError, fsck.KindMissing, nil, "needed and not there"},
		"pack flipped":      {flip(pack, 33), fsck.SeverityError, fsck.KindPack, pack, ""},
		"object gone":       {gone(object), fsck.SeverityError, fsck.KindMissing, object, "live in snapshot s"},
		"block flipped":     {flip(object, 5), fsck.SeverityError, fsck.KindData, object, "snapshot s may need"},
		"not finished": {func(w *ruleWorld) {
			w.put(layout.SnapshotPackName(layout.NewNonce(), 1), nil)
		}, fsck.SeverityInfo, fsck.KindLeftover, nil, "of a snapshot that was not finished"},
	} {
		t.Run(name, func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				a := w.open("a")
				a.write(1, 0, 1)
				a.flush()
				w.snapshot("s")
				a.overwritten(2, 0, 1)
				report, err := fsck.Check(t.Context(), w.memory, fsck.Options{Data: true})
				if err != nil || report.Errors > 0 || report.HeldObjects != 1 || len(report.Snapshots) != 1 {
					t.Fatalf("before the damage: %v, %+v", err, report)
				}
				c.damage(w)
				report, err = fsck.Check(t.Context(), w.memory, fsck.Options{Data: true})
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range report.Findings {
					if f.Severity == c.severity && f.Kind == c.kind && strings.Contains(f.Text, c.text) && (c.name == nil || f.Name == c.name(w)) {
						return
					}
				}
				t.Errorf("it found %v", report.Findings)
			})
		})
	}
}

// put stores b, whatever is there.
func (w *ruleWorld) put(name string, b []byte) {
	w.t.Helper()
	if _, err := w.memory.Put(w.t.Context(), name, objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
		w.t.Fatal(err)
	}
}

// A record that is made again names all snapshots, whatever they were called.
func TestRebuildKeepsSnapshots(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		ctx := t.Context()
		a := w.open("a")
		a.write(1, 0)
		if _, err := a.e.Snapshot(ctx, "s"); err != nil {
			t.Fatal(err)
		}
		a.overwritten(2, 0)
		w.snapshot("t")
		a.overwritten(3, 0)
		if _, err := a.e.Snapshot(ctx, "u"); err != nil { // of the last checkpoint
			t.Fatal(err)
		}
		if err := a.close(); err != nil {
			t.Fatal(err)
		}
		before, _, err := volume.ReadRecord(ctx, w.memory)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.memory.Delete(ctx, []string{layout.VolumeName}); err != nil {
			t.Fatal(err)
		}
		r, err := fsck.Rebuild(ctx, w.memory, fsck.RebuildOptions{ChunkSize: before.ChunkSize, UsualSize: before.Size})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Write(ctx, w.memory); err != nil {
			t.Fatal(err)
		}
		names := make(map[string]string)
		for _, s := range r.Record.Snapshots {
			names[s.Directory] = s.Name
		}
		b := w.open("a")
		b.overwritten(4, 0)
		for i, s := range before.Snapshots {
			w.snapshotHolds(names[s.Directory], uint64(i)+1, 0)
		}
		w.intact()
	})
}
