package test

import (
	"encoding/json"
	"time"
)

// extent is a line of what nbdinfo --map says.
type extent struct {
	Offset, Length int64  // bytes
	Description    string // "data" or "hole,zero"
}

// extents asks the served volume where it has data.
func (v *volume) extents() []extent {
	v.t.Helper()
	out := command(v.t, time.Minute, "nbdinfo", "--map", "--json", v.uri())
	var list []extent
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		v.t.Fatalf("nbdinfo --map: %v in %s", err, out)
	}
	return list
}

// dataBytes is how much of the served volume is data.
func (v *volume) dataBytes() (n int64) {
	v.t.Helper()
	for _, e := range v.extents() {
		if e.Description == "data" {
			n += e.Length
		}
	}
	return n
}
