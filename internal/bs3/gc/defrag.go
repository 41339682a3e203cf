package gc

import "context"

const (
	// defragBytes is how many bytes Defrag moves before it gives back what is dead
	// then: it bounds the room that it takes in the store.
	defragBytes = 8 << 30
	// morePasses is how many passes more than planned Defrag makes at most: classes
	// meet in the last ones, and somebody may write meanwhile.
	morePasses = 2
)

var defragged = choice{func(w wide) bool { return w.scattered }, defragOverlap, defragGain}

// plan returns what Defrag would sort next.
func (g *Collector) plan(ctx context.Context) (Spread, []batch, error) {
	c, err := g.takeCensus(ctx)
	if err != nil {
		return Spread{}, nil, err
	}
	classes, err := g.classes(ctx, c, defragged)
	return c.Spread, g.batches(classes, defragged), err
}

// passes returns how many passes the batches need, about.
func passes(batches []batch) (most int) {
	for _, b := range batches {
		most = max(most, b.passes)
	}
	return most
}

// Defrag puts all live blocks in order, in passes, and gives back what is dead
// then. Only Run, or a test in its place, may call it. It sorts nothing while
// nothing gets into the store. Errors: those of Collect.
func (g *Collector) Defrag(ctx context.Context) (Report, error) {
	report, err := g.GiveBack(ctx)
	if !g.goesOn(err) {
		return report, err
	}
	stuck, err := g.stuck(ctx)
	if err != nil {
		return report, err
	}
	if !stuck {
		err := g.settle(ctx, &report) // then what is sorted needs less room
		if g.goesOn(err) {
			err = g.sort(ctx, &report)
		}
		if err != nil {
			return report, err
		}
	}
	rest, err := g.everything(ctx)
	report.Add(rest)
	if rest.MovedBytes > 0 && err == nil {
		_, err = g.takeCensus(ctx) // what is seen then tells how it went
	}
	return report, err
}

// sort makes passes until nothing is left that is worth one.
func (g *Collector) sort(ctx context.Context, report *Report) error {
	last := 0
	for pass := 1; ; pass++ {
		_, batches, err := g.plan(ctx)
		if err != nil {
			return err
		}
		left := passes(batches)
		if pass == 1 {
			last = left + morePasses
		}
		if left == 0 || pass > last {
			return nil
		}
		batches = widest(batches)
		g.progress(func(p *Progress) {
			*p = Progress{Pass: pass, Passes: min(last, pass-1+left), TotalBytes: g.bytes(batches)}
		})
		if err := g.sortPass(ctx, batches, report); err != nil {
			return err
		}
	}
}

// sortPass sorts the batches, and after each part of them gives back what is dead, and
// does what collections by time would have done meanwhile.
func (g *Collector) sortPass(ctx context.Context, batches []batch, report *Report) error {
	for len(batches) > 0 {
		n := 1
		for n < len(batches) && g.bytes(batches[:n+1]) <= g.part {
			n++
		}
		sorted, err := g.compact(ctx, batches[:n]...)
		report.Add(sorted)
		if err != nil {
			return err
		}
		if err := g.settle(ctx, report); !g.goesOn(err) {
			return err
		}
		if batches = batches[n:]; len(batches) > 0 {
			compacted, err := g.thinOut(ctx)
			report.Add(compacted)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// bytes returns the live data of the batches.
func (g *Collector) bytes(batches []batch) (sum int64) {
	for _, b := range batches {
		for _, o := range b.objects {
			sum += int64(o.Live) * int64(g.c.BlockSize)
		}
	}
	return sum
}

// DefragPlan is what Defrag would do, about. Its JSON form is a contract.
type DefragPlan struct {
	Spread
	Passes int   `json:"passes"`
	Bytes  int64 `json:"bytes"` // read, and written, in all passes
	Gets   int64 `json:"gets"`  // requests
	Puts   int64 `json:"puts"`
}

// PlanDefrag returns what Defrag would do now, and changes nothing. It says
// nothing of the garbage that is collected beside. Errors: those of Plan.
func (g *Collector) PlanDefrag(ctx context.Context) (DefragPlan, error) {
	if err := g.c.Life.Err(); err != nil {
		return DefragPlan{}, err
	}
	spread, batches, err := g.plan(ctx)
	if err != nil {
		return DefragPlan{}, err
	}
	p := DefragPlan{Spread: spread, Passes: passes(batches)}
	for _, b := range batches {
		passes, full := int64(b.passes), int64(g.full(b.live))
		p.Bytes += passes * int64(b.live) * int64(g.c.BlockSize)
		p.Gets += int64(len(b.objects)) + (passes-1)*full
		p.Puts += passes * full
	}
	return p, nil
}

// Progress is how far a collection is. Its JSON form is a contract.
type Progress struct {
	Pass       int   `json:"pass"`        // of those that put blocks in order, from 1; 0 = it gives back space
	Passes     int   `json:"passes"`      // that there will be, about
	MovedBytes int64 `json:"moved_bytes"` // in this pass
	TotalBytes int64 `json:"total_bytes"` // that it will move, about
}

// progress changes how far the collection is.
func (g *Collector) progress(change func(*Progress)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.progress != nil {
		change(g.mu.progress)
	}
}

// underWay notes that a collection is under way, or is not.
func (g *Collector) underWay(now bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.progress = nil
	if now {
		g.mu.progress = new(Progress)
	}
}

// Progress returns how far the collection is that is under way; nil if none is.
func (g *Collector) Progress() *Progress {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.progress == nil {
		return nil
	}
	p := *g.mu.progress
	return &p
}
