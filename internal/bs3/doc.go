// Package bs3 is the engine: a block device kept as a log of immutable
// objects in a store. See docs/ARCHITECTURE.md for the whole, docs/FORMAT.md
// for the bytes.
//
// Here a volume is opened and closed (open.go has the order; claim.go,
// recover.go, replay.go and files.go the steps, host.go whose it is, lost.go what
// it goes on without) and its parts are put
// together: the log that takes writes (package writer), the reader, the keeper
// of checkpoints and the collector of garbage. What they have in common is the
// volume in the store (package volume) and how long it serves (package life).
//
// Errors never become data: a store that fails is asked again (the Store that
// Open is given must retry), an object that is damaged is named, and only a
// proven "not found" ends the log.
package bs3
