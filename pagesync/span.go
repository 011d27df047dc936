package pagesync

import "slices"

// span is a range of addresses; end is exclusive.
type span struct{ start, end uint64 }

func (s span) bytes() int64 { return int64(s.end - s.start) }

func (s span) intersect(t span) span {
	return span{max(s.start, t.start), min(s.end, t.end)}
}

func (s span) empty() bool { return s.start >= s.end }

// cut removes the page at address from ascending spans.
func cut(spans []span, address uint64) []span {
	page := address &^ (PageSize - 1)
	i := slices.IndexFunc(spans, func(s span) bool { return s.start <= page && page < s.end })
	if i < 0 {
		return spans
	}
	var parts []span
	for _, part := range []span{{spans[i].start, page}, {page + PageSize, spans[i].end}} {
		if !part.empty() {
			parts = append(parts, part)
		}
	}
	return slices.Replace(spans, i, i+1, parts...)
}
