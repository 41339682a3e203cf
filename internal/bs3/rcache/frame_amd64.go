package rcache

// copyLines copies n bytes, a multiple of 64 and at least that many, from block to
// frame, which lies at a multiple of 16.
//
//go:noescape
func copyLines(frame, block *byte, n int)

// fillFrame copies a block into a frame. The frame has not been used for long, and
// will not be soon: written past the processor's cache, it is not read into it
// first, which takes half of the time.
func fillFrame(frame, block []byte) {
	copyLines(&frame[0], &block[:len(frame)][0], len(frame))
}
