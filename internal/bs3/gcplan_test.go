package bs3_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"bs3/internal/bs3/gc"
	"bs3/internal/bs3/objproxy/objtest"
)

// TestPlanGC: the plan of a collection on a quiet volume is what it then does,
// and planning it changes nothing.
func TestPlanGC(t *testing.T) {
	memory := objtest.NewMemory()
	calls := objtest.NewRecorder(memory)
	e := open(t, gcOptions(t, calls))
	s := newShadow(e)
	rnd := rand.New(rand.NewPCG(9, 9))
	for range 4 {
		s.some(t, e, rnd, 300)
		if err := checkpointed(t, e); err != nil { // so that nothing is on its way
			t.Fatal(err)
		}
		calls.Reset()
		before := objects(t, memory)
		plan, err := e.PlanGC(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if plan.Compacted == 0 || plan.Deleted <= plan.Compacted || plan.MovedBytes == 0 || plan.FreedBytes <= plan.MovedBytes {
			t.Errorf("a plan without use: %+v", plan)
		}
		if sent := calls.Calls(); len(sent) > 0 || objects(t, memory) != before {
			t.Errorf("planning sent %v", sent)
		}
		report, err := e.GC(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if report != plan {
			t.Errorf("the plan was %+v, done was %+v", plan, report)
		}
		if plan, err := e.PlanGC(t.Context()); err != nil || plan != (gc.Report{}) {
			t.Errorf("after it the plan is %+v, %v", plan, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.PlanGC(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("a plan nobody waits for: %v", err)
	}
	s.compare(t, e)
	shut(t, e)
	if _, err := e.PlanGC(t.Context()); err == nil {
		t.Error("a closed volume has a plan")
	}
}
