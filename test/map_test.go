package test

import (
	"encoding/json"
)

// extent is an element of what nbdinfo --map prints.
type extent struct {
	Offset, Length int64  // bytes
	Description    string // "data" or "hole,zero"
}

// extents returns the map of the served volume.
func (v *volume) extents() []extent {
	v.t.Helper()
	out := command(v.t, "nbdinfo", "--map", "--json", v.uri())
	var list []extent
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		v.t.Fatalf("nbdinfo --map: %v in %s", err, out)
	}
	return list
}

// dataBytes returns how many bytes of the served volume are data.
func (v *volume) dataBytes() (n int64) {
	v.t.Helper()
	for _, e := range v.extents() {
		if e.Description == "data" {
			n += e.Length
		}
	}
	return n
}
