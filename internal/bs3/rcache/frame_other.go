//go:build !amd64

package rcache

// fillFrame copies a block into a frame.
func fillFrame(frame, block []byte) { copy(frame, block) }
