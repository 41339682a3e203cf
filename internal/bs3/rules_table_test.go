package bs3

import (
	"os"
	"strings"
	"testing"
)

// A rule of the engine, and how it looks without it; docs/TESTING.md lists
// what notices.
type ruleOut struct {
	rule  string
	what  string // is left out
	edits []ruleEdit
}

// ruleEdit replaces old, which must be there exactly once, in a file
// below this directory.
type ruleEdit struct{ file, old, new string }

// TestRulesFit: the engine still has every rule where TestLeftOut (make rules)
// leaves it out. Who changes the engine there says here how it looks without
// the rule now.
func TestRulesFit(t *testing.T) {
	for _, r := range rulesOut {
		for _, e := range r.edits {
			b, err := os.ReadFile(e.file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(b), e.old); n != 1 {
				t.Errorf("%s (%s): %s has this %d times, not once:\n%s", r.rule, r.what, e.file, n, e.old)
			}
		}
	}
}

// rulesOut are the rules that the engine has today.
var rulesOut = []ruleOut{
	{"VGET", "the version comes from another request than the bytes that were judged", []ruleEdit{{"writer/upload.go", `
			return false, objproxy.IfVersion(found.Version), nil
`, `
			again, err := tails.Read(ctx, k)
			if err != nil {
				again = found
			}
			return false, objproxy.IfVersion(again.Version), nil
`}}},
	{"COMMIT", "a checkpoint counts when it is stored, and an open takes what is there", []ruleEdit{{"recover.go", `
	r.Map, r.Seq = mapproxy.New(o.opts.blocks()), 1
`, `
	r.Map, r.Seq = mapproxy.New(o.opts.blocks()), 1
	listed := *v
	listed.Checkpoints = nil
	v = &listed
	if err := volume.List(ctx, o.store, layout.CheckpointPrefix, func(page []objproxy.Info) error {
		for _, i := range page {
			v.Checkpoints = append(v.Checkpoints, i.Name)
		}
		return nil
	}); err != nil {
		return nil, err
	}
`}, {"checkpoint/checkpoint.go", `
		v.Checkpoints = names
`, `
		if true {
			return errUncommitted
		}
		v.Checkpoints = names
`}, {"checkpoint/checkpoint.go", `
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
`, `
	if err != nil && !errors.Is(err, errUncommitted) {
		return fmt.Errorf("commit: %w", err)
	}
`}, {"checkpoint/checkpoint.go", `
// Log is the log that checkpoints are made of.
`, `
var errUncommitted = errors.New("uncommitted")

// Log is the log that checkpoints are made of.
`}}},
	{"CKEPOCH", "roll-forward from a checkpoint starts with any epoch", []ruleEdit{{"recover.go", `
			r.Seq, r.at, r.base = c.NextSeq, volume.After(c.Checkpoint), name
`, `
			r.Seq, r.at, r.base = c.NextSeq, volume.Position{Next: c.Key + 1}, name
`}}},
	{"NOBASE", "if no checkpoint verifies the log is read from its start", []ruleEdit{{"recover.go", `
	return nil, fmt.Errorf("%w: no checkpoint of the volume verifies, and the log before them may be gone: %w", volume.ErrRefused, errors.Join(damage...))
`, `
	return r, nil
`}}},
	{"RULE", "what lies where the fence should be is applied, whosever it is", []ruleEdit{{"recover.go", `
		return logEnd{what: "it is a leftover", cond: objproxy.IfVersion(t.Version)}, false, nil
`, `
		return logEnd{what: "it is a leftover", cond: objproxy.IfAbsent()}, false, nil
`}, {"recover.go", `
		if err := denied.Again(ctx, r.at.Next.Name(), o.log); err != nil {
			return err
		}
`, `
		if err := denied.Again(ctx, r.at.Next.Name(), o.log); err != nil {
			return err
		}
		tails := volume.Tails{Store: o.store, UUID: r.uuid, ChunkBlocks: o.opts.chunkBlocks()}
		came, err := tails.Read(ctx, r.at.Next)
		if err == nil && came.Object.Epoch != own.Epoch {
			if err := r.apply(came.Object, o.opts.BlockSize); err != nil {
				return unreadable(err)
			}
			r.at = volume.Position{Next: r.at.Next + 1, Epoch: max(r.at.Epoch, came.Object.Epoch)}
		}
`}}},
	{"HIGHER", "(with VERIFY) an opener goes on past objects of a newer writer", []ruleEdit{{"recover.go", `
		case found.Epoch > own.Epoch:
			return end, false, fmt.Errorf("%w: object %d has epoch %d, ours is %d", volume.ErrFenced, k, found.Epoch, own.Epoch)
`, `
`}, {"recover.go", `
	case found.Epoch > newest:
`, `
	case found.Epoch > newest && o.owner == nil:
`}, {"open.go", `
	if _, _, err := o.owner.Read(ctx); err != nil {
		return nil, fmt.Errorf("after storing our fence: %w", err)
	}
`, `
`}}},
	{"VERIFY", "an opener does not look whether a newer one came while it fenced", []ruleEdit{{"open.go", `
	if _, _, err := o.owner.Read(ctx); err != nil {
		return nil, fmt.Errorf("after storing our fence: %w", err)
	}
`, `
`}}},
	{"OWNF", "(with the check of the nonce) our own fence, its answer lost, is taken for part of the log", []ruleEdit{{"recover.go", `
			return logEnd{ours: true}, false, nil // the answer was lost
`, `
			r.at = volume.Position{Next: k + 1, Epoch: found.Epoch}
			return end, true, nil
`}}},
	{"KEEPORPH", "what lies above the end of the log is deleted at open", []ruleEdit{{"open.go", `
	e.log.Start()
	return e
`, `
	e.log.Start()
	e.background.Go(func() {
		_ = volume.List(e.idle, opts.Store, "", func(page []objproxy.Info) error {
			for _, i := range page {
				if k, err := key.Parse(i.Name); err == nil && k > r.Last {
					_ = opts.Store.Delete(e.idle, []string{i.Name})
				}
			}
			return nil
		})
	})
	return e
`}}},
	{"MEMDUR", "what is stored is read from the store, also above the durable key", []ruleEdit{{"writer/memory.go", `
	if c == nil {
		return false
	}
	c.slot.Read`, `
	if c == nil || c.stored {
		return false
	}
	c.slot.Read`}}},
	{"SLOTDUR", "a slot is free when its chunk is stored", []ruleEdit{{"writer/memory.go", `
	if c == nil {
		return false
	}
	c.slot.Read`, `
	if c == nil || c.stored {
		return false
	}
	c.slot.Read`}, {"writer/durable.go", `
		l.ring.at(c.obj.Key).CompareAndSwap(c, nil) // a newer chunk may have the place
		l.unref(c)
	}
`, `
		l.ring.at(c.obj.Key).CompareAndSwap(c, nil)
	}
	l.unref(c)
`}}},
	{"RHEAP", "replay builds its objects in the pool", []ruleEdit{{"replay.go", `
		if err := log.Replay(ctx, r); err != nil {
`, `
		if err := log.Replay(ctx, r, o.files.memory); err != nil {
`}, {"writer/memory.go", `
func (l *Log) Replay(ctx context.Context, r wlog.Entry) error {
`, `
func (l *Log) Replay(ctx context.Context, r wlog.Entry, memory *wlog.Memory) error {
`}, {"writer/memory.go", `
		if slot, err = l.Slot(ctx); err != nil {
`, `
		for slot = nil; slot == nil && err == nil; {
			for _, s := range memory.Slots() {
				if s.Count() == 0 {
					slot = s
				}
			}
			if slot == nil {
				err = objproxy.Sleep(ctx, time.Second)
			}
		}
		if err != nil {
`}, {"writer/memory.go", `
import (
	"context"

	"bs3/internal/bs3/era"
`, `
import (
	"context"
	"time"

	"bs3/internal/bs3/objproxy"

	"bs3/internal/bs3/era"
`}}},
	{"LNONCE", "chunk memory is replayed whosever it is", []ruleEdit{{"claim.go", `
		case o.writersHere[h.Nonce]:
`, `
		case len(h.Nonce) > 0:
`}, {"replay.go", `
		if h, err := s.Header(); err == nil && !o.writersHere[h.Nonce] {
			l.passed++
			continue
		}
`, `
`}}},
	{"LCHAIN", "(with LASIDE) any claim of ours in the record makes all chunk memory ours", []ruleEdit{{"wlog/intents.go", `
	for x, ok := replaces[recorded]; ok && !ours[x]; x, ok = replaces[x] {
		ours[x] = true
	}
`, `
	if _, ok := replaces[recorded]; ok {
		for _, s := range list {
			ours[s.Nonce], ours[s.Replaces] = true, true
		}
	}
`}, {"claim.go", `
		aside, err := f.setMemoryAside()
		if err != nil {
			return err
		}
`, `
		aside := f.memory.Path()
		if err := f.memory.Close(); err != nil {
			return err
		}
		f.memory = nil
`}}},
	{"LASIDE", "(with LCHAIN: any claim of ours in the record makes all chunk memory ours) memory of others stays where it is", []ruleEdit{{"claim.go", `
		case o.writersHere[h.Nonce]:
`, `
		case o.writersHere[h.Nonce] || len(o.writersHere) > 1:
`}, {"replay.go", `
		if h, err := s.Header(); err == nil && !o.writersHere[h.Nonce] {
			l.passed++
			continue
		}
`, `
`}, {"claim.go", `
		aside, err := f.setMemoryAside()
		if err != nil {
			return err
		}
`, `
		aside := f.memory.Path()
		if err := f.memory.Close(); err != nil {
			return err
		}
		f.memory = nil
`}}},
	{"LJUDGE", "chunk memory is judged at the first try of the claim only", []ruleEdit{{"claim.go", `
	if err := o.judgeFiles(v); err != nil {
		return err
	}
`, `
	if o.found != nil {
		o.others = others{}
	} else if err := o.judgeFiles(v); err != nil {
		return err
	}
`}}},
	{"BEFORE", "what is to be replayed is judged after the claim only", []ruleEdit{{"claim.go", `
	return o.judgeReplay()
`, `
	return nil
`}}},
	{"AGAIN", "a refusal counts, although the record has changed while it was judged", []ruleEdit{{"claim.go", `
		case verdict != nil && same:
`, `
		case verdict != nil:
`}}},
	{"PASSED", "an open goes on where it was in the log, although checkpoints have passed that", []ruleEdit{{"recover.go", `
		again = len(o.found.kept) > 0 && o.found.at.Next > o.found.kept[0].Key
`, `
`}}},
	{"BASE", "leaves that did not change since the open are those of the newest checkpoint that verifies, whichever the map was made from", []ruleEdit{{"checkpoint/checkpoint.go", `
		if old.Name == base {
`, `
		if base != "" {
`}}},
	{"TABLE", "an open that goes on where it was keeps objects in its table that were deleted meanwhile", []ruleEdit{{"recover.go", `
		o.found.forget()
`, `
`}}},
	{"TWICE", "one answer of the store is enough to end the log, and to be replaced", []ruleEdit{{"recover.go", `
		if !more && !errors.Is(err, objproxy.ErrNotFound) {
`, `
		if false {
`}, {"volume/tail.go", `
	if err == nil && t.Object.UUID != r.UUID {
`, `
	if false {
`}}},
	{"LSEQ", "replay does not look at sequence numbers", []ruleEdit{{"replay.go", `
	for len(l.memory) > 0 && l.memory[0].Seq < seq { // the store has it
		l.memory = l.memory[1:]
	}
	if len(l.memory) > 0 && l.memory[0].Seq == seq {
		return l.memory[0], true, nil
	}
`, `
	if len(l.memory) > 0 {
		next := l.memory[0]
		l.memory = l.memory[1:]
		return next, true, nil
	}
`}}},
	{"LOLD", "chunk memory is emptied before what was replayed is stored", []ruleEdit{{"replay.go", `
	if err := log.FlushToStore(ctx); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
`, `
`}}},
	{"LSHOWN", "intents are never dropped", []ruleEdit{{"files.go", `
	for _, d := range f.dirs() {
		if err := d.DropIntents(); err != nil {
			return err
		}
	}
	return nil
`, `
	return nil
`}}},
	{"CACHED", "(with the epoch of what is cached) the disk cache takes an object when it is stored", []ruleEdit{{"writer/durable.go", `
	var few [4]*chunk
`, `
	l.keep(c)
	var few [4]*chunk
`}, {"writer/durable.go", `
	lend := c.slot.Pooled()
`, `
	lend := false
`}, {"reader/disk.go", `
			m.epoch = r.c.Memory.Object(m.loc.Key()).Epoch
`, `
			m.epoch = min(1, r.c.Memory.Object(m.loc.Key()).Epoch)
`}, {"reader/disk.go", `
		r.c.Disk.Put(loc, epoch, blocks, stored)
`, `
		r.c.Disk.Put(loc, 1, blocks, stored)
`}}},
	{"LDUR", "the local log gives up what is stored", []ruleEdit{{"writer/durable.go", `
	c.stored = true
`, `
	c.stored = true
	if m.local.log != nil {
		m.local.log.Release(c.obj.Key)
	}
`}}},
	{"LGROUP", "a flush counts a sync that is under way", []ruleEdit{{"writer/locallog.go", `
			if err := l.syncEnds(ctx, s.wait); err != nil {
				return err
			}
`, `
			return l.syncEnds(ctx, s.wait)
`}}},
	{"LFSYNC", "the local log goes on after a sync that failed", []ruleEdit{{"writer/locallog.go", `
	l.mu.local.failed, l.mu.local.log = err, nil
`, `
	l.mu.local.failed = err
`}}},
	{"LBOTH", "of local log and chunk memory the log is replayed, if there is one", []ruleEdit{{"replay.go", `
	found, seq := o.left, first
`, `
	found, seq := o.left, first
	if o.files.logHolds() {
		found.memory = nil
	}
`}}},
	{"LINTENT", "the intents are in the state directory alone", []ruleEdit{{"files.go", `
	for _, d := range f.dirs() {
		if err := d.AddIntent(`, `
	for _, d := range f.dirs()[:min(1, len(f.dirs()))] {
		if err := d.AddIntent(`}}},
	{"LNONCE'", "the local log is replayed whosever it is", []ruleEdit{{"claim.go", `
	o.others.local = f.local == nil || f.local.Header().UUID != v.UUID || !o.writersHere[f.local.Header().Nonce]
`, `
	o.others.local = f.local == nil || f.local.Header().UUID != v.UUID
`}}},
	{"ATOMIC", "a checkpoint seals, and freezes a moment later", []ruleEdit{{"writer/log.go", `
	last := l.sealThrough()
	cut :=`, `
	last := l.sealThrough()
	l.mu.Unlock()
	_ = objproxy.Sleep(context.Background(), 3*time.Millisecond)
	l.mu.Lock()
	cut :=`}}},
	{"SWEEP", "a writer also sweeps names of a newer one", []ruleEdit{{"checkpoint/sweep.go", `l.needed[name] || epoch > l.epoch:`, `l.needed[name]:`}}},
	{"UNDERWAY", "a sweep takes what a checkpoint has stored and not committed yet", []ruleEdit{{"checkpoint/sweep.go", `
	case epoch == l.epoch && counter > l.counter:
`, `
	case epoch == l.epoch && counter > l.counter && l.needed == nil:
`}}},
	{"UNKNOWN", "what is left behind is reckoned before it is known whether the commit was done", []ruleEdit{{"checkpoint/checkpoint.go", `
		return fmt.Errorf("commit: %w", err)
`, `
		k.committed(k.Kept())
		return fmt.Errorf("commit: %w", err)
`}}},
	{"CKNAME", "the name of a checkpoint is used again", []ruleEdit{{"checkpoint/checkpoint.go", `
		_, err := k.c.Store.Put(ctx, n, objproxy.Body{Data: b}, objproxy.IfAbsent())
`, `
		n = name(0)
		_, err := k.c.Store.Put(ctx, n, objproxy.Body{Data: b}, objproxy.Condition{})
`}}},
	{"GATE", "what is dead in the newest checkpoint is deleted", []ruleEdit{{"gc/dead.go", `
	keys := g.deletable(kept[0], held)
	if len(keys) == 0 {
`, `
	keys := g.deletable(kept[len(kept)-1], held)
	if len(keys) == 0 {
`}}},
	{"GATE'", "what is dead now is deleted", []ruleEdit{{"gc/dead.go", `
	keys := g.deletable(kept[0], held)
	if len(keys) == 0 {
`, `
	var keys []key.Key
	some, _, durable, _ := g.c.Log.Objects(0, 1<<20)
	for _, o := range some {
		if o.Live == 0 && !o.Fence && o.Key <= durable && !held.Object(o.Key) {
			keys = append(keys, o.Key)
		}
	}
	if len(keys) == 0 {
`}}},
	{"KEEPFENCE", "fences are deleted", []ruleEdit{{"checkpoint/checkpoint.go", `
		if o.Live == 0 && !o.Fence {
`, `
		if o.Live == 0 {
`}}},
	{"NOEMPTY", "the second checkpoint of a collection comes with an empty object", []ruleEdit{{"gc/dead.go", `
		if len(newest) > 0 {
			if err := g.c.Checkpoints.Write(ctx); err != nil {
`, `
		if len(newest) > 0 {
			g.c.Log.(interface{ OpenChunk() }).OpenChunk()
			if err := g.c.Checkpoints.Write(ctx); err != nil {
`}, {"writer/rewrite.go", `
// Live reports whether object k has live blocks.
`, `
func (l *Log) OpenChunk() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.makeRoom(0)
}

// Live reports whether object k has live blocks.
`}}},
	{"GCIDX", "a move's data index counts the moves", []ruleEdit{{"writer/rewrite.go", `Kind: layout.KindMove, Index: uint32(i), Source`, `Kind: layout.KindMove, Index: uint32(len(c.obj.Records)), Source`}}},
	{"GCSTILL", "blocks are moved that have been written since", []ruleEdit{{"writer/rewrite.go", `
		if maps.Get(m.Block) != m.Source {
			continue
		}
`, `
`}, {"writer/rewrite.go", `
			if maps.Move(r.Block+uint64(i), r.Source.Add(i), layout.Loc(c.obj.Key, r.Index+i)) { // a block may be there twice
				moved++
			}
`, `
			maps.Write(r.Block+uint64(i), 1, layout.Loc(c.obj.Key, r.Index+i))
			moved++
`}}},
	{"GCSEAL", "a compaction takes its key while a chunk is open", []ruleEdit{{"writer/rewrite.go", `
	l.seal()
	l.place(c)
`, `
	l.place(c)
`}}},
	{"INORDER", "moves take effect when their object is stored", []ruleEdit{{"writer/rewrite.go", `
			if maps.Move(r.Block+uint64(i), r.Source.Add(i), layout.Loc(c.obj.Key, r.Index+i)) { // a block may be there twice
				moved++
			}
`, `
			_ = i
			moved++
`}, {"writer/durable.go", `
	c.stored = true
`, `
	c.stored = true
	for _, r := range c.obj.Records {
		for i := uint32(0); r.Kind == layout.KindMove && i < r.Blocks; i++ {
			m.maps.Move(r.Block+uint64(i), r.Source.Add(i), layout.Loc(c.obj.Key, r.Index+i))
		}
	}
`}}},
	// What they all rest on:
	{"flush", "a flush is acknowledged when its own put is answered", []ruleEdit{{"writer/durable.go", `
	for k := m.durable; ; {
`, `
	for k := c.obj.Key - 1; ; {
`}}},
	{"era", "a slot is used again while a reader may look at it, an object deleted while one reads it", []ruleEdit{{"era/era.go", `
func (e *Readers) Retire(f func()) { e.advance(f) }
`, `
func (e *Readers) Retire(f func()) { f() }
`}}},
	{"ALONE", "a lost record is put back without a look for a later writer", []ruleEdit{{"volume/record.go", `
	if err := o.alone(ctx, v); err != nil {
		return err
	}
`, `
`}}},
	{"fenced", "a writer that finds a newer one's object takes its own for stored", []ruleEdit{{"writer/upload.go", `
			return false, next, fmt.Errorf("%w: object %d has epoch %d, ours is %d", volume.ErrFenced, k, theirs.Epoch, o.Epoch)
`, `
			return true, next, nil
`}}},
	{"VREAD", "what the store returns to a read is believed", []ruleEdit{{"reader/fetch.go", `
				if _, ok := checks.Verify(some.loc.Index()+i, part[int(i)*r.buffers.stride:][:r.buffers.stride]); !ok {
`, `
				if _, ok := checks.Verify(some.loc.Index()+i, part[int(i)*r.buffers.stride:][:r.buffers.stride]); !ok && false {
`}}},
	{"VAGAIN", "a wrong answer to a read is not asked for again", []ruleEdit{{"reader/fetch.go", `
		if again {
`, `
		if again || true {
`}}},
	{"VPLACE", "a check value does not cover the place of its block", []ruleEdit{{"layout/check.go", `
	return crc32.Update(crc, castagnoli, c.place[:])
`, `
	return crc
`}}},
	{"VMOVE", "the collector moves what it has not verified", []ruleEdit{{"gc/compact.go", `
			if m.CRC, ok = checks.Verify(index, stored); !ok {
`, `
			if m.CRC, ok = checks.Verify(index, stored); !ok && index > layout.MaxIndex {
`}}},
	{"VDISK", "what the disk cache returns is believed", []ruleEdit{{"rcache/diskread.go", `
		good[i] = checks.Value(r.loc.Index()+uint32(i), layout.CRC(r.data[i*bs:][:bs])) == r.table.Entries[place].Check
`, `
		good[i] = checks.Value(r.loc.Index()+uint32(i), layout.CRC(r.data[i*bs:][:bs])) == r.table.Entries[place].Check || place >= 0
`}}},
	{"VDROP", "what does not verify stays in the disk cache", []ruleEdit{{"rcache/diskread.go", `
			d.drop(set, r.loc.Add(uint32(i)), r.epoch)
`, `
			_ = set
`}}},
	{"VMEM", "the blocks of chunk memory are replayed as they are", []ruleEdit{{"wlog/slot.go", `
		if crcs[b], ok = s.checks.Verify(s.blocks+uint32(b), stored[b*stride:][:stride]); !ok {
`, `
		if crcs[b], ok = s.checks.Verify(s.blocks+uint32(b), stored[b*stride:][:stride]); !ok && n == 0 {
`}}},
	{"VCOUNT", "the count of a slot is believed", []ruleEdit{{"layout/memory.go", `
	return n, uint32(both>>32) == ^n
`, `
	return n, true
`}}},
	{"VLOG", "the blocks of the local log are replayed as they are", []ruleEdit{{"wlog/logread.go", `
	crcs, err := f.VerifyData(data)
	return f, data, crcs, err
`, `
	crcs := make([]uint32, f.Blocks)
	for i := range crcs {
		crcs[i] = layout.CRC(data[i*layout.Stride(int(f.BlockSize)):][:f.BlockSize])
	}
	return f, data, crcs, nil
`}}},
	{"OUTSEEN", "a writer does not take in the snapshots that others make", []ruleEdit{{"checkpoint/snapshot.go", `
	named := k.c.Owner.Snapshots()
`, `
	named := slices.DeleteFunc(k.c.Owner.Snapshots(), func(s layout.Snapshot) bool {
		_, _, err := layout.ParseSnapshotName(s.Directory)
		return err == nil
	})
`}}},
	{"OUTSWEEP", "packs that a snapshot shares with a checkpoint are swept", []ruleEdit{{"checkpoint/sweep.go", `
				if left.has(o.Name) && !held.names[o.Name] {
`, `
				if left.has(o.Name) {
`}}},
	{"OUTKEPT", "an outsider commits also if the checkpoint that it began from is kept no more", []ruleEdit{{"checkpoint/outside.go", `
	return slices.Contains(v.Checkpoints, o.base.Name)
`, `
	return slices.Contains(v.Checkpoints, o.base.Name) || true
`}}},
	{"OUTGONE", "a snapshot is forgotten while the record names it", []ruleEdit{{"checkpoint/snapshot.go", `
	for _, s := range named {
		if now`, `
	for _, s := range named[min(1, len(named)):] {
		if now`}}},
	{"OUTONCE", "who does not know whether its snapshot was committed commits the same again", []ruleEdit{{"checkpoint/outside.go", `
	o.sent = false // the version that the put asked for is gone
	return volume.ErrMoved
`, `
	return o.commit(ctx, s)
`}}},
	{"SNAPHELD", "objects that only a snapshot needs are deleted", []ruleEdit{{"gc/dead.go", `slices.DeleteFunc(slices.Sorted(maps.Keys(k.Dead)), held.Object)`, `slices.DeleteFunc(slices.Sorted(maps.Keys(k.Dead)), func(key.Key) bool { return false })`}}},
	{"SNAPALL", "what an unreadable snapshot needs is taken for nothing", []ruleEdit{{"checkpoint/snapshot.go", `	return needs{unknown: true}, nil
`, `	return needs{}, nil
`}}},
}
