package directory

import "slices"

// historyLength is how many changes are remembered at least, once there were
// so many. A reader that is further behind looks at everything.
const historyLength = 1024

// history is which pods a watch's events were about. Copies share the names,
// which are only ever appended to: one that is in a view stays as it is.
type history struct {
	// watch is the same for all histories of one uninterrupted watch.
	watch *byte
	// names are in the order of events; passed were before them and are
	// forgotten.
	names  []string
	passed int
}

func newHistory() history { return history{watch: new(byte)} }

// add notes one event. Only the history that no view has is added to.
func (h *history) add(name string) {
	if len(h.names) == 2*historyLength {
		h.passed += historyLength
		h.names = slices.Clone(h.names[historyLength:])
	}
	h.names = append(h.names, name)
}

// since are the names that were added after earlier was copied from h.
func (h *history) since(earlier *history) (names []string, ok bool) {
	from := earlier.passed + len(earlier.names) - h.passed
	if h.watch == nil || h.watch != earlier.watch || from < 0 || from > len(h.names) {
		return nil, false
	}
	return h.names[from:], true
}
