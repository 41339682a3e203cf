package bs3

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/checkpoint"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// outside makes a snapshot with nothing but a way to the store.
func (w *ruleWorld) outside(store objproxy.Store, name string) error {
	_, err := checkpoint.SnapshotOutside(w.t.Context(), store, zerolog.Nop(), name)
	return err
}

// snapshot makes one without an epoch.
func (w *ruleWorld) snapshot(name string) {
	w.t.Helper()
	if err := w.outside(w.memory, name); err != nil {
		w.t.Fatal(err)
	}
}

// snapshotHolds demands that block has the stamp in a snapshot.
func (w *ruleWorld) snapshotHolds(name string, stamp, block uint64) {
	w.t.Helper()
	if err := simCompare(w.t.Context(), w.memory, name, map[uint64]uint64{block: stamp}); err != nil {
		w.t.Fatal(err)
	}
}

// overwritten writes what was written before once more, and has all deleted of it
// that may be.
func (x *ruleWriter) overwritten(stamp uint64, blocks ...uint64) {
	x.w.t.Helper()
	x.write(stamp, blocks...)
	for range layout.MaxCheckpoints + 1 {
		x.checkpoint()
	}
	x.collect()
}

// TestRuleOUTSEEN: a writer keeps what a snapshot needs that somebody else has made.
func TestRuleOUTSEEN(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0, 1)
		a.checkpoint()
		w.snapshot("s")
		a.overwritten(2, 0, 1)
		w.snapshotHolds("s", 1, 0)
		a.kill()
		b := w.open("b") // which finds it in the record
		b.overwritten(3, 0, 1)
		w.snapshotHolds("s", 1, 1)
		w.intact()
	})
}

// TestRuleOUTSWEEP: a writer keeps the packs that such a snapshot shares with a
// checkpoint.
func TestRuleOUTSWEEP(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.write(1, layout.LeafBlocks)
		a.checkpoint()
		a.write(2, 0)
		a.flush()
		w.snapshot("s")
		a.overwritten(3, 0)
		a.overwritten(3, layout.LeafBlocks)
		w.snapshotHolds("s", 2, 0)
		w.snapshotHolds("s", 1, layout.LeafBlocks)
		w.intact()
	})
}

// TestRuleOUTKEPT: a snapshot whose making takes longer than the checkpoint is kept
// that it began from is begun again.
func TestRuleOUTKEPT(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.checkpoint()
		way := newRuleWay(w.memory)
		held := way.add(below(layout.SnapshotPrefix, objtest.Put), false)
		done := make(chan error, 1)
		go func() { done <- w.outside(way, "s") }()
		held.wait(t)
		a.overwritten(2, 0)
		held.letGo()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		w.snapshotHolds("s", 2, 0)
		a.overwritten(3, 0)
		w.snapshotHolds("s", 2, 0)
		if names := w.names(layout.SnapshotPrefix); len(names) != 1 { // all else is shared
			t.Errorf("of the first try there is left: %v", names)
		}
		w.intact()
	})
}

// TestRuleOUTGONE: a writer forgets a snapshot when the record does, and not before.
func TestRuleOUTGONE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.flush()
		w.snapshot("s")
		a.overwritten(2, 0)
		w.snapshot("t")
		a.overwritten(3, 0)
		w.snapshotHolds("s", 1, 0)
		w.snapshotHolds("t", 2, 0)
		before := a.e.Status().Objects
		if err := checkpoint.RemoveSnapshotOutside(t.Context(), w.memory, zerolog.Nop(), "s"); err != nil {
			t.Fatal(err)
		}
		a.overwritten(4, 0)
		w.snapshotHolds("t", 2, 0)
		if after := a.e.Status().Objects; after >= before {
			t.Errorf("%d objects, with the snapshot it was %d", after, before)
		}
		w.intact()
	})
}

// TestRuleOUTONCE: who does not know whether its snapshot was committed, and does not
// find it in the record, makes another one: it may have been removed since, with all
// that was stored for it.
func TestRuleOUTONCE(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.flush()
		puts := 0
		way := &objtest.Hooks{Inner: w.memory, After: func(_ context.Context, op objtest.Op, err error) error {
			if !isVolumePut(op) {
				return err
			}
			if puts++; puts == 1 { // the answer is lost, and the next try finds another record
				if err := checkpoint.RemoveSnapshotOutside(t.Context(), w.memory, zerolog.Nop(), "s"); err != nil {
					t.Error(err)
				}
				return objproxy.ErrExists
			}
			return err
		}}
		if err := w.outside(way, "s"); err != nil {
			t.Fatal(err)
		}
		w.snapshotHolds("s", 1, 0)
		w.intact()
	})
}

// A snapshot of the writer itself holds what was acknowledged before it was asked for,
// takes a checkpoint only if there is something new, and what it alone needs goes with
// it.
func TestSnapshotOfWriter(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		ctx := t.Context()
		a := w.open("a")
		a.write(1, 0)
		for _, name := range []string{"s", "t"} {
			if _, err := a.e.Snapshot(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		if names := w.names(layout.CheckpointPrefix); len(names) != 1 {
			t.Errorf("two snapshots of the same state have checkpoints %v", names)
		}
		if _, err := a.e.Snapshot(ctx, "s"); !errors.Is(err, checkpoint.ErrSnapshotExists) {
			t.Errorf("the same name again: %v", err)
		}
		if _, err := a.e.Snapshot(ctx, "a/b"); !errors.Is(err, layout.ErrDamaged) {
			t.Errorf("a name that is none: %v", err)
		}
		if err := a.e.RemoveSnapshot(ctx, "u"); !errors.Is(err, checkpoint.ErrNoSnapshot) {
			t.Errorf("remove one that is not there: %v", err)
		}
		a.overwritten(2, 0)
		for _, name := range []string{"s", "t"} {
			w.snapshotHolds(name, 1, 0)
			if err := a.e.RemoveSnapshot(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		a.collect()
		if objects, names := a.e.Status().Objects, w.names(layout.CheckpointPrefix); objects > 2 || len(names) != layout.MaxCheckpoints {
			t.Errorf("without snapshots there are %d objects, and checkpoints %v", objects, names)
		}
		w.intact()
	})
}

// TestRuleSNAPALL: while there is no telling what a snapshot needs, nothing is deleted, and the volume
// goes on; without it, all is as before.
func TestRuleSNAPALL(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		ctx := t.Context()
		a := w.open("a")
		a.write(1, 0)
		a.flush()
		w.snapshot("s")
		name := w.names(layout.SnapshotPrefix)[0]
		b, _, err := volume.ReadAll(ctx, w.memory, name)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if _, err := w.memory.Put(ctx, name, objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
			t.Fatal(err)
		}
		before := a.e.Status().Objects
		a.overwritten(2, 0)
		if after := a.e.Status().Objects; after <= before {
			t.Errorf("%d objects of %d are left", after, before)
		}
		if err := a.e.RemoveSnapshot(ctx, "s"); err != nil {
			t.Fatal(err)
		}
		a.collect()
		if after := a.e.Status().Objects; after > before {
			t.Errorf("without the snapshot there are %d objects, before there were %d", after, before)
		}
		a.holds(2, 0)
		w.intact()
	})
}

// A snapshot's directory that the store never returns holds up what is deleted, and
// neither a checkpoint nor a close, nor the removal of the snapshot.
func TestSnapshotNeverAnswered(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		ctx := t.Context()
		a := w.open("a")
		a.write(1, 0)
		a.flush()
		w.snapshot("s")
		w.snapshot("t")
		before := a.e.Status().Objects
		hang := below(layout.SnapshotPrefix, objtest.Get)
		for range 100 { // each time that it is asked for
			a.hold(hang)
		}
		for stamp := range uint64(3) {
			a.write(2+stamp, 0)
			a.checkpoint()
		}
		if _, err := a.e.GC(ctx); err == nil || !strings.Contains(err.Error(), "snapshot s") {
			t.Errorf("a collection that cannot know what a snapshot needs: %v", err)
		}
		if after := a.e.Status().Objects; after <= before {
			t.Errorf("%d objects of %d are left", after, before)
		}
		if err := a.e.RemoveSnapshot(ctx, "s"); err != nil {
			t.Error(err)
		}
		if err := a.close(); err != nil {
			t.Error(err)
		}
		w.snapshotHolds("t", 1, 0)
		w.intact()
	})
}

// A snapshot that is removed before the writer has looked at it is none that does not
// verify.
func TestSnapshotRemovedBeforeItIsTakenIn(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		var lines logLines
		a := w.open("a", lines.keep)
		a.write(1, 0)
		a.checkpoint()
		w.snapshot("s")
		look := a.hold(below(layout.SnapshotPrefix, objtest.Get))
		a.write(2, 0)
		a.checkpoint() // and what is swept after it
		look.wait(t)
		if err := checkpoint.RemoveSnapshotOutside(t.Context(), w.memory, zerolog.Nop(), "s"); err != nil {
			t.Fatal(err)
		}
		look.letGo()
		before := a.e.Status().Objects
		a.overwritten(3, 0)
		if after := a.e.Status().Objects; after > before {
			t.Errorf("%d objects, there were %d", after, before)
		}
		for _, line := range lines.lost(t) {
			if line["level"] != "debug" {
				t.Errorf("the log says %v", line)
			}
		}
	})
}

// What two snapshots share stays until both are removed.
func TestSnapshotsShareADirectory(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		ctx := t.Context()
		a := w.open("a")
		a.write(1, 0)
		a.flush()
		w.snapshot("s")
		err := volume.ChangeRecord(ctx, w.memory, zerolog.Nop(), func(v *layout.Volume) error {
			same := v.Snapshots[0]
			same.Name = "t"
			v.Snapshots = append(v.Snapshots, same)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		a.overwritten(2, 0)
		if err := a.e.RemoveSnapshot(ctx, "s"); err != nil {
			t.Fatal(err)
		}
		a.overwritten(3, 0)
		w.snapshotHolds("t", 1, 0)
		if err := a.e.RemoveSnapshot(ctx, "t"); err != nil {
			t.Fatal(err)
		}
		if names := w.names(layout.SnapshotPrefix); len(names) > 0 {
			t.Errorf("there is left: %v", names)
		}
	})
}

// What an outsider has stored goes again if the record will not name it.
func TestOutsiderFailsHalfway(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		a.write(1, 0)
		a.checkpoint()
		a.write(2, 0)
		a.flush()
		denied := errors.New("denied")
		for nth := 1; ; nth++ {
			calls := 0
			way := &objtest.Hooks{Inner: w.memory, Before: func(_ context.Context, op objtest.Op) error {
				if op.Kind == objtest.Put || op.Kind == objtest.Get && op.Name == layout.VolumeName {
					if calls++; calls == nth {
						return denied
					}
				}
				return nil
			}}
			err := w.outside(way, "s")
			if err == nil {
				if nth < 6 { // two reads of the record, a pack, the directory, the record
					t.Errorf("only %d calls can fail", nth-1)
				}
				break
			}
			if names := w.names(layout.SnapshotPrefix); !errors.Is(err, denied) || len(names) > 0 && !strings.Contains(err.Error(), "change the volume record") {
				t.Errorf("call %d fails: %v; there is left: %v", nth, err, names)
			}
		}
		w.snapshotHolds("s", 2, 0)
	})
}
