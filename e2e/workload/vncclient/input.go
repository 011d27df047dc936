package vncclient

import (
	"encoding/binary"
	"fmt"
)

// Key symbols of X11 (keysymdef.h) that are no Latin-1 characters.
const (
	KeyReturn    = 0xff0d
	KeyBackSpace = 0xff08
	KeyTab       = 0xff09
	KeyEscape    = 0xff1b
)

// Type types a text: Latin-1 characters, whose key symbols are their numbers;
// a newline is the Return key. The server takes care of Shift.
func (c *Client) Type(text string) error {
	for _, char := range text {
		symbol := uint32(char)
		switch {
		case char == '\n':
			symbol = KeyReturn
		case char == '\t':
			symbol = KeyTab
		case char < ' ' || char > 0xff:
			return fmt.Errorf("typing %q: no key symbol is known for it", char)
		}
		if err := c.Key(symbol); err != nil {
			return fmt.Errorf("typing %q: %w", text, err)
		}
	}
	return nil
}

// Key presses and releases the key with an X11 key symbol.
func (c *Client) Key(symbol uint32) error {
	message := binary.BigEndian.AppendUint32([]byte{keyEvent, 1, 0, 0}, symbol)
	message = binary.BigEndian.AppendUint32(append(message, keyEvent, 0, 0, 0), symbol)
	return c.send(message)
}

// Click presses and releases the first button at a point of the picture.
func (c *Client) Click(x, y int) error {
	var message []byte
	for _, buttons := range []byte{0, 1, 0} { // move there first
		message = append(message, pointerEvent, buttons)
		message = binary.BigEndian.AppendUint16(message, uint16(x))
		message = binary.BigEndian.AppendUint16(message, uint16(y))
	}
	return c.send(message)
}
