package objproxy

import (
	"errors"
	"fmt"
)

// DeleteError says which name of a Delete failed, and why.
type DeleteError struct {
	Name string
	Err  error
}

func (e *DeleteError) Error() string { return "delete " + e.Name + ": " + e.Err.Error() }

// Unwrap gives the reason.
func (e *DeleteError) Unwrap() error { return e.Err }

// deleteErrors joins what failed in one Delete. A batch of a thousand names
// that all failed is one line of a log, not a thousand.
type deleteErrors []*DeleteError

func (e deleteErrors) Error() string {
	if len(e) == 1 {
		return e[0].Error()
	}
	return fmt.Sprintf("%d deletes failed, the first: %v", len(e), e[0])
}

func (e deleteErrors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, d := range e {
		errs[i] = d
	}
	return errs
}

// JoinDelete makes the error of a Delete of its failures; nil for none.
func JoinDelete(failed []*DeleteError) error {
	if len(failed) == 0 {
		return nil
	}
	return deleteErrors(failed)
}

// FailedDeletes gives the failures that the error of a Delete joins; nil if
// it does not say which names failed.
func FailedDeletes(err error) []*DeleteError {
	if d, ok := errors.AsType[deleteErrors](err); ok {
		return d
	}
	if d, ok := errors.AsType[*DeleteError](err); ok {
		return []*DeleteError{d}
	}
	return nil
}
