package bs3

import (
	"os"
	"strings"
	"testing"
)

// A rule of docs/ARCHITECTURE.md, and how the engine looks without it.
type ruleOut struct {
	rule  string
	what  string // is left out
	edits []ruleEdit
}

// ruleEdit replaces old, which must be there exactly once, in a file of the
// engine.
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

// rulesOut are the rules that the engine has today. Still to come with what it
// belongs to: SNAPREC (snapshots).
var rulesOut = []ruleOut{
	{"VGET", "the version comes from another request than the bytes that were judged", []ruleEdit{{"upload.go", `
			return false, objproxy.IfVersion(found.version), nil
`, `
			again, err := e.tails().read(e.ctx, k)
			if err != nil {
				again = found
			}
			return false, objproxy.IfVersion(again.version), nil
`}}},
	{"COMMIT", "a checkpoint counts when it is stored, and an open takes what is there", []ruleEdit{{"load.go", `
	e.seq = 1
	if len(v.Checkpoints) == 0 {
`, `
	e.seq = 1
	v.Checkpoints = nil
	if err := e.list(ctx, layout.CheckpointPrefix, func(names []string) error {
		v.Checkpoints = append(v.Checkpoints, names...)
		return nil
	}); err != nil {
		return position{}, err
	}
	if len(v.Checkpoints) == 0 {
`}, {"checkpoint.go", `
	if _, err := e.changeVolume(ctx, func(v *layout.Volume) { v.Checkpoints = names }); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
`, `
`}}},
	{"CKEPOCH", "roll-forward from a checkpoint starts with any epoch", []ruleEdit{{"load.go", `
			return position{c.Key + 1, c.KeyEpoch}, nil
`, `
			return position{c.Key + 1, 0}, nil
`}}},
	{"NOBASE", "if no checkpoint verifies the log is read from its start", []ruleEdit{{"load.go", `
	return position{}, fmt.Errorf("%w: no checkpoint of the volume verifies, and the log before them may be gone: %w", ErrRefused, errors.Join(damage...))
`, `
	return position{}, nil
`}}},
	{"RULE", "what lies where the fence should be is applied, whosever it is", []ruleEdit{{"recover.go", `
		default: // a leftover of a writer that was fenced before it
			cond = objproxy.IfVersion(found.version)
`, `
		default:
			cond = objproxy.IfAbsent()
`}, {"recover.go", `
		read = func() (tail, error) { return e.tails().read(ctx, k) } // judge what came in between
`, `
		came, err := e.tails().read(ctx, k)
		if err == nil && came.obj.Epoch != e.epoch {
			if err := e.apply(came.obj); err != nil {
				return 0, e.unreadable(err)
			}
			p = position{k + 1, max(p.epoch, came.obj.Epoch)}
		}
		read = ahead.next
		if p.next == k {
			read = func() (tail, error) { return e.tails().read(ctx, k) }
		}
`}}},
	{"HIGHER", "(with VERIFY) an opener goes on past objects of a newer writer", []ruleEdit{{"recover.go", `
		case found.obj.Epoch > e.epoch:
			return 0, fmt.Errorf("%w: object %d has epoch %d, ours is %d", ErrFenced, k, found.obj.Epoch, e.epoch)
`, `
`}, {"open.go", `
	if _, _, err := e.ownVolume(ctx); err != nil {
		return 0, fmt.Errorf("after storing our fence: %w", err)
	}
`, `
`}}},
	{"VERIFY", "an opener does not look whether a newer one came while it fenced", []ruleEdit{{"open.go", `
	if _, _, err := e.ownVolume(ctx); err != nil {
		return 0, fmt.Errorf("after storing our fence: %w", err)
	}
`, `
`}}},
	{"OWNF", "(with the check of the nonce) our own fence, its answer lost, is taken for part of the log", []ruleEdit{{"recover.go", `
			return k, nil // our fence: the answer was lost
`, `
			p = position{k + 1, found.obj.Epoch}
			read = ahead.next
			continue
`}}},
	{"KEEPORPH", "what lies above the end of the log is deleted at open", []ruleEdit{{"open.go", `
	e.keys = key.NewAllocator(fence + 1)
	return v, nil
`, `
	e.keys = key.NewAllocator(fence + 1)
	e.wg.Go(func() {
		_ = e.list(e.ctx, "", func(names []string) error {
			for _, n := range names {
				if k, err := key.Parse(n); err == nil && k > fence {
					_ = e.store.Delete(e.ctx, []string{n})
				}
			}
			return nil
		})
	})
	return v, nil
`}}},
	{"MEMDUR", "what is stored is read from the store, also above the durable key", []ruleEdit{{"read.go", `
		if c := e.ring.get(r.Loc.Key()); c != nil {
`, `
		if c := e.ring.get(r.Loc.Key()); c != nil && !c.stored {
`}}},
	{"SLOTDUR", "a slot is free when its chunk is stored", []ruleEdit{{"read.go", `
		if c := e.ring.get(r.Loc.Key()); c != nil {
`, `
		if c := e.ring.get(r.Loc.Key()); c != nil && !c.stored {
`}, {"chunk.go", `
		e.ring.at(c.obj.Key).CompareAndSwap(c, nil) // a newer chunk may have the place
		e.unref(c)
	}
`, `
		e.ring.at(c.obj.Key).CompareAndSwap(c, nil)
	}
	e.unref(c)
`}}},
	{"RHEAP", "replay builds its objects in the pool", []ruleEdit{{"recover.go", `
		slot, err := e.heapSlot(ctx)
		e.mu.Lock()
`, `
		var slot *wlog.Slot
		var err error
		for _, s := range e.memory.Slots() {
			if s.Count() == 0 {
				slot = s
			}
		}
		for slot == nil && err == nil {
			err = sleep(ctx, time.Second)
		}
		e.mu.Lock()
`}, {"recover.go", `
	"fmt"
	"slices"
`, `
	"fmt"
	"slices"
	"time"
`}}},
	{"LNONCE", "chunk memory is replayed whosever it is", []ruleEdit{{"open.go", `
		case e.writersHere[h.Nonce]:
`, `
		case len(h.Nonce) > 0:
`}, {"recover.go", `
		if h, err := s.Header(); err == nil && !e.writersHere[h.Nonce] {
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
`}, {"open.go", `
	aside, err := e.dir.SetAside(wlog.MemoryFileName)
	if err != nil {
		return err
	}
`, `
	aside := path
`}}},
	{"LASIDE", "(with LCHAIN: any claim of ours in the record makes all chunk memory ours) memory of others stays where it is", []ruleEdit{{"open.go", `
		case e.writersHere[h.Nonce]:
`, `
		case e.writersHere[h.Nonce] || len(e.writersHere) > 1:
`}, {"recover.go", `
		if h, err := s.Header(); err == nil && !e.writersHere[h.Nonce] {
			continue
		}
`, `
`}, {"open.go", `
	aside, err := e.dir.SetAside(wlog.MemoryFileName)
	if err != nil {
		return err
	}
`, `
	aside := path
`}}},
	{"LJUDGE", "chunk memory is judged at the first try of the claim only", []ruleEdit{{"open.go", `
		if err := e.judge(v); err != nil {
			return nil, err
		}
`, `
		if tried {
		} else if err := e.judge(v); err != nil {
			return nil, err
		}
		tried = true
`}, {"open.go", `
func (e *Engine) claim(ctx context.Context) (*layout.Volume, error) {
`, `
func (e *Engine) claim(ctx context.Context) (*layout.Volume, error) {
	tried := false
`}}},
	{"LSEQ", "replay does not look at sequence numbers", []ruleEdit{{"openlog.go", `
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
	{"LOLD", "chunk memory is emptied before what was replayed is stored", []ruleEdit{{"recover.go", `
	if err := e.flushToStore(ctx); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
`, `
`}}},
	{"LSHOWN", "intents are never dropped", []ruleEdit{{"open.go", `
	for _, d := range e.dirs() {
		if err := d.DropIntents(); err != nil {
			return err
		}
	}
	return nil
`, `
	return nil
`}}},
	{"CACHED", "(with the epoch of what is cached) the disk cache takes an object when it is stored", []ruleEdit{{"chunk.go", `
	c.stored = true
`, `
	c.stored = true
	if e.disk != nil {
		e.keepForReaders(c)
	}
`}, {"diskcache.go", `
			misses[i].epoch = o.Epoch
`, `
			misses[i].epoch = o.Epoch - o.Epoch + 1
`}, {"diskcache.go", `
		e.disk.Put(m.loc, m.epoch, m.dst)
`, `
		e.disk.Put(m.loc, 1, m.dst)
`}}},
	{"LDUR", "the local log gives up what is stored", []ruleEdit{{"chunk.go", `
	c.stored = true
`, `
	c.stored = true
	if e.logging.log != nil {
		e.logging.log.Release(c.obj.Key)
	}
`}}},
	{"LGROUP", "a flush counts a sync that is under way", []ruleEdit{{"locallog.go", `
			if err := e.syncEnds(ctx, l.ended); err != nil {
				return err
			}
`, `
			return e.syncEnds(ctx, l.ended)
`}}},
	{"LFSYNC", "the local log goes on after a sync that failed", []ruleEdit{{"locallog.go", `
	e.logging.failed, e.logging.log = err, nil
`, `
	e.logging.failed = err
`}}},
	{"LBOTH", "of local log and chunk memory the log is replayed, if there is one", []ruleEdit{{"recover.go", `
	found := leftover{memory: memory, log: e.leftLog}
`, `
	found := leftover{memory: memory, log: e.leftLog}
	if e.leftLog != nil && e.leftLog.Frames() > 0 {
		found.memory = nil
	}
`}}},
	{"LINTENT", "the intents are in the state directory alone", []ruleEdit{{"open.go", `
		for _, d := range e.dirs() {
			if err := d.AddIntent(`, `
		for _, d := range e.dirs()[:min(1, len(e.dirs()))] {
			if err := d.AddIntent(`}}},
	{"LNONCE'", "the local log is replayed whosever it is", []ruleEdit{{"openlog.go", `
	ours := e.leftLog != nil && e.leftLog.Header().UUID == v.UUID && e.writersHere[e.leftLog.Header().Nonce]
`, `
	ours := e.leftLog != nil && e.leftLog.Header().UUID == v.UUID
`}}},
	{"ATOMIC", "a checkpoint seals, and freezes a moment later", []ruleEdit{{"checkpoint.go", `
	last := e.sealThrough()
	frozen := e.maps.Freeze()
`, `
	last := e.sealThrough()
	e.mu.Unlock()
	_ = sleep(ctx, 3*time.Millisecond)
	e.mu.Lock()
	frozen := e.maps.Freeze()
`}}},
	{"SWEEP", "a writer also sweeps names of a newer one", []ruleEdit{{"checkpoint.go", `ok && epoch <= e.epoch && !needed[n]`, `ok && epoch > 0 && !needed[n]`}}},
	{"CKNAME", "the name of a checkpoint is used again", []ruleEdit{{"checkpoint.go", `
		_, err := e.store.Put(ctx, n, objproxy.Body{Data: b}, objproxy.IfAbsent())
`, `
		n = name(0)
		_, err := e.store.Put(ctx, n, objproxy.Body{Data: b}, objproxy.Condition{})
`}}},
	{"GATE", "what is dead in the newest checkpoint is deleted", []ruleEdit{{"gc.go", `
	keys := e.deletable(checkpoints[0])
	if len(keys) == 0 {
`, `
	keys := e.deletable(checkpoints[len(checkpoints)-1])
	if len(keys) == 0 {
`}}},
	{"GATE'", "what is dead now is deleted", []ruleEdit{{"gc.go", `
	keys := e.deletable(checkpoints[0])
	if len(keys) == 0 {
`, `
	var keys []key.Key
	e.mu.Lock()
	some, _ := e.maps.Objects(0, 1<<20)
	for _, o := range some {
		if o.Live == 0 && !o.Fence && o.Key <= e.durable {
			keys = append(keys, o.Key)
		}
	}
	e.mu.Unlock()
	if len(keys) == 0 {
`}}},
	{"KEEPFENCE", "fences are deleted", []ruleEdit{{"checkpoint.go", `
		if o.Live == 0 && !o.Fence {
`, `
		if o.Live == 0 {
`}}},
	{"NOEMPTY", "the second checkpoint of a collection comes with an empty object", []ruleEdit{{"gc.go", `
		if len(newest) > 0 {
			if err := e.checkpoint(ctx); err != nil {
`, `
		if len(newest) > 0 {
			e.mu.Lock()
			e.makeRoom(0)
			e.mu.Unlock()
			if err := e.checkpoint(ctx); err != nil {
`}}},
	{"GCIDX", "a move's data index counts the moves", []ruleEdit{{"compact.go", `Kind: layout.KindMove, Index: uint32(i), Source`, `Kind: layout.KindMove, Index: uint32(len(n.obj.Records)), Source`}}},
	{"GCSTILL", "blocks are moved that have been written since", []ruleEdit{{"compact.go", `
		if e.maps.Get(m.block) != m.source {
			continue
		}
		if last := len(n.obj.Records) - 1; last >= 0 && follows(n.obj.Records[last], m, i) {
`, `
		if last := len(n.obj.Records) - 1; last >= 0 && follows(n.obj.Records[last], m, i) {
`}, {"compact.go", `
				e.maps.Move(r.Block+uint64(i), r.Source.Add(i), layout.Loc(n.obj.Key, r.Index+i))
`, `
				e.maps.Write(r.Block+uint64(i), 1, layout.Loc(n.obj.Key, r.Index+i))
`}}},
	{"GCSEAL", "a compaction takes its key while a chunk is open", []ruleEdit{{"compact.go", `
		e.seal()
		e.place(n)
`, `
		e.place(n)
`}}},
	{"INORDER", "moves take effect when their object is stored", []ruleEdit{{"compact.go", `
				e.maps.Move(r.Block+uint64(i), r.Source.Add(i), layout.Loc(n.obj.Key, r.Index+i))
`, `
				_ = i
`}, {"chunk.go", `
	c.stored = true
`, `
	c.stored = true
	for _, r := range c.obj.Records {
		for i := uint32(0); r.Kind == layout.KindMove && i < r.Blocks; i++ {
			e.maps.Move(r.Block+uint64(i), r.Source.Add(i), layout.Loc(c.obj.Key, r.Index+i))
		}
	}
`}}},
	// Not marked in the design, but it rests on them:
	{"flush", "a flush is acknowledged when its own put is answered", []ruleEdit{{"chunk.go", `
	for k := e.durable; ; {
		k++
		next := e.ring.get(k)
		if next == nil || !next.stored {
			break
		}
`, `
	for k := c.obj.Key - 1; ; {
		k++
		next := e.ring.get(k)
		if next == nil || !next.stored {
			break
		}
`}}},
	{"era", "a slot is used again while a reader may look at it, an object deleted while one reads it", []ruleEdit{{"era.go", `
func (e *eras) retire(f func()) { e.advance(f) }
`, `
func (e *eras) retire(f func()) { f() }
`}}},
	{"fenced", "a writer that finds a newer one's object takes its own for stored", []ruleEdit{{"upload.go", `
			return false, next, fmt.Errorf("%w: object %d has epoch %d, ours is %d", ErrFenced, k, found.obj.Epoch, e.epoch)
`, `
			return true, next, nil
`}}},
}
