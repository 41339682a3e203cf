package buse

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/rs/zerolog"

	"bs3/internal/device"
)

// Options of a Device. Zero values mean the defaults. Size, block size and preferred
// sizes of requests are the volume's.
type Options struct {
	Major   int // N of /dev/buseN (not a major number; the name is historical)
	Threads int // queues; 0 = one for each CPU, which is also the maximum

	// CPUsPerNode is the number of CPUs of a NUMA node: the thread of a queue
	// stays on its node. 0 = all of them.
	CPUsPerNode int

	QueueDepth int  // requests in a queue, 128 by default
	Scheduler  bool // have a scheduler of the kernel order the requests

	// WriteBuffer and ReadBuffer are the bytes of memory that each queue shares
	// with the kernel for writes and reads, 32 MiB each by default.
	WriteBuffer, ReadBuffer int64
	// ChunkSize is the size of a chunk of writes with its records, in bytes,
	// 4 MiB by default.
	ChunkSize int64
	// CollisionArea is the size of the areas in which the kernel numbers writes,
	// in bytes, 1 MiB by default.
	CollisionArea int64

	Log zerolog.Logger

	// Ready, if set, is called once, when the block device has appeared.
	Ready func(path string)
	// Unused, if set, is called once a device was stopped, when nothing uses the
	// volume any more and nothing will. Run then removes the device, which may
	// never end.
	Unused func()
}

const (
	defaultQueueDepth    = 128
	defaultBuffer        = 32 << 20 // bytes
	defaultChunkSize     = 4 << 20  // bytes
	defaultCollisionArea = 1 << 20  // bytes

	pageSize         = 4096      // bytes
	maxQueueDepth    = 10240     // BLK_MQ_MAX_DEPTH
	maxMajor         = 1<<16 - 1 // 16 minor numbers each, of 2^20
	maxWriteBuffer   = 1 << 32   // bytes: above it the module mistakes an offset for a flush
	maxCollisionArea = 1 << 30   // bytes: the module compares with its default size if ours comes later

	// What the module needs in one piece of memory: at most maxPiece bytes, the
	// kernel's limit. When it gets less than it asks for, it loses what it has got,
	// 32 MiB and more, until the machine is restarted.
	maxPiece    = 4 << 20
	counterSize = 4 // bytes, for each collision area
	pointerSize = 8 // bytes, for each block of a read buffer
)

func (o *Options) fill() {
	for _, size := range []struct {
		p *int64
		n int64
	}{
		{&o.WriteBuffer, defaultBuffer},
		{&o.ReadBuffer, defaultBuffer},
		{&o.ChunkSize, defaultChunkSize},
		{&o.CollisionArea, defaultCollisionArea},
	} {
		if *size.p == 0 {
			*size.p = size.n
		}
	}
	if o.QueueDepth == 0 {
		o.QueueDepth = defaultQueueDepth
	}
}

// Validate returns, all at once, what in o and g the library or the module would
// refuse, replace by something else, or not survive. It does not look at the
// machine. Run calls it first.
func (o Options) Validate(g device.Geometry) error {
	o.fill()
	var problems []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	if g.BlockSize != 512 && g.BlockSize != 4096 {
		return fmt.Errorf("block size %d: must be 512 or 4096", g.BlockSize)
	}
	block := int64(g.BlockSize)
	require(!g.ReadOnly, "the volume is read-only, which BUSE cannot show")
	require(g.IOMin >= 0 && int64(g.IOMin)%block == 0, "preferred smallest request %d: must be a multiple of the block size", g.IOMin)
	require(g.IOOpt >= 0 && int64(g.IOOpt)%block == 0, "preferred request %d: must be a multiple of the block size", g.IOOpt)
	require(o.Major >= 0 && o.Major <= maxMajor, "number of the device %d: must be 0 to %d", o.Major, maxMajor)
	require(o.Threads >= 0, "threads %d: must not be negative", o.Threads)
	require(o.CPUsPerNode >= 0, "CPUs of a node %d: must not be negative", o.CPUsPerNode)
	require(o.QueueDepth >= 1 && o.QueueDepth <= maxQueueDepth, "queue depth %d: must be 1 to %d", o.QueueDepth, maxQueueDepth)

	// The largest request of the module is what the records leave of a chunk, not
	// rounded to blocks.
	unit := block * block / recordSize
	chunk := o.ChunkSize > 0 && o.ChunkSize%unit == 0
	require(chunk, "chunk size %d: must be a multiple of %d, so that its records fill whole blocks", o.ChunkSize, unit)
	require(o.WriteBuffer > 0 && o.WriteBuffer%pageSize == 0 && o.WriteBuffer <= maxWriteBuffer,
		"write buffer %d: must be whole pages and at most %d", o.WriteBuffer, int64(maxWriteBuffer))
	require(!chunk || o.WriteBuffer%o.ChunkSize == 0, "write buffer %d: must be a multiple of the chunk size %d", o.WriteBuffer, o.ChunkSize)
	// A read takes a power of two of blocks, and waits for ever if there is none
	// so large. The module checks the pages of the read buffer against the size of
	// the write buffer.
	require(o.ReadBuffer%pageSize == 0 && o.ReadBuffer >= 2*o.ChunkSize && o.ReadBuffer <= o.WriteBuffer,
		"read buffer %d: must be whole pages, at least two chunks (%d) and at most the write buffer (%d)",
		o.ReadBuffer, 2*o.ChunkSize, o.WriteBuffer)
	// The module rounds with masks, counts only whole areas of the device, and
	// uses areas of one block if it rejects the size.
	area := o.CollisionArea >= block && o.CollisionArea&(o.CollisionArea-1) == 0 && o.CollisionArea <= maxCollisionArea
	require(area, "collision area %d: must be a power of two from %d to %d", o.CollisionArea, block, maxCollisionArea)
	require(!area || g.Size > 0 && g.Size%o.CollisionArea == 0, "size %d: must be a multiple of the collision area %d", g.Size, o.CollisionArea)
	require(!area || g.Size/o.CollisionArea <= maxPiece/counterSize,
		"collision area %d: must be at least %d for a size of %d", o.CollisionArea, leastArea(g.Size), g.Size)
	require(o.ReadBuffer/block <= maxPiece/pointerSize, "read buffer %d: must be at most %d with blocks of %d",
		o.ReadBuffer, maxPiece/pointerSize*block, block)
	return errors.Join(problems...)
}

// leastArea returns the size of the smallest collision areas of which the module
// has enough for a volume, in bytes.
func leastArea(size int64) int64 {
	area := int64(1)
	for size/area > maxPiece/counterSize {
		area *= 2
	}
	return area
}

// Memory returns the bytes that the queues share with the kernel, all together,
// which the module takes at once.
func (o Options) Memory() int64 {
	o.fill()
	return int64(o.queues()) * (o.WriteBuffer + o.ReadBuffer)
}

// queues returns the number of queues that the library makes.
func (o Options) queues() int {
	if cpus := runtime.NumCPU(); o.Threads <= 0 || o.Threads > cpus {
		return cpus
	}
	return o.Threads
}
