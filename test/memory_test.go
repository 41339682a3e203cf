package test

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// resident is the resident memory of a process, in bytes.
type resident struct {
	chunks int64 // the mapping of chunk memory
	other  int64 // everything else, the program itself too
}

// resident adds up the resident sizes of the daemon's mappings in
// /proc/PID/smaps. It knows chunk memory by its file in the state directory.
func (d *daemon) resident() (r resident) {
	d.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", d.cmd.Process.Pid))
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	into := &r.other
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		var kb int64
		switch fields := strings.Fields(line); {
		case strings.HasPrefix(line, "Rss:"):
			if _, err := fmt.Sscanf(line, "Rss: %d kB", &kb); err != nil {
				d.t.Fatal(err)
			}
			*into += kb << 10
		case !strings.HasSuffix(fields[0], ":"): // the first line of a mapping
			into = &r.other
			if strings.Contains(line, "/state/") {
				into = &r.chunks
			}
		}
	}
	if r.other == 0 {
		d.t.Fatal("nothing resident in /proc/PID/smaps")
	}
	return r
}

// An empty volume of 1 TiB costs nearly nothing. The test shows the times and
// fails only if they are wrong by a factor of ten. That is a promise, so it has a
// bound; a start of a small volume shows how much slower a loaded machine is.
func TestEmptyTiB(t *testing.T) {
	const size = 1024 * gib
	const most = 60 * mib // resident beyond chunk memory
	v := newVolume(t, onDir).with("size", 1024)
	var d *daemon
	began := time.Now()
	newVolume(t, onDir).start().stop()
	slowness := time.Since(began)
	timed := func(what string, limit time.Duration, f func()) {
		t.Helper()
		began := time.Now()
		f()
		took := time.Since(began)
		t.Logf("%s: %v", what, took.Round(time.Millisecond))
		if took > 10*limit+3*slowness {
			t.Errorf("%s took %v, want %v; a small volume starts and stops in %v", what, took, limit, slowness)
		}
	}
	weigh := func(when string) {
		t.Helper()
		r := d.resident()
		t.Logf("resident %s: %.1f MB, and %.1f MB of chunk memory", when, float64(r.other)/float64(mib), float64(r.chunks)/float64(mib))
		if r.other > most {
			t.Errorf("%d MB resident beyond chunk memory %s, want at most %d", r.other/mib, when, most/mib)
		}
	}
	discard := func() {
		c := dial(t, v.socket)
		var requests []*request
		const n = 2 * gib // of one request; its length has 32 bits
		for off := int64(0); off < size; off += n {
			requests = append(requests, c.send(nbdTrim, off, int(n), nil))
		}
		for _, q := range requests {
			c.must("discard", q)
		}
		c.flush()
	}

	timed("first start", time.Second, func() { d = v.start() })
	weigh("when empty")
	timed("discarding all of it", time.Second, discard)
	weigh("after discarding all of it")
	c := dial(t, v.socket)
	if c.size != size {
		t.Errorf("the volume has %d bytes, want 1 TiB", c.size)
	}
	last := randomBytes(blockSize)
	c.write(size-blockSize, last)
	d.stop()

	v.wipeState()
	timed("second start", time.Second, func() { d = v.start() })
	weigh("after the second start")
	if got := dial(t, v.socket).read(size-blockSize, blockSize); string(got) != string(last) {
		t.Error("the last block has other data than was written")
	}
	timed("discarding all of it again", time.Second, discard)
	weigh("at the end")
	d.stop()
}
