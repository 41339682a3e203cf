package bs3

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"bs3/internal/bs3/fsck"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// simRec is one write or discard, as the log keeps it: a record with a
// sequence number. A history is the records of a volume in order.
type simRec struct {
	block uint64
	n     uint32
	stamp uint64 // of the data; 0 = zeros
}

// simBlocks puts the stamp and the number of each block into its data.
func (r simRec) data() []byte {
	p := make([]byte, int(r.n)*simBlockSize)
	for i := range int(r.n) {
		simStamp(p[i*simBlockSize:][:simBlockSize], r.block+uint64(i), r.stamp)
	}
	return p
}

func simStamp(p []byte, block, stamp uint64) {
	for i := 0; i < len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], stamp)
		binary.LittleEndian.PutUint64(p[i+8:], block+1)
	}
}

// simRead returns the stamp that the data of a block carries, 0 for zeros.
func simRead(p []byte, block uint64) (uint64, error) {
	stamp := binary.LittleEndian.Uint64(p)
	want := make([]byte, len(p))
	if stamp != 0 {
		simStamp(want, block, stamp)
	}
	if !bytes.Equal(p, want) {
		return stamp, fmt.Errorf("block %d holds neither zeros nor a write of this block: %x…", block, p[:32])
	}
	return stamp, nil
}

func (r simRec) covers(block uint64) bool { return r.block <= block && block < r.block+uint64(r.n) }

// simFold returns what each block holds after a history; zeros are left out.
func simFold(history []simRec) map[uint64]uint64 {
	m := make(map[uint64]uint64)
	for _, r := range history {
		if r.stamp == 0 {
			for b := range m {
				if r.covers(b) {
					delete(m, b)
				}
			}
			continue
		}
		for b := r.block; b < r.block+uint64(r.n); b++ {
			m[b] = r.stamp
		}
	}
	return m
}

func simPrefix(a, b []simRec) bool { return len(a) <= len(b) && slices.Equal(a, b[:len(a)]) }

// simStored is what an object of the log holds, as it was last put.
type simStored struct {
	by       string
	epoch    uint64
	nonce    layout.Nonce
	firstSeq uint64
	recs     []simRec
	moves    int
	body     []byte
}

// simClaim is one epoch of the volume.
type simClaim struct {
	epoch uint64
	host  *simHost
	by    *simDaemon
}

// simSession is one daemon from its open on: what it recovered, and the writes
// it was asked for, in the order of the asking, which is that of the log.
type simSession struct {
	d     *simDaemon
	epoch uint64
	host  *simHost
	boots int
	base  []simRec
	held  map[uint64]uint64 // base, folded
	log   []*simWrite
}

type simWrite struct {
	simRec
	acked   bool
	dropped bool // the engine says that it was not done
}

// all is everything that may be in the log.
func (s *simSession) all() []simRec {
	h := slices.Clone(s.base)
	for _, x := range s.log {
		if !x.dropped {
			h = append(h, x.simRec)
		}
	}
	return h
}

// acked is everything up to the last write that was acknowledged.
func (s *simSession) acked() []simRec { return s.upTo(s.lastAcked()) }

func (s *simSession) upTo(n int) []simRec {
	h := slices.Clone(s.base)
	for _, x := range s.log[:n] {
		if !x.dropped {
			h = append(h, x.simRec)
		}
	}
	return h
}

// lastAcked is one more than the index of the last acknowledged write.
func (s *simSession) lastAcked() int {
	for i := len(s.log); i > 0; i-- {
		if s.log[i-1].acked {
			return i
		}
	}
	return 0
}

// may returns the stamps that a read of block may find: of the newest write
// among the first n, or of any that came later.
func (s *simSession) may(block uint64, n int) []uint64 {
	var found []uint64
	for i := len(s.log) - 1; i >= 0; i-- {
		if x := s.log[i]; !x.dropped && x.covers(block) {
			found = append(found, x.stamp)
			if i < n {
				return found
			}
		}
	}
	return append(found, s.held[block])
}

// simFlush is an acknowledged flush: what it promises.
type simFlush struct {
	epoch   uint64
	history []simRec
}

// simSynced is an acknowledged flush to a local log. It promises nothing where
// that is lost, or another host takes over.
type simSynced struct {
	simFlush
	host  *simHost
	disks int // of the host, that were lost before
}

// observePut looks at what was just stored. Under the world's mutex.
func (w *simWorld) observePut(by, name string, data []byte) {
	if name == layout.VolumeName {
		v, err := layout.DecodeVolume(data)
		if err != nil {
			w.failLocked("%s stored a volume record that does not decode: %v", by, err)
			return
		}
		w.named = v.Checkpoints
		if !slices.Contains(w.named, w.damaged) {
			w.damaged = ""
		}
		w.observeSnapshots(by, v)
		if n := len(w.claims); v.Epoch > 0 && (n == 0 || w.claims[n-1].epoch < v.Epoch) {
			d := w.daemon(by)
			d.epoch = v.Epoch
			w.claims = append(w.claims, simClaim{v.Epoch, d.host, d})
			w.logLocked("%s claims epoch %d on %v", by, v.Epoch, d.host)
			w.count["claims"]++
		}
		return
	}
	k, err := key.Parse(name)
	if err != nil {
		return
	}
	o, err := layout.DecodeTail(data, int64(len(data)))
	if err != nil {
		w.failLocked("%s stored object %d, which does not decode: %v", by, k, err)
		return
	}
	now := simStored{by: by, epoch: o.Epoch, nonce: o.Nonce, firstSeq: o.FirstSeq, body: data}
	for _, r := range o.Records {
		switch r.Kind {
		case layout.KindMove:
			now.moves++
		case layout.KindZero:
			now.recs = append(now.recs, simRec{block: r.Block, n: r.Blocks})
		default:
			stamp, err := simRead(data[int(r.Index)*layout.Stride(simBlockSize):][:simBlockSize], r.Block)
			if err != nil {
				w.failLocked("%s stored object %d: %v", by, k, err)
			}
			now.recs = append(now.recs, simRec{r.Block, r.Blocks, stamp})
		}
	}
	if w.deleted[k] {
		// A late request, or the fence of an opener that a newer one has passed:
		// no checkpoint reaches down here, so it is garbage and no part of the log.
		w.count["leftovers"]++
		return
	}
	if old, there := w.stored[k]; there {
		w.count["objects replaced"]++
		if old.nonce == o.Nonce && !bytes.Equal(old.body, data) {
			w.failLocked("%s put two contents under key %d", by, k)
		}
	}
	w.count["moves"] += now.moves
	w.stored[k] = now
}

// history is what the objects up to key k say. Under the world's mutex.
func (w *simWorld) history(k key.Key) ([]simRec, error) {
	var h []simRec
	for i := key.Key(0); i <= k; i++ {
		o, there := w.stored[i]
		if !there {
			return nil, fmt.Errorf("object %d was never stored", i)
		}
		if o.firstSeq != uint64(len(h))+1 {
			return nil, fmt.Errorf("object %d starts at sequence number %d, the log before it has %d records", i, o.firstSeq, len(h))
		}
		h = append(h, o.recs...)
	}
	return h, nil
}

// opened judges what a daemon found when its open has returned, and begins its
// session.
func (w *simWorld) opened(d *simDaemon, e *Engine) *simSession {
	now, verify := e.log.Verify()
	seq, durable, mapped := now.Seq, now.Durable, now.Growth.Live

	w.mu.Lock()
	defer w.mu.Unlock()
	s := &simSession{d: d, epoch: e.Epoch(), host: d.host, boots: d.host.boots}
	if verify != nil {
		w.failLocked("MAP: e%d: %v", s.epoch, verify)
	}
	h, err := w.history(durable)
	if err != nil {
		w.failLocked("LOG: e%d serves up to object %d: %v", s.epoch, durable, err)
	}
	if uint64(len(h)) != seq-1 {
		w.failLocked("LOG: e%d is at sequence number %d, the objects up to %d hold %d records", s.epoch, seq, durable, len(h))
	}
	s.base, s.held = h, simFold(h)
	if uint64(len(s.held)) != mapped {
		w.failLocked("MAP: e%d maps %d blocks, its history leaves %d", s.epoch, mapped, len(s.held))
	}
	replayed := 0
	for k := durable; ; k-- {
		o := w.stored[k]
		if o.epoch != s.epoch || len(o.recs) == 0 {
			break
		}
		replayed += len(o.recs)
	}
	w.logLocked("%s serves epoch %d up to object %d: %d writes, %d of them replayed", d.name, s.epoch, durable, len(h), replayed)
	w.count["opens"]++
	if e.reader.DiskStatus() != nil {
		w.count["disk caches"]++
	}
	w.count["replayed"] += replayed

	if len(h) > 0 && !slices.ContainsFunc(w.sessions, func(q *simSession) bool { return simPrefix(q.base, h) && simPrefix(h, q.all()) }) {
		w.failLocked("PREFIX: e%d recovered %d writes that are no prefix of what any writer had", s.epoch, len(h))
	}
	for _, f := range w.flushed {
		if f.epoch < s.epoch && !simPrefix(f.history, h) {
			w.failLocked("LOST: a flush of e%d is not in e%d (%d writes flushed, %d there)", f.epoch, s.epoch, len(f.history), len(h))
		}
	}
	for _, f := range w.synced {
		if f.epoch >= s.epoch || f.host != s.host || f.disks != s.host.disks || s.host.rotten || !w.onlyOn(s.host, f.epoch, s.epoch) {
			continue
		}
		w.count["logs checked"]++
		if len(f.history) > len(h)-replayed {
			w.count["logs needed"]++
		}
		if !simPrefix(f.history, h) {
			w.failLocked("LOST-LOG: a flush of e%d to the log of %v is not in e%d (%d writes flushed, %d there)", f.epoch, s.host, s.epoch, len(f.history), len(h))
		}
	}
	for _, q := range w.sessions {
		if q.epoch >= s.epoch || s.host.path == "" || q.host != s.host || q.boots != s.boots || !w.onlyOn(s.host, q.epoch, s.epoch) {
			continue
		}
		acked := q.acked()
		w.count["memory checked"]++
		if len(acked) > len(h)-replayed {
			w.count["memory needed"]++
		}
		if !simPrefix(acked, h) {
			w.failLocked("LOST-MEM: e%d had acknowledged %d writes, and e%d, after the daemon died and the machine did not, has %d", q.epoch, len(acked), s.epoch, len(h))
		}
	}
	w.sessions = append(w.sessions, s)
	return s
}

// onlyOn reports whether all claims from one epoch to another were made on h.
func (w *simWorld) onlyOn(h *simHost, from, to uint64) bool {
	return !slices.ContainsFunc(w.claims, func(c simClaim) bool { return from <= c.epoch && c.epoch <= to && c.host != h })
}

// flushAcked judges the acknowledgement of a flush. Under the world's mutex.
func (w *simWorld) flushAcked(s *simSession, history []simRec) {
	for _, q := range w.sessions {
		if q.epoch > s.epoch && !simPrefix(history, q.base) {
			w.failLocked("LOST: zombie e%d acknowledged a flush after e%d had taken over without it", s.epoch, q.epoch)
		}
	}
	w.flushed = append(w.flushed, simFlush{s.epoch, history})
	w.count["flushes"]++
}

// owner reports whether no epoch after that of s was claimed. Under the world's mutex.
func (w *simWorld) owner(s *simSession) bool { return w.claims[len(w.claims)-1].epoch == s.epoch }

// readDone judges a read that began when the first n writes were acknowledged
// at least.
func (w *simWorld) readDone(s *simSession, n int, block uint64, p []byte, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.d.gone() {
		return
	}
	if err != nil {
		switch {
		case s.d.stopping(err):
		case errors.Is(err, objproxy.ErrNotFound) && w.owner(s):
			w.failLocked("GONE: e%d read of block %d: %v", s.epoch, block, err)
		case errors.Is(err, objproxy.ErrNotFound): // a successor may collect what a zombie still maps
		case volume.IsUnreadable(err) && s.d.wire.liedAbout(err.Error()):
			w.count["reads of wrong answers"]++
		default:
			w.failLocked("ERROR: e%d read of block %d: %v", s.epoch, block, err)
		}
		return
	}
	w.count["reads"]++
	for i := 0; i < len(p); i += simBlockSize {
		b := block + uint64(i/simBlockSize)
		stamp, err := simRead(p[i:][:simBlockSize], b)
		if err != nil {
			w.failLocked("DATA: e%d: %v", s.epoch, err)
		} else if want := s.may(b, n); !slices.Contains(want, stamp) {
			w.failLocked("DATA: e%d read write %d in block %d, it may be %v", s.epoch, stamp, b, want)
		}
	}
}

// checkBases opens every checkpoint that the record names by hand, rolls the
// log forward from it, and compares the outcome with the map of e, which is at
// rest. Whichever checkpoint an open takes, it must find the same volume.
func (w *simWorld) checkBases(e *Engine) {
	for tries := 0; !e.log.Now().AtRest(); tries++ { // it may be compacting by itself
		if tries == 1000 {
			w.fail("HANGS: e%d does not come to rest", e.Epoch())
			return
		}
		w.pass(10 * time.Millisecond)
	}
	ctx := context.Background()
	v, _, err := volume.ReadRecord(ctx, w.store)
	if err != nil {
		w.fail("BASE: %v", err)
		return
	}
	for _, name := range v.Checkpoints {
		m := mapproxy.New(e.opts.blocks())
		c, err := volume.LoadMap(ctx, w.store, v.UUID, name, m)
		if err != nil {
			w.fail("BASE: checkpoint %s, which the record names: %v", name, err)
			continue
		}
		last := c.Key
		err = volume.TailsOf(v, w.store).Walk(ctx, volume.After(c.Checkpoint), func(k key.Key, o *layout.Object) error {
			m.Apply(o)
			last = k
			return nil
		})
		end := e.log.Now().Next - 1
		if err != nil || last != end {
			w.fail("BASE: the log from checkpoint %s ends at object %d, not %d: %v", name, last, end, err)
			continue
		}
		w.add("bases checked", 1)
		for b := range simFold(w.everything()) {
			if got, want := m.Get(b), e.log.View().Get(b); got != want {
				w.fail("BASE: from checkpoint %s block %d is at %v, not %v", name, b, got, want)
			}
		}
		if m.Mapped() != e.log.View().Mapped() {
			w.fail("BASE: from checkpoint %s %d blocks are mapped, not %d", name, m.Mapped(), e.log.View().Mapped())
		}
	}
}

// damage spoils the newest checkpoint, if the one before it is whole.
func (w *simWorld) damage(r func(n int) int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.named) < layout.MaxCheckpoints || w.damaged != "" {
		return
	}
	name, ctx := w.named[len(w.named)-1], context.Background()
	b, _, err := volume.ReadAll(ctx, w.store, name)
	if err != nil {
		w.failLocked("BASE: checkpoint %s, which the record names: %v", name, err)
		return
	}
	if slices.ContainsFunc(w.held, func(s layout.Snapshot) bool { return s.Directory == name }) {
		return
	}
	w.damaged, w.everDamaged[name] = name, true
	w.count["checkpoints damaged"]++
	w.logLocked("%s is damaged", simName(name))
	if r(2) == 0 {
		_ = w.store.Delete(ctx, []string{name}) // it never fails
		return
	}
	b[r(len(b))] ^= 1 << r(8)
	_, _ = w.store.Put(ctx, name, objproxy.Body{Data: b}, objproxy.Condition{}) // nor does this
}

// fsck checks the store as bs3 fsck does, beside those who write. wire is the
// way there, if it may lie.
func (w *simWorld) fsck(wire *simWire, store objproxy.Store, data bool) {
	w.mu.Lock()
	damaged, damages := w.damaged, w.count["checkpoints damaged"]
	made := len(w.claims) > 0
	w.mu.Unlock()
	if !made { // what a first open does meanwhile would look like leftovers
		return
	}
	report, err := fsck.Check(context.Background(), store, fsck.Options{Data: data})
	w.mu.Lock()
	defer w.mu.Unlock()
	if damaged != "" || damages != w.count["checkpoints damaged"] || wire != nil && wire.lied() {
		return
	}
	switch {
	case errors.Is(err, volume.ErrMoving) || errors.Is(err, volume.ErrNoVolume):
		return
	case err != nil:
		w.failLocked("FSCK: %v", err)
		return
	}
	w.count["fscks"]++
	for _, f := range report.Findings {
		if f.Severity == fsck.SeverityError {
			w.failLocked("FSCK: %v", f)
		}
	}
}

// everything is every write of every session, for the blocks that were ever
// written.
func (w *simWorld) everything() []simRec {
	w.mu.Lock()
	defer w.mu.Unlock()
	var h []simRec
	for _, s := range w.sessions {
		for _, r := range s.all() {
			if r.stamp != 0 {
				h = append(h, r)
			}
		}
	}
	return h
}
