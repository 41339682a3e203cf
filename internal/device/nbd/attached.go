package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
)

// errStopped is returned for a client that comes after the server has stopped.
var errStopped = errors.New("NBD server has stopped")

// Flags returns the transmission flags for a client that negotiates nothing, such
// as that of Linux.
func (s *Server) Flags() uint16 { return s.flags() }

// Serve serves a client that was connected without a handshake: it learnt size and
// Flags in another way, sends requests at once and reads simple replies. Serve
// closes nc and returns when nothing of the connection is left: nil if the client
// sent NBD_CMD_DISC, else an error, also when the server's Run has stopped.
func (s *Server) Serve(ctx context.Context, nc net.Conn) error {
	c, err := newConn(ctx, s, nc)
	if err != nil {
		return errors.Join(fmt.Errorf("serve an NBD connection: %w", err), nc.Close())
	}
	if !s.add(c) {
		return errors.Join(errStopped, nc.Close())
	}
	defer s.wg.Done()
	defer s.drop(c)
	defer c.cut()
	if err := c.serveRequests(); !errors.Is(err, errDisconnect) {
		return fmt.Errorf("serve an NBD connection: %w", err)
	}
	return nil
}

// add adds a connection unless the server has stopped, and reports whether it did.
func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Server) drop(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if i := slices.Index(s.unsure, c); i >= 0 {
		s.unsure = slices.Delete(s.unsure, i, i+1)
	}
}
