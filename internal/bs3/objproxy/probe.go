package objproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrNoConditionalPut means that the store does not honour conditions on a Put,
// so that nothing keeps two writers of one volume apart.
var ErrNoConditionalPut = errors.New("the store has no conditional puts")

// ErrWrongRange means that the store answers a request for a part of an object
// with other bytes.
var ErrWrongRange = errors.New("the store returns other bytes than were requested")

// ProbePrefix begins the names of the objects that Probe creates. A crash may
// leave some behind.
const ProbePrefix = "probe/"

const (
	// racers put at the same time, in each of the probe's races.
	racers = 8
	// races is how often that is done. A store that looks first and puts then may
	// get it right by chance.
	races = 3
	// raceSize is how many bytes each of them puts: some stores look before the
	// bytes arrive.
	raceSize = 8 << 10
	// cleanUpTime is how long the probe waits for its objects to be deleted: less
	// than a Retry, whose giving up would look as if the store could not be asked.
	cleanUpTime = deleteFor / 2
)

// Probe finds out whether s honours conditions, and returns the parts of objects
// that are requested. It puts, replaces and deletes small objects whose names end
// in nonce, which must never have been used before. If they cannot be deleted
// soon they are left behind. An error that wraps ErrNoConditionalPut or
// ErrWrongRange names the step that went wrong; any other error means that the
// store could not be asked.
func Probe(ctx context.Context, s Store, nonce string) (err error) {
	name := ProbePrefix + nonce
	raced := name + "-race"
	defer func() {
		cleanUp, cancel := context.WithTimeout(ctx, cleanUpTime)
		defer cancel()
		e := s.Delete(cleanUp, []string{name, raced})
		if e != nil && (cleanUp.Err() == nil || ctx.Err() != nil) {
			err = errors.Join(err, fmt.Errorf("probe the store: %w", e))
		}
	}()
	if err := probeParts(ctx, s, name); err != nil {
		return err
	}
	return probeRaces(ctx, s, raced)
}

// probeParts makes one conditional put after the other, and reads parts.
func probeParts(ctx context.Context, s Store, name string) error {
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
	// This comes before what a caller may pass over.
	if err := p.parts("first"); err != nil {
		return err
	}
	if first == "" {
		return p.wrong("it gives an object no version (ETag)")
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

// probeRaces lets several puts compete whose conditions hold for one of them.
func probeRaces(ctx context.Context, s Store, name string) error {
	p := prober{ctx: ctx, store: s, name: name}
	cond, what := IfAbsent(), "no object is there"
	for race := range races {
		bodies := make([][]byte, racers)
		held := make([]bool, racers)
		errs := make([]error, racers)
		var wg sync.WaitGroup
		for i := range racers {
			bodies[i] = bytes.Repeat([]byte{byte(race), byte(i)}, raceSize/2)
			wg.Go(func() { held[i], errs[i] = p.put(string(bodies[i]), cond) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		winner, winners := -1, 0
		for i := range racers {
			if held[i] {
				winner = i
				winners++
			}
		}
		if winners > 1 {
			return p.wrong(fmt.Sprintf("of %d puts at a time on condition that %s, %d were accepted", racers, what, winners))
		}
		got := make([]byte, raceSize)
		n, info, err := s.Get(ctx, name, got, -1)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("probe the store: %w", err)
		}
		// If the answer to the winner was lost, nobody seems to have won.
		for i := range racers {
			if winner < 0 && bytes.Equal(got[:n], bodies[i]) {
				winner = i
			}
		}
		if winner < 0 || !bytes.Equal(got[:n], bodies[winner]) {
			return p.wrong(fmt.Sprintf("of %d puts at a time on condition that %s, another was stored than was accepted", racers, what))
		}
		cond, what = IfVersion(info.Version), "an object has its version"
	}
	return nil
}

// prober is one run of Probe, with one object.
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

// parts reads parts of the object, from its beginning and from its end, and
// checks that they are those of content.
func (p *prober) parts(content string) error {
	for _, part := range []struct{ off, n int }{{0, 2}, {1, 3}, {-1, 2}, {-1, len(content)}} {
		buf := make([]byte, part.n)
		n, info, err := p.store.Get(p.ctx, p.name, buf, int64(part.off))
		switch {
		case errors.Is(err, ErrRange):
			return fmt.Errorf("probe the store: %w: of %d bytes: %w", ErrWrongRange, len(content), err)
		case err != nil:
			return fmt.Errorf("probe the store: %w", err)
		}
		want := content[len(content)-part.n:]
		if part.off >= 0 {
			want = content[part.off : part.off+part.n]
		}
		if string(buf[:n]) != want || info.Size != int64(len(content)) {
			return fmt.Errorf("probe the store: %w: %d bytes at %d (-1 = the end) of %q are %q, of %d", ErrWrongRange, part.n, part.off, content, buf[:n], info.Size)
		}
	}
	return nil
}
