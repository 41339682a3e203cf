package fsck

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// RebuildOptions say what the parts of a volume may not tell.
type RebuildOptions struct {
	Options
	UUID      string // of the volume, if there are parts of several; empty = the only one
	Size      int64  // bytes; 0 = as the newest checkpoint says, without one UsualSize
	UsualSize int64  // bytes, as configured
	ChunkSize uint32 // bytes, as configured
}

// Rebuilt is a volume record that was made from the parts of the volume. Its
// JSON form is a contract, but for the wording of what is for people.
type Rebuilt struct {
	Record  *layout.Volume `json:"record"`
	Values  []Value        `json:"values"`
	Unknown []string       `json:"unknown"` // what cannot be known, for people
	Report  *Report        `json:"report"`  // what Check finds once the record is stored
}

// Value is a field of a rebuilt record, for people.
type Value struct {
	Name string `json:"name"`
	Text string `json:"text"`
	From string `json:"from"` // where it comes from
}

// Rebuild makes the record of a volume that has lost it, from the checkpoints
// and the footers of the objects, and checks the volume as if the record were
// there. It stores nothing. Errors: volume.ErrNoVolume (nothing of a volume is
// there), volume.ErrRefused (there is a record that can be read, or what it was
// cannot be known), those of Check.
func Rebuild(ctx context.Context, store objproxy.Store, opts RebuildOptions) (*Rebuilt, error) {
	v, _, err := volume.ReadRecord(ctx, store)
	switch {
	case err == nil:
		return nil, fmt.Errorf("%w: volume %s has its record, and none is ever replaced", volume.ErrRefused, v.UUID)
	case errors.Is(err, layout.ErrVersion) || !volume.IsDamage(err):
		return nil, err
	}
	b := &rebuild{check: &check{store: store, opts: opts.Options}, store: store, opts: opts, damaged: make(map[key.Key]bool)}
	b.of = make(map[layout.UUID]*parts)
	for _, step := range []func(context.Context) error{b.list, b.readObjects, b.readCheckpoints, b.chooseVolume, b.chooseCheckpoints, b.checkEnd, b.keepSnapshots} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	r, err := b.record()
	if err != nil {
		return nil, err
	}
	text, err := layout.EncodeVolume(r.Record)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", volume.ErrRefused, err)
	}
	if r.Record, err = layout.DecodeVolume(text); err != nil {
		return nil, err
	}
	r.Report, err = Check(ctx, withRecord{store, text}, opts.Options)
	return r, err
}

// Write stores the record, if there is none. Errors: volume.ErrRefused (there is
// one), those of the store.
func (r *Rebuilt) Write(ctx context.Context, store objproxy.Store) error {
	b, err := layout.EncodeVolume(r.Record)
	if err != nil {
		return err
	}
	_, err = store.Put(ctx, layout.VolumeName, objproxy.Body{Data: b}, objproxy.IfAbsent())
	if !errors.Is(err, objproxy.ErrExists) {
		return err
	}
	if v, _, err := volume.ReadRecord(ctx, store); err == nil && v.ChangeID == r.Record.ChangeID {
		return nil // stored by a try whose answer was lost
	}
	return fmt.Errorf("%w: there is a volume record, and none is ever replaced; if it is damaged, move it away first", volume.ErrRefused)
}

// rebuild is the making of a record.
type rebuild struct {
	check *check // tells the progress
	store objproxy.Store
	opts  RebuildOptions

	keys        []key.Key // of the objects that are there, ascending
	checkpoints []string  // names, ascending
	outside     []string  // names of directories of snapshots that were made without an epoch
	packs       bool      // there are packs of leaves, so there were checkpoints, or almost
	epoch       uint64    // the highest in a name
	oldest      time.Time // of all parts

	mu      sync.Mutex // covers damaged and of while objects are read
	damaged map[key.Key]bool
	of      map[layout.UUID]*parts

	uuid   layout.UUID // that was chosen
	parts  *parts      // its
	chosen []volume.Checkpoint
	passed []string // why other checkpoints are not chosen

	snapshots []layout.Snapshot // all that verifies; how they were called is not known
	leftOut   []string          // why others are not taken for one
}

// parts are what can be read of one volume.
type parts struct {
	objects     map[key.Key]part
	checkpoints []volume.Checkpoint // by name
}

// part is what the tail of an object says.
type part struct {
	epoch     uint64
	nonce     layout.Nonce
	blockSize uint32
	blocks    uint32
	records   uint32
	end       uint64 // the block behind the last one that it changes
}

// list finds the names of all parts.
func (b *rebuild) list(ctx context.Context) error {
	b.check.begin("listing", 0)
	err := volume.List(ctx, b.store, "", func(page []objproxy.Info) error {
		for _, o := range page {
			if _, _, err := layout.ParseSnapshotName(o.Name); err == nil {
				b.outside = append(b.outside, o.Name)
			}
			if !volume.IsPart(o.Name) {
				continue
			}
			b.check.step()
			if b.oldest.IsZero() || o.Modified.Before(b.oldest) {
				b.oldest = o.Modified
			}
			if k, err := key.Parse(o.Name); err == nil {
				b.keys = append(b.keys, k)
				continue
			}
			epoch, _ := volume.EpochOf(o.Name)
			b.epoch = max(b.epoch, epoch)
			if strings.HasPrefix(o.Name, layout.CheckpointPrefix) {
				b.checkpoints = append(b.checkpoints, o.Name)
			} else {
				b.packs = true
			}
		}
		return nil
	})
	if err == nil && len(b.keys)+len(b.checkpoints) == 0 {
		err = fmt.Errorf("%w: neither objects nor checkpoints are there", volume.ErrNoVolume)
	}
	slices.Sort(b.keys)
	return err
}

// partsOf returns the parts of volume u, to be added to.
func (b *rebuild) partsOf(u layout.UUID) *parts {
	p := b.of[u]
	if p == nil {
		p = &parts{objects: make(map[key.Key]part)}
		b.of[u] = p
	}
	return p
}

// readObjects reads the tails of all objects.
func (b *rebuild) readObjects(ctx context.Context) error {
	b.check.begin("objects", len(b.keys))
	tails := volume.Tails{Store: b.store, ChunkBlocks: int(b.opts.ChunkSize / 4096)}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for _, k := range b.keys {
		group.Go(func() error {
			defer b.check.step()
			t, err := tails.Read(ctx, k)
			if errors.Is(err, objproxy.ErrNotFound) {
				return nil // deleted meanwhile
			}
			if err != nil && !volume.IsDamage(err) {
				return err
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			o := t.Object
			if err != nil || o.Key != k {
				b.damaged[k] = true // fsck says how
				return nil
			}
			p := part{epoch: o.Epoch, nonce: o.Nonce, blockSize: o.BlockSize, blocks: o.Blocks, records: uint32(len(o.Records))}
			for _, r := range o.Records {
				p.end = max(p.end, r.Block+uint64(r.Blocks))
			}
			b.partsOf(o.UUID).objects[k] = p
			return nil
		})
	}
	return group.Wait()
}

// readCheckpoints reads the directories of all checkpoints.
func (b *rebuild) readCheckpoints(ctx context.Context) error {
	for _, name := range b.checkpoints {
		text, _, err := volume.ReadAll(ctx, b.store, name)
		var c *layout.Checkpoint
		if err == nil {
			c, err = layout.DecodeCheckpoint(text)
		}
		switch {
		case err == nil:
			p := b.partsOf(c.UUID)
			p.checkpoints = append(p.checkpoints, volume.Checkpoint{Name: name, Checkpoint: c})
		case volume.IsDamage(err):
			b.passed = append(b.passed, fmt.Sprintf("%s: %v", name, err))
		default:
			return err
		}
	}
	return nil
}

// chooseVolume takes the volume that is asked for, or the only one.
func (b *rebuild) chooseVolume(context.Context) error {
	var found []string
	for u, p := range b.of {
		if b.opts.UUID == u.String() || b.opts.UUID == "" && len(b.of) == 1 {
			b.uuid, b.parts = u, p
		}
		var epoch uint64
		for _, o := range p.objects {
			epoch = max(epoch, o.epoch)
		}
		found = append(found, fmt.Sprintf("%s (%d objects, up to epoch %d, and %d checkpoints)", u, len(p.objects), epoch, len(p.checkpoints)))
	}
	slices.Sort(found)
	switch {
	case b.parts != nil:
		return nil
	case len(found) == 0:
		return fmt.Errorf("%w: none of %d objects and %d checkpoints can be read", volume.ErrRefused, len(b.keys), len(b.checkpoints))
	case b.opts.UUID != "":
		return fmt.Errorf("%w: nothing of volume %s is here, but of %s", volume.ErrRefused, b.opts.UUID, strings.Join(found, ", "))
	}
	return fmt.Errorf("%w: parts of several volumes are here: %s; choose one (--uuid)", volume.ErrRefused, strings.Join(found, ", "))
}

// chooseCheckpoints takes the newest checkpoint that verifies, and the one
// before it if everything is there that an open from it needs. Both were made of
// what was in the store, so it does not matter whether they were committed.
func (b *rebuild) chooseCheckpoints(ctx context.Context) error {
	for _, c := range slices.Backward(b.parts.checkpoints) {
		if len(b.chosen) == layout.MaxCheckpoints {
			return nil
		}
		err := b.fits(c)
		if err == nil {
			b.check.begin("checkpoint "+c.Name, 0)
			c, err = volume.LoadMap(ctx, b.store, b.uuid, c.Name, mapproxy.New(c.Blocks))
		}
		switch {
		case err == nil:
			b.chosen = slices.Insert(b.chosen, 0, c)
		case volume.IsDamage(err):
			b.passed = append(b.passed, fmt.Sprintf("%s: %v", c.Name, err))
		default:
			return err
		}
	}
	return nil
}

// keepSnapshots takes for snapshots all checkpoints that verify, also the chosen ones,
// and all directories of snapshots: which of them the record named, and how, is lost, and
// what it named must not be deleted.
func (b *rebuild) keepSnapshots(ctx context.Context) error {
	var names []string
	for _, c := range b.parts.checkpoints {
		names = append(names, c.Name)
	}
	for _, name := range append(names, b.outside...) {
		b.check.begin("snapshot "+name, 0)
		c, err := volume.ReadCheckpoint(ctx, b.store, b.uuid, name)
		if err == nil {
			_, err = volume.LoadMap(ctx, b.store, b.uuid, name, mapproxy.New(c.Blocks))
		}
		if err != nil && !volume.IsDamage(err) {
			return err
		}
		if err == nil {
			if i := slices.IndexFunc(c.Objects, func(o layout.ObjectInfo) bool { return o.Live > 0 && !b.here(o.Key) }); i >= 0 {
				err = fmt.Errorf("object %d, which it needs, is not there", c.Objects[i].Key)
			}
		}
		if err != nil { // it may be a leftover
			b.leftOut = append(b.leftOut, fmt.Sprintf("%s: %v", name, err))
			continue
		}
		called := "recovered-" + name[strings.LastIndexByte(name, '/')+1:]
		b.snapshots = append(b.snapshots, layout.Snapshot{Name: called, Directory: name, Created: time.Now()})
	}
	if len(b.snapshots) > layout.MaxSnapshots {
		return fmt.Errorf("%w: %d checkpoints and snapshots are there, more than the record can name: move some away", volume.ErrRefused, len(b.snapshots))
	}
	return nil
}

// fits returns layout.ErrDamaged (wrapped) if c cannot stand before the
// checkpoint that is chosen already.
func (b *rebuild) fits(c volume.Checkpoint) error {
	if len(b.chosen) == 0 {
		return nil
	}
	newer := b.chosen[0]
	if c.Blocks != newer.Blocks || c.BlockSize != newer.BlockSize {
		return fmt.Errorf("%w: it has %d blocks of %d bytes, %s has %d of %d", layout.ErrDamaged, c.Blocks, c.BlockSize, newer.Name, newer.Blocks, newer.BlockSize)
	}
	missing := func(k key.Key) error {
		return fmt.Errorf("%w: object %d, which it needs, is not there", layout.ErrDamaged, k)
	}
	if k, lacks := b.lacking(c); lacks {
		return missing(k)
	}
	for k := c.Key + 1; k <= newer.Key; k++ {
		if !b.here(k) {
			return missing(k)
		}
	}
	return nil
}

// lacking returns an object that c needs and that is not there, and reports
// whether there is such a one.
func (b *rebuild) lacking(c volume.Checkpoint) (k key.Key, lacks bool) {
	for _, o := range c.Objects {
		if (o.Live > 0 || o.Fence) && !b.here(o.Key) {
			return o.Key, true
		}
	}
	return 0, false
}

// here reports whether object k is there, whatever it is.
func (b *rebuild) here(k key.Key) bool {
	_, found := slices.BinarySearch(b.keys, k)
	return found
}

// checkEnd refuses a log that ends, after the newest checkpoint, below something
// that can only be there if it once went on: an open would end it there for
// good.
func (b *rebuild) checkEnd(context.Context) error {
	var p volume.Position
	if n := len(b.chosen); n > 0 {
		p = volume.After(b.chosen[n-1].Checkpoint)
	}
	for ; ; p.Next++ {
		o, readable := b.parts.objects[p.Next]
		if !b.damaged[p.Next] && (!readable || o.epoch < p.Epoch) {
			break
		}
		p.Epoch = max(p.Epoch, o.epoch)
	}
	refuse := func(why string) error {
		return fmt.Errorf("%w: object %d is missing, but %s: what the volume was cannot be known (checkpoints that cannot be used: %s)",
			volume.ErrRefused, p.Next, why, orNone(b.passed))
	}
	for _, name := range b.checkpoints {
		if k, _, _, _ := layout.ParseCheckpointName(name); k >= p.Next && !b.anothers(name) {
			return refuse(name + " was made of it")
		}
	}
	var above key.Key
	for k, o := range b.parts.objects {
		if k > p.Next && o.epoch > p.Epoch {
			return refuse(fmt.Sprintf("object %d, of the later epoch %d, is there", k, o.epoch))
		}
		above = max(above, k)
	}
	switch n := len(b.chosen); {
	case above <= p.Next:
	case n == 0 && b.packs:
		return refuse(fmt.Sprintf("object %d is there, and so is a part of a checkpoint, before which objects may have been deleted", above))
	case n > 0:
		// A checkpoint that was replaced stays until the store has deleted it.
		newest := b.chosen[n-1]
		if k, lacks := b.lacking(newest); lacks {
			return refuse(fmt.Sprintf("object %d is there, and object %d, which %s needs, is not: a later checkpoint, after which it was deleted, may be lost", above, k, newest.Name))
		}
	}
	return nil
}

// anothers reports whether a checkpoint is of another volume than the chosen.
func (b *rebuild) anothers(name string) bool {
	for u, p := range b.of {
		if u != b.uuid && slices.ContainsFunc(p.checkpoints, func(c volume.Checkpoint) bool { return c.Name == name }) {
			return true
		}
	}
	return false
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, "; ")
}

// record makes the record of what was chosen.
func (b *rebuild) record() (*Rebuilt, error) {
	v := &layout.Volume{UUID: b.uuid, ChunkSize: b.opts.ChunkSize, Created: b.oldest, ChangeID: layout.NewNonce().String()}
	r := &Rebuilt{Record: v, Unknown: []string{
		"whether its last writer still runs: open the volume with --takeover, which fences it off",
		"whether chunk memory, or a local log (cache.path), holds writes that the store does not have: open the volume where it was last, with the same state.path and cache.path",
		"whether the volume was deleted",
	}}
	value := func(name, from, format string, args ...any) {
		r.Values = append(r.Values, Value{name, fmt.Sprintf(format, args...), from})
	}
	var last part // of the newest writer
	var end uint64
	var most, mostRecords uint32
	for _, k := range b.keys {
		o, ok := b.parts.objects[k]
		if !ok {
			continue
		}
		if v.BlockSize == 0 {
			v.BlockSize = o.blockSize
		}
		if v.BlockSize != o.blockSize {
			return nil, fmt.Errorf("%w: object %d has blocks of %d bytes, others of %d", volume.ErrRefused, k, o.blockSize, v.BlockSize)
		}
		if o.epoch >= last.epoch {
			last = o
		}
		most, mostRecords, end = max(most, o.blocks), max(mostRecords, o.records), max(end, o.end)
	}
	for _, c := range b.parts.checkpoints {
		if c.Epoch > last.epoch {
			last = part{epoch: c.Epoch, nonce: c.Nonce}
		}
	}
	footers := fmt.Sprintf("the footers of %d objects", len(b.parts.objects))
	value("volume", footers, "%s", v.UUID)

	blockFrom, sizeFrom := footers, "the configuration"
	v.Size = b.opts.UsualSize
	if b.opts.Size != 0 {
		v.Size, sizeFrom = b.opts.Size, "--size"
	}
	told := b.chosen
	if len(told) == 0 {
		told = b.parts.checkpoints
	}
	if n := len(told); n > 0 {
		c := told[n-1]
		if v.BlockSize == 0 {
			v.BlockSize, blockFrom = c.BlockSize, c.Name
		}
		v.Size, sizeFrom = int64(c.Blocks)*int64(c.BlockSize), c.Name
		if b.opts.Size != 0 && v.Size != b.opts.Size {
			return nil, fmt.Errorf("%w: --size says %d bytes, %s says %d", volume.ErrRefused, b.opts.Size, c.Name, v.Size)
		}
	}
	reach := int64(end) * int64(v.BlockSize)
	v.LargestSize = max(v.Size, reach)
	if len(told) == 0 && reach > v.Size {
		return nil, fmt.Errorf("%w: the log changes bytes up to %d, but the size is %d (%s): say how large the volume is (--size)", volume.ErrRefused, reach, v.Size, sizeFrom)
	}
	if v.Size != b.opts.UsualSize {
		sizeFrom += fmt.Sprintf("; the configuration says %d, correct that", b.opts.UsualSize)
	}
	value("block size", blockFrom, "%d bytes", v.BlockSize)
	value("size", sizeFrom, "%d bytes", v.Size)
	value("largest size", "the size, and the records of the objects", "%d bytes", v.LargestSize)

	chunk := v.ChunkSize / v.BlockSize
	if most > chunk || int(mostRecords) > layout.MaxRecords(int(chunk)) {
		return nil, fmt.Errorf("%w: an object has %d blocks of %d bytes and %d records, more than a chunk of %d bytes: correct the configuration (write.chunk_size)",
			volume.ErrRefused, most, v.BlockSize, mostRecords, v.ChunkSize)
	}
	value("chunk size", fmt.Sprintf("the configuration; the largest object has %d bytes of data", int64(most)*int64(v.BlockSize)), "%d bytes", v.ChunkSize)
	value("created", "the oldest part that is left; it may be older", "%s", v.Created.UTC().Format(time.RFC3339))

	v.Epoch = max(b.epoch, last.epoch) + 1
	v.Generation = v.Epoch // there was one for each epoch at least
	value("epoch", "one more than the highest that was found", "%d", v.Epoch)
	value("generation", "not known; it only has to grow from here on", "%d", v.Generation)
	v.Writer = layout.Writer{Hostname: "(not known: the record was rebuilt)", Nonce: last.nonce, Since: time.Now()}
	value("writer", fmt.Sprintf("the last footer, of epoch %d; its host is not known", last.epoch), "%s, not released", last.nonce)
	for _, c := range b.chosen {
		v.Checkpoints = append(v.Checkpoints, c.Name)
	}
	from := "the newest that verify"
	if len(b.passed) > 0 {
		from += "; not " + strings.Join(b.passed, "; ")
	}
	value("checkpoints", from, "%s", orNone(v.Checkpoints))
	v.Snapshots = b.snapshots
	names := make([]string, len(v.Snapshots))
	for i, s := range v.Snapshots {
		names[i] = s.Name
	}
	from = "all that verifies; what they were called is not known, and some may be no more than checkpoints: delete those that are not needed"
	if len(b.leftOut) > 0 {
		from += "; not " + strings.Join(b.leftOut, "; ")
	}
	value("snapshots", from, "%s", orNone(names))
	return r, nil
}

// withRecord is a store whose volume record is text.
type withRecord struct {
	objproxy.Store
	text []byte
}

// Get implements objproxy.Store.
func (s withRecord) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	if name != layout.VolumeName {
		return s.Store.Get(ctx, name, p, off)
	}
	size := int64(len(s.text))
	if off < 0 {
		off = max(0, size-int64(len(p)))
		p = p[:size-off]
	}
	if off+int64(len(p)) > size {
		return 0, objproxy.Info{}, fmt.Errorf("get %s: %w", name, objproxy.ErrRange)
	}
	return copy(p, s.text[off:]), objproxy.Info{Name: name, Size: size, Version: "rebuilt"}, nil
}
