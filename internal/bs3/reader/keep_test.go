package reader

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestInflow: what comes faster than it passes is noticed soon, and forgotten soon.
func TestInflow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perSecond = 1000
		var f inflow
		if n := f.add(900, perSecond); n > perSecond {
			t.Errorf("%d bytes after one write", n)
		}
		for range 20 { // as fast as it passes
			time.Sleep(100 * time.Millisecond)
			if n := f.add(100, perSecond); n > perSecond {
				t.Errorf("%d bytes of a slow stream", n)
			}
		}
		for range 100 {
			time.Sleep(time.Millisecond)
			f.add(100, perSecond)
		}
		if n := f.add(100, perSecond); n <= perSecond {
			t.Errorf("%d bytes of a fast stream", n)
		}
		time.Sleep(time.Hour)
		if n := f.add(1, perSecond); n != 1 {
			t.Errorf("%d bytes an hour later", n)
		}
	})
}
