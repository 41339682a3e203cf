package wlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/google/renameio/v2"

	"bs3/internal/bs3/layout"
)

// ErrDamaged means that a file of a directory does not hold what it should. It
// is wrapped with the file and what is wrong.
var ErrDamaged = errors.New("damaged")

// Intent is written, and synced, before a writer claims an epoch. If the writer
// dies between the claim and serving, the volume record names a nonce that never
// wrote, and the intent tells whom it replaced.
type Intent struct {
	Nonce    layout.Nonce `json:"nonce"`
	Replaces layout.Nonce `json:"replaces"`
	Whole    bool         `json:"whole"` // whether chunk memory was that of the writer replaced
}

const intentsFile = "intents"

func (d *Dir) intents() ([]Intent, error) {
	b, err := os.ReadFile(d.file(intentsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read intents: %w", err)
	}
	var list []Intent
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", d.file(intentsFile), ErrDamaged, err)
	}
	return list, nil
}

// AddIntent records, durably, that a writer is about to replace another one in
// the volume record.
func (d *Dir) AddIntent(in Intent) error {
	list, err := d.intents()
	if err != nil {
		return err
	}
	return d.putIntents(append(list, in))
}

// DropIntent removes the intents of a claim that was not made, and cannot be made
// any more.
func (d *Dir) DropIntent(nonce layout.Nonce) error {
	list, err := d.intents()
	if err != nil {
		return err
	}
	rest := slices.DeleteFunc(slices.Clone(list), func(in Intent) bool { return in.Nonce == nonce })
	switch len(rest) {
	case len(list):
		return nil
	case 0:
		return d.DropIntents()
	}
	return d.putIntents(rest)
}

func (d *Dir) putIntents(list []Intent) error {
	b, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode intents: %w", err)
	}
	if err := renameio.WriteFile(d.file(intentsFile), b, 0o600, renameio.WithTempDir(d.path)); err != nil {
		return fmt.Errorf("write intent: %w", err)
	}
	return d.sync()
}

// Intent returns the last intent of the writer nonce, if there is one.
func (d *Dir) Intent(nonce layout.Nonce) (Intent, bool, error) {
	list, err := d.intents()
	for _, in := range slices.Backward(list) {
		if in.Nonce == nonce {
			return in, true, nil
		}
	}
	return Intent{}, false, err
}

// Writers returns the nonces whose chunk memory and local log are ours if the
// volume record names the writer recorded: that writer, and those that it leads
// to through the chain of our own claims that never served, according to the
// intents in dirs. Of several intents of one nonce the last one counts: the
// claim was tried again.
func Writers(recorded layout.Nonce, dirs ...*Dir) (map[layout.Nonce]bool, error) {
	var list []Intent
	for _, d := range dirs {
		some, err := d.intents()
		if err != nil {
			return nil, err
		}
		list = append(list, some...)
	}
	replaces := make(map[layout.Nonce]layout.Nonce, len(list))
	for _, in := range list {
		replaces[in.Nonce] = in.Replaces
	}
	ours := map[layout.Nonce]bool{recorded: true}
	for x, ok := replaces[recorded]; ok && !ours[x]; x, ok = replaces[x] {
		ours[x] = true
	}
	return ours, nil
}

// DropIntents removes all intents, durably. It must be called before the device
// appears, because the chain must only contain opens that never served.
func (d *Dir) DropIntents() error {
	if err := os.Remove(d.file(intentsFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop intents: %w", err)
	}
	return d.sync()
}
