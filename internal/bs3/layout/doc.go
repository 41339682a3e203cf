// Package layout encodes and decodes every byte that reaches a store, the file
// of chunk memory, the local log or the disk cache: names, objects with their
// records, checkpoints, packs of leaves, the volume record, slots, frames, sets.
// Its functions keep no state and are safe for concurrent use as far as their
// arguments are.
//
// docs/FORMAT.md describes the formats for somebody who writes another reader.
// In short, all numbers are little-endian, all checksums CRC32C, sizes in bytes:
//
//	object       stored blocks ‖ records (32) ‖ footer (128)
//
//	stored block   block ‖ CRC of block, UUID, key 8, index 4 (4)
//
//	record       block 8 │ blocks 4 │ kind 1 │ index 3 │ sequence 8 │ source 8
//
//	footer         0 UUID 16 │ nonce 16
//	              32 key 8 │ epoch 8 │ first sequence 8 │ block size 4 │ blocks 4
//	              64 records 4 │ flags 4 │ sum of the blocks 4 │ CRC of the records 4
//	              80 encoding 1 │ zeros 31
//	             112 CRC of bytes 0-111 4 │ version 4 │ "bs3-objt"
//
//	checkpoint     0 "bs3-ckpt" │ version 4 │ block size 4 │ UUID 16
//	              32 nonce 16 │ key 8 │ epoch of key 8
//	              64 epoch 8 │ next sequence 8 │ blocks 8 │ packs 4 │ leaves 4
//	              96 objects 4 │ zeros 4
//	             104 per pack    size 8 │ age 4 │ length of name 2 │ name
//	                 per leaf    leaf 4 │ pack 4 │ offset 8 │ length 4 │ CRC 4
//	                 per object  key 8 │ epoch 8 │ live 4 │ total 4 (top bit: fence)
//	                 CRC of all before 4
//
//	pack           0 "bs3-pack" │ version 4 │ UUID 16 │ CRC of bytes 0-27 4
//	              32 leaves
//
//	leaf         1 │ runs: length<<1|mapped, and if mapped key - last key, index (varints)
//	             2 │ bits of index 1 │ base key 8 │ 4096 × 4: (key-base+1)<<bits | index
//	             3 │ 4096 × location 8
//
//	chunk memory   0 "bs3-cmem" │ version 4 │ UUID 16 │ boot id 16 │ block size 4
//	              48 blocks per chunk 4 │ slots 4 │ zeros │ 4092 CRC of bytes 0-4091 4
//	            4096 slots
//
//	slot           0 "bs3-slot" │ version 4 │ zeros 4 │ key 8 │ epoch 8
//	              32 first sequence 8 │ nonce 16 │ zeros 4 │ CRC of bytes 0-59 4
//	            2048 count of records 4 │ its complement 4
//	            4096 stored blocks, records, CRCs of records, each from a page on
//
//	local log      0 "bs3-ring" │ version 4 │ UUID 16 │ nonce 16 │ block size 4
//	              48 size of the ring 8 │ zeros │ 508 CRC of bytes 0-507 4 │ zeros
//	            4096 ring of frames, each from a page on
//
//	frame          0 "bs3-fram" │ version 4 │ UUID 16 │ nonce 16
//	              44 position 8 │ key 8 │ first sequence 8 │ synced 8 │ block size 4
//	              80 blocks 4 │ records 4 │ CRC of the records 4 │ sum of the blocks 4 │ zeros
//	             124 CRC of bytes 0-123 4
//	             128 records │ stored blocks │ zeros up to a page
//
//	disk cache     0 "bs3-cach" │ version 4 │ UUID 16 │ block size 4
//	              32 sets 8 │ zeros │ 4092 CRC of bytes 0-4091 4
//	            4096 sets
//
//	set            0 per block location 8 │ number in the volume 8 │ epoch 4
//	                 │ check value of the block 4
//	            8160 hand 4 │ zeros │ 8188 CRC of bytes 0-8187 4
//	            8192 340 data blocks
//
// The volume record is JSON with a checksum as its last member.
//
// An encoder trusts its caller. A decoder trusts nothing: it never panics,
// bounds every length before it allocates, and returns ErrMagic, ErrVersion or
// ErrDamaged. Reserved bytes must be zero, so what decodes encodes to the same
// bytes again (except leaves and the volume record, which may be written in
// several ways).
package layout
