package bs3

import (
	"testing"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
)

// The file of the disk cache may name blocks that the volume does not have: they are as
// good as unmapped.
func TestPlacesBeyondTheVolume(t *testing.T) {
	const blocks = 10
	m := mapproxy.New(blocks)
	m.AddObject(layout.ObjectInfo{Key: 1, Epoch: 1})
	m.Write(blocks-1, 1, layout.Loc(1, 7))
	p := places{m.View()}
	for block, want := range map[uint64]layout.Location{0: 0, blocks - 1: layout.Loc(1, 7), blocks: 0, 1 << 40: 0, layout.NoBlock: 0} {
		if got := p.where(block); got != want {
			t.Errorf("block %d lies at %v, not %v", block, got, want)
		}
	}
}
