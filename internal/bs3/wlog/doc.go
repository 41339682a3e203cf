// Package wlog keeps what a writer has acknowledged and the store does not
// have yet. The chunk memory is a pool of slots in one file that is mapped
// shared, so that its bytes outlive the daemon. The local log is a ring in a
// file that is synced at each flush, so that its bytes outlive a crash of the
// machine. The intents prove at the next open whose bytes they are.
//
// A directory (state.path, cache.path) belongs to one daemon at a time:
//
//	lock      locked with flock(2) while a daemon uses the directory; holds its pid
//	id        by which the volume record knows the directory (package bs3); in state.path
//	memory    the chunk memory (formats: package layout); in state.path
//	log       the local log; in cache.path
//	cache     the disk cache (package rcache); in cache.path
//	intents   one JSON list: each claim that was tried and has not served yet; in both
//	memory.aside-*, log.aside-*  files of other writers, kept for a person to judge
//
// Nothing here is safe for concurrent use unless its comment says so.
package wlog
