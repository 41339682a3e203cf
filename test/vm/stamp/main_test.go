package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The checker accepts a prefix with any part of the batch behind it, and nothing
// else.
func TestCheck(t *testing.T) {
	const whole = 50
	for name, test := range map[string]struct {
		flushed uint64
		harm    func(dev *os.File, changes [][]change)
		want    string // in the error; empty: none
	}{
		"prefix":             {flushed: whole},
		"part of the next":   {flushed: whole - 3, harm: func(dev *os.File, c [][]change) { put1(dev, c[whole][0]); put1(dev, c[whole][5]) }},
		"all of the next":    {flushed: whole + 1, harm: func(dev *os.File, c [][]change) { putAll(dev, c[whole]) }},
		"less than flushed":  {flushed: whole + 1, want: "no prefix"},
		"one after the next": {flushed: whole, harm: func(dev *os.File, c [][]change) { put1(dev, first(c[whole+1])) }, want: "no prefix"},
		"one is missing":     {flushed: whole - 9, harm: func(dev *os.File, c [][]change) { clear1(dev, first(c[whole-4])) }, want: "no prefix"},
		"one is damaged": {flushed: whole, harm: func(dev *os.File, c [][]change) {
			_, _ = dev.WriteAt([]byte{1}, first(c[whole-1]).block*blockSize+1000)
		}, want: "not a block that was written"},
		"all is missing": {flushed: whole, harm: func(dev *os.File, _ [][]change) {
			_ = dev.Truncate(0)
			_ = dev.Truncate(blocks * blockSize)
		}, want: "no prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			dev, log := temp(t), temp(t)
			if err := dev.Truncate(blocks * blockSize); err != nil {
				t.Fatal(err)
			}
			var changes [][]change
			for w := newWorkload(7); w.batch < whole+5; {
				list, _ := w.next()
				changes = append(changes, list)
				if w.batch <= whole {
					putAll(dev, list)
				}
			}
			if test.harm != nil {
				test.harm(dev, changes)
			}
			if _, err := log.WriteAt(binary.LittleEndian.AppendUint64(nil, test.flushed), 0); err != nil {
				t.Fatal(err)
			}
			err := check(dev, log, newWorkload(7))
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Error(err)
			}
		})
	}
}

func temp(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// first returns the first change that is not a discard.
func first(list []change) change {
	for _, c := range list {
		if c.stamp != 0 {
			return c
		}
	}
	panic("a batch of discards")
}

func put1(dev *os.File, c change) {
	p := make([]byte, blockSize)
	if c.stamp != 0 {
		fill(p, c)
	}
	_, _ = dev.WriteAt(p, c.block*blockSize)
}

func clear1(dev *os.File, c change) { put1(dev, change{block: c.block}) }

func putAll(dev *os.File, list []change) {
	for _, c := range list {
		put1(dev, c)
	}
}
