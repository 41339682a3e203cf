// Package layout holds every byte that reaches a store, the file of chunk
// memory or the local log: names, objects with their records, checkpoints,
// packs of leaves, the volume record, slots, frames. It is pure functions without state, safe for
// concurrent use as far as their arguments are.
//
// docs/FORMAT.md is the same for someone who writes another reader. In short,
// all numbers little-endian, all checksums CRC32C, sizes in bytes:
//
//	object       data blocks ‖ CRC of each block (4) ‖ records (32) ‖ footer (128)
//
//	record       block 8 │ blocks 4 │ kind 1 │ index 3 │ sequence 8 │ source 8
//
//	footer         0 UUID 16 │ nonce 16
//	              32 key 8 │ epoch 8 │ first sequence 8 │ block size 4 │ blocks 4
//	              64 records 4 │ flags 4 │ CRC of the CRCs 4 │ CRC of the records 4 │ zeros 32
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
//	            2048 count of records 4
//	            4096 data, CRCs, records, CRCs of records, each from a page on
//
//	local log      0 "bs3-ring" │ version 4 │ UUID 16 │ nonce 16 │ block size 4
//	              48 size of the ring 8 │ zeros │ 508 CRC of bytes 0-507 4 │ zeros
//	            4096 ring of frames, each from a page on
//
//	frame          0 "bs3-fram" │ version 4 │ UUID 16 │ nonce 16
//	              44 position 8 │ key 8 │ first sequence 8 │ synced 8 │ block size 4
//	              80 blocks 4 │ records 4 │ CRC of the rest of the head 4 │ zeros
//	             124 CRC of bytes 0-123 4
//	             128 records │ CRC of each block 4 │ zeros up to a page
//	                 data blocks │ zeros up to a page
//
// The volume record is JSON with a checksum as its last member.
//
// An encoder trusts its caller; a decoder trusts nothing: it never panics,
// bounds every length before it allocates, and answers ErrMagic, ErrVersion or
// ErrDamaged. Reserved bytes must be zero, so what decodes encodes to the same
// bytes again (but for leaves and the volume record, which may be written in
// several ways).
package layout
