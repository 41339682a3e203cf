package null_test

import (
	"bytes"
	"testing"

	"bs3/internal/device"
	"bs3/internal/null"
)

// A reused buffer must not leak what it held: that was a bug of the original.
func TestReadsAreZeros(t *testing.T) {
	v := null.New(device.Geometry{Size: 1 << 20, BlockSize: 4096})
	dirty := func() []byte { return bytes.Repeat([]byte{0xA5}, 8192) }
	zeros := make([]byte, 8192)

	p := dirty()
	if err := v.WriteAt(t.Context(), p, 4096); err != nil {
		t.Fatal(err)
	}
	if !v.TryWriteAt(p, 4096) {
		t.Fatal("TryWriteAt refused")
	}
	if err := v.ReadAt(t.Context(), p, 4096); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, zeros) {
		t.Error("ReadAt left old bytes in the buffer")
	}
	p = dirty()
	if !v.TryReadAt(p, 4096) {
		t.Fatal("TryReadAt refused")
	}
	if !bytes.Equal(p, zeros) {
		t.Error("TryReadAt left old bytes in the buffer")
	}
}

func TestAcknowledgesAndHoldsNothing(t *testing.T) {
	g := device.Geometry{Size: 1 << 40, BlockSize: 512, IOMin: 4096, MaxDiscard: 1 << 30}
	v := null.New(g)
	if v.Geometry() != g {
		t.Errorf("geometry %+v, want %+v", v.Geometry(), g)
	}
	if err := v.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := v.Discard(t.Context(), 0, g.Size); err != nil {
		t.Error(err)
	}
	if err := v.WriteZeroes(t.Context(), 0, g.Size); err != nil {
		t.Error(err)
	}
	ext, err := v.Allocation(t.Context(), 512, 1024)
	if err != nil || len(ext) != 1 || ext[0] != (device.Extent{Length: 1024, Hole: true}) {
		t.Errorf("allocation %v, %v; want one hole of 1024 bytes", ext, err)
	}
}
