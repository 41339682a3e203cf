package bs3

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// wrongAnswer is a store of which one answer to a Get of a name is wrong. The
// version is that of what is there.
type wrongAnswer struct {
	objproxy.Store
	name  string
	wrong func(b []byte) (answer []byte, size int64) // of a whole object
	left  atomic.Int64                               // answers until then, with that one
}

func (s *wrongAnswer) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	n, info, err := s.Store.Get(ctx, name, p, off)
	if err != nil || name != s.name || s.left.Add(-1) != 0 {
		return n, info, err
	}
	b, _, err := volume.ReadAll(ctx, s.Store, name)
	if err != nil {
		return 0, objproxy.Info{}, err
	}
	b, size := s.wrong(slices.Clone(b))
	info.Size = size
	return copy(p, b[max(0, len(b)-len(p)):]), info, nil
}

// TestOneWrongAnswer: whatever one answer of the store is to an open, the open
// gets what is there, and nothing that is there is lost.
func TestOneWrongAnswer(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a")
		for round := range uint64(3) {
			for i := range uint64(6) {
				a.write(1+10*round+i, i, 4096+i)
			}
			if round < 2 {
				a.checkpoint()
			}
		}
		a.flush()
		a.kill()
		names := w.names("")
		answers := make(map[string][]byte)
		for _, name := range names {
			b, _, err := volume.ReadAll(t.Context(), w.memory, name)
			if err != nil {
				t.Fatal(err)
			}
			answers[name] = b
		}
		for kind, wrong := range map[string]func(name string, b []byte) ([]byte, int64){
			"cut":           func(_ string, b []byte) ([]byte, int64) { return b[:len(b)/2], int64(len(b) / 2) },
			"cut at front":  func(_ string, b []byte) ([]byte, int64) { return b[len(b)/3:], int64(len(b) - len(b)/3) },
			"not all of it": func(_ string, b []byte) ([]byte, int64) { return b[:len(b)/2], int64(len(b)) },
			"empty":         func(string, []byte) ([]byte, int64) { return nil, 0 },
			"longer":        func(_ string, b []byte) ([]byte, int64) { return append(b, 0, 1, 2, 3), int64(len(b) + 4) },
			"a bit":         func(_ string, b []byte) ([]byte, int64) { b[len(b)-len(b)/4-1] ^= 4; return b, int64(len(b)) },
			"zeros":         func(_ string, b []byte) ([]byte, int64) { return make([]byte, len(b)), int64(len(b)) },
			"another object": func(name string, _ []byte) ([]byte, int64) {
				i := slices.Index(names, name)
				other := answers[names[(i+1)%len(names)]]
				return other, int64(len(other))
			},
			"of another volume": func(name string, b []byte) ([]byte, int64) {
				if name == layout.VolumeName {
					v, err := layout.DecodeVolume(b)
					if err != nil {
						t.Error(err)
						return b, int64(len(b))
					}
					v.UUID[3] ^= 1
					v.Writer.Nonce[3] ^= 1
					v.Epoch += 7
					v.Checkpoints = nil
					b, _ = layout.EncodeVolume(v)
				} else if _, err := key.Parse(name); err == nil {
					o, err := layout.DecodeTail(b, int64(len(b)))
					if err != nil {
						t.Error(err)
						return b, int64(len(b))
					}
					o.UUID[3] ^= 1
					b = layout.AppendTail(make([]byte, o.DataSize()), o)
					if _, err := layout.DecodeTail(b, int64(len(b))); err != nil {
						t.Error(err) // it would be damage, and not another volume's
					}
				}
				return b, int64(len(b))
			},
		} {
			asked := 0
			try := func(name string, nth int64) {
				var lines logLines
				x := w.start("a", lines.keep)
				s := &wrongAnswer{Store: x.opts.Store, name: name, wrong: func(b []byte) ([]byte, int64) { return wrong(name, b) }}
				s.left.Store(nth)
				x.opts.Store = s
				x.launch()
				if err := x.opened(); err != nil {
					t.Fatalf("%s: %s, answer %d: %v", simName(name), kind, nth, err)
				}
				if lost := lines.lost(t); len(lost) > 0 {
					t.Fatalf("%s: %s, answer %d: the log says %v", simName(name), kind, nth, lost)
				}
				if s.left.Swap(0) <= 0 { // what is read from here on is right
					asked++
				}
				for i := range uint64(6) {
					x.holds(21+i, i)
					x.holds(21+i, 4096+i)
				}
				x.kill()
				if b, _, err := volume.ReadAll(t.Context(), w.memory, name); name != layout.VolumeName && (err != nil || !slices.Equal(b, answers[name])) {
					t.Fatalf("%s: %s: it was replaced (%v)", simName(name), kind, err)
				}
			}
			for _, name := range names {
				try(name, 1)
			}
			for nth := range int64(4) { // the record is read again and again
				try(layout.VolumeName, 2+nth)
			}
			if asked < 6 {
				t.Errorf("%s: only %d of %d names were asked for", kind, asked, len(names))
			}
		}
		w.intact()
	})
}
