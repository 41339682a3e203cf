package objtest_test

import (
	"testing"

	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/objproxy/objtest"
)

func TestMemory(t *testing.T) {
	objtest.Suite(t, func(*testing.T) objproxy.Store { return objtest.NewMemory() })
}

// TestPerfectNetwork checks that Faulty without faults passes the suite.
func TestPerfectNetwork(t *testing.T) {
	objtest.Suite(t, func(*testing.T) objproxy.Store {
		return objtest.NewFaulty(objtest.NewMemory(), objtest.Faults{})
	})
}
