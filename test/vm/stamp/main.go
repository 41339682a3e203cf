// Command stamp writes blocks that tell when they were written, and checks after a
// crash that what is left is a prefix of that, for the tests in the VM.
//
//	stamp write DEVICE LOG SEED
//	stamp check DEVICE LOG SEED
//
// write writes batches of blocks, all blocks of a batch at once, some of them as
// discards, until the first error. Now and then it flushes the device and notes the
// batch synchronously in LOG, a file or device that survives the crash. After a
// crash all batches up to some number must be there, at least up to the last note;
// each block of the next batch may be there or not; and nothing of any later one.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	blockSize  = 4096
	blocks     = 4096 // of the device are used
	batchSize  = 16   // blocks
	flushEvery = 6    // batches, on average
	dropEvery  = 10   // blocks, on average, are discarded instead
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stamp:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 4 {
		return errors.New("usage: stamp write|check DEVICE LOG SEED")
	}
	seed, err := strconv.ParseUint(args[3], 10, 64)
	if err != nil {
		return err
	}
	dev, err := os.OpenFile(args[1], os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	log, err := os.OpenFile(args[2], os.O_RDWR|os.O_SYNC|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	w := newWorkload(seed)
	if args[0] == "check" {
		return check(dev, log, w)
	}
	return write(dev, log, w)
}

// workload is the same for the same seed.
type workload struct {
	rnd   *rand.Rand
	batch uint64 // number of the last batch
}

func newWorkload(seed uint64) *workload { return &workload{rnd: rand.New(rand.NewPCG(seed, 0))} }

// change is what a batch does to a block.
type change struct {
	block int64
	stamp uint64 // the batch; 0 = discarded
}

// next returns the next batch, of different blocks, and whether a flush follows.
func (w *workload) next() (list []change, flush bool) {
	w.batch++
	for _, b := range w.rnd.Perm(blocks)[:batchSize] {
		c := change{block: int64(b), stamp: w.batch}
		if w.rnd.IntN(dropEvery) == 0 {
			c.stamp = 0
		}
		list = append(list, c)
	}
	return list, w.rnd.IntN(flushEvery) == 0
}

// aligned returns n bytes of memory for O_DIRECT.
func aligned(n int) []byte {
	p := make([]byte, n+blockSize)
	at := int(-uintptr(unsafe.Pointer(&p[0])) & (blockSize - 1))
	return p[at : at+n]
}

func write(dev, log *os.File, w *workload) error {
	for {
		list, flush := w.next()
		var group errgroup.Group
		for _, c := range list {
			group.Go(func() error { return apply(dev, c) })
		}
		if err := group.Wait(); err != nil {
			return fmt.Errorf("batch %d: %w", w.batch, err)
		}
		if !flush {
			continue
		}
		if err := dev.Sync(); err != nil {
			return fmt.Errorf("flush after batch %d: %w", w.batch, err)
		}
		if _, err := log.WriteAt(binary.LittleEndian.AppendUint64(nil, w.batch), 0); err != nil {
			return err
		}
	}
}

func apply(dev *os.File, c change) error {
	if c.stamp == 0 {
		extent := [2]uint64{uint64(c.block) * blockSize, blockSize}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&extent))); errno != 0 {
			return fmt.Errorf("discard block %d: %w", c.block, errno)
		}
		return nil
	}
	p := aligned(blockSize)
	fill(p, c)
	_, err := dev.WriteAt(p, c.block*blockSize)
	return err
}

// fill fills p with the content of a block: block, stamp, and what follows from both,
// with a checksum at the end.
func fill(p []byte, c change) {
	binary.LittleEndian.PutUint64(p, uint64(c.block))
	binary.LittleEndian.PutUint64(p[8:], c.stamp)
	_, _ = rand.NewChaCha8([32]byte(p[:32])).Read(p[32 : len(p)-4]) // never fails (math/rand/v2)
	binary.LittleEndian.PutUint32(p[len(p)-4:], crc32.ChecksumIEEE(p[:len(p)-4]))
}

// read returns the stamps of all blocks, 0 for zeros, and the newest.
func read(dev *os.File) (stamps []uint64, newest uint64, err error) {
	all := aligned(blocks * blockSize)
	if _, err := io.ReadFull(io.NewSectionReader(dev, 0, int64(len(all))), all); err != nil {
		return nil, 0, err
	}
	zeros, want := make([]byte, blockSize), make([]byte, blockSize)
	for b := range int64(blocks) {
		p := all[b*blockSize : (b+1)*blockSize]
		stamp := binary.LittleEndian.Uint64(p[8:])
		if stamp == 0 {
			copy(want, zeros)
		} else {
			clear(want)
			fill(want, change{block: b, stamp: stamp})
		}
		if !bytes.Equal(p, want) {
			return nil, 0, fmt.Errorf("block %d is not a block that was written: %x…", b, p[:32])
		}
		stamps, newest = append(stamps, stamp), max(newest, stamp)
	}
	return stamps, newest, nil
}

func check(dev, log *os.File, w *workload) error {
	stamps, newest, err := read(dev)
	if err != nil {
		return err
	}
	note := make([]byte, 8)
	if _, err := log.ReadAt(note, 0); err != nil {
		return err
	}
	flushed := binary.LittleEndian.Uint64(note)
	model := make([]uint64, blocks)
	// The newest stamp is that of the last whole batch or the one after it. Two more
	// batches might show only as discards.
	for w.batch+1 < newest {
		list, _ := w.next()
		put(model, list)
	}
	first := w.batch
	var why []string
	for {
		whole := w.batch
		list, _ := w.next()
		bad := compare(stamps, model, list)
		if bad == "" && whole >= flushed {
			fmt.Printf("prefix held: flushed %d, all of %d, newest stamp %d\n", flushed, whole, newest)
			return nil
		}
		if bad == "" {
			bad = "fits, but more was flushed"
		}
		why = append(why, fmt.Sprintf("all of %d: %s", whole, bad))
		if whole > first+2 {
			return fmt.Errorf("no prefix of at least the %d batches flushed, newest stamp %d: %q", flushed, newest, why)
		}
		put(model, list)
	}
}

func put(model []uint64, list []change) {
	for _, c := range list {
		model[c.block] = c.stamp
	}
}

// compare returns how stamps differ from model with any part of next done, or "".
func compare(stamps, model []uint64, next []change) string {
	after := map[int]uint64{}
	for _, c := range next {
		after[int(c.block)] = c.stamp
	}
	for b, stamp := range stamps {
		done, in := after[b]
		if stamp != model[b] && (!in || stamp != done) {
			return fmt.Sprintf("block %d has stamp %d, want %d", b, stamp, model[b])
		}
	}
	return ""
}
