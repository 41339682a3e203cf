// Package wlog keeps what a writer has acknowledged and the store does not
// have yet: the chunk memory, a pool of slots in one file that is mapped
// shared, so that its bytes outlive the daemon; and the intents, which prove
// at the next open whose bytes they are.
//
// A directory (state.path) belongs to one daemon at a time:
//
//	lock      flock'ed while a daemon uses the directory; holds its pid
//	memory    the chunk memory (formats: package layout)
//	intents   one JSON line for each claim tried and not yet served
//	memory.aside-*  chunk memory that was not ours, kept for a person to judge
//
// Nothing here is safe for concurrent use unless it says so: the engine's
// chunk lock covers the slots, its open covers the rest.
package wlog
