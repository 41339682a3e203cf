package fsck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy/sectormap"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// listing is what lay in the store when the check began.
type listing struct {
	objects []listedObject // of the log, by key
	others  []string       // but the volume record
}

type listedObject struct {
	key  key.Key
	size int64
}

func (f *check) list(ctx context.Context) (l listing, err error) {
	f.begin("listing", 0)
	err = volume.List(ctx, f.store, "", func(page []objproxy.Info) error {
		for _, o := range page {
			if k, err := key.Parse(o.Name); err == nil {
				l.objects = append(l.objects, listedObject{k, o.Size})
			} else if o.Name != layout.VolumeName {
				l.others = append(l.others, o.Name)
			}
			f.step()
		}
		return nil
	})
	slices.SortFunc(l.objects, func(a, b listedObject) int { return cmp.Compare(a.key, b.key) })
	return l, err
}

// through reports whether all objects up to k are listed.
func (l listing) through(k key.Key) bool {
	return uint64(k) < uint64(len(l.objects)) && l.objects[k].key == k
}

// from counts the objects from k on.
func (l listing) from(k key.Key) int {
	i, _ := l.find(k)
	return len(l.objects) - i
}

// find returns the place of object k, or of the one after it.
func (l listing) find(k key.Key) (i int, here bool) {
	return slices.BinarySearchFunc(l.objects, k, func(o listedObject, k key.Key) int { return cmp.Compare(o.key, k) })
}

// wanted is an object that is needed, and what a checkpoint says of it.
type wanted struct {
	key  key.Key
	info layout.ObjectInfo
	told bool // by a checkpoint

	snapshot string // that needs it; empty: a kept checkpoint, or the map, does
}

// wanted returns the objects that are still to be read: those that a kept
// checkpoint needs and that were not read with the log, and all that the map
// needs if their data is to be checked. Without any map it is all there are.
func (f *check) wanted() []wanted {
	need := make(map[key.Key]wanted)
	for _, c := range f.kept {
		for _, o := range c.Objects {
			if o.Key < f.walked && (o.Live > 0 || o.Fence) || f.opts.Data && f.maps == nil && o.Live > 0 {
				need[o.Key] = wanted{key: o.Key, info: o, told: true}
			}
		}
	}
	for k, h := range f.held {
		if _, here := need[k]; !here && (k < f.walked || f.opts.Data) {
			need[k] = wanted{key: k, info: h.info, told: true, snapshot: h.snapshot}
		}
	}
	add := func(k key.Key) {
		if _, here := need[k]; !here {
			need[k] = wanted{key: k}
		}
	}
	if f.opts.Data && f.maps != nil {
		all, _ := f.maps.Objects(0, math.MaxInt)
		for _, o := range all {
			if o.Live > 0 {
				add(o.Key)
			}
		}
	}
	if len(f.kept) == 0 && f.walked == nothing {
		for _, o := range f.listed.objects {
			add(o.key)
		}
	}
	list := make([]wanted, 0, len(need))
	for _, w := range need {
		list = append(list, w)
	}
	slices.SortFunc(list, func(a, b wanted) int { return cmp.Compare(a.key, b.key) })
	return list
}

// dataPiece bounds the memory of a data check: bytes read at a time by each
// reader.
const dataPiece = 4 << 20

// checkObjects reads the objects that are needed and were not read with the
// log, and with Data their blocks.
func (f *check) checkObjects(ctx context.Context) error {
	list := f.wanted()
	f.begin("objects", len(list))
	limit := readers
	if f.opts.Data {
		limit = readers / 2
	}
	piece := min(dataPiece, f.v.ChunkSize)
	buffers := sync.Pool{New: func() any { b := make([]byte, 0, piece); return &b }}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(limit)
	for _, w := range list {
		group.Go(func() error {
			defer f.step()
			o, err := f.checkObject(ctx, w)
			if err != nil || o == nil || !f.opts.Data {
				return err
			}
			b := buffers.Get().(*[]byte)
			defer buffers.Put(b)
			return f.checkData(ctx, o, *b)
		})
	}
	return group.Wait()
}

// checkObject checks footer and records of one object. It returns nil if its
// data need not be looked at.
func (f *check) checkObject(ctx context.Context, w wanted) (*layout.Object, error) {
	if f.isBad(w.key) {
		return nil, nil //nolint:nilnil // see above
	}
	t, err := f.tails.Read(ctx, w.key)
	switch {
	case errors.Is(err, objproxy.ErrNotFound):
		return nil, f.notThere(ctx, w)
	case volume.IsDamage(err):
		f.foundErr(w.key, KindObject, err)
		return nil, nil //nolint:nilnil // see above
	case err != nil:
		return nil, err
	}
	o := t.Object
	if w.key < f.walked {
		if o.UUID == f.v.UUID {
			f.checkContent(o)
		} else {
			f.foundIn(w.key, KindObject, "it is of volume %s", o.UUID)
		}
		if i := w.info; w.told && (o.Epoch != i.Epoch || o.Blocks != i.Total || o.Fence != i.Fence) {
			f.foundIn(w.key, KindObject, "it is of epoch %d with %d blocks, fence %t, the checkpoint says epoch %d, %d blocks, fence %t",
				o.Epoch, o.Blocks, o.Fence, i.Epoch, i.Total, i.Fence)
		}
		f.mu.Lock()
		f.report.Objects++
		f.mu.Unlock()
	}
	if f.isBad(w.key) {
		return nil, nil //nolint:nilnil // see above
	}
	if f.maps != nil && f.counted {
		if known, here := f.maps.Object(w.key); here {
			if live := f.blocksOf(o); live != known.Live {
				f.foundIn(w.key, KindMap, "the map has %d blocks in it, but by its records it can be %d of them", known.Live, live)
			}
		}
	}
	return o, nil
}

// notThere reports that an object is missing, unless it is needed no more.
func (f *check) notThere(ctx context.Context, w wanted) error {
	var given bool
	var err error
	if w.snapshot == "" {
		given, err = f.givenBack(ctx, w.key)
	} else if given, err = f.moved(ctx, true); given {
		return volume.ErrMoved
	}
	if err == nil && !given {
		f.foundIn(w.key, KindMissing, "it is not there, but %s", w.why())
	}
	return err
}

func (w wanted) why() string {
	switch {
	case w.snapshot != "":
		return fmt.Sprintf("%d of its blocks are live in snapshot %s", w.info.Live, w.snapshot)
	case !w.told:
		return "the map needs it"
	case w.info.Fence:
		return fmt.Sprintf("it is the fence of epoch %d", w.info.Epoch)
	}
	return fmt.Sprintf("%d of its blocks are live in a kept checkpoint", w.info.Live)
}

// blocksOf counts the blocks of the map that lie in o and that its records say
// do.
func (f *check) blocksOf(o *layout.Object) (live uint32) {
	f.eachLive(o, func(_ uint32, n uint32, _ uint64) { live += n })
	return live
}

// eachLive calls g for the live blocks of o: n data blocks from index on, which
// are the blocks of the volume from block on.
func (f *check) eachLive(o *layout.Object, g func(index, n uint32, block uint64)) {
	var runs []sectormap.Run
	for _, r := range o.Records {
		if r.Kind == layout.KindZero || r.Block >= f.maps.Blocks() {
			continue
		}
		runs = f.maps.Lookup(r.Block, uint32(min(uint64(r.Blocks), f.maps.Blocks()-r.Block)), runs[:0])
		for _, run := range runs {
			if index := r.Index + uint32(run.Block-r.Block); run.Loc == layout.Loc(o.Key, index) {
				g(index, run.N, run.Block)
			}
		}
	}
}

// checkData reads the data of o into buf, a piece after the other, and checks
// each block. A damaged block that nothing needs is no error.
func (f *check) checkData(ctx context.Context, o *layout.Object, buf []byte) error {
	var wrong []uint32
	var sum uint32
	stride := layout.Stride(int(o.BlockSize))
	per := uint32(max(1, cap(buf)/stride))
	for from := uint32(0); from < o.Blocks; from += per {
		n := min(per, o.Blocks-from)
		b := slices.Grow(buf[:0], int(n)*stride)[:int(n)*stride]
		some, err := f.readData(ctx, o, from, b)
		if len(some) > 0 || volume.IsUnreadable(err) { // it may have been that answer
			some, err = f.readData(ctx, o, from, b)
		}
		switch {
		case errors.Is(err, objproxy.ErrNotFound):
			given, err := f.givenBack(ctx, o.Key)
			if err == nil && !given {
				f.foundIn(o.Key, KindMissing, "it is not there any more, but the map needs it")
			}
			return err
		case volume.IsUnreadable(err):
			f.foundErr(o.Key, KindObject, err)
			return nil
		case err != nil:
			return err
		}
		wrong = append(wrong, some...)
		sum = layout.AddSum(sum, b, int(o.BlockSize))
		f.mu.Lock()
		f.report.Blocks += int64(n)
		f.mu.Unlock()
	}
	switch {
	case len(wrong) > 0:
		f.reportData(o, wrong)
	case sum != o.Sum:
		f.foundIn(o.Key, KindData, "its data blocks are not those that its footer was made for: their sum is %08x, not %08x", sum, o.Sum)
	}
	return nil
}

// readData reads stored blocks of o from block from on, and returns those that
// do not match their check values.
func (f *check) readData(ctx context.Context, o *layout.Object, from uint32, stored []byte) (wrong []uint32, err error) {
	stride, checks := layout.Stride(int(o.BlockSize)), layout.NewChecks(o.UUID, o.Key)
	if _, _, err := f.store.Get(ctx, o.Key.Name(), stored, int64(from)*int64(stride)); err != nil {
		return nil, fmt.Errorf("read object %d (%s): %w", o.Key, o.Key.Name(), err)
	}
	for i := range uint32(len(stored) / stride) {
		if _, ok := checks.Verify(from+i, stored[int(i)*stride:][:stride]); !ok {
			wrong = append(wrong, from+i)
		}
	}
	return wrong, nil
}

// reportData reports the blocks of o that do not match their check values.
func (f *check) reportData(o *layout.Object, wrong []uint32) {
	if f.maps == nil {
		f.foundIn(o.Key, KindData, "data block %d, and %d others, do not match their check values", wrong[0], len(wrong)-1)
		return
	}
	live := make(map[uint32]uint64) // index to block of the volume
	f.eachLive(o, func(index, n uint32, block uint64) {
		for i := range n {
			live[index+i] = block + uint64(i)
		}
	})
	dead := 0
	var lost []string
	for _, i := range wrong {
		block, here := live[i]
		if !here {
			dead++
			continue
		}
		lost = append(lost, fmt.Sprintf("%d (block %d of the volume)", i, block))
	}
	if n := len(lost); n > 0 {
		const most = 10
		more := ""
		if n > most {
			lost, more = lost[:most], fmt.Sprintf(" and %d more", n-most)
		}
		f.foundIn(o.Key, KindData, "data blocks that do not match their check values: %s%s", strings.Join(lost, ", "), more)
	}
	if h, held := f.held[o.Key]; held && dead > 0 {
		f.foundIn(o.Key, KindData, "%d data blocks that do not match their check values, of which snapshot %s may need some", dead, h.snapshot)
	} else if dead > 0 {
		f.found(SeverityInfo, KindData, o.Key.Name(), "object %d: %d data blocks that nothing needs do not match their check values", o.Key, dead)
	}
}

// sumUp reports what nothing needs, and adds up sizes.
func (f *check) sumUp() {
	needed := make(map[string]bool)
	var newest *volume.Checkpoint
	for i := range f.kept {
		newest = &f.kept[i]
		for _, p := range newest.Packs {
			needed[p.Name] = true
		}
	}
	for _, name := range f.listed.others {
		if needed[name] || f.heldNames[name] || name == layout.ReserveName || slices.Contains(f.v.Checkpoints, name) {
			continue
		}
		what := "not of the volume"
		switch {
		case strings.HasPrefix(name, layout.CheckpointPrefix):
			what = "a checkpoint that the volume record does not name"
		case strings.HasPrefix(name, layout.MapPrefix):
			what = "a pack of leaves that no kept checkpoint needs"
		case strings.HasPrefix(name, layout.SnapshotPrefix):
			what = "of a snapshot that was not finished, or was deleted"
		case strings.HasPrefix(name, objproxy.ProbePrefix):
			what = "left by a probe of the store"
		}
		f.found(SeverityInfo, KindLeftover, name, "%s", what)
	}
	object := func(k key.Key) (layout.ObjectInfo, bool) {
		switch {
		case f.maps != nil:
			return f.maps.Object(k)
		case newest != nil && k <= newest.Key:
			return newest.Object(k)
		}
		return layout.ObjectInfo{}, false
	}
	r := f.report
	for _, o := range f.listed.objects {
		r.StoredBytes += o.size
		_, held := f.held[o.key]
		switch info, here := object(o.key); {
		case held && (!here || info.Live == 0):
			r.HeldObjects++
			r.HeldBytes += o.size
		case here && info.Live == 0 && !info.Fence:
			r.DeadObjects++
			r.DeadBytes += o.size
		case !here && newest != nil && o.key <= newest.Key:
			f.found(SeverityInfo, KindLeftover, o.key.Name(), "object %d was given back before the newest checkpoint", o.key)
		}
	}
	if newest != nil {
		for _, o := range newest.Objects {
			if _, here := f.listed.find(o.Key); !here && o.Live == 0 && !o.Fence {
				r.GoneObjects++
			}
		}
	}
	if r.GoneObjects > 0 {
		f.found(SeverityInfo, KindLive, newest.Name, "%d objects without live data are in the object table, but not in the store any more: they were deleted after it was written", r.GoneObjects)
	}
	if f.maps != nil {
		r.LiveBytes = int64(f.maps.Mapped()) * int64(f.v.BlockSize)
	} else if newest != nil {
		for _, o := range newest.Objects {
			r.LiveBytes += int64(o.Live) * int64(f.v.BlockSize)
		}
	}
}
