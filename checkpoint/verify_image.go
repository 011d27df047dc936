package checkpoint

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/checkpoint-restore/go-criu/v7/magic"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// maxImage bounds one image file that is looked at, maxParsed all of
	// them together, in bytes. The desktop of the demo has 300 KB in all.
	maxImage  = 64 << 20
	maxParsed = 256 << 20
)

var magics = magic.LoadMagic().ByName

// read reads an image file that consists of messages: two magic numbers, then
// each message after its size as a little-endian u32.
func (v *verifier) read(name, magic string) ([]byte, error) {
	f, err := v.root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxImage+1))
	if err != nil {
		return nil, err
	}
	if v.mem += int64(len(data)); len(data) > maxImage || v.mem > maxParsed {
		return nil, fmt.Errorf("%w: %s is too large", ErrLimit, name)
	}
	return headerOf(name, magic, data)
}

// headerOf checks the two magic numbers and returns what follows. The inventory
// has only its own.
func headerOf(name, magic string, data []byte) ([]byte, error) {
	if magic == "INVENTORY" && len(data) >= 4 && uint64(binary.LittleEndian.Uint32(data)) == magics[magic] {
		return data[4:], nil
	}
	if len(data) < imageHeader || binary.LittleEndian.Uint32(data) != imageMagic ||
		uint64(binary.LittleEndian.Uint32(data[4:])) != magics[magic] {
		return nil, fmt.Errorf("%w: %s does not begin as an image of %s", ErrCorrupt, name, magic)
	}
	return data[imageHeader:], nil
}

// readSome fills b as far as the file goes.
func readSome(r io.Reader, b []byte) (int, error) {
	n, err := io.ReadFull(r, b)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return n, err
}

// entryOf takes the next message off data.
func entryOf(name string, data []byte, into proto.Message) (rest []byte, err error) {
	if len(data) < 4 || uint64(binary.LittleEndian.Uint32(data)) > uint64(len(data)-4) {
		return nil, fmt.Errorf("%w: %s ends in the middle of an entry", ErrCorrupt, name)
	}
	size := int(binary.LittleEndian.Uint32(data))
	if err := proto.Unmarshal(data[4:4+size], into); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrCorrupt, name, err)
	}
	if err := checkUnknown(into.ProtoReflect()); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data[4+size:], nil
}

// messageOf is what a message of type T is by: a pointer.
type messageOf[T any] interface {
	*T
	proto.Message
}

// readOne reads an image of one message.
func readOne[T any, M messageOf[T]](v *verifier, name, magic string) (M, error) {
	var one M
	err := readAll(v, name, magic, func(m M) error {
		if one != nil {
			return fmt.Errorf("%w: %s has more than one entry", ErrCorrupt, name)
		}
		one = m
		return nil
	})
	if err == nil && one == nil {
		err = fmt.Errorf("%w: %s has no entry", ErrCorrupt, name)
	}
	return one, err
}

// readAll reads an image of messages of one type, unless it is decoded.
func readAll[T any, M messageOf[T]](v *verifier, name, magic string, each func(M) error) error {
	if image, ok := v.decoded[name]; ok && image.magic == magic {
		for _, m := range image.messages {
			if err := each(m.(M)); err != nil {
				return err
			}
		}
		return nil
	}
	data, err := v.read(name, magic)
	for err == nil && len(data) > 0 {
		m := M(new(T))
		if data, err = entryOf(name, data, m); err == nil {
			err = each(m)
		}
	}
	return err
}

// laterFields are fields that CRIU has learnt since the definitions used here
// were made, and that are looked at or need no look. A field that is not known
// here is refused, for CRIU may know it.
var laterFields = map[protoreflect.FullName]map[protowire.Number]func(value []byte) bool{
	"creds_entry":     {fieldNoNewPrivs: nil, fieldCapAmb: nil}, // see creds
	"task_core_entry": {22: nil},                                // membarrier_registration_mask
	"ip_opts_entry":   {6: nil, 7: nil},                         // tos, ttl
	"inet_sk_entry":   {20: nil},                                // tcp_opts
	"file_entry":      {22: nil},                                // pidfd
	"inventory_entry": {12: emptyMessage, 13: nil, 14: isZero},  // plugins_entry, dump_criu_run_id, allow_uprobes
}

func isZero(value []byte) bool {
	n, size := protowire.ConsumeVarint(value)
	return size == len(value) && n == 0
}

func emptyMessage(value []byte) bool { return len(value) == 1 && value[0] == 0 }

// checkUnknown refuses fields that are not known, here or in a message within.
func checkUnknown(m protoreflect.Message) error {
	if unknown := m.GetUnknown(); len(unknown) > 0 {
		if err := checkFields(m.Descriptor().FullName(), unknown); err != nil {
			return err
		}
	}
	for _, field := range messageFields(m.Descriptor()) {
		switch {
		case !m.Has(field):
		case !field.IsList():
			if err := checkUnknown(m.Get(field).Message()); err != nil {
				return err
			}
		default:
			for list, i := m.Get(field).List(), 0; i < list.Len(); i++ {
				if err := checkUnknown(list.Get(i).Message()); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// nested remembers what messageFields found, by the message.
var nested sync.Map

// messageFields lists the fields that are messages themselves.
func messageFields(d protoreflect.MessageDescriptor) []protoreflect.FieldDescriptor {
	if known, ok := nested.Load(d); ok {
		return known.([]protoreflect.FieldDescriptor)
	}
	var list []protoreflect.FieldDescriptor
	for i := range d.Fields().Len() {
		if field := d.Fields().Get(i); field.Message() != nil {
			list = append(list, field)
		}
	}
	nested.Store(d, list)
	return list
}

func checkFields(name protoreflect.FullName, unknown []byte) error {
	for len(unknown) > 0 {
		number, kind, tag := protowire.ConsumeTag(unknown)
		if tag < 0 {
			return fmt.Errorf("%w: %w", ErrCorrupt, protowire.ParseError(tag))
		}
		size := protowire.ConsumeFieldValue(number, kind, unknown[tag:])
		if size < 0 {
			return fmt.Errorf("%w: %w", ErrCorrupt, protowire.ParseError(size))
		}
		check, known := laterFields[name][number]
		// Registers of the processor, which become more and more.
		known = known || strings.HasPrefix(string(name), "user_") || strings.HasPrefix(string(name), "thread_info_")
		if !known || check != nil && !check(unknown[tag:tag+size]) {
			return fmt.Errorf("%w: field %d of %s is not known here, or has a value that is not", ErrForbidden, number, name)
		}
		unknown = unknown[tag+size:]
	}
	return nil
}
