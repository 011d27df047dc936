package checkpoint

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Parts of the operations of classic BPF (linux/bpf_common.h).
const (
	bpfClass  = 0x07
	bpfJump   = 0x05 // BPF_JMP, a class
	bpfReturn = 0x06 // BPF_RET, a class
	bpfAlways = 0x05 // BPF_JMP | BPF_JA
	bpfEqual  = 0x15 // BPF_JMP | BPF_JEQ | BPF_K
)

// meaning is a digest of what a filter does from one instruction on. Equal ones do
// the same, wherever the instructions are; those that do the same by other
// instructions are not equal. The zero value means that it leads nowhere.
type meaning [sha256.Size]byte

// filterMeaning is the meaning of a whole program of struct sock_filter.
func filterMeaning(program []byte) meaning {
	f := filter{program: program, known: map[int]meaning{}}
	return f.from(0)
}

type filter struct {
	program []byte
	known   map[int]meaning
}

// from is the meaning from instruction i on. Jumps go only forward, so this ends.
func (f *filter) from(i int) meaning {
	if i >= len(f.program)/filterInstruction {
		return meaning{}
	}
	m, ok := f.known[i]
	if !ok {
		m = f.digest(i)
		f.known[i] = m
	}
	return m
}

func (f *filter) digest(i int) meaning {
	code, onTrue, onFalse, k := f.instruction(i)
	var b []byte
	number := func(n uint32) { b = binary.BigEndian.AppendUint32(b, n) }
	next := func(m meaning) { b = append(b, m[:]...) }
	switch {
	case code == bpfAlways:
		if k > maxInstructions {
			return meaning{}
		}
		return f.from(i + 1 + int(k))
	case code == bpfEqual:
		// Of comparisons one after the other, with different values, at most
		// one is true, so their order is of no importance.
		type branch struct {
			value uint32
			then  meaning
		}
		var branches []branch
		for code == bpfEqual {
			if !slices.ContainsFunc(branches, func(b branch) bool { return b.value == k }) {
				branches = append(branches, branch{k, f.from(i + 1 + onTrue)})
			}
			i += 1 + onFalse
			if i >= len(f.program)/filterInstruction {
				return meaning{}
			}
			code, onTrue, onFalse, k = f.instruction(i)
		}
		slices.SortFunc(branches, func(a, b branch) int { return cmp.Compare(a.value, b.value) })
		// Every digest begins with the operation; and numbers and meanings
		// have their lengths, so no two kinds look alike.
		number(bpfEqual)
		number(uint32(len(branches)))
		for _, b := range branches {
			number(b.value)
			next(b.then)
		}
		next(f.from(i))
	case code&bpfClass == bpfJump:
		number(uint32(code))
		number(k)
		next(f.from(i + 1 + onTrue))
		next(f.from(i + 1 + onFalse))
	case code&bpfClass == bpfReturn:
		number(uint32(code))
		number(k)
	default:
		number(uint32(code))
		number(k)
		next(f.from(i + 1))
	}
	return sha256.Sum256(b)
}

func (f *filter) instruction(i int) (code uint16, onTrue, onFalse int, k uint32) {
	b := f.program[i*filterInstruction:]
	return binary.LittleEndian.Uint16(b), int(b[2]), int(b[3]), binary.LittleEndian.Uint32(b[4:])
}
