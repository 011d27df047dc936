package report

import (
	"bytes"
	"fmt"
	"os"

	"github.com/google/renameio/v2"
)

// Embed replaces, in a file of documentation, what is between the marks of this
// part by its tables:
//
//	<!-- figures of PART -->
//	<!-- end of PART -->
func (r *Report) Embed(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("writing figures: %w", err)
	}
	begin, end := fmt.Appendf(nil, "<!-- figures of %s -->\n", r.Part), fmt.Appendf(nil, "<!-- end of %s -->\n", r.Part)
	head, rest, ok := bytes.Cut(text, begin)
	if !ok {
		return fmt.Errorf("writing figures: %s has no line %q", path, begin)
	}
	_, tail, ok := bytes.Cut(rest, end)
	if !ok {
		return fmt.Errorf("writing figures: %s has no line %q", path, end)
	}
	var b bytes.Buffer
	b.Write(head)
	b.Write(begin)
	if err := r.WriteMarkdown(&b); err != nil {
		return err
	}
	b.Write(end)
	b.Write(tail)
	if err := renameio.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing figures: %w", err)
	}
	return nil
}
