package objproxy

import (
	"errors"
	"fmt"
)

// DeleteError is the failure of one name of a Delete.
type DeleteError struct {
	Name string
	Err  error
}

func (e *DeleteError) Error() string { return "delete " + e.Name + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *DeleteError) Unwrap() error { return e.Err }

// deleteErrors joins the failures of one Delete. If all names of a batch of a
// thousand failed, that makes one line of a log, not a thousand.
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

// JoinDelete returns the error of a Delete that joins failed; nil if that is
// empty.
func JoinDelete(failed []*DeleteError) error {
	if len(failed) == 0 {
		return nil
	}
	return deleteErrors(failed)
}

// FailedDeletes returns the failures that the error of a Delete joins; nil if it
// does not name any.
func FailedDeletes(err error) []*DeleteError {
	if d, ok := errors.AsType[deleteErrors](err); ok {
		return d
	}
	if d, ok := errors.AsType[*DeleteError](err); ok {
		return []*DeleteError{d}
	}
	return nil
}
