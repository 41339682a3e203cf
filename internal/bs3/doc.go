// Package bs3 is the engine: a block device kept as a log of immutable
// objects in a store. See docs/ARCHITECTURE.md for the whole, docs/FORMAT.md
// for the bytes.
//
// The way of a write: into the open chunk and the map, under the chunk lock
// (write.go); the full or flushed chunk goes to the upload pool (upload.go);
// the durable key moves on when it and all below are stored, and only then
// its memory is released. The way of a read: the map, then chunk memory above
// the durable key, the store below it (read.go).
//
// Locks. The chunk lock (Engine.mu) serialises everything that changes the
// log's order: appending, sealing, taking keys, the map's writers, the durable
// key. Nothing is waited for under it. Readers take no lock; an era keeps
// the slots they may look at from being used again (era.go).
//
// Errors never become data: a store that fails is asked again (the Store that
// Open is given must retry), an object that is damaged is named, and only a
// proven "not found" ends the log.
package bs3
