package reader

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/mapproxy/sectormap"
)

const (
	// streams is how many sequential readers are followed at once.
	streams = 16
	// candidates is how many reads are remembered that may begin one: a stream is
	// recognised although that many others read at random beside it.
	candidates = 32
	// fewReads and fewBytes are how many reads that follow each other begin a stream, or
	// how much: of small ones at random two follow each other now and then.
	fewReads = 3
	fewBytes = 64 << 10
	// firstAhead is the window of a stream that was just recognised; it doubles
	// with each window that is read up.
	firstAhead = 1 << 20
	// aheadFetches bounds the pieces that all streams together fetch at a time,
	// and with them the memory.
	aheadFetches = 16
	// late is how far from where it is expected, in bytes, a read of a stream may come
	// that has several under way.
	late = 4 << 20
	// dropAfter is how long nothing was read ahead when its buffers are given back.
	dropAfter = 10 * time.Second
	// manyRequests is how many requests a piece may take on average, or the stream is
	// one over scattered blocks.
	manyRequests = 4
	// littleWanted is how much of an object a window wants at most, in bytes, to have it
	// fetched whole where the stream is not over scattered blocks: what lies in order is
	// fetched as it is needed.
	littleWanted = 128 << 10
	// mostReach bounds the window of such a stream, in blocks: it takes some memory for
	// each.
	mostReach = 1 << 17
	// turnBytes is what a request brings for each turn that it takes, about.
	turnBytes = 1 << 20
	// alignAhead is a multiple of any block size, in bytes.
	alignAhead = 4096
)

// readahead follows streams of sequential reads and fetches into the read
// cache what they will want next. A stream is recognised by misses that follow
// each other. From then on it goes by reaching a mark in what was fetched
// ahead: a stream that ends, or was none, costs one window in vain.
type readahead struct {
	// marks are the offsets whose reading makes a stream's next window due; -1
	// for none. They alone are looked at by reads that hit.
	marks [streams]atomic.Int64
	due   chan int      // streams whose mark was reached
	slots chan struct{} // has room for each piece that may be under way
	// turns has room for each request that may be under way. What was written in
	// random order takes many for a piece; half of the downloaders are left to
	// reads that somebody waits for. A request for much takes several, so that they
	// bound the memory.
	turns chan struct{}
	line  chan struct{} // holds a token while somebody takes turns: one at a time, or all would have some

	mu struct {
		sync.Mutex
		streams [streams]stream
		begun   [candidates]begun // what may be streams
		oldest  int               // of those, the next to be replaced
		windows int               // given out so far
	}
}

// begun is reads that follow each other, and were missed.
type begun struct {
	next  int64 // where one that follows would begin; -1 = there are none
	bytes int64 // of all of them
	reads int
}

type stream struct {
	next   int64 // where the read that follows would begin
	start  int64 // of the last window
	ahead  int64 // how far was fetched
	window int64 // bytes fetched last; 0 = there is no stream
	missed int64 // where the last read of it that was missed has ended
	last   int   // how many windows were given out when it got its own

	// scattered: the pieces of its last window took many requests. The larger a
	// window, the more of its blocks lie close together in some object.
	scattered bool
}

func newReadahead(downloaders int) *readahead {
	if downloaders == 0 {
		downloaders = 2 * aheadFetches
	}
	r := &readahead{due: make(chan int, streams), slots: make(chan struct{}, aheadFetches), turns: make(chan struct{}, max(1, downloaders/2)), line: make(chan struct{}, 1)}
	for i := range r.marks {
		r.marks[i].Store(-1)
		r.mu.streams[i].last = -1
	}
	for i := range r.mu.begun {
		r.mu.begun[i].next = -1
	}
	return r
}

// takeTurns waits until there is room for a request of so many bytes, or until ctx
// ends, and reports whether there is. There is room for aheadFetches at least, if there
// are as many turns.
func (r *readahead) takeTurns(ctx context.Context, bytes int) (release func(), ok bool) {
	select {
	case r.line <- struct{}{}:
		defer func() { <-r.line }()
	case <-ctx.Done():
		return nil, false
	}
	taken := 0
	release = func() {
		for range taken {
			<-r.turns
		}
	}
	for taken < max(1, min(bytes/turnBytes, cap(r.turns)/aheadFetches)) {
		select {
		case r.turns <- struct{}{}:
			taken++
		case <-ctx.Done():
			release()
			return nil, false
		}
	}
	return release, true
}

// passed looks whether a read of n bytes at off reaches a mark.
func (r *readahead) passed(off, n int64) {
	for i := range r.marks {
		mark := r.marks[i].Load()
		if mark >= off && mark < off+n && r.marks[i].CompareAndSwap(mark, -1) {
			r.tell(i)
		}
	}
}

// missed notes a read that had to ask the store, and reports whether it is one of a
// stream.
func (r *readahead) missed(off, n int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := slices.IndexFunc(r.mu.begun[:], func(b begun) bool { return b.next == off })
	around := -1 // a stream in whose windows it lies
	for i := range r.mu.streams {
		s := &r.mu.streams[i]
		if s.window == 0 || off < s.next-late || off > max(s.ahead, s.missed)+late {
			continue
		}
		if s.near(off) {
			r.follow(i, off, n)
			return true
		}
		around = i
	}
	if at < 0 {
		r.mu.begun[r.mu.oldest] = begun{off + n, n, 1}
		r.mu.oldest = (r.mu.oldest + 1) % candidates
		return false
	}
	b := &r.mu.begun[at]
	b.next, b.bytes, b.reads = off+n, b.bytes+n, b.reads+1
	if b.reads < fewReads && b.bytes < fewBytes {
		return false
	}
	b.next = -1
	if around >= 0 {
		r.follow(around, off, n)
		return true
	}
	i := 0 // the stream that got no window for longest
	for j, s := range r.mu.streams {
		if s.last < r.mu.streams[i].last {
			i = j
		}
	}
	next := off + n
	r.mu.streams[i] = stream{next: next, start: next, ahead: next, missed: next, window: firstAhead / 2, last: r.mu.windows}
	r.marks[i].Store(-1)
	r.tell(i)
	return true
}

// near reports whether a read at off that was missed is one of the stream, as far as its
// place tells: the windows of one over scattered blocks are so large that others read at
// random in them.
func (s *stream) near(off int64) bool {
	for _, at := range []int64{s.missed, s.start, s.next} {
		if at-late <= off && off <= at+late {
			return true
		}
	}
	return false
}

// follow notes a read of stream i that was missed. It may be faster than we are, or have
// passed its mark before that was there.
func (r *readahead) follow(i int, off, n int64) {
	s := &r.mu.streams[i]
	if off < s.next {
		return
	}
	followed := off == s.missed
	s.missed = off + n
	if mark := r.marks[i].Load(); followed && mark >= 0 && mark < off && r.marks[i].CompareAndSwap(mark, -1) {
		s.ahead = max(s.ahead, s.missed)
		r.tell(i)
	}
}

// tell makes a window of stream i due.
func (r *readahead) tell(i int) {
	select {
	case r.due <- i:
	default: // as many are due as there are streams: this one was told
	}
}

// extend returns the next window of stream i and sets the mark at its start. It
// ends at a multiple of piece. The streams that go on share most, or what is
// fetched for one would drive out of the cache what another has yet to read. Over
// scattered blocks the window may be as large as reach; then the next one is due when
// this one has nearly been read.
func (r *readahead) extend(i int, most, reach, piece, size int64) (off, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.mu.streams[i]
	r.mu.windows++
	s.last = r.mu.windows
	live := int64(0)
	for _, other := range r.mu.streams {
		if other.window > 0 && r.mu.windows-other.last < 2*streams {
			live++
		}
	}
	most = max(firstAhead, most/live)
	growth := int64(2)
	wide := s.scattered && reach/live > most
	if wide {
		most, growth = reach/live, 8
	}
	for piece > most {
		piece = piece / 2 &^ (alignAhead - 1)
	}
	s.window = min(growth*s.window, most)
	off = s.ahead
	n = min((off+s.window+piece-1)/piece*piece, size) - off
	switch {
	case n > 0 && wide:
		r.marks[i].Store(off + n - n/16)
	case n > 0:
		r.marks[i].Store(off)
	}
	s.next, s.start, s.ahead = max(s.next, off-s.window), off, off+max(0, n)
	return off, n
}

// observe notes whether the blocks of the last window of stream i were scattered.
func (r *readahead) observe(i int, scattered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.streams[i].scattered = scattered
}

// reach returns how large the window of a stream over scattered blocks may be, in bytes:
// as large as what was read ahead may be in the cache, for what was read is dropped
// first. It is 0 where so few of the blocks of an object would lie in a window, were all
// scattered over what is mapped, that hardly any request would bring two of them.
func (r *Reader) reach() int64 {
	reach := min(r.c.CacheSize/2, mostReach*int64(r.c.BlockSize))
	if bridged := int64(aheadGap / r.buffers.stride); int64(r.c.Map.Mapped())*int64(r.c.BlockSize) > 2*bridged*reach {
		return 0
	}
	return reach
}

// Run fetches what is to be read ahead, until ctx ends.
func (r *Reader) Run(ctx context.Context) {
	if r.ahead == nil {
		return
	}
	// An eighth of the cache: there are up to two windows, and what was read ahead
	// may take half of it.
	most := max(int64(firstAhead), min(r.c.Readahead, r.c.CacheSize/8))
	// What was written in one stream from the start of the volume lies in objects
	// that begin at multiples of this: each is read by one request.
	piece := min(most, int64(r.c.ChunkSize))
	var fetches sync.WaitGroup
	defer func() {
		fetches.Wait()
		r.wholes.end()
	}()
	if r.wholes.orders != nil {
		for range min(aheadFetches, cap(r.ahead.turns)) {
			fetches.Go(func() { r.runWholes(ctx) })
		}
	}
	quiet := time.NewTimer(dropAfter)
	defer quiet.Stop()
	for {
		select {
		case <-quiet.C:
			r.buffers.drop()
			if len(r.ahead.slots) > 0 { // some come back later
				quiet.Reset(dropAfter)
			}
		case <-r.wholes.fetched:
			quiet.Reset(dropAfter)
		case i := <-r.ahead.due:
			quiet.Reset(dropAfter)
			off, n := r.ahead.extend(i, most, r.reach(), piece, r.c.Size)
			scattered := r.scattered(r.missing(off, n), uint64(piece/int64(r.c.BlockSize)))
			r.ahead.observe(i, scattered)
			for n > 0 {
				some := min(n, piece-off%piece)
				if scattered {
					some = n
				}
				select {
				case r.ahead.slots <- struct{}{}:
				case <-ctx.Done():
					return
				}
				from := off
				fetches.Go(func() {
					defer func() { <-r.ahead.slots }()
					r.prefetch(ctx, from, some, scattered)
				})
				off, n = off+some, n-some
			}
		case <-ctx.Done():
			return
		}
	}
}

// scattered reports whether misses, in the order of the volume, take many requests for
// each piece of so many blocks. That does not depend on how large the window is in
// which they lie.
func (r *Reader) scattered(misses []miss, piece uint64) bool {
	pieces, requests := 0, 0
	for len(misses) > 0 {
		n := 1
		for n < len(misses) && misses[n].block/piece == misses[0].block/piece {
			n++
		}
		pieces++
		requests += len(r.group(misses[:n], requestGap))
		misses = misses[n:]
	}
	return requests > manyRequests*pieces
}

// prefetch brings what is mapped of the n bytes at off into the cache, as far as it is
// neither there nor in chunk memory. Its errors do not matter: whoever wants the bytes
// will ask again. Reads of the stream wait for those of which they want something, also
// if they have not begun.
func (r *Reader) prefetch(ctx context.Context, off, n int64, scattered bool) {
	most := uint32(littleWanted / r.c.BlockSize)
	if scattered {
		most = math.MaxUint32
	}
	orders, requests := r.prefetchGroups(ctx, off, n, most)
	if len(orders) > 0 {
		await(ctx, orders)
		_, more := r.prefetchGroups(ctx, off, n, 0)
		requests += len(orders) + more
	}
	if bs := int64(r.c.BlockSize); scattered && r.c.Gathered != nil && ctx.Err() == nil {
		r.c.Gathered(uint64(off/bs), uint64(n/bs), requests)
	}
}

// prefetchGroups brings those of the n bytes at off into the cache that nobody else
// fetches, but for objects of which it wants at most so many blocks: it orders those
// that are worth it whole, unless the stream will want more of them, or did. It returns
// the orders, and how many requests the rest took.
func (r *Reader) prefetchGroups(ctx context.Context, off, n int64, most uint32) (orders []*order, requests int) {
	orders, misses := r.orderWholes(r.manyFromDisk(ctx, r.missing(off, n)), most, r.goOn(off, n))
	type fetch struct {
		misses []miss
		flight *flight
	}
	var fetches []fetch
	for _, g := range r.group(misses, aheadGap) {
		if own, rest := r.flights.takeRest(g, r.c.BlockSize); len(rest) > 0 {
			fetches = append(fetches, fetch{rest, own})
		}
	}
	next := make(chan fetch)
	var workers sync.WaitGroup
	for range min(len(fetches), cap(r.ahead.turns)) {
		workers.Go(func() {
			for f := range next {
				if ctx.Err() == nil {
					f.flight.begun.Store(true)
					r.fetchAhead(ctx, f.misses)
				}
				r.flights.land(f.flight)
			}
		})
	}
	for _, f := range fetches {
		next <- f
	}
	close(next)
	workers.Wait()
	return orders, len(fetches)
}

// goOn returns the objects that lie in order across the ends of the n bytes at off.
func (r *Reader) goOn(off, n int64) (keys []key.Key) {
	bs := int64(r.c.BlockSize)
	for _, end := range []int64{off, off + n} {
		if end == 0 || end == r.c.Size {
			continue
		}
		before := r.c.Map.Get(uint64(end/bs - 1))
		if before.Mapped() && r.c.Map.Get(uint64(end/bs)) == before.Add(1) {
			keys = append(keys, before.Key())
		}
	}
	return keys
}

// fetchAhead fetches what of misses is still mapped to where they were looked up. That
// may have been long ago: what died meanwhile may be gone, and a large window holds up
// no deletion.
func (r *Reader) fetchAhead(ctx context.Context, misses []miss) {
	v := r.fetches.Enter()
	defer r.fetches.Leave(v)
	var rest []miss
	var few [16]sectormap.Run
	for _, m := range misses {
		for _, run := range r.c.Map.Lookup(m.block, m.n, few[:0]) {
			if at := uint32(run.Block - m.block); run.Loc == m.loc.Add(at) {
				rest = append(rest, m.part(at, run.N, r.c.BlockSize))
			}
		}
	}
	_, _ = r.fetch(ctx, rest, aheadGap)
}

// missing returns the runs of the n bytes at off that are mapped and neither in
// chunk memory nor in the cache.
func (r *Reader) missing(off, n int64) (misses []miss) {
	v := r.c.Memory.Enter()
	defer r.c.Memory.Leave(v)
	bs := int64(r.c.BlockSize)
	for _, run := range r.c.Map.Lookup(uint64(off/bs), uint32(n/bs), nil) {
		if !run.Loc.Mapped() || r.c.Memory.Has(run.Loc) {
			continue
		}
		has := func(i uint32) bool { return r.c.Cache.Has(run.Loc.Add(i)) }
		miss{block: run.Block, loc: run.Loc, n: run.N, ahead: true}.without(has, r.c.BlockSize, func(m miss) { misses = append(misses, m) })
	}
	return misses
}
