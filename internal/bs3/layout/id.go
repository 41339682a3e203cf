package layout

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// UUID names a volume (RFC 9562) and never changes. The zero UUID names none.
type UUID [16]byte

// Nonce names one run of one writer. The zero Nonce names none.
type Nonce [16]byte

// NewUUID returns a random UUID (version 4).
func NewUUID() UUID {
	var u UUID
	_, _ = rand.Read(u[:]) // never fails (crypto/rand)
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// NewNonce returns a random Nonce.
func NewNonce() Nonce {
	var n Nonce
	_, _ = rand.Read(n[:]) // never fails (crypto/rand)
	return n
}

// String returns the lower-case 8-4-4-4-12 form.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// ParseUUID is the inverse of String. It accepts nothing else.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if err := u.UnmarshalText([]byte(s)); err != nil {
		return UUID{}, err
	}
	return u, nil
}

// MarshalText implements encoding.TextMarshaler.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *UUID) UnmarshalText(text []byte) error {
	var v UUID
	if len(text) == 36 {
		digits := make([]byte, 0, 32)
		for _, part := range [][2]int{{0, 8}, {9, 13}, {14, 18}, {19, 23}, {24, 36}} {
			digits = append(digits, text[part[0]:part[1]]...)
		}
		if _, err := hex.Decode(v[:], digits); err == nil && v.String() == string(text) {
			*u = v
			return nil
		}
	}
	return fmt.Errorf("UUID %q: %w", text, damaged("not of the form 8-4-4-4-12 in lower case"))
}

// String returns 32 lower-case hexadecimal digits.
func (n Nonce) String() string { return hex.EncodeToString(n[:]) }

// ParseNonce is the inverse of String. It accepts nothing else.
func ParseNonce(s string) (Nonce, error) {
	var n Nonce
	if err := n.UnmarshalText([]byte(s)); err != nil {
		return Nonce{}, err
	}
	return n, nil
}

// MarshalText implements encoding.TextMarshaler.
func (n Nonce) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *Nonce) UnmarshalText(text []byte) error {
	var v Nonce
	if len(text) == 32 {
		if _, err := hex.Decode(v[:], text); err == nil && v.String() == string(text) {
			*n = v
			return nil
		}
	}
	return fmt.Errorf("nonce %q: %w", text, damaged("not 32 lower-case hexadecimal digits"))
}
