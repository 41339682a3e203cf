package bs3

import (
	"context"
	"errors"
	"fmt"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// loadCheckpoint makes the map from the newest checkpoint that verifies among
// those the record names, and says where the log goes on. None verifying is an
// error if any is named: the log before them may be gone.
func (o *opening) loadCheckpoint(ctx context.Context, v *layout.Volume) (*recovered, volume.Position, error) {
	r := &recovered{}
	r.Map, r.Seq = mapproxy.New(o.opts.blocks()), 1
	if len(v.Checkpoints) == 0 {
		return r, volume.Position{}, nil
	}
	var damage []error
	for i := len(v.Checkpoints) - 1; i >= 0; i-- {
		name := v.Checkpoints[i]
		c, err := volume.LoadMap(ctx, o.store, v.UUID, name, r.Map)
		if err == nil && int(c.BlockSize) != o.opts.BlockSize {
			err = fmt.Errorf("%w: it has blocks of %d bytes, the volume of %d", layout.ErrDamaged, c.BlockSize, o.opts.BlockSize)
		}
		if err == nil {
			if r.kept, err = o.olderKept(ctx, v.UUID, v.Checkpoints[:i]); err != nil {
				return nil, volume.Position{}, err
			}
			r.kept = append(r.kept, c)
			r.Seq = c.NextSeq
			return r, volume.After(c.Checkpoint), nil
		}
		if !volume.IsDamage(err) {
			return nil, volume.Position{}, fmt.Errorf("read checkpoint %s: %w", name, err)
		}
		o.log.Error().Err(err).Str("name", name).Msg("a checkpoint does not verify")
		damage = append(damage, fmt.Errorf("%s: %w", name, err))
		r.Map = mapproxy.New(o.opts.blocks()) // it may be half full
	}
	return nil, volume.Position{}, fmt.Errorf("%w: no checkpoint of the volume verifies, and the log before them may be gone: %w", volume.ErrRefused, errors.Join(damage...))
}

// olderKept returns those of the checkpoints before the loaded one whose
// directory verifies.
func (o *opening) olderKept(ctx context.Context, uuid layout.UUID, names []string) (kept []volume.Checkpoint, err error) {
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

// rollForward applies the log from p on and stores our fence at its end, which
// is not below least. It returns the fence's key. volume.ErrFenced (wrapped) if
// a newer writer is there.
func (o *opening) rollForward(ctx context.Context, r *recovered, p volume.Position, least key.Key) (key.Key, error) {
	own := o.owner
	tails := volume.Tails{Store: o.store, UUID: own.UUID, ChunkBlocks: o.opts.chunkBlocks()}
	ahead := tails.Ahead(ctx, p.Next)
	defer ahead.Close()
	read := ahead.Next
	var denied volume.Denials
	for {
		k := p.Next
		t, err := read()
		var cond objproxy.Condition
		switch found := t.Object; {
		case errors.Is(err, objproxy.ErrNotFound):
			cond = objproxy.IfAbsent()
		case err != nil:
			return 0, unreadable(err)
		case found.UUID != own.UUID:
			cond = objproxy.IfVersion(t.Version)
		case found.Epoch == own.Epoch && found.Nonce == own.Nonce:
			return k, nil // our fence: the answer was lost
		case found.Epoch == own.Epoch:
			return 0, fmt.Errorf("%w: object %d has our epoch %d, but writer %s, not us (%s)", volume.ErrRefused, k, own.Epoch, found.Nonce, own.Nonce)
		case found.Epoch > own.Epoch:
			return 0, fmt.Errorf("%w: object %d has epoch %d, ours is %d", volume.ErrFenced, k, found.Epoch, own.Epoch)
		case found.Epoch >= p.Epoch:
			if err := r.apply(found, o.opts.BlockSize); err != nil {
				return 0, unreadable(err)
			}
			p = volume.Position{Next: k + 1, Epoch: found.Epoch}
			o.progress("reading the log", r.Grown.Objects, 0)
			read, denied = ahead.Next, 0
			continue
		default: // a leftover of a writer that was fenced before it
			cond = objproxy.IfVersion(t.Version)
		}
		if k < least {
			return 0, fmt.Errorf("%w: read the log: object %d (%s): %w: it is missing or a leftover, but a checkpoint was made of the objects up to %d", volume.ErrRefused, k, k.Name(), layout.ErrDamaged, least-1)
		}
		err = o.putFence(ctx, k, r.Seq, cond)
		if err == nil {
			return k, nil
		}
		if !errors.Is(err, objproxy.ErrExists) {
			return 0, fmt.Errorf("store our fence: %w", err)
		}
		if err := denied.Again(ctx, k.Name(), o.log); err != nil {
			return 0, err
		}
		read = func() (volume.Tail, error) { return tails.Read(ctx, k) } // judge what came in between
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
	if err := volume.Fits(obj, blockSize, r.Map.Blocks()); err != nil {
		return err
	}
	if obj.FirstSeq != r.Seq {
		return fmt.Errorf("object %d: %w: sequence number %d where %d is next", obj.Key, layout.ErrDamaged, obj.FirstSeq, r.Seq)
	}
	r.Map.Apply(obj)
	r.Seq = obj.NextSeq()
	r.Grown.Add(volume.LengthOf(int(obj.Blocks), int(obj.BlockSize), len(obj.Records)))
	return nil
}

// putFence stores the empty object that ends the log of all writers before.
func (o *opening) putFence(ctx context.Context, k key.Key, seq uint64, cond objproxy.Condition) error {
	own := o.owner
	fence := &layout.Object{Footer: layout.Footer{UUID: own.UUID, Key: k, Epoch: own.Epoch, Nonce: own.Nonce, BlockSize: uint32(o.opts.BlockSize), FirstSeq: seq, Fence: true}}
	_, err := o.store.Put(ctx, k.Name(), objproxy.Body{Data: layout.AppendTail(nil, fence)}, cond)
	return err
}
