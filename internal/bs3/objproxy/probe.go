package objproxy

import (
	"context"
	"errors"
	"fmt"
)

// ErrNoConditionalPut means that the store does not honour conditions on a Put,
// so that nothing keeps two writers of one volume apart.
var ErrNoConditionalPut = errors.New("the store has no conditional puts")

// ProbePrefix begins the names of the objects that Probe creates. A crash may
// leave one behind.
const ProbePrefix = "probe/"

// Probe finds out whether s honours conditions. It puts, replaces and deletes
// one small object whose name ends in nonce, which must never have been used
// before. An error that wraps ErrNoConditionalPut names the step that went wrong;
// any other error means that the store could not be asked.
func Probe(ctx context.Context, s Store, nonce string) (err error) {
	name := ProbePrefix + nonce
	defer func() {
		if e := s.Delete(ctx, []string{name}); e != nil {
			err = errors.Join(err, fmt.Errorf("probe the store: %w", e))
		}
	}()
	p := prober{ctx: ctx, store: s, name: name}

	// Whether a put that must succeed did so is judged by the content alone: its
	// answer may have been lost, and its second try refused.
	if _, err := p.put("first", IfAbsent()); err != nil {
		return err
	}
	first, err := p.expect("first", "a new object, put on condition that none is there, is not there")
	if err != nil {
		return err
	}
	if held, err := p.put("again", IfAbsent()); err != nil {
		return err
	} else if held {
		return p.wrong("a put on condition that no object is there was accepted over one")
	}
	if _, err := p.expect("first", "a put on condition that no object is there was refused but changed the object"); err != nil {
		return err
	}
	if _, err := p.put("second", IfVersion(first)); err != nil {
		return err
	}
	if _, err := p.expect("second", "a put on condition of the right version did not replace the object"); err != nil {
		return err
	}
	if held, err := p.put("third", IfVersion(first)); err != nil {
		return err
	} else if held {
		return p.wrong("a put on condition of an old version was accepted")
	}
	_, err = p.expect("second", "a put on condition of an old version was refused but changed the object")
	return err
}

// prober is one run of Probe.
type prober struct {
	ctx   context.Context
	store Store
	name  string
}

func (p *prober) wrong(what string) error {
	return fmt.Errorf("probe the store: %w: %s", ErrNoConditionalPut, what)
}

// put makes one conditional put and reports whether the condition held.
func (p *prober) put(content string, cond Condition) (held bool, err error) {
	_, err = p.store.Put(p.ctx, p.name, Body{Data: []byte(content)}, cond)
	switch {
	case errors.Is(err, ErrExists):
		return false, nil
	case errors.Is(err, errors.ErrUnsupported):
		return false, p.wrong(err.Error())
	case err != nil:
		return false, fmt.Errorf("probe the store: %w", err)
	}
	return true, nil
}

// expect returns the version of the object. If the object is missing or has
// other content, its error is wrong.
func (p *prober) expect(content, wrong string) (Version, error) {
	buf := make([]byte, 64)
	n, info, err := p.store.Get(p.ctx, p.name, buf, -1)
	switch {
	case errors.Is(err, ErrNotFound):
		return "", p.wrong(wrong)
	case err != nil:
		return "", fmt.Errorf("probe the store: %w", err)
	case string(buf[:n]) != content:
		return "", p.wrong(wrong)
	}
	return info.Version, nil
}
