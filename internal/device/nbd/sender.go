package nbd

import (
	"net"
	"sync"
)

// sender writes replies to one connection. Replies that come during a system call
// wait and go out together in the next one.
type sender struct {
	nc net.Conn

	mu      sync.Mutex
	turn    sync.Cond   // a system call has ended
	queue   net.Buffers // the next system call's
	spare   net.Buffers // the memory of queue while that is being written
	batch   net.Buffers // what is being written
	filling uint64      // number of the batch that queue belongs to
	written uint64      // number of the first batch that is not yet written
	busy    bool        // somebody is writing, or between begin and end
	err     error       // the first failure; nothing is written after it
}

func newSender(nc net.Conn) *sender {
	s := &sender{nc: nc}
	s.turn.L = &s.mu
	return s
}

// send writes all bufs in order, and returns when they are written or the
// connection has failed. Then the caller may reuse bufs.
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
	// Nobody is writing, and our batch is next: write it for all.
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

// begin keeps all others from writing until end, and lets write follow. If it
// fails, the connection has failed, and end must not be called.
func (s *sender) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.busy && s.err == nil {
		s.turn.Wait()
	}
	if s.err != nil {
		return s.err
	}
	s.busy = true
	return nil
}

// write writes all bufs in order, between begin and end.
func (s *sender) write(bufs ...[]byte) error {
	batch := net.Buffers(bufs)
	_, err := batch.WriteTo(s.nc)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.err = err
	}
	return err
}

// end lets the others write again.
func (s *sender) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	s.turn.Broadcast()
}
