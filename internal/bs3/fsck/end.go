package fsck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// end judges the place where the log seems to end, as the record says it
// between two changes of it. more: the log has grown meanwhile, and is to be
// read again from r.next on.
func (r *logCheck) end(ctx context.Context, at string) (more bool, err error) {
	f := r.f
	if r.beyond == nil {
		// Read before the record: what is there was stored before the writer that
		// the record names released it.
		if r.beyond, err = f.readBeyond(ctx, r.next); err != nil {
			return false, err
		}
	}
	for range volume.MostRestarts {
		before, _, err := volume.ReadRecord(ctx, f.store)
		if err != nil {
			return false, err
		}
		t, tailErr := f.tails.Read(ctx, r.next)
		if tailErr != nil && !volume.IsDamage(tailErr) {
			return false, tailErr
		}
		v, _, err := volume.ReadRecord(ctx, f.store)
		switch {
		case err != nil:
			return false, err
		case v.UUID != f.v.UUID || v.Deleted:
			return false, volume.ErrMoved
		case v.Generation != before.Generation:
			continue
		}
		if tailErr == nil && r.notNext(t.Object) == "" || tailErr != nil && !errors.Is(tailErr, objproxy.ErrNotFound) {
			r.ahead.Close()
			r.ahead = f.tails.Ahead(ctx, r.next)
			return true, nil
		}
		if volume.Passed(v, f.v, r.next) {
			return false, volume.ErrMoved // it may have been deleted by now
		}
		r.judgeEnd(v, at)
		if tailErr == nil {
			r.judgeLeftover(t.Object)
		}
		return false, nil
	}
	return false, volume.ErrMoved
}

// beyond is an object above the end of the log.
type beyond struct {
	key key.Key
	obj *layout.Object
}

// readBeyond reads the objects above key k that were listed.
func (f *check) readBeyond(ctx context.Context, k key.Key) ([]beyond, error) {
	i, _ := slices.BinarySearchFunc(f.listed.objects, k+1, func(o listedObject, k key.Key) int { return cmp.Compare(o.key, k) })
	listed := f.listed.objects[i:]
	found := make([]beyond, len(listed))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, o := range listed {
		group.Go(func() error {
			t, err := f.tails.Read(ctx, o.key)
			switch {
			case errors.Is(err, objproxy.ErrNotFound):
			case volume.IsDamage(err):
				f.foundErr(o.key, KindObject, err)
			case err != nil:
				return fmt.Errorf("read the log: %w", err)
			default:
				found[i] = beyond{o.key, t.Object}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(b beyond) bool { return b.obj == nil }), nil
}

// judgeLeftover reports what lies where the log ends. The next fence replaces it.
func (r *logCheck) judgeLeftover(o *layout.Object) {
	severity, why := SeverityInfo, "its writer was overtaken before"
	if o.UUID != r.f.v.UUID {
		severity, why = SeverityWarning, "the volume's own object, if there was one, is lost"
	}
	r.f.found(severity, KindLeftover, r.next.Name(), "object %d, where the log ends: %s; %s", r.next, r.notNext(o), why)
}

// judgeEnd judges whether the log can end at r.next, where it is as at says. Of
// an epoch that has begun later all that came before its fence was stored; and
// a writer that released the volume had stored everything. But what a writer
// that did not release it had stored out of order may lie behind a gap.
func (r *logCheck) judgeEnd(v *layout.Volume, at string) {
	f := r.f
	gap := false
	for _, b := range r.beyond {
		if b.key <= r.next || b.obj.UUID != v.UUID {
			continue
		}
		if b.obj.Epoch > r.epoch || b.obj.Epoch == r.epoch && v.Writer.Released {
			f.foundIn(r.next, KindMissing, "%s, but the log goes on above it: object %d of epoch %d is there", at, b.key, b.obj.Epoch)
			gap = true
			break
		}
	}
	if !gap && v.Writer.Released && v.Epoch > r.epoch {
		f.foundIn(r.next, KindMissing, "%s: the log ends in epoch %d, but the writer of epoch %d stored more and released the volume", at, r.epoch, v.Epoch)
	}
	for _, b := range r.beyond {
		name := b.key.Name()
		switch {
		case b.key <= r.next:
		case b.obj.UUID != v.UUID:
			f.found(SeverityInfo, KindLeftover, name, "object %d, above the end of the log, is of volume %s", b.key, b.obj.UUID)
		case b.obj.Epoch < r.epoch:
			f.found(SeverityInfo, KindLeftover, name, "object %d, above the end of the log, is of epoch %d, which ended before", b.key, b.obj.Epoch)
		case !gap:
			f.found(SeverityWarning, KindGap, name, "object %d is there, but object %d below it is not: its writer, of epoch %d, is storing it, or died before it could, or it was lost",
				b.key, r.next, b.obj.Epoch)
		}
	}
}
