// Package model has the model of the move's protocol, which spin checks, and
// this test that the model speaks of the same things as the code. README.md
// says what is modelled and how to run it.
package model

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"podd/pod"
)

// declared returns the names of one mtype of the model, in order.
func declared(t *testing.T, model, kind string) []string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^mtype:` + kind + ` = \{([^}]*)\};`).FindStringSubmatch(model)
	if found == nil {
		t.Fatalf("the model declares no %s", kind)
	}
	return strings.FieldsFunc(found[1], func(r rune) bool { return r == ',' || r == ' ' || r == '\n' })
}

// constants returns the values of all string constants of a type in package
// pod, in order.
func constants(t *testing.T, file, kind string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); !ok || name.Name != kind {
			return true
		}
		for _, v := range spec.Values {
			literal, ok := v.(*ast.BasicLit)
			if !ok {
				continue
			}
			value, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, value)
		}
		return true
	})
	return values
}

func readModel(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("move.pml")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestNames compares the model's stages, states and phases with package pod's.
func TestNames(t *testing.T) {
	model := readModel(t)
	stages := constants(t, "../pod/move.go", "Stage")
	if got := declared(t, model, "stage"); !slices.Equal(got, stages) {
		t.Errorf("the model's stages are %v, package pod's %v", got, stages)
	}
	var listed []string
	for _, stage := range pod.Stages {
		listed = append(listed, string(stage))
	}
	if !slices.Equal(listed, stages) {
		t.Errorf("pod.Stages lists %v, the constants are %v", listed, stages)
	}
	states := constants(t, "../pod/move.go", "MoveState")
	if got := declared(t, model, "state"); !slices.Equal(got, states) {
		t.Errorf("the model's move states are %v, package pod's %v", got, states)
	}
	// The model begins when the pod runs.
	phases := slices.DeleteFunc(constants(t, "../pod/pod.go", "Phase"), func(phase string) bool { return phase == string(pod.PhaseCreating) })
	for i, phase := range phases {
		phases[i] = "phase_" + phase
	}
	if got := declared(t, model, "phase"); !slices.Equal(got, phases) {
		t.Errorf("the model's phases are %v, package pod's %v", got, phases)
	}
}

// TestEveryStageHappens looks for the step of the model that begins each stage
// and the one that decides each state.
func TestEveryStageHappens(t *testing.T) {
	model := readModel(t)
	for _, stage := range declared(t, model, "stage") {
		if !strings.Contains(model, "stage = "+stage) {
			t.Errorf("the model never begins stage %s", stage)
		}
	}
	for _, state := range declared(t, model, "state") {
		if !strings.Contains(model, "moveState[i] = "+state) {
			t.Errorf("the model never brings a move into state %s", state)
		}
	}
}
