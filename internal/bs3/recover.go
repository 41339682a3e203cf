package bs3

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
	"bs3/internal/bs3/writer"
)

// recovered is the log as the store has it, as far as it was read.
type recovered struct {
	writer.Recovered // Last is set with our fence
	uuid             layout.UUID
	at               volume.Position     // where it goes on
	base             string              // the checkpoint that the map was made from; empty = none
	kept             []volume.Checkpoint // that the record names and that verify, oldest first
	damaged          []string            // checkpoints that could not be loaded; their directories may verify
}

// readLog brings the map up to the end of the log of v. What an earlier try has
// read stays read, unless v names no checkpoint before it: then some of what
// follows may be gone.
func (o *opening) readLog(ctx context.Context, v *layout.Volume) (err error) {
	again := o.found != nil && o.found.uuid == v.UUID
	if again && len(v.Checkpoints) > 0 {
		names := slices.DeleteFunc(slices.Clone(v.Checkpoints), func(n string) bool { return slices.Contains(o.found.damaged, n) })
		o.found.kept, err = o.verified(ctx, v.UUID, names)
		if err != nil {
			return err
		}
		again = len(o.found.kept) > 0 && o.found.at.Next > o.found.kept[0].Key
	}
	if !again {
		o.progress("reading the checkpoint", 0, 0)
		o.found = nil // two maps may be more than there is memory
		if o.found, err = o.loadCheckpoint(ctx, v); err != nil {
			return err
		}
	}
	end, err := o.follow(ctx, v.Epoch)
	if err != nil {
		return err
	}
	if err := o.reaches(volume.Reach(v), end); err != nil {
		return err
	}
	if again {
		o.found.forget()
	}
	return nil
}

// forget takes those objects out of the table that the newest checkpoint has not
// any more: its writer has deleted them since they were read.
func (r *recovered) forget() {
	const step = 1 << 16
	if len(r.kept) == 0 {
		return
	}
	newest := r.kept[len(r.kept)-1]
	for from, more := key.Key(0), true; more && from <= newest.Key; from += step {
		var some []layout.ObjectInfo
		some, more = r.Map.Objects(from, step)
		for _, obj := range some {
			if _, here := newest.Object(obj.Key); !here && obj.Key <= newest.Key && obj.Live == 0 {
				r.Map.RemoveObject(obj.Key)
			}
		}
	}
}

// loadCheckpoint makes the map from the newest checkpoint that verifies among
// those the record names, and says where the log goes on. None verifying is an
// error if any is named: the log before them may be gone.
func (o *opening) loadCheckpoint(ctx context.Context, v *layout.Volume) (*recovered, error) {
	r := &recovered{uuid: v.UUID}
	r.Map, r.Seq = mapproxy.New(o.opts.blocks()), 1
	if len(v.Checkpoints) == 0 {
		return r, nil
	}
	var damage []error
	for i := len(v.Checkpoints) - 1; i >= 0; i-- {
		name := v.Checkpoints[i]
		c, err := volume.LoadMap(ctx, o.store, v.UUID, name, r.Map)
		if err == nil && int(c.BlockSize) != o.opts.BlockSize {
			err = fmt.Errorf("%w: it has blocks of %d bytes, the volume of %d", layout.ErrDamaged, c.BlockSize, o.opts.BlockSize)
		}
		if err == nil {
			if r.kept, err = o.verified(ctx, v.UUID, v.Checkpoints[:i]); err != nil {
				return nil, err
			}
			r.kept = append(r.kept, c)
			r.Seq, r.at, r.base = c.NextSeq, volume.After(c.Checkpoint), name
			return r, nil
		}
		if !volume.IsDamage(err) {
			return nil, fmt.Errorf("read checkpoint %s: %w", name, err)
		}
		o.log.Error().Err(err).Str("name", name).Msg("a checkpoint does not verify")
		damage = append(damage, fmt.Errorf("%s: %w", name, err))
		r.damaged = append(r.damaged, name)
		r.Map = mapproxy.New(o.opts.blocks()) // it may be half full
	}
	return nil, fmt.Errorf("%w: no checkpoint of the volume verifies, and the log before them may be gone: %w", volume.ErrRefused, errors.Join(damage...))
}

// verified returns those of the checkpoints of these names whose directory
// verifies.
func (o *opening) verified(ctx context.Context, uuid layout.UUID, names []string) (kept []volume.Checkpoint, err error) {
	for _, name := range names {
		c, err := volume.ReadCheckpoint(ctx, o.store, uuid, name)
		if volume.IsDamage(err) {
			o.log.Error().Err(err).Str("name", name).Msg("a checkpoint does not verify")
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read checkpoint %s: %w", name, err)
		}
		kept = append(kept, c)
	}
	return kept, nil
}

// logEnd is what lies where the log ends.
type logEnd struct {
	what string             // for people
	cond objproxy.Condition // under which a fence may take its place
	ours bool               // it is our fence
}

// follow applies the log from where it was read to, up to its end. newest is the
// highest epoch that an object may have. volume.ErrFenced (wrapped): one has a
// higher epoch than ours.
func (o *opening) follow(ctx context.Context, newest uint64) (logEnd, error) {
	r := o.found
	tails := volume.Tails{Store: o.store, UUID: r.uuid, ChunkBlocks: o.opts.chunkBlocks()}
	ahead := tails.Ahead(ctx, r.at.Next)
	defer ahead.Close()
	for {
		t, err := ahead.Next()
		end, more, wrong := o.next(tails, t, err, newest)
		if !more && !errors.Is(err, objproxy.ErrNotFound) {
			// One wrong answer neither ends the log nor refuses it: what is replaced
			// is what was given twice.
			t, err = tails.Read(ctx, r.at.Next)
			end, more, wrong = o.next(tails, t, err, newest)
		}
		if !more {
			return end, wrong
		}
		o.progress("reading the log", r.Grown.Objects, 0)
	}
}

// next judges what was read where the log goes on, and applies it if it is part
// of the log: then there may be more.
func (o *opening) next(tails volume.Tails, t volume.Tail, err error, newest uint64) (end logEnd, more bool, _ error) {
	r := o.found
	k := r.at.Next
	if errors.Is(err, objproxy.ErrNotFound) {
		return logEnd{what: "it is missing", cond: objproxy.IfAbsent()}, false, nil
	}
	if err != nil {
		return end, false, unreadable(err)
	}
	found := t.Object
	if own := o.owner; own != nil && tails.UUID == found.UUID {
		switch {
		case found.Epoch == own.Epoch && found.Nonce == own.Nonce:
			return logEnd{ours: true}, false, nil // the answer was lost
		case found.Epoch == own.Epoch:
			return end, false, fmt.Errorf("%w: object %d has our epoch %d, but writer %s, not us (%s)", volume.ErrRefused, k, own.Epoch, found.Nonce, own.Nonce)
		case found.Epoch > own.Epoch:
			return end, false, fmt.Errorf("%w: object %d has epoch %d, ours is %d", volume.ErrFenced, k, found.Epoch, own.Epoch)
		}
	}
	switch {
	case !tails.Continues(r.at, found): // a leftover of a writer that was fenced before it
		return logEnd{what: "it is a leftover", cond: objproxy.IfVersion(t.Version)}, false, nil
	case found.Epoch > newest:
		return end, false, fmt.Errorf("%w: read the log: object %d (%s): %w: it has epoch %d, the volume record %d", volume.ErrRefused, k, k.Name(), layout.ErrDamaged, found.Epoch, newest)
	}
	if err := r.apply(found, o.opts.BlockSize); err != nil {
		return end, false, unreadable(err)
	}
	r.at = volume.Position{Next: k + 1, Epoch: found.Epoch}
	return end, true, nil
}

// reaches refuses a log that ends below key least.
func (o *opening) reaches(least key.Key, end logEnd) error {
	if k := o.found.at.Next; k < least {
		return fmt.Errorf("%w: read the log: object %d (%s): %w: %s, but a checkpoint was made of the objects up to %d", volume.ErrRefused, k, k.Name(), layout.ErrDamaged, end.what, least-1)
	}
	return nil
}

// fence applies what has come to the log since it was judged, and stores our
// fence at its end, which is not below least. volume.ErrFenced (wrapped): a newer
// writer is there.
func (o *opening) fence(ctx context.Context, least key.Key) error {
	r, own := o.found, o.owner
	var denied volume.Denials
	for {
		from := r.at
		end, err := o.follow(ctx, own.Epoch)
		if err != nil {
			return err
		}
		if end.ours {
			r.Last = r.at.Next
			return nil
		}
		if err := o.reaches(least, end); err != nil {
			return err
		}
		if r.at != from {
			denied = 0
		}
		err = o.putFence(ctx, end.cond)
		if err == nil {
			r.Last = r.at.Next
			return nil
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return fmt.Errorf("store our fence: %w", err)
		}
		if err := denied.Again(ctx, r.at.Next.Name(), o.log); err != nil {
			return err
		}
	}
}

// unreadable makes an error of the log itself a refusal: nothing is replaced,
// and asking again would not help.
func unreadable(err error) error {
	if volume.IsUnreadable(err) {
		return fmt.Errorf("%w: read the log: %w", volume.ErrRefused, err)
	}
	return fmt.Errorf("read the log: %w", err)
}

// apply takes one object of the log into the map.
func (r *recovered) apply(obj *layout.Object, blockSize int) error {
	next, err := volume.Apply(r.Map, r.Seq, obj, blockSize)
	if err != nil {
		return err
	}
	r.Seq = next
	r.Grown.Add(volume.LengthOf(int(obj.Blocks), int(obj.BlockSize), len(obj.Records)))
	return nil
}

// putFence stores the empty object that ends the log of all writers before.
func (o *opening) putFence(ctx context.Context, cond objproxy.Condition) error {
	r, own := o.found, o.owner
	k := r.at.Next
	fence := &layout.Object{Footer: layout.Footer{UUID: own.UUID, Key: k, Epoch: own.Epoch, Nonce: own.Nonce, BlockSize: uint32(o.opts.BlockSize), FirstSeq: r.Seq, Fence: true}}
	_, err := o.store.Put(ctx, k.Name(), objproxy.Body{Data: layout.AppendTail(nil, fence)}, cond)
	return err
}
