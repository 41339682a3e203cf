package layout

import (
	"encoding/binary"
	"fmt"

	"bs3/internal/bs3/key"
)

// Checkpoint is the map with exactly the objects up to Key applied, and what
// else a writer needs to continue from there. Its leaves lie in packs, which are
// objects of their own and which several checkpoints may share.
type Checkpoint struct {
	UUID      UUID
	Nonce     Nonce        // of the writer of the checkpoint
	Key       key.Key      // of the last object that is applied
	KeyEpoch  uint64       // epoch of object Key, from which roll-forward starts
	Epoch     uint64       // of the writer of the checkpoint
	NextSeq   uint64       // sequence number that follows object Key
	BlockSize uint32       // bytes
	Blocks    uint64       // size of the volume
	Packs     []PackRef    // in any order
	Leaves    []LeafRef    // ascending; those with no mapped entry are left out
	Objects   []ObjectInfo // ascending; includes dead ones that are not deleted yet
}

// PackRef is a pack in which leaves of a checkpoint lie.
type PackRef struct {
	Name string // PackName or SnapshotPackName
	Size uint64 // bytes
	Age  uint32 // checkpoints since it was written
}

// LeafRef is the place of a leaf.
type LeafRef struct {
	Leaf   uint32 // entries for blocks [Leaf*LeafBlocks, (Leaf+1)*LeafBlocks)
	Pack   uint32 // index in Checkpoint.Packs
	Offset uint64 // bytes from the start of the pack
	Length uint32 // bytes
	CRC    uint32 // CRC32C of the encoded leaf
}

// ObjectInfo is what a checkpoint records of an object of the log.
type ObjectInfo struct {
	Key   key.Key
	Epoch uint64
	Live  uint32 // data blocks that the map points to
	Total uint32 // data blocks
	Fence bool
}

const (
	checkpointMagic   = "bs3-ckpt"
	checkpointVersion = 1
	checkpointHead    = 104
	checkpointCRC     = 4

	packRefSize    = 2 + 8 + 4 // and the name
	leafRefSize    = 24
	objectInfoSize = 24

	totalFence = 1 << 31 // in the total of an ObjectInfo

	packMagic   = "bs3-pack"
	packVersion = 1
	// PackHeaderSize is the size of the header of a pack in bytes. Encoded
	// leaves follow it, in any order; only a checkpoint knows where.
	PackHeaderSize = 32
)

// AppendPackHeader appends the header of a pack of volume u.
func AppendPackHeader(dst []byte, u UUID) []byte {
	start := len(dst)
	dst = append(dst, packMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, packVersion)
	dst = append(dst, u[:]...)
	return binary.LittleEndian.AppendUint32(dst, CRC(dst[start:]))
}

// CheckPackHeader checks the header at the start of a pack, and that the pack
// belongs to volume u. Errors: ErrMagic, ErrVersion, ErrDamaged.
func CheckPackHeader(b []byte, u UUID) error {
	b, err := checkHead("pack", b, PackHeaderSize, PackHeaderSize-4, packMagic, packVersion)
	if err != nil {
		return err
	}
	if got := UUID(b[12:]); got != u {
		return fmt.Errorf("pack: %w: it belongs to volume %v, not %v", ErrMagic, got, u)
	}
	return nil
}

// Verify checks the bytes of a leaf against l. Error: ErrDamaged.
func (l LeafRef) Verify(b []byte) error {
	if len(b) != int(l.Length) {
		return fmt.Errorf("leaf %d: %w", l.Leaf, damaged("%d bytes, not %d", len(b), l.Length))
	}
	if got := CRC(b); got != l.CRC {
		return fmt.Errorf("leaf %d: %w", l.Leaf, damaged("checksum is %08x, not %08x", got, l.CRC))
	}
	return nil
}

// AppendCheckpoint appends the encoding of c.
func AppendCheckpoint(dst []byte, c *Checkpoint) []byte {
	start := len(dst)
	dst = append(dst, checkpointMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, checkpointVersion)
	dst = binary.LittleEndian.AppendUint32(dst, c.BlockSize)
	dst = append(dst, c.UUID[:]...)
	dst = append(dst, c.Nonce[:]...)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(c.Key))
	dst = binary.LittleEndian.AppendUint64(dst, c.KeyEpoch)
	dst = binary.LittleEndian.AppendUint64(dst, c.Epoch)
	dst = binary.LittleEndian.AppendUint64(dst, c.NextSeq)
	dst = binary.LittleEndian.AppendUint64(dst, c.Blocks)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(c.Packs)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(c.Leaves)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(c.Objects)))
	dst = binary.LittleEndian.AppendUint32(dst, 0)
	for _, p := range c.Packs {
		dst = binary.LittleEndian.AppendUint64(dst, p.Size)
		dst = binary.LittleEndian.AppendUint32(dst, p.Age)
		dst = binary.LittleEndian.AppendUint16(dst, uint16(len(p.Name)))
		dst = append(dst, p.Name...)
	}
	for _, l := range c.Leaves {
		dst = binary.LittleEndian.AppendUint32(dst, l.Leaf)
		dst = binary.LittleEndian.AppendUint32(dst, l.Pack)
		dst = binary.LittleEndian.AppendUint64(dst, l.Offset)
		dst = binary.LittleEndian.AppendUint32(dst, l.Length)
		dst = binary.LittleEndian.AppendUint32(dst, l.CRC)
	}
	for _, o := range c.Objects {
		total := o.Total
		if o.Fence {
			total |= totalFence
		}
		dst = binary.LittleEndian.AppendUint64(dst, uint64(o.Key))
		dst = binary.LittleEndian.AppendUint64(dst, o.Epoch)
		dst = binary.LittleEndian.AppendUint32(dst, o.Live)
		dst = binary.LittleEndian.AppendUint32(dst, total)
	}
	return binary.LittleEndian.AppendUint32(dst, CRC(dst[start:]))
}

// DecodeCheckpoint decodes a checkpoint, which is all of b. It checks checksum,
// order and range of everything, and allocates no more than a small multiple of
// len(b). The caller must check that UUID, block size and size are the volume's.
// Errors: ErrMagic, ErrVersion, ErrDamaged.
func DecodeCheckpoint(b []byte) (*Checkpoint, error) {
	if len(b) < checkpointHead+checkpointCRC {
		return nil, fmt.Errorf("checkpoint: %w: %d bytes, less than a header", ErrMagic, len(b))
	}
	if err := checkMark("checkpoint", checkpointMagic, b[:magicSize], b[magicSize:], checkpointVersion); err != nil {
		return nil, err
	}
	end := len(b) - checkpointCRC
	if binary.LittleEndian.Uint32(b[end:]) != CRC(b[:end]) {
		return nil, fmt.Errorf("checkpoint: %w", damaged("checksum"))
	}
	c := &Checkpoint{
		BlockSize: binary.LittleEndian.Uint32(b[12:]),
		UUID:      UUID(b[16:]),
		Nonce:     Nonce(b[32:]),
		Key:       key.Key(binary.LittleEndian.Uint64(b[48:])),
		KeyEpoch:  binary.LittleEndian.Uint64(b[56:]),
		Epoch:     binary.LittleEndian.Uint64(b[64:]),
		NextSeq:   binary.LittleEndian.Uint64(b[72:]),
		Blocks:    binary.LittleEndian.Uint64(b[80:]),
	}
	if err := c.decodeTables(b[88:end]); err != nil {
		return nil, fmt.Errorf("checkpoint at key %d: %w", c.Key, err)
	}
	return c, nil
}

func (c *Checkpoint) decodeTables(b []byte) error {
	if c.Key > key.Max {
		return damaged("key is above %d", key.Max)
	}
	if err := checkBlockSize(c.BlockSize); err != nil {
		return err
	}
	if c.Blocks == 0 || c.Blocks > MaxBlocks {
		return damaged("%d blocks, not 1 to %d", c.Blocks, int64(MaxBlocks))
	}
	packs := int64(binary.LittleEndian.Uint32(b[0:]))
	leaves := int64(binary.LittleEndian.Uint32(b[4:]))
	objects := int64(binary.LittleEndian.Uint32(b[8:]))
	if !allZero(b[12:16]) {
		return damaged("reserved bytes in use")
	}
	b = b[16:]
	if need := packs*packRefSize + leaves*leafRefSize + objects*objectInfoSize; need > int64(len(b)) {
		return damaged("%d packs, %d leaves and %d objects in %d bytes", packs, leaves, objects, len(b))
	}
	b, err := c.decodePacks(b, int(packs))
	if err != nil {
		return err
	}
	if int64(len(b)) != leaves*leafRefSize+objects*objectInfoSize {
		return damaged("%d bytes for %d leaves and %d objects", len(b), leaves, objects)
	}
	if err := c.decodeLeaves(b[:leaves*leafRefSize]); err != nil {
		return err
	}
	return c.decodeObjects(b[leaves*leafRefSize:])
}

func (c *Checkpoint) decodePacks(b []byte, n int) (rest []byte, err error) {
	c.Packs = make([]PackRef, n)
	for i := range c.Packs {
		if len(b) < packRefSize {
			return nil, damaged("pack %d: cut off", i)
		}
		p := PackRef{Size: binary.LittleEndian.Uint64(b[0:]), Age: binary.LittleEndian.Uint32(b[8:])}
		name := int(binary.LittleEndian.Uint16(b[12:]))
		b = b[packRefSize:]
		if len(b) < name {
			return nil, damaged("pack %d: cut off", i)
		}
		p.Name, b = string(b[:name]), b[name:]
		if !isPackName(p.Name) {
			return nil, damaged("pack %d: %q is not the name of a pack", i, p.Name)
		}
		if p.Size < PackHeaderSize {
			return nil, damaged("pack %d: size is %d bytes, less than its header", i, p.Size)
		}
		c.Packs[i] = p
	}
	return b, nil
}

func (c *Checkpoint) decodeLeaves(b []byte) error {
	c.Leaves = make([]LeafRef, len(b)/leafRefSize)
	for i := range c.Leaves {
		e := b[leafRefSize*i:]
		l := LeafRef{
			Leaf:   binary.LittleEndian.Uint32(e[0:]),
			Pack:   binary.LittleEndian.Uint32(e[4:]),
			Offset: binary.LittleEndian.Uint64(e[8:]),
			Length: binary.LittleEndian.Uint32(e[16:]),
			CRC:    binary.LittleEndian.Uint32(e[20:]),
		}
		if i > 0 && c.Leaves[i-1].Leaf >= l.Leaf {
			return damaged("leaf %d after leaf %d", l.Leaf, c.Leaves[i-1].Leaf)
		}
		if uint64(l.Leaf) > (c.Blocks-1)/LeafBlocks {
			return damaged("leaf %d of a volume of %d blocks", l.Leaf, c.Blocks)
		}
		if int64(l.Pack) >= int64(len(c.Packs)) {
			return damaged("leaf %d: pack %d of %d", l.Leaf, l.Pack, len(c.Packs))
		}
		if l.Length == 0 || l.Length > MaxLeafSize {
			return damaged("leaf %d: length is %d, not 1 to %d", l.Leaf, l.Length, MaxLeafSize)
		}
		size := c.Packs[l.Pack].Size
		if l.Offset < PackHeaderSize || l.Offset > size || uint64(l.Length) > size-l.Offset {
			return damaged("leaf %d: offset %d, length %d in a pack of %d bytes", l.Leaf, l.Offset, l.Length, size)
		}
		c.Leaves[i] = l
	}
	return nil
}

func (c *Checkpoint) decodeObjects(b []byte) error {
	c.Objects = make([]ObjectInfo, len(b)/objectInfoSize)
	for i := range c.Objects {
		e := b[objectInfoSize*i:]
		total := binary.LittleEndian.Uint32(e[20:])
		o := ObjectInfo{
			Key:   key.Key(binary.LittleEndian.Uint64(e[0:])),
			Epoch: binary.LittleEndian.Uint64(e[8:]),
			Live:  binary.LittleEndian.Uint32(e[16:]),
			Total: total &^ totalFence,
			Fence: total&totalFence != 0,
		}
		if i > 0 && c.Objects[i-1].Key >= o.Key {
			return damaged("object %d after object %d", o.Key, c.Objects[i-1].Key)
		}
		if o.Key > c.Key {
			return damaged("object %d is above the checkpoint's key", o.Key)
		}
		if o.Key == c.Key && o.Epoch != c.KeyEpoch {
			return damaged("object %d: epoch %d, but the checkpoint's key has epoch %d", o.Key, o.Epoch, c.KeyEpoch)
		}
		if o.Total > MaxObjectBlocks || o.Live > o.Total || o.Fence && o.Total != 0 {
			return damaged("object %d: %d live of %d blocks, fence %t", o.Key, o.Live, o.Total, o.Fence)
		}
		c.Objects[i] = o
	}
	return nil
}
