package bs3

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/volume"
)

func TestHostApart(t *testing.T) {
	theirs := layout.Writer{Host: "m1", Product: "p1", Hostname: "h1", StatePath: "/s", StateID: "i1"}
	const unknown = "nothing here shows"
	for name, c := range map[string]struct {
		change func(w *layout.Writer)
		ours   Host
		id     string
		want   string
	}{
		"the same":            {nil, Host{ID: "m1", Product: "p1", Name: "h1"}, "i1", ""},
		"other boot":          {nil, Host{ID: "m1", Product: "p1", Name: "h1", Boot: [16]byte{9}}, "i1", ""},
		"other name":          {nil, Host{ID: "m1", Product: "p1", Name: "h2"}, "i1", ""},
		"fresh directory":     {nil, Host{ID: "m1", Product: "p1", Name: "h1"}, "", ""},
		"not root any more":   {nil, Host{ID: "m1", Name: "h1"}, "i1", ""},
		"cloned image":        {nil, Host{ID: "m1", Product: "p2", Name: "h1"}, "", "product UUID"},
		"cloned with state":   {nil, Host{ID: "m1", Product: "p2", Name: "h1"}, "i1", "product UUID"},
		"machine":             {nil, Host{ID: "m2", Product: "p1", Name: "h1"}, "i1", "machine-id"},
		"directory":           {nil, Host{ID: "m1", Product: "p1", Name: "h1"}, "i2", "id of the state directory"},
		"all":                 {nil, Host{ID: "m2", Product: "p2"}, "i2", "machine-id, product UUID, id of the state directory"},
		"container came back": {func(w *layout.Writer) { w.Host = "" }, Host{Product: "p1", Name: "h2"}, "i1", ""},
		"other container":     {func(w *layout.Writer) { w.Host = "" }, Host{Product: "p1", Name: "h2"}, "i2", "id of the state directory"},
		"without its state":   {func(w *layout.Writer) { w.Host = "" }, Host{Product: "p1", Name: "h1"}, "", unknown},
		"nothing known":       {func(w *layout.Writer) { *w = layout.Writer{Hostname: "h1", StatePath: "/s"} }, Host{Name: "h1"}, "i1", unknown},
		"other path":          {func(w *layout.Writer) { w.StatePath = "/t" }, Host{ID: "m1", Product: "p1"}, "i1", "state path"},
	} {
		w := theirs
		if c.change != nil {
			c.change(&w)
		}
		got := c.ours.apart(&w, "/s", c.id, false)
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, not %q", name, got, c.want)
		}
	}
}

func TestHostFiles(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for text, want := range map[string]string{"0123\n": "0123", "uninitialized\n": "", "": ""} {
		if got := machineID(file("machine-id", text)); got != want {
			t.Errorf("machine-id %q: %q", text, got)
		}
	}
	if got := machineID(filepath.Join(dir, "none")); got != "" {
		t.Errorf("no machine-id: %q", got)
	}
	none, upper, lower := filepath.Join(dir, "none"), file("upper", "4C4C4544-0042\n"), file("lower", "4c4c4544-0042")
	id := product([]string{none, upper})
	if len(id) != 32 || strings.Contains(id, "4c4c4544") {
		t.Errorf("product: %q is no digest", id)
	}
	if got := product([]string{lower}); got != id {
		t.Errorf("product: %q and %q", id, got)
	}
	if got := product([]string{file("serial", "100000\x00"), upper}); got == id || got != product([]string{file("serial", "100000")}) {
		t.Errorf("serial number: %q", got)
	}
	if got := product([]string{none}); got != "" {
		t.Errorf("product of no machine: %q", got)
	}
	h, err := LocalHost()
	if err != nil || h.Name == "" || h.Boot == [16]byte{} || h.ID == h.Name {
		t.Errorf("local host: %+v, %v", h, err)
	}
}

// TestOtherMachineIsRefused: each root of the identity alone keeps a second
// machine from taking a volume that is in use for its own, and --takeover does
// what it says. The name of the host does not matter.
func TestOtherMachineIsRefused(t *testing.T) {
	own := func(o *Options) {
		o.Takeover, o.Host = false, Host{ID: "m", Product: "p", Name: "a", Boot: [16]byte{1}}
	}
	at := func(w *ruleWorld) string { return filepath.Join(w.root, "a") }
	otherState := func(w *ruleWorld) {
		if err := os.Rename(at(w), at(w)+".first"); err != nil {
			w.t.Fatal(err)
		}
		if err := os.Mkdir(at(w), 0o700); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at(w), idFile), []byte(layout.NewNonce().String()+"\n"), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		before func(w *ruleWorld)
		change func(o *Options)
		want   string // empty: it opens
	}{
		"same":            {nil, nil, ""},
		"other name":      {nil, func(o *Options) { o.Host.Name = "b" }, ""},
		"rebooted":        {func(w *ruleWorld) { w.wipe("a") }, otherBoot, ""},
		"state lost":      {func(w *ruleWorld) { w.wipe("a") }, nil, ""},
		"product":         {nil, func(o *Options) { o.Host.Product = "q" }, "not the same here: product UUID"},
		"machine-id":      {nil, func(o *Options) { o.Host.ID = "n" }, "not the same here: machine-id"},
		"state directory": {otherState, nil, "not the same here: id of the state directory"},
		"state path":      {nil, func(o *Options) { o.StatePath += "2" }, "not the same here: state path"},
	} {
		t.Run(name, func(t *testing.T) {
			inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
				w.open("a", own).kill()
				if c.before != nil {
					c.before(w)
				}
				change := []func(*Options){own}
				if c.change != nil {
					change = append(change, c.change)
				}
				before := w.versions()
				err := w.start("a", change...).launch().opened()
				if c.want == "" {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "was not released") {
					t.Fatal("opened: ", err)
				}
				t.Log(err)
				if w.versions() != before {
					t.Error("the store was changed")
				}
				x := w.open("a", append(change, func(o *Options) { o.Takeover = true })...)
				if x.e.Whole() {
					t.Error("a device that outlived the writer elsewhere may go on")
				}
			})
		})
	}
}

// TestNewStateDirectory: an open with a new state directory that dies around its
// claim leaves none that the next one is refused for.
func TestNewStateDirectory(t *testing.T) {
	for name, hold := range map[string]func(x *ruleWriter) *ruleHold{
		"before": func(x *ruleWriter) *ruleHold { return x.hold(isVolumePut) },
		"after":  func(x *ruleWriter) *ruleHold { return x.holdAnswer(isVolumePut) },
	} {
		for _, id := range []string{"m", ""} { // without a machine-id the intent shows it
			t.Run(name+" "+id, func(t *testing.T) {
				inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
					own := func(o *Options) { o.Takeover, o.Host.ID = false, id }
					a := w.open("a", own)
					if id == "" {
						if err := a.close(); err != nil {
							t.Fatal(err)
						}
					}
					a.kill()
					w.wipe("a")
					died := w.start("a", own)
					claim := hold(died)
					died.launch()
					claim.wait(t)
					died.kill()
					w.open("a", own)
				})
			})
		}
	}
}

// TestContainerComesBack: a container has no machine-id and a name of its own each
// time; its state directory shows that it is the same. Another one has neither.
func TestContainerComesBack(t *testing.T) {
	container := func(name string) func(o *Options) {
		return func(o *Options) { o.Takeover, o.Host = false, Host{Product: "node", Name: name, Boot: [16]byte{1}} }
	}
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		a := w.open("a", container("c1"))
		a.hold(isObjectPut)
		a.write(1, 0)
		a.kill()
		a = w.open("a", container("c2"))
		a.holds(1, 0)
		if !a.e.Whole() {
			t.Error("its chunk memory is not taken for its own")
		}
		a.kill()
		w.wipe("a") // another one, with the same path inside
		err := w.start("a", container("c2")).launch().opened()
		if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), "nothing here shows that it was this host") {
			t.Fatal("opened: ", err)
		}
	})
}

// TestStateIDGarbled: what is no id is named.
func TestStateIDGarbled(t *testing.T) {
	inRuleWorld(t, func(t *testing.T, w *ruleWorld) {
		w.open("a").kill()
		path := filepath.Join(w.root, "a", idFile)
		if err := os.WriteFile(path, []byte("0123"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := w.start("a").launch().opened()
		if !errors.Is(err, volume.ErrRefused) || !strings.Contains(err.Error(), path) {
			t.Fatal("opened: ", err)
		}
	})
}
