package test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// Other people's clients copy images in and out unchanged, and holes are holes,
// before and after there was data in them.
func TestCopyImages(t *testing.T) {
	needTools(t, "nbdcopy", "nbdinfo", "qemu-img", "blkdiscard")
	v := newVolume(t, onDir).with("size", 2)
	image, back := filepath.Join(v.dir, "image"), filepath.Join(v.dir, "back")
	randomFile(t, image, gib)
	if err := os.Truncate(image, 2*gib); err != nil {
		t.Fatal(err)
	}

	d := v.start()
	v.wantExtents("of an empty volume", extent{0, 2 * gib, "hole,zero"})
	command(t, "nbdcopy", "--flush", image, v.uri())
	v.wantExtents("with the image", extent{0, gib, "data"}, extent{gib, gib, "hole,zero"})
	d.stop()

	v.wipeState()
	d = v.start()
	v.wantExtents("after a restart", extent{0, gib, "data"}, extent{gib, gib, "hole,zero"})
	command(t, "nbdcopy", v.uri(), back)
	command(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", image, v.uri())
	wantSum, err := fileSum(image)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := fileSum(back); err != nil || got != wantSum {
		t.Errorf("nbdcopy copied out another image than it had copied in (%v)", err)
	}

	b := v.attach()
	command(t, "blkdiscard", "--offset", strconv.FormatInt(256*mib, 10), "--length", strconv.FormatInt(512*mib, 10), b.path)
	b.detach()
	v.wantExtents("after blkdiscard",
		extent{0, 256 * mib, "data"}, extent{256 * mib, 512 * mib, "hole,zero"}, extent{768 * mib, 256 * mib, "data"}, extent{gib, gib, "hole,zero"})
	c := dial(t, v.socket)
	for off := 256 * mib; off < 768*mib; off += 32 * mib {
		allZero(t, c.read(off, int(32*mib)), off)
	}
	b = v.attach()
	command(t, "blkdiscard", b.path)
	b.detach()
	v.wantExtents("after discarding all", extent{0, 2 * gib, "hole,zero"})
	d.stop()
}

func randomFile(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	random := rand.NewChaCha8([32]byte{1})
	for p := make([]byte, mib); size > 0; size -= int64(len(p)) {
		_, _ = random.Read(p) // never fails
		if _, err := f.Write(p); err != nil {
			t.Fatal(err)
		}
	}
}

// wantExtents compares the map of the served volume with want.
func (v *volume) wantExtents(when string, want ...extent) {
	v.t.Helper()
	if got := v.extents(); !slices.Equal(got, want) {
		v.t.Errorf("map %s: %v, want %v", when, got, want)
	}
}

func allZero(t testing.TB, p []byte, off int64) {
	t.Helper()
	for i, b := range p {
		if b != 0 {
			t.Fatalf("byte %d is %#x, not zero", off+int64(i), b)
		}
	}
}
