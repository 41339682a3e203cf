package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
	"bs3/internal/stores"
)

// answers is a store that gives its answers to Get in turn, and then always that
// there is no such object.
type answers struct {
	objproxy.Store
	errs []error
}

func (a *answers) Get(context.Context, string, []byte, int64) (int, objproxy.Info, error) {
	if len(a.errs) == 0 {
		return 0, objproxy.Info{}, objproxy.ErrNotFound
	}
	err := a.errs[0]
	a.errs = a.errs[1:]
	return 0, objproxy.Info{}, err
}

func TestInfoTriesAgainWhereItMayHelp(t *testing.T) {
	busy, forbidden := fmt.Errorf("503: %w", objproxy.ErrTransient), errors.New("403")
	for name, test := range map[string]struct {
		answers []error
		code    int
		atLeast time.Duration
		atMost  time.Duration
	}{
		"no volume":       {nil, exitOther, 0, 0},
		"busy twice":      {[]error{busy, busy}, exitOther, 10 * time.Millisecond, time.Second},
		"forbidden":       {[]error{forbidden}, exitStore, 0, 0},
		"does not answer": {slices.Repeat([]error{busy}, 1000), exitStore, infoFor, infoFor},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				_, err := volume.ReadInfo(t.Context(), stores.NewPatient(&answers{errs: test.answers}, infoFor))
				err = explain("here", err)
				if got := exitCode(err); got != test.code || !strings.Contains(err.Error(), "here") {
					t.Errorf("exit code %d: %v", got, err)
				}
				if took := time.Since(start); took < test.atLeast || took > test.atMost {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}
