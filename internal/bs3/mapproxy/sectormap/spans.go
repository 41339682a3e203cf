package sectormap

import (
	"sort"

	"bs3/internal/bs3/layout"
)

// span is a part of a leaf, as long as possible, whose entries [from, to) are
// consecutive locations of one object.
type span struct {
	from, to uint16 // to is at most LeafBlocks
	loc      layout.Location
}

// maxSpans is the most spans of a leaf; one with more becomes an array of
// entries. That takes thirty times the memory, but each change copies all spans.
const maxSpans = 64

const spanBytes = 16

// part returns the entries [from, to) of s, which must have them.
func (s span) part(from, to uint16) span {
	return span{from, to, s.loc + layout.Location(from-s.from)}
}

func (s span) blocks() uint32 { return uint32(s.to - s.from) }

// after returns the index of the first span that ends behind entry i.
func after(spans []span, i uint16) int {
	return sort.Search(len(spans), func(j int) bool { return spans[j].to > i })
}

// appendSpan appends s, as a part of the last span if it continues that.
func appendSpan(spans []span, s span) []span {
	if s.from == s.to {
		return spans
	}
	if n := len(spans); n > 0 {
		if last := &spans[n-1]; last.to == s.from && follows(last.loc, last.blocks(), s.loc) {
			last.to = s.to
			return spans
		}
	}
	return append(spans, s)
}

// replaced returns a copy of spans in which put, which may be empty, replaces
// the entries [from, to). It adds what was there to was.
func replaced(spans []span, from, to uint16, put span, was *merger) []span {
	fresh := make([]span, 0, len(spans)+2)
	i := after(spans, from)
	fresh = append(fresh, spans[:i]...)
	if i < len(spans) && spans[i].from < from {
		fresh = append(fresh, spans[i].part(spans[i].from, from))
	}
	fresh = appendSpan(fresh, put)
	for ; i < len(spans) && spans[i].from < to; i++ {
		s := spans[i]
		hit := s.part(max(s.from, from), min(s.to, to))
		was.addRun(hit.loc, hit.blocks())
		if s.to > to {
			fresh = appendSpan(fresh, s.part(to, s.to))
		}
	}
	for ; i < len(spans); i++ {
		fresh = appendSpan(fresh, spans[i])
	}
	return fresh
}

// spansOf returns entries as spans, or false if that makes more than maxSpans.
func spansOf(entries []layout.Location) ([]span, bool) {
	var few [maxSpans + 1]span
	spans := few[:0]
	for i, loc := range entries {
		if !loc.Mapped() {
			continue
		}
		if spans = appendSpan(spans, span{uint16(i), uint16(i) + 1, loc}); len(spans) > maxSpans {
			return nil, false
		}
	}
	return append([]span(nil), spans...), true
}

// spread writes the entries that spans stand for to an array.
func spread(spans []span, entries *array) {
	clear(entries[:])
	for _, s := range spans {
		for i := s.from; i < s.to; i++ {
			entries[i] = uint64(s.loc) + uint64(i-s.from)
		}
	}
}
