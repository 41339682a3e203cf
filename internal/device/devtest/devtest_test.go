package devtest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	for name, g := range map[string]device.Geometry{
		"4096":       {Size: 8 << 20, BlockSize: 4096},
		"512":        {Size: 1 << 20, BlockSize: 512},
		"MaxDiscard": {Size: 8 << 20, BlockSize: 4096, MaxDiscard: 5 * 4096},
	} {
		t.Run(name, func(t *testing.T) {
			devtest.Run(t, func(*testing.T) device.Volume { return devtest.NewMemory(g) })
		})
	}
}

func TestMemoryRefusesWhatBreaksTheContract(t *testing.T) {
	m := devtest.NewMemory(device.Geometry{Size: 1 << 20, BlockSize: 4096, MaxDiscard: 8192})
	p := make([]byte, 4096)
	for name, err := range map[string]error{
		"unaligned offset": m.WriteAt(t.Context(), p, 512),
		"unaligned length": m.ReadAt(t.Context(), p[:512], 0),
		"empty":            m.ReadAt(t.Context(), nil, 0),
		"beyond the end":   m.WriteAt(t.Context(), p, 1<<20),
		"below zero":       m.WriteAt(t.Context(), p, -4096),
		"large discard":    m.Discard(t.Context(), 0, 12288),
		"large zero":       m.WriteZeroes(t.Context(), 0, 12288),
	} {
		if err == nil {
			t.Errorf("%s was allowed", name)
		}
	}
	if m.TryWriteAt(p, 512) || m.TryReadAt(p, 1<<20) {
		t.Error("Fast allowed what WriteAt and ReadAt refuse")
	}
	if _, err := m.Allocation(t.Context(), 512, 4096); err == nil {
		t.Error("unaligned allocation was allowed")
	}
	ro := devtest.NewMemory(device.Geometry{Size: 1 << 20, BlockSize: 4096, ReadOnly: true})
	if err := ro.WriteAt(t.Context(), p, 0); err == nil {
		t.Error("a read-only volume was written")
	}
}

func TestMemoryBlocksAndFails(t *testing.T) {
	m := devtest.NewMemory(device.Geometry{Size: 1 << 20, BlockSize: 4096})
	p := make([]byte, 4096)
	p[0] = 1

	release := m.Block(devtest.Write, devtest.Flush)
	if m.TryWriteAt(p, 0) {
		t.Error("TryWriteAt went through while writes are blocked")
	}
	if !m.TryReadAt(make([]byte, 4096), 0) {
		t.Error("reads are not blocked")
	}
	done := make(chan error, 2)
	gone, cancel := context.WithCancel(t.Context())
	go func() { done <- m.WriteAt(gone, p, 0) }()
	if err := m.AwaitBlocked(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled write: %v", err)
	}
	go func() { done <- m.WriteAt(t.Context(), p, 4096) }()
	if err := m.AwaitBlocked(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	release()
	if err := <-done; err != nil {
		t.Errorf("released write: %v", err)
	}
	got := make([]byte, 8192)
	if err := m.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	if got[0] != 0 || got[4096] != 1 {
		t.Errorf("the cancelled write shows %d, the released one %d", got[0], got[4096])
	}

	broken := errors.New("broken")
	m.Fail(broken, devtest.Flush)
	if err := m.Flush(t.Context()); !errors.Is(err, broken) {
		t.Errorf("flush: %v", err)
	}
	m.Fail(nil, devtest.Flush)
	if err := m.Flush(t.Context()); err != nil {
		t.Errorf("flush: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := m.AwaitCalls(short, devtest.Discard, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("AwaitCalls: %v", err)
	}
}
