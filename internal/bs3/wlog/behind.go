package wlog

import "bs3/internal/bs3/layout"

// Behind returns the record after entries, all those that the slot counts, if
// what lies there verifies as the next one of the same chunk: the process ended
// while it was being added, or the count is wrong. Nothing shows which, so
// nothing shows that it was acknowledged.
func (s *Slot) Behind(entries []Entry) (layout.Record, bool) {
	h, err := s.Header()
	if err != nil || len(entries) == 0 || int64(len(entries)) >= (s.off.RecordCRCs-s.off.Records)/layout.RecordSize {
		return layout.Record{}, false
	}
	var blocks uint32
	for _, e := range entries {
		blocks += uint32(len(e.CRCs))
	}
	found := slotReader{s, h, layout.NewChecks(s.uuid, h.Key), blocks, layout.AddSum(0, s.Stored(0, blocks), s.blockSize)}
	e, err := found.next(uint32(len(entries)))
	if err != nil || e.Seq != entries[len(entries)-1].Seq+1 {
		return layout.Record{}, false
	}
	return e.Record, true
}
