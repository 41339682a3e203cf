package nbd

import (
	"net"
	"sync"
)

// sender writes replies to one connection. Replies handed over while a system
// call is under way wait and go out together in the next one.
type sender struct {
	nc net.Conn

	mu      sync.Mutex
	turn    sync.Cond   // a system call has ended
	queue   net.Buffers // the next system call's
	spare   net.Buffers // the memory of queue while that is being written
	batch   net.Buffers // what is being written
	filling uint64      // number of the batch that queue belongs to
	written uint64      // number of the first batch that is not written yet
	busy    bool        // somebody is writing
	err     error       // the first failure; nothing is written after it
}

func newSender(nc net.Conn) *sender {
	s := &sender{nc: nc}
	s.turn.L = &s.mu
	return s
}

// send writes all bufs, one behind the other, and returns when they were
// written or when the connection has failed. The caller may reuse bufs then.
func (s *sender) send(bufs ...[]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	mine := s.filling
	s.queue = append(s.queue, bufs...)
	for s.busy && s.written <= mine && s.err == nil {
		s.turn.Wait()
	}
	if s.written > mine || s.err != nil {
		return s.err
	}
	// Nobody writes, and what waits is our batch: write it for all.
	s.busy = true
	s.spare, s.queue = s.queue, s.spare[:0]
	s.filling++
	s.batch = s.spare // WriteTo consumes what it is called on
	s.mu.Unlock()
	var err error
	if len(s.batch) == 1 {
		_, err = s.nc.Write(s.batch[0])
	} else {
		_, err = s.batch.WriteTo(s.nc)
	}
	s.mu.Lock()
	clear(s.spare)
	s.busy = false
	s.written = s.filling
	s.err = err
	s.turn.Broadcast()
	return err
}
