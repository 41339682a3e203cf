package wlog

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/layout/layouttest"
)

const logBlock = 512

var logUUID, logNonce = layout.UUID{1}, layout.Nonce{2}

// newLog creates a log of the given number of pages that has an owner.
func newLog(t testing.TB, dir *Dir, pages int64) *Log {
	t.Helper()
	l, err := dir.CreateLog(t.Context(), pages*layout.LogAlign, OpenFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Own(logUUID, logNonce, logBlock); err != nil {
		t.Fatal(err)
	}
	return l
}

func lockDir(t testing.TB) *Dir {
	t.Helper()
	dir, err := LockDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 { // the second one has no effect
			if err := dir.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}

// addition returns a frame with a write of the given number of blocks and a
// discard.
func addition(k key.Key, seq, synced uint64, blocks int) Addition {
	data := content(seq, blocks)
	const first = 40 // of its blocks, in the object
	stored := layouttest.Stored(logUUID, k, first, data, logBlock)
	a := Addition{Data: stored, Frame: layout.Frame{FrameHeader: layout.FrameHeader{
		UUID: logUUID, Nonce: logNonce, Key: k, FirstSeq: seq, Synced: synced, BlockSize: logBlock, Blocks: uint32(blocks), Records: 2,
	}}}
	a.Records = []layout.Record{
		{Block: seq, Blocks: uint32(blocks), Kind: layout.KindWrite, Index: first, Seq: seq},
		{Block: 1000 + seq, Blocks: 3, Kind: layout.KindZero, Seq: seq + 1},
	}
	return a
}

// content is what the write with a sequence number writes.
func content(seq uint64, blocks int) []byte {
	return bytes.Repeat([]byte{byte(seq), byte(seq >> 8), byte(blocks), 7}, blocks*logBlock/4)
}

func write(t testing.TB, l *Log, batch ...Addition) {
	t.Helper()
	if !l.Reserve(batch) {
		t.Fatal("there is no room")
	}
	if err := l.Write(batch); err != nil {
		t.Fatal(err)
	}
}

func reopen(t testing.TB, dir *Dir, l *Log) *Log {
	t.Helper()
	if l != nil {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := dir.OpenLog(OpenFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// replays reads from seq and returns the first sequence number that is missing.
func replays(t testing.TB, l *Log, seq uint64) uint64 {
	t.Helper()
	for {
		entries, err := l.Entries(seq)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			return seq
		}
		for _, e := range entries {
			if e.Seq != seq {
				t.Fatalf("entry %d where %d is next", e.Seq, seq)
			}
			seq++
			if e.Kind == layout.KindZero {
				continue
			}
			want := content(e.Seq, int(e.Blocks))
			if !bytes.Equal(e.Data(), want) || !slices.Equal(e.CRCs, layouttest.CRCs(want, logBlock)) || e.Block != e.Seq {
				t.Fatalf("entry %d is not what was written", e.Seq)
			}
		}
	}
}

// TestLogRounds checks that a ring is overwritten as soon as room is released,
// and that it always holds everything that is needed.
func TestLogRounds(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		dir := lockDir(t)
		pages := int64(8 + rnd.IntN(30))
		l := newLog(t, dir, pages)
		seq, k, durable := uint64(1), key.Key(1), key.Key(0)
		firstOf := map[key.Key]uint64{1: 1} // sequence numbers
		full := 0
		for range 300 {
			var batch []Addition
			next, last := seq, k
			for range 1 + rnd.IntN(3) {
				batch = append(batch, addition(last, next, seq, 1+rnd.IntN(12)))
				next += 2
				if rnd.IntN(3) == 0 {
					last++
					firstOf[last] = next
				}
			}
			if !l.Reserve(batch) {
				full++
				if l.Used() == 0 && rnd.IntN(2) == 0 && pages > 3*3 {
					t.Fatalf("seed %d: %d pages, nothing in use, and no room", seed, pages)
				}
				durable = min(k-1, durable+key.Key(rnd.IntN(3)))
				l.Release(durable)
				if l.Used() > 0 && durable == k-1 { // all but the open one: that as well
					durable, k = k, k+1
					firstOf[k] = seq
					l.Release(durable)
				}
				continue
			}
			if err := l.Write(batch); err != nil {
				t.Fatal(err)
			}
			seq, k = next, last
			if l.Used() > l.head.Size {
				t.Fatalf("seed %d: %d of %d bytes are used", seed, l.Used(), l.head.Size)
			}
			if rnd.IntN(20) == 0 {
				found := reopen(t, dir, nil)
				if end := replays(t, found, firstOf[durable+1]); end != seq {
					t.Fatalf("seed %d: from %d on it is there up to %d, of %d", seed, firstOf[durable+1], end, seq)
				}
				if found.Last() > seq || found.Synced() > seq {
					t.Fatalf("seed %d: %d, synced up to %d, of %d", seed, found.Last(), found.Synced(), seq)
				}
			}
		}
		if rounds := l.position / l.head.Size; rounds < 2 || full == 0 {
			t.Errorf("seed %d: only %d rounds, %d times full", seed, rounds, full)
		}
		_ = l.Close()
	}
}

// TestLogTorn checks that a frame any part of which is damaged ends the log
// before it, and that Synced is known from the frames.
func TestLogTorn(t *testing.T) {
	dir := lockDir(t)
	l := newLog(t, dir, 64)
	for i := range uint64(4) {
		write(t, l, addition(1, 1+2*i, 1+2*i, 3))
	}
	at := layout.LogHeaderSize + 2*int64(layout.LogAlign) // the third one; each takes a page
	whole, err := os.ReadFile(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	head := layout.FrameHeaderSize + 2*layout.RecordSize
	for name, part := range map[string][2]int{"head": {0, head}, "data": {head, head + 3*layout.Stride(logBlock)}} {
		for i := part[0]; i < part[1]; i++ {
			torn := []byte{whole[int(at)+i] ^ 1<<(i%8)}
			if err := l.file.Writev([][]byte{torn}, at+int64(i)); err != nil {
				t.Fatal(err)
			}
			found := reopen(t, dir, nil)
			if n, last, synced := found.Frames(), found.Last(), found.Synced(); n != 3 || last != 9 || synced != 7 {
				t.Fatalf("%s, byte %d: %d frames up to %d, synced %d", name, i, n, last, synced)
			}
			if end := replays(t, found, 1); end != 5 {
				t.Fatalf("%s, byte %d: the log ends at %d", name, i, end)
			}
			_ = found.Close()
			if err := l.file.Writev([][]byte{whole[int(at)+i:][:1]}, at+int64(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = l.Close()
}

// TestLogCut checks that, whichever sectors of the last write a crash leaves
// behind, the writes before it are found, and of the last one all or nothing.
func TestLogCut(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	dir := lockDir(t)
	l := newLog(t, dir, 20)
	whole, torn := 0, 0
	seq := uint64(1)
	for k := key.Key(1); k < 200; k++ {
		before, err := os.ReadFile(l.Path())
		if err != nil {
			t.Fatal(err)
		}
		write(t, l, addition(k, seq, seq, 1+rnd.IntN(20)))
		after, err := os.ReadFile(l.Path())
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			cut := bytes.Clone(after)
			for s := 0; s < len(cut); s += 512 {
				if !bytes.Equal(before[s:s+512], after[s:s+512]) && rnd.IntN(8) == 0 {
					copy(cut[s:s+512], before[s:])
				}
			}
			if err := os.WriteFile(l.Path(), cut, 0o600); err != nil {
				t.Fatal(err)
			}
			found := reopen(t, dir, nil)
			switch end := replays(t, found, seq); end {
			case seq + 2:
				whole++
			case seq:
				torn++
			default:
				t.Fatalf("key %d: the log ends at %d of %d", k, end, seq+2)
			}
			_ = found.Close()
		}
		if err := os.WriteFile(l.Path(), after, 0o600); err != nil {
			t.Fatal(err)
		}
		seq += 2
		l.Release(k)
	}
	if whole == 0 || torn == 0 {
		t.Errorf("%d whole, %d torn", whole, torn)
	}
	_ = l.Close()
}

// TestLogForeign checks that frames of other writers or volumes, at other places,
// or within the data of a frame do not count.
func TestLogForeign(t *testing.T) {
	dir := lockDir(t)
	l := newLog(t, dir, 64)
	write(t, l, addition(1, 1, 1, 3))
	other := addition(1, 3, 1, 3)
	other.Nonce = layout.Nonce{9}
	volume := addition(1, 3, 1, 3)
	volume.UUID = layout.UUID{9}
	write(t, l, other, volume)

	// The head of a frame that was copied into the data of another one, to where a
	// page begins.
	file, err := os.ReadFile(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	data := addition(1, 3, 3, 64)
	head, inner, copied := file[layout.LogHeaderSize:][:data.HeadSize()], content(3, 64), 0
	for page := int64(layout.LogAlign); page < data.Size(); page += layout.LogAlign {
		block, off := (page-data.HeadSize())/(logBlock+layout.CheckSize), (page-data.HeadSize())%(logBlock+layout.CheckSize)
		if off+int64(len(head)) <= logBlock && block < 64 {
			copied += copy(inner[block*logBlock+off:], head)
		}
	}
	if copied == 0 {
		t.Fatal("no page begins within a block")
	}
	data.Data = layouttest.Stored(logUUID, 1, 40, inner, logBlock)
	write(t, l, data)
	l = reopen(t, dir, l)
	if l.Frames() != 2 || l.Last() != 5 {
		t.Fatalf("%d frames, up to %d", l.Frames(), l.Last())
	}

	// A new owner, then none.
	if err := l.Own(logUUID, layout.Nonce{5}, logBlock); err != nil {
		t.Fatal(err)
	}
	if l = reopen(t, dir, l); l.Frames() != 0 || l.Header().Nonce != (layout.Nonce{5}) {
		t.Fatalf("%d frames of a new owner", l.Frames())
	}
	if err := l.Own(logUUID, layout.Nonce{}, logBlock); err != nil {
		t.Fatal(err)
	}
	if l = reopen(t, dir, l); l.Frames() != 0 || l.Header().Nonce != (layout.Nonce{}) {
		t.Fatalf("%d frames of no owner", l.Frames())
	}
}

// TestLogFile checks that a file that is not a log counts as damaged, and a
// missing one as missing.
func TestLogFile(t *testing.T) {
	dir := lockDir(t)
	if _, err := dir.OpenLog(OpenFile); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	l := newLog(t, dir, 8)
	for range 2 { // the second one has no effect
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	good, err := os.ReadFile(l.Path())
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"empty": nil, "short": good[:100], "cut": good[:len(good)-1], "long": append(bytes.Clone(good), 0), "zeros": make([]byte, len(good)),
	} {
		if err := os.WriteFile(l.Path(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := dir.OpenLog(OpenFile); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	to, err := dir.SetAside(LogFileName)
	if err != nil || to != filepath.Join(dir.Path(), "log.aside-1") {
		t.Error(to, err)
	}
	if err := dir.RemoveLog(); err != nil {
		t.Error("nothing to remove: ", err)
	}
	_ = newLog(t, dir, 8).Close()
	if err := os.WriteFile(dir.file(newLogName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := dir.RemoveLog(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{LogFileName, newLogName} {
		if _, err := os.Stat(dir.file(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

// TestLogNoRoom checks that a batch that does not fit as a whole takes no room.
func TestLogNoRoom(t *testing.T) {
	dir := lockDir(t)
	l := newLog(t, dir, 8)
	if l.Reserve([]Addition{addition(1, 1, 1, 64)}) {
		t.Fatal("there is room for 9 pages in 8")
	}
	if l.Reserve([]Addition{addition(1, 1, 1, 8), addition(2, 3, 1, 64)}) || l.Used() != 0 {
		t.Fatalf("%d bytes are used", l.Used())
	}
	write(t, l, addition(1, 1, 1, 8), addition(2, 3, 1, 8), addition(3, 5, 1, 8)) // two pages each
	before := l.Used()
	if l.Reserve([]Addition{addition(3, 7, 1, 1), addition(3, 9, 1, 8)}) || l.Used() != before {
		t.Fatalf("%d bytes are used, %d before", l.Used(), before)
	}
	l.Release(1)
	write(t, l, addition(3, 7, 1, 8), addition(3, 9, 1, 8))
	if l.Used() != 8*layout.LogAlign {
		t.Fatalf("%d bytes are used", l.Used())
	}
	if l = reopen(t, dir, l); replays(t, l, 3) != 11 {
		t.Fatal("not all of it is there")
	}
}

// BenchmarkLogSync measures what a flush of one block costs on the disk that
// holds TMPDIR; for comparison, "raw" is a write of 4 KiB to a written file.
func BenchmarkLogSync(b *testing.B) {
	dir := lockDir(b)
	b.Run("log", func(b *testing.B) {
		l := newLog(b, dir, 4096)
		defer func() { _ = l.Close() }()
		for i := 0; b.Loop(); i++ {
			l.Release(key.Key(i))
			write(b, l, addition(key.Key(i+1), uint64(1+2*i), 1, 8))
			if err := l.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("raw", func(b *testing.B) {
		f, err := OpenFile(filepath.Join(dir.Path(), LogFileName))
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		block := [][]byte{bytes.Repeat([]byte{1}, 4096)}
		for i := 0; b.Loop(); i++ {
			if err := errors.Join(f.Writev(block, layout.LogHeaderSize+int64(i%4096)*4096), f.Datasync()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
