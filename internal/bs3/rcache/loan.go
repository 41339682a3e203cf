package rcache

import (
	"sync"

	"bs3/internal/bs3/layout"
)

// Loan is memory with blocks that a Disk writes to its file when it comes to them. Their
// owner may need the memory before that: then he revokes the loan, and what is not
// written is dropped.
type Loan struct {
	loc    layout.Location
	epoch  uint32
	blocks []uint64
	stored []byte
	back   func()

	mu    sync.Mutex
	state loanState
}

type loanState int

const (
	idle    loanState = iota // nobody looks at the memory
	inUse                    // the disk is being written from it
	revoked                  // inUse, and not again
	over
)

// Revoke ends the loan: nobody looks at the memory any more when it returns true. False
// means that it is being written from, or back is being called: the loan ends by that.
// It waits for nothing but a copy of a few hundred bytes.
func (l *Loan) Revoke() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.state {
	case idle:
		l.state = over
		return true
	case inUse:
		l.state = revoked
	}
	return false
}

// use fills j with the n blocks of the loan from block at, which are in use from then on
// until used. It reports false if the loan is over.
func (l *Loan) use(j *diskJob, at, n int, stride int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != idle {
		return false
	}
	l.state = inUse
	j.fill(l.loc.Add(uint32(at)), l.epoch, l.blocks[at:][:n], l.stored[at*stride:][:n*stride], stride)
	return true
}

// used ends what use began.
func (l *Loan) used() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == inUse {
		l.state = idle
	}
}

// end ends the loan, unless Revoke has.
func (l *Loan) end() {
	l.mu.Lock()
	before := l.state
	l.state = over
	l.mu.Unlock()
	if before != over {
		l.back()
	}
}
