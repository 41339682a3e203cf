package bs3

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/rs/zerolog"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// logLines keeps the lines of a log.
type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// keep makes the log of an open write into l.
func (l *logLines) keep(o *Options) { o.Log = zerolog.New(l) }

// lost returns the lines at level warn and above, but for that of memory that
// cannot be locked.
func (l *logLines) lost(t *testing.T) (lines []map[string]any) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		if level := fields["level"]; level != "info" && !strings.Contains(line, "may be swapped out") {
			t.Log(strings.TrimSpace(line))
			lines = append(lines, fields)
		}
	}
	return lines
}

// says demands one line with that in its message, and those fields.
func (l *logLines) says(t *testing.T, message string, fields map[string]any) {
	t.Helper()
	var found []map[string]any
	for _, line := range l.lost(t) {
		if strings.Contains(line["message"].(string), message) {
			found = append(found, line)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d lines say %q", len(found), message)
	}
	for name, want := range fields {
		got := found[0][name]
		if text, ok := want.(string); ok {
			if s, _ := got.(string); !strings.Contains(s, text) {
				t.Errorf("%s is %v, not %q", name, got, text)
			}
			continue
		}
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		if !bytes.Equal(a, b) {
			t.Errorf("%s is %s, not %s", name, a, b)
		}
	}
}

func otherBoot(o *Options) { o.Host.Boot = [16]byte{2} }

const saysMemoryLost = "did not release the volume, and its chunk memory is missing"

// TestSaysMemoryLost: who opens a volume without the chunk memory of a writer
// that did not release it says so, and why.
func TestSaysMemoryLost(t *testing.T) {
	for name, c := range map[string]struct {
		host   string
		before func(w *ruleWorld)
		change func(o *Options)
		why    string
	}{
		"removed":        {"a", func(w *ruleWorld) { w.wipe("a") }, nil, "there is no chunk memory in"},
		"no state path":  {"a", nil, func(o *Options) { o.StatePath = "" }, "there is no state.path here"},
		"other host":     {"b", nil, nil, "there is no chunk memory in"},
		"other boot":     {"a", nil, otherBoot, "is of another boot"},
		"came back late": {"a", func(w *ruleWorld) { w.open("b").kill() }, nil, "is not its own"},
		"other host before": {"a", func(w *ruleWorld) {
			w.open("a").kill() // replays and empties it
			w.open("b").kill()
		}, nil, "not the same here: machine-id, id of the state directory, state path"},
	} {
		t.Run(name, func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				w.behind("")
				if c.before != nil {
					c.before(w)
				}
				var lines logLines
				change := []func(*Options){lines.keep}
				if c.change != nil {
					change = append(change, c.change)
				}
				w.open(c.host, change...)
				lines.says(t, saysMemoryLost, map[string]any{"level": "warn", "why": c.why})
			})
		})
	}
	for name, c := range map[string]func(w *ruleWorld){
		"new":   func(*ruleWorld) {},
		"whole": func(w *ruleWorld) { w.behind("") },
		"idle":  func(w *ruleWorld) { w.open("a").kill() },
		"released": func(w *ruleWorld) {
			if err := w.open("b").close(); err != nil {
				w.t.Fatal(err)
			}
		},
		"opens that died": func(w *ruleWorld) {
			w.behind("")
			for range 2 {
				died := w.start("a")
				claimed := died.holdAnswer(isVolumePut)
				died.launch()
				claimed.wait(w.t)
				died.kill()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				c(w)
				var lines logLines
				w.open("a", lines.keep)
				if lost := lines.lost(t); len(lost) > 0 {
					t.Errorf("nothing is lost, but the log says %v", lost)
				}
			})
		})
	}
}

// memoryFile gives f the header page of the slot of the chunk of key k, in the
// file of the chunk memory of a host on which no daemon runs.
func (w *ruleWorld) memoryFile(host string, k key.Key, f func(page []byte, off layout.SlotLayout)) {
	w.t.Helper()
	path := filepath.Join(w.root, host, "memory")
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := layout.DecodeMemoryHeader(b[:layout.MemoryHeaderSize])
	if err != nil {
		w.t.Fatal(err)
	}
	off := layout.SlotOffsets(int(m.ChunkBlocks), int(m.BlockSize))
	for at := int64(layout.MemoryHeaderSize); at < int64(len(b)); at += off.Size {
		h, err := layout.DecodeSlotHeader(b[at:])
		if n, ok := layout.SlotCount(b[at:]); err == nil && h.Key == k && ok && n > 0 {
			f(b[at:], off)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				w.t.Fatal(err)
			}
			return
		}
	}
	w.t.Fatal("no such slot")
}

// TestSaysLeftOut: what replay leaves out is said: what was torn, what lies behind
// a gap, and what no count covers.
func TestSaysLeftOut(t *testing.T) {
	t.Run("torn", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			w.behind("")
			w.memoryFile("a", 2, func(page []byte, off layout.SlotLayout) { page[off.Data+int64(layout.Stride(simBlockSize))+8] ^= 1 }) // its second write
			var lines logLines
			a := w.open("a", lines.keep, otherBoot)
			lines.says(t, "it holds less than it counts", map[string]any{"level": "warn", "file": "memory"})
			lines.says(t, "what follows the first missing write is dropped", map[string]any{"level": "warn", "missing": 3, "dropped": 1})
			lines.says(t, saysMemoryLost, map[string]any{"why": "is of another boot", "replayed": 1})
			a.holds(2, 1)
			a.holds(0, 2)
		})
	})
	t.Run("gap", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			w.behind("")
			w.clearSlot("a", 2)
			var lines logLines
			w.open("a", lines.keep, otherBoot)
			lines.says(t, "what follows the first missing write is dropped", map[string]any{"level": "warn", "missing": 2, "dropped": 1})
		})
	})
	t.Run("not counted", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			a := w.open("a")
			a.hold(isObjectPut)
			a.write(1, 0)
			a.write(2, 1)
			a.kill()
			w.memoryFile("a", 1, func(page []byte, _ layout.SlotLayout) { layout.PutSlotCount(page, 1) })
			var lines logLines
			a = w.open("a", lines.keep)
			lines.says(t, "holds writes that it does not count", map[string]any{"level": "warn", "writes": []int{2}, "file": "memory"})
			a.holds(1, 0)
			a.holds(0, 1)
		})
	})
	t.Run("local log", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			a := w.open("a", w.local("a"))
			a.hold(isObjectPut)
			for i := range uint64(3) {
				a.write(1+i, i)
				a.flush()
			}
			w.crash("a")
			f, err := os.OpenFile(filepath.Join(w.cache("a"), "log"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("damage"), simPage+300); err != nil { // of the first write
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			var lines logLines
			w.open("a", lines.keep, w.local("a"), forget).holds(0, 0)
			lines.says(t, "the local log lacks writes that were flushed", map[string]any{"level": "error", "missing": 1, "flushed": 3})
		})
	})
}

// TestSaysAboveEnd: objects above the end of the log, which are not part of it,
// are told, unless chunk memory has what they hold.
func TestSaysAboveEnd(t *testing.T) {
	const message = "lie above the end of the log and are left out"
	t.Run("out of order", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			w.leftover()
			var lines logLines
			w.open("b", lines.keep)
			lines.says(t, message, map[string]any{"level": "warn", "missing": 1, "name": key.Key(1).Name(), "objects": 1, "keys": []int{2}, "writes": 4, "first": 1, "released": false})
		})
	})
	t.Run("chunk memory has it", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			w.leftover()
			var lines logLines
			w.open("a", lines.keep)
			if lost := lines.lost(t); len(lost) > 0 {
				t.Errorf("nothing is lost, but the log says %v", lost)
			}
		})
	})
	t.Run("known before", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			w.leftover()
			w.open("b").kill() // has said it
			var lines logLines
			w.open("b", lines.keep)
			if lost := lines.lost(t); len(lost) > 0 {
				t.Errorf("nothing more is lost, but the log says %v", lost)
			}
		})
	})
	lost := func(t *testing.T, w *ruleWorld, a *ruleWriter) {
		for i := range uint64(40) {
			a.write(1+i, i)
			a.flush()
		}
		synctest.Wait()
		if err := w.memory.Delete(t.Context(), []string{key.Key(3).Name()}); err != nil {
			t.Fatal(err)
		}
	}
	keys := func() (keys []int) {
		for k := 4; k <= 40; k++ {
			keys = append(keys, k)
		}
		return keys
	}()
	t.Run("lost by the store", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			a := w.open("a")
			lost(t, w, a)
			a.kill()
			w.wipe("a")
			var lines logLines
			w.open("a", lines.keep)
			lines.says(t, message, map[string]any{"missing": 3, "objects": 37, "keys": keys, "writes": 38, "first": 3, "released": false})
			lines.says(t, saysMemoryLost, nil)
		})
	})
	t.Run("lost after a release", func(t *testing.T) {
		inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
			without := func(o *Options) { o.SkipCheckpoint = true }
			a := w.open("a", without)
			lost(t, w, a)
			if err := a.close(); err != nil {
				t.Fatal(err)
			}
			var lines logLines
			w.open("a", lines.keep, without)
			lines.says(t, message, map[string]any{"missing": 3, "objects": 37, "writes": 38, "released": true})
		})
	})
}

// TestLostObjectPutBack: who ends the daemon that warns of a lost object, before it
// writes anything, and puts the object back over its fence, loses nothing.
func TestLostObjectPutBack(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for i := range uint64(5) {
			a.write(1+i, i)
			a.flush()
			if i == 0 {
				a.checkpoint()
			}
		}
		a.kill()
		w.wipe("a")
		name := key.Key(3).Name()
		object, _, err := volume.ReadAll(t.Context(), w.memory, name)
		if err == nil {
			err = w.memory.Delete(t.Context(), []string{name})
		}
		if err != nil {
			t.Fatal(err)
		}
		var lines logLines
		w.open("a", lines.keep).kill()
		lines.says(t, "lie above the end of the log and are left out", map[string]any{"missing": 3, "name": name})
		if _, err := w.memory.Put(t.Context(), name, objproxy.Body{Data: object}, objproxy.Condition{}); err != nil {
			t.Fatal(err)
		}
		w.intact()
		a = w.open("a")
		for i := range uint64(5) {
			a.holds(1+i, i)
		}
	})
}

// TestCannotLookAbove: the volume needs nothing of what lies above the end of the
// log, so an open does not wait for it for ever, and says that it could not look.
func TestCannotLookAbove(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.leftover()
		var lines logLines
		b := w.start("b", lines.keep)
		b.opts.Store = &silentOn{b.opts.Store, key.Key(2).Name()}
		if err := b.launch().opened(); err != nil {
			t.Fatal(err)
		}
		lines.says(t, "cannot see whether objects of the last writer lie above the end of the log", map[string]any{"level": "warn", "from": 2})
		b.holds(0, 0)
	})
}

// silentOn is a store that never answers for one name.
type silentOn struct {
	objproxy.Store
	name string
}

func (s *silentOn) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	if name == s.name {
		<-ctx.Done()
		return 0, objproxy.Info{}, ctx.Err()
	}
	return s.Store.Get(ctx, name, p, off)
}
