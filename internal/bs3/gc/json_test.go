package gc

import (
	"encoding/json"
	"testing"
	"time"
)

// Programs read these.
func TestJSON(t *testing.T) {
	spread := Spread{Objects: 1, FullObjects: 2, Requests: 3, FullRequests: 4, At: time.Unix(0, 0).UTC()}
	const spreads = `"objects":1,"full_objects":2,"requests":3,"full_requests":4,"at":"1970-01-01T00:00:00Z"`
	for want, v := range map[string]any{
		"{" + spreads + "}": spread,
		"{" + spreads + `,"passes":5,"bytes":6,"gets":7,"puts":8}`:                     DefragPlan{Spread: spread, Passes: 5, Bytes: 6, Gets: 7, Puts: 8},
		`{"pass":1,"passes":2,"moved_bytes":3,"total_bytes":4}`:                        Progress{Pass: 1, Passes: 2, MovedBytes: 3, TotalBytes: 4},
		`{"compacted":1,"moved_bytes":2,"deleted":3,"freed_bytes":4,"failed_reads":5}`: Report{Compacted: 1, MovedBytes: 2, Deleted: 3, FreedBytes: 4, FailedReads: 5},
	} {
		if got, err := json.Marshal(v); err != nil || string(got) != want {
			t.Errorf("%s, %v, not %s", got, err, want)
		}
	}
}
