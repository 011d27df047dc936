package cli

import (
	"strings"
	"testing"

	"podd/doctor"
)

// TestCheckupColours: only the severity is coloured, and only where asked for.
func TestCheckupColours(t *testing.T) {
	checkups := []checkupView{{Kind: "host", Name: "a", Findings: []findingView{
		{Check: "criu", Severity: doctor.OK, Detail: "fine"},
		{Check: "mtu", Severity: doctor.Warning, Detail: "narrow\nlink", Remedy: "widen it"},
		{Check: "space", Severity: doctor.Error, Detail: "full", Remedy: "empty it"},
	}}}
	for colours, want := range map[bool]string{
		false: `host a
  ok       criu   fine
  warning  mtu    narrow link
                  => widen it
  error    space  full
                  => empty it

1 error, 1 warning
`,
		true: "host a\n  \x1b[32mok     \x1b[0m  criu   fine\n  \x1b[33mwarning\x1b[0m  mtu    narrow link\n                  => widen it\n" +
			"  \x1b[1;31merror  \x1b[0m  space  full\n                  => empty it\n\n1 error, 1 warning\n",
	} {
		var out strings.Builder
		if err := writeCheckups(&out, checkups, colours); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Errorf("colours %v: got\n%q\nwant\n%q", colours, out.String(), want)
		}
	}
}
