package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
	"bs3/internal/bs3/volume"
)

// owned is a store with a volume record, and the writer that it names.
type owned struct {
	*objtest.Hooks
	*volume.Owner
	log bytes.Buffer
}

const ownEpoch = 5

func newOwned(t *testing.T) *owned {
	t.Helper()
	o := &owned{Hooks: &objtest.Hooks{Inner: objtest.NewMemory()}}
	v := &layout.Volume{
		UUID: layout.NewUUID(), Generation: 7, Created: time.Now(), Epoch: ownEpoch, Writer: layout.Writer{Nonce: layout.NewNonce(), Hostname: "here"},
		BlockSize: 512, ChunkSize: 8 * 512, Size: 64 * 512, LargestSize: 64 * 512,
		Checkpoints: []string{layout.CheckpointName(3, 4, 1)},
		LocalLog:    &layout.LocalLog{Host: "machine", Path: "/log"},
	}
	o.put(t, v)
	o.Owner = volume.NewOwner(v, o.Hooks, zerolog.New(&o.log))
	return o
}

func (o *owned) put(t *testing.T, v *layout.Volume) {
	t.Helper()
	b, err := layout.EncodeVolume(v)
	if err != nil {
		t.Fatal(err)
	}
	o.putObject(t, layout.VolumeName, b)
}

func (o *owned) putObject(t *testing.T, name string, b []byte) {
	t.Helper()
	if _, err := o.Inner.Put(t.Context(), name, objproxy.Body{Data: b}, objproxy.Condition{}); err != nil {
		t.Fatal(err)
	}
}

func (o *owned) lose(t *testing.T) {
	t.Helper()
	if err := o.Inner.Delete(t.Context(), []string{layout.VolumeName}); err != nil {
		t.Fatal(err)
	}
}

// there returns the record that is in the store; nil if there is none.
func (o *owned) there(t *testing.T) *layout.Volume {
	t.Helper()
	v, _, err := volume.ReadRecord(t.Context(), o.Inner)
	if errors.Is(err, objproxy.ErrNotFound) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// fields are those of a record that a loss must not change.
func fields(v *layout.Volume) string {
	c := *v
	c.Generation, c.ChangeID = 0, ""
	b, err := layout.EncodeVolume(&c)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestLostRecord checks that whatever a writer does next with a record that is
// gone, or old, puts back what it knew last, says so, and goes on from there.
func TestLostRecord(t *testing.T) {
	other := []string{layout.CheckpointName(9, ownEpoch, 2)}
	for name, lose := range map[string]func(t *testing.T, o *owned, first *layout.Volume){
		"gone":        func(t *testing.T, o *owned, _ *layout.Volume) { o.lose(t) },
		"an old copy": func(t *testing.T, o *owned, first *layout.Volume) { o.put(t, first) },
		"an older writer's": func(t *testing.T, o *owned, first *layout.Volume) {
			v := *first
			v.Generation += 100
			v.Epoch, v.Writer.Nonce = ownEpoch-1, layout.NewNonce()
			o.put(t, &v)
		},
	} {
		for what, act := range map[string]func(o *owned) error{
			"read":   func(o *owned) error { _, _, err := o.Read(t.Context()); return err },
			"change": func(o *owned) error { return o.Change(t.Context(), func(*layout.Volume) error { return nil }) },
			"successor": func(o *owned) error {
				return o.NameSuccessor(t.Context(), volume.ErrFenced)
			},
		} {
			t.Run(name+", "+what, func(t *testing.T) {
				o := newOwned(t)
				first := o.there(t)
				if err := o.Change(t.Context(), func(v *layout.Volume) error { v.Checkpoints, v.LocalLog = other, nil; return nil }); err != nil {
					t.Fatal(err)
				}
				before := o.there(t)
				lose(t, o, first)
				if err := act(o); err != nil && !errors.Is(err, volume.ErrFenced) {
					t.Fatal(err)
				}
				after := o.there(t)
				if after == nil || fields(after) != fields(before) {
					t.Fatalf("the record is %+v, was %+v", after, before)
				}
				if after.Generation <= before.Generation || after.ChangeID == before.ChangeID {
					t.Errorf("generation %d, change %s after %d, %s", after.Generation, after.ChangeID, before.Generation, before.ChangeID)
				}
				if text := o.log.String(); strings.Count(text, `"level":"warn"`) != 1 || !strings.Contains(text, "the volume record was lost, and was put back as it was") {
					t.Errorf("the log says: %s", text)
				}
				if err := o.Change(t.Context(), func(v *layout.Volume) error { v.Writer.Released = true; return nil }); err != nil {
					t.Fatal(err)
				}
				if v := o.there(t); !v.Writer.Released || v.Checkpoints[0] != other[0] {
					t.Errorf("after a change the record is %+v", v)
				}
			})
		}
	}
}

// TestRecordOfAnother checks that a writer puts nothing back where there is a
// record of somebody else, or a sign of a later writer.
func TestRecordOfAnother(t *testing.T) {
	changed := func(f func(*layout.Volume)) func(*testing.T, *owned) {
		return func(t *testing.T, o *owned) {
			v := o.there(t)
			f(v)
			o.put(t, v)
		}
	}
	gone := func(name string, b []byte) func(*testing.T, *owned) {
		return func(t *testing.T, o *owned) {
			o.lose(t)
			o.putObject(t, name, b)
		}
	}
	for name, hurt := range map[string]func(*testing.T, *owned){
		"a later epoch":                    changed(func(v *layout.Volume) { v.Epoch++; v.Generation++ }),
		"another writer's epoch":           changed(func(v *layout.Volume) { v.Writer.Nonce = layout.NewNonce() }),
		"another volume":                   changed(func(v *layout.Volume) { v.UUID = layout.NewUUID(); v.Epoch = 1 }),
		"a tombstone":                      changed(func(v *layout.Volume) { v.Deleted = true; v.Epoch = 1 }),
		"gone, and a later checkpoint":     gone(layout.CheckpointName(9, ownEpoch+1, 1), nil),
		"gone, and a later pack of leaves": gone(layout.PackName(ownEpoch+1, 1), nil),
		"gone, and a later fence": func(t *testing.T, o *owned) {
			o.lose(t)
			// Ours, which we do not know to be stored, and the fence above it.
			for k, epoch := range map[key.Key]uint64{11: ownEpoch, 12: ownEpoch + 1} {
				f := layout.Footer{UUID: o.UUID, Key: k, Epoch: epoch, BlockSize: 512, FirstSeq: 1, Fence: epoch > ownEpoch}
				o.putObject(t, k.Name(), layout.AppendTail(nil, &layout.Object{Footer: f}))
			}
			o.LogFrom(func() key.Key { return 11 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOwned(t)
			hurt(t, o)
			before := o.there(t)
			if _, _, err := o.Read(t.Context()); !errors.Is(err, volume.ErrFenced) {
				t.Errorf("read: %v", err)
			}
			if err := o.Change(t.Context(), func(v *layout.Volume) error { v.Writer.Released = true; return nil }); !errors.Is(err, volume.ErrFenced) {
				t.Errorf("change: %v", err)
			}
			if after := o.there(t); (before == nil) != (after == nil) || after != nil && fields(after) != fields(before) {
				t.Errorf("the record was changed from %+v to %+v", before, after)
			}
			if o.log.Len() > 0 {
				t.Errorf("the log says: %s", o.log.String())
			}
		})
	}
}

// TestRecordNotAnswered checks that only a proven absence is a loss.
func TestRecordNotAnswered(t *testing.T) {
	o := newOwned(t)
	o.lose(t)
	for _, answer := range []error{objproxy.ErrTransient, objproxy.ErrDamaged, errors.New("forbidden")} {
		o.Before = func(_ context.Context, op objtest.Op) error {
			if op.Kind == objtest.Get && op.Name == layout.VolumeName {
				return answer
			}
			return nil
		}
		if _, _, err := o.Read(t.Context()); !errors.Is(err, answer) {
			t.Errorf("read: %v", err)
		}
		if v := o.there(t); v != nil {
			t.Errorf("after %v there is a record: %+v", answer, v)
		}
	}
}

// TestLostRecordAnswerLost checks that a record whose putting back was not
// answered counts as put back.
func TestLostRecordAnswerLost(t *testing.T) {
	o := newOwned(t)
	o.lose(t)
	puts := 0
	o.After = func(_ context.Context, op objtest.Op, err error) error {
		if op.Kind == objtest.Put {
			if puts++; puts == 1 {
				return fmt.Errorf("a second try: %w", objproxy.ErrExists)
			}
		}
		return err
	}
	if _, _, err := o.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	if puts != 1 || !strings.Contains(o.log.String(), "put back") {
		t.Errorf("%d puts; the log says: %s", puts, o.log.String())
	}
}

// TestLostDuringChange checks that a record that goes while it is changed is not
// put back as it was before.
func TestLostDuringChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOwned(t)
		read := make(chan error, 1)
		puts := 0
		o.After = func(_ context.Context, op objtest.Op, err error) error {
			if op.Kind == objtest.Put {
				if puts++; puts == 1 { // the change is stored, and its caller does not know yet
					o.lose(t)
					go func() {
						_, _, err := o.Read(t.Context())
						read <- err
					}()
					synctest.Wait()
				}
			}
			return err
		}
		names := []string{layout.CheckpointName(9, ownEpoch, 2)}
		if err := o.Change(t.Context(), func(v *layout.Volume) error { v.Checkpoints = names; return nil }); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err != nil {
			t.Fatal(err)
		}
		if v := o.there(t); v == nil || len(v.Checkpoints) != 1 || v.Checkpoints[0] != names[0] {
			t.Errorf("the record is %+v", v)
		}
	})
}

// TestUnreadable checks which answers are about the object.
func TestUnreadable(t *testing.T) {
	for _, c := range []struct {
		err                error
		unreadable, damage bool
	}{
		{layout.ErrDamaged, true, true},
		{layout.ErrMagic, true, true},
		{layout.ErrVersion, true, true},
		{objproxy.ErrDamaged, true, true},
		{objproxy.ErrRange, true, true},
		{objproxy.ErrNotFound, false, true},
		{objproxy.ErrExists, false, false},
		{objproxy.ErrTransient, false, false},
		{errors.New("forbidden"), false, false},
		{nil, false, false},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("wrapped: %w", err)
		}
		if u, d := volume.IsUnreadable(err), volume.IsDamage(err); u != c.unreadable || d != c.damage {
			t.Errorf("%v: unreadable %t, damage %t", c.err, u, d)
		}
	}
}
