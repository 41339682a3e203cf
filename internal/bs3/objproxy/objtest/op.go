// Package objtest is for tests of stores and of their users: a store in memory,
// wrappers that observe, fail, delay and lose requests, a contract suite that
// every store must pass, and a real S3 server to run it on.
//
// Nothing here uses a clock other than package time, and nothing waits while it
// holds a mutex, so everything but the S3 server works in a testing/synctest
// bubble.
package objtest

import (
	"context"
	"fmt"

	"bs3/internal/bs3/objproxy"
)

// Kind is a method of a Store.
type Kind string

// The four methods.
const (
	Put    Kind = "put"
	Get    Kind = "get"
	List   Kind = "list"
	Delete Kind = "delete"
)

// Op describes one call of a Store.
type Op struct {
	Kind  Kind
	Name  string             // the object; of a List the prefix, of a Delete the first name
	Names []string           // of a Delete
	Bytes int64              // size of the body of a Put, or of the slice that a Get fills
	Off   int64              // of a Get
	Cond  objproxy.Condition // of a Put
}

// Changes reports whether the call may change what is stored.
func (o Op) Changes() bool { return o.Kind == Put || o.Kind == Delete }

// String returns a line of a trace.
func (o Op) String() string {
	s := string(o.Kind) + " " + o.Name
	switch o.Kind {
	case Put:
		s += fmt.Sprintf(" %d bytes", o.Bytes)
		if o.Cond.Absent() {
			s += " if absent"
		}
		if v, ok := o.Cond.Version(); ok {
			s += " if version " + string(v)
		}
	case Get:
		s += fmt.Sprintf(" %d bytes at %d", o.Bytes, o.Off)
	case Delete:
		s += fmt.Sprintf(" (%d names)", len(o.Names))
	}
	return s
}

// Hooks wraps a Store so that a test sees, and may change, every answer.
// Either hook may be nil; both must be safe for concurrent use. Hooks stack.
type Hooks struct {
	Inner objproxy.Store
	// Before runs before the call. If it returns an error, that is the answer,
	// and the call is not made.
	Before func(context.Context, Op) error
	// After runs after a call that was made, with its error, and returns the
	// error for the caller: another one is a lost answer.
	After func(context.Context, Op, error) error
}

func (h *Hooks) call(ctx context.Context, op Op, f func() error) error {
	if h.Before != nil {
		if err := h.Before(ctx, op); err != nil {
			return err
		}
	}
	err := f()
	if h.After != nil {
		err = h.After(ctx, op, err)
	}
	return err
}

// Put implements objproxy.Store.
func (h *Hooks) Put(ctx context.Context, name string, body objproxy.Body, cond objproxy.Condition) (objproxy.Version, error) {
	var v objproxy.Version
	err := h.call(ctx, Op{Kind: Put, Name: name, Bytes: body.Size(), Cond: cond}, func() (err error) {
		v, err = h.Inner.Put(ctx, name, body, cond)
		return err
	})
	if err != nil {
		return "", err
	}
	return v, nil
}

// Get implements objproxy.Store.
func (h *Hooks) Get(ctx context.Context, name string, p []byte, off int64) (int, objproxy.Info, error) {
	var n int
	var info objproxy.Info
	err := h.call(ctx, Op{Kind: Get, Name: name, Bytes: int64(len(p)), Off: off}, func() (err error) {
		n, info, err = h.Inner.Get(ctx, name, p, off)
		return err
	})
	if err != nil {
		return 0, objproxy.Info{}, err
	}
	return n, info, nil
}

// List implements objproxy.Store.
func (h *Hooks) List(ctx context.Context, prefix, after string, limit int) ([]objproxy.Info, error) {
	var infos []objproxy.Info
	err := h.call(ctx, Op{Kind: List, Name: prefix}, func() (err error) {
		infos, err = h.Inner.List(ctx, prefix, after, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return infos, nil
}

// Delete implements objproxy.Store.
func (h *Hooks) Delete(ctx context.Context, names []string) error {
	return h.call(ctx, deleteOp(names), func() error { return h.Inner.Delete(ctx, names) })
}

func deleteOp(names []string) Op {
	op := Op{Kind: Delete, Names: names}
	if len(names) > 0 {
		op.Name = names[0]
	}
	return op
}
