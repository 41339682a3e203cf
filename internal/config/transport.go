package config

import (
	"fmt"
	"regexp"
	"strconv"
)

// Limits of the transports.
const (
	maxQueues        = 4096  // threads: the kernel makes no more queues than there are CPUs
	maxBUSEDepth     = 10240 // queue_depth: that of any device of Linux
	maxUblkDepth     = 4096  // queue_depth of a ublk device
	maxMajor         = 1<<16 - 1
	maxUblkID        = 1<<20 - 1
	maxNBDIndex      = 1<<15 - 1
	minNBDMemory     = 32   // MB: 16 connections
	maxBUSEBuffer    = 4096 // MB: above it the module takes an offset for a flush
	maxCollisionSize = 1024 // MB

	// The module needs these tables in one piece of memory, and gets no more than
	// 4 MiB.
	maxCollisionAreas = 1 << 20 // counters of 4 bytes
	maxBUSEReadBlocks = 1 << 19 // pointers of 8 bytes, one for each block of a read buffer
)

// CheckTransport checks the rules that only the given transport has, one of
// Transports. Validate does this for a transport that the configuration names; for
// TransportAuto, it is to be called with the chosen one. It returns nil or an
// *Error.
func (c Config) CheckTransport(transport string) error {
	k := &checker{settings: settings(&c)}
	c.checkTransport(k, transport)
	if len(k.problems) > 0 {
		return &Error{Problems: k.problems}
	}
	return nil
}

func (c Config) checkTransport(k *checker, transport string) {
	switch transport {
	case TransportUblk:
		k.between(int64(c.QueueDepth), "queue_depth", 1, maxUblkDepth, " for ublk")
	case TransportBUSE:
		c.checkBUSE(k)
	}
	if transport == TransportUblk || transport == TransportBUSE {
		k.require(c.NBD.Device == "" || c.Transport == TransportAuto, "nbd.device", "must be empty for transport = %q", transport)
	}
}

// checkBUSE checks the rules of the module BUSE and its library that no other rule
// covers.
func (c Config) checkBUSE(k *checker) {
	k.between(int64(c.Write.ChunkSize), "write.chunk_size", 1, maxChunkSize, " MB")
	chunk := max(c.Write.ChunkSize, 1)
	k.require(c.Write.BufSize > 0 && c.Write.BufSize <= maxBUSEBuffer && c.Write.BufSize%chunk == 0, "write.shared_buffer_size",
		"must be a multiple of write.chunk_size (%d MB), at most %d MB, for BUSE", chunk, maxBUSEBuffer)
	if c.Read.BufSize < 2*chunk || c.Read.BufSize > c.Write.BufSize {
		k.require(false, "read.shared_buffer_size",
			"must be at least twice write.chunk_size (%d MB) and at most write.shared_buffer_size (%d MB), for BUSE", 2*chunk, c.Write.BufSize)
	} else if most := maxBUSEReadBlocks * c.BlockSize / MB; most > 0 {
		k.require(c.Read.BufSize <= most, "read.shared_buffer_size", "must be at most %d MB for a block_size of %d, for BUSE", most, c.BlockSize)
	}
	area := c.Write.CollisionSize
	if area < 1 || area > maxCollisionSize || area&(area-1) != 0 {
		k.require(false, "write.collision_chunk_size", "must be a power of two from 1 to %d MB, for BUSE", maxCollisionSize)
		return
	}
	least := 1
	for c.Size*(GB/MB) > int64(least)*maxCollisionAreas && least < maxCollisionSize {
		least *= 2
	}
	k.require(area >= least, "write.collision_chunk_size", "must be at least %d MB for a size of %d GB, for BUSE", least, c.Size)
}

// checkTransports checks the key transport, and the rules for keys of single
// transports that hold whichever is used.
func (c Config) checkTransports(k *checker) {
	k.oneOf(c.Transport, "transport", append([]string{TransportAuto}, Transports()...)...)
	k.between(int64(c.Major), "major", 0, maxMajor, "")
	k.between(int64(c.Threads), "threads", 0, maxQueues, "")
	k.between(int64(c.CPUsPerNode), "cpus_per_node", 0, maxQueues, "")
	k.between(int64(c.Ublk.ID), "ublk.id", -1, maxUblkID, "")
	if c.Transport != TransportUblk {
		k.between(int64(c.QueueDepth), "queue_depth", 1, maxBUSEDepth, "")
	}
	_, _, err := c.NBD.Address()
	k.require(err == nil, "nbd.listen", "%v", err)
	k.between(int64(c.NBD.Memory), "nbd.memory", minNBDMemory, maxMemory, " MB")
	if c.NBD.Device != "" {
		_, err := c.NBD.Index()
		k.require(err == nil, "nbd.device", "%v", err)
	}
	c.checkTransport(k, c.Transport)
}

// Index returns the N of a Device /dev/nbdN.
func (n NBD) Index() (int, error) {
	m := regexp.MustCompile(`^/dev/nbd(0|[1-9][0-9]{0,4})$`).FindStringSubmatch(n.Device)
	if m == nil {
		return 0, fmt.Errorf("must be empty or /dev/nbdN")
	}
	i, err := strconv.Atoi(m[1])
	if err != nil || i > maxNBDIndex {
		return 0, fmt.Errorf("must be /dev/nbdN with an N up to %d", maxNBDIndex)
	}
	return i, nil
}
