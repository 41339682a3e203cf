// Package wlog keeps what a writer has acknowledged and the store does not
// have yet: the chunk memory, a pool of slots in one file that is mapped
// shared, so that its bytes outlive the daemon; the local log, a ring in a
// file that is synced at each flush, so that they outlive the machine's crash;
// and the intents, which prove at the next open whose bytes they are.
//
// A directory (state.path, cache.path) belongs to one daemon at a time:
//
//	lock      flock'ed while a daemon uses the directory; holds its pid
//	memory    the chunk memory (formats: package layout); in state.path
//	log       the local log; in cache.path
//	cache     the disk cache (package rcache); in cache.path
//	intents   one JSON list: each claim tried and not yet served; in both
//	memory.aside-*, log.aside-*  what was not ours, kept for a person to judge
//
// Nothing here is safe for concurrent use unless it says so: the engine's
// chunk lock covers the slots and the places in the log, its open covers the rest.
package wlog
