package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
)

// figures are the results of one run, by name.
type figures map[string]float64

// trial is one run.
type trial func(context.Context) (figures, error)

// paired has the runs of a comparison; those with the same index were adjacent.
type paired struct{ ours, reference, control []figures }

// compare makes runs in turns. The order within a round alternates, so that a drift
// favours nobody.
func (b *bench) compare(ctx context.Context, ours, reference, control trial) (paired, error) {
	return b.compareSome(ctx, b.pairs, ours, reference, control)
}

// compareSome is compare with so many pairs. Trials that are nil are left out.
func (b *bench) compareSome(ctx context.Context, pairs int, ours, reference, control trial) (p paired, err error) {
	for i := range pairs {
		order := []struct {
			trial
			to *[]figures
		}{{ours, &p.ours}, {reference, &p.reference}, {control, &p.control}}
		if i%2 == 1 {
			slices.Reverse(order)
		}
		for _, o := range order {
			if o.trial == nil {
				continue
			}
			f, err := o.trial(ctx)
			if err != nil {
				return p, err
			}
			*o.to = append(*o.to, f)
		}
	}
	return p, nil
}

// all returns one figure of all runs.
func all(runs []figures, name string) []float64 {
	var values []float64
	for _, f := range runs {
		values = append(values, f[name])
	}
	return values
}

// median returns 0 if there are no values.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// ratios leaves out what runs were too short to measure.
func ratios(a, b []float64) []float64 {
	var r []float64
	for i := range a {
		if b[i] > 0 {
			r = append(r, a[i]/b[i])
		}
	}
	return r
}

// harmonic combines the rates of two stages that the same bytes pass one after the
// other.
func harmonic(a, b float64) float64 { return 1 / (1/a + 1/b) }

// detail is a figure behind a row: the median over its runs.
type detail struct {
	Name  string
	Value float64
	Unit  string
}

func (d detail) String() string {
	return fmt.Sprintf("%s %s %s", d.Name, number(d.Value), d.Unit)
}

// row is one line of the table of targets.
type row struct {
	Measurement string
	Name        string
	Target      float64
	AtMost      bool // else at least
	Free        bool // without a target
	Value       float64
	Unit        string    // empty for a ratio
	Single      []float64 // of each pair
	Control     float64   // 0 if there is none
	Details     []detail
	Note        string // why there is no value
}

// met reports whether the row meets its target.
func (r row) met() bool {
	if r.Free {
		return true
	}
	if r.AtMost {
		return r.Value <= r.Target
	}
	return r.Value >= r.Target
}

func (r row) String() string {
	if r.Note != "" {
		return r.Name + ": " + r.Note
	}
	text := fmt.Sprintf("%s: %s %s", r.Name, number(r.Value), r.Unit)
	if !r.Free {
		word := map[bool]string{true: "at most", false: "at least"}[r.AtMost]
		text += fmt.Sprintf(" (%s %s: %v)", word, number(r.Target), r.met())
	}
	if r.Control != 0 {
		text += ", control " + number(r.Control)
	}
	for _, d := range r.Details {
		text += "; " + d.String()
	}
	return strings.Join(strings.Fields(text), " ")
}

// row returns a row of the ratio of one figure, with the figure itself as details.
func (p paired) row(name, figure, unit string, scale, target float64, atMost bool) row {
	single := ratios(all(p.ours, figure), all(p.reference, figure))
	r := row{
		Name: name, Target: target, AtMost: atMost,
		Value: median(single), Single: single,
		Control: median(ratios(all(p.control, figure), all(p.reference, figure))),
		Details: []detail{
			{"bs3", scale * median(all(p.ours, figure)), unit},
			{"reference", scale * median(all(p.reference, figure)), unit},
		},
	}
	if len(single) == 0 {
		r.Note = "the runs were too short to measure it"
	}
	return r
}

// plain returns a row of one figure of ours that is not to be above target, with that
// of the reference as a detail.
func (p paired) plain(name, figure, unit string, scale, target float64) row {
	r := row{Name: name, Target: target, AtMost: true, Unit: unit}
	for _, v := range all(p.ours, figure) {
		r.Single = append(r.Single, scale*v)
	}
	r.Value = median(r.Single)
	if len(p.reference) > 0 && p.reference[0][figure] > 0 {
		r.Details = []detail{{"reference", scale * median(all(p.reference, figure)), unit}}
	}
	return r
}

// with adds a figure of our runs as a detail.
func (p paired) with(r row, name, figure, unit string, scale float64) row {
	r.Details = append(r.Details, detail{name, scale * median(all(p.ours, figure)), unit})
	return r
}

// number formats a number for people.
func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "–"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.1 || a == 0:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.4f", v)
	}
}
