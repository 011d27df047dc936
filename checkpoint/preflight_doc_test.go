package checkpoint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// formatVerb is what fmt fills in.
var formatVerb = regexp.MustCompile(`%[a-z]`)

// preflightWords finds everything that preflight says to users in its source:
// the constant parts of the problems and remedies given to block and blockNow,
// and of the tables and constants they come from.
func preflightWords(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("preflight*.go")
	if err != nil {
		t.Fatal(err)
	}
	words := make(map[string]bool)
	collect := func(n ast.Node) bool {
		if call, ok := n.(*ast.CallExpr); ok && !strings.HasSuffix(callee(call), "Sprintf") {
			return false // not said, but looked for
		}
		if literal, ok := n.(*ast.BasicLit); ok && literal.Kind == token.STRING {
			s, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range formatVerb.Split(s, -1) {
				if part = strings.Trim(part, " ()"); part != "" {
					words[part] = true
				}
			}
		}
		return true
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if name := ""; ok {
				if name = callee(call); name == "block" || name == "blockNow" {
					for _, argument := range call.Args[2:] {
						ast.Inspect(argument, collect)
					}
				}
			}
			return true
		})
	}
	for _, name := range families {
		words[name] = true
	}
	for _, t := range transports {
		words[t.name], words[t.remedy] = true, true
	}
	for _, ns := range namespaces {
		words[ns.name+" namespace"], words[ns.remedy] = true, true
	}
	for kind, remedy := range anonymousRemedies {
		words[kind], words[remedy] = true, true
	}
	words[insideRemedy], words[queueRemedy] = true, true
	return words
}

// callee is the name of a called function or method.
func callee(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		return f.Sel.Name
	}
	return ""
}

// TestLimitsDocument checks that users can look up whatever preflight says.
func TestLimitsDocument(t *testing.T) {
	document, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	words := preflightWords(t)
	if len(words) < 50 {
		t.Errorf("only %d texts were found in the source", len(words))
	}
	for text := range words {
		if !strings.Contains(string(document), text) {
			t.Errorf("docs/limits.md does not have %q", text)
		}
	}
}
