package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// plot is a chart of horizontal bars, in a group for each label.
type plot struct {
	file, title string
	unit        string
	series      []string
	groups      []group
	log         bool    // logarithmic scale
	mark        float64 // a line at this value; 0 for none
	most        float64 // longer bars are cut off; 0 for never
}

type group struct {
	label  string
	values []float64 // one for each series
}

// plots returns the charts of the report.
func (r *results) plots() []plot {
	targets := plot{
		file: "targets.svg", title: "Measured against the targets: 1 is the target, more is better", series: []string{"of the target"}, mark: 1, most: 3,
	}
	for _, row := range r.Rows {
		if row.Free || row.Note != "" || row.Target == 0 || row.Value == 0 {
			continue
		}
		v := row.Value / row.Target
		if row.AtMost {
			v = 1 / v
		}
		targets.groups = append(targets.groups, group{short(row.Name), []float64{v}})
	}
	all := []plot{targets}
	if len(r.Jobs) == 0 {
		return all
	}
	rates := plot{file: "rates.svg", title: "Requests per second", unit: "/s", series: []string{"store without latency", "GET 15 ms, PUT 25 ms"}, log: true}
	times := plot{file: "latencies.svg", title: "Latency with GET at 15 ms and PUT at 25 ms, in ms", series: []string{"p50", "p99", "p99.9"}, log: true}
	for _, j := range r.Jobs {
		if j.Get != 0 {
			l := j.latency()
			times.groups = append(times.groups, group{j.Name, []float64{l.P50 / 1e6, l.P99 / 1e6, l.P999 / 1e6}})
			continue
		}
		for _, slow := range r.Jobs {
			if slow.Name == j.Name && slow.Get != 0 {
				rates.groups = append(rates.groups, group{j.Name, []float64{j.Sample.IOPS, slow.Sample.IOPS}})
			}
		}
	}
	return append(all, rates, times)
}

// short truncates a label.
func short(s string) string {
	const most = 74
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// Measures of a chart, in pixels.
const (
	labelWidth = 500
	barWidth   = 420
	barHeight  = 13
	groupGap   = 7
	headHeight = 50
)

// svg returns the chart as SVG.
func (p plot) svg() string {
	colours := []string{"#33658a", "#f6ae2d", "#c44536"}
	low, high := math.Inf(1), 0.0
	for _, g := range p.groups {
		for _, v := range g.values {
			if v > 0 {
				low, high = min(low, v), max(high, v)
			}
		}
	}
	if p.most > 0 {
		high = min(high, p.most)
	}
	high = max(high, p.mark)
	if high == 0 {
		high = 1
	}
	length := func(v float64) float64 {
		v = min(v, high)
		if p.log {
			floor := math.Pow(10, math.Floor(math.Log10(low)-0.01))
			return max(0, barWidth*math.Log10(v/floor)/math.Log10(high/floor))
		}
		return barWidth * v / high
	}
	groupHeight := len(p.series)*barHeight + groupGap
	height := headHeight + len(p.groups)*groupHeight + 10
	width := labelWidth + barWidth + 80
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	scale := ""
	if p.log {
		scale = " (logarithmic)"
	}
	fmt.Fprintf(&b, `<text x="10" y="18" font-size="14">%s%s</text>`+"\n", html.EscapeString(p.title), scale)
	if len(p.series) > 1 {
		for i, s := range p.series {
			x := labelWidth + 150*i
			fmt.Fprintf(&b, `<rect x="%d" y="28" width="10" height="10" fill="%s"/><text x="%d" y="37">%s</text>`+"\n", x, colours[i], x+14, html.EscapeString(s))
		}
	}
	y := headHeight
	for _, g := range p.groups {
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", labelWidth-8, y+len(p.series)*barHeight/2+4, html.EscapeString(g.label))
		for i, v := range g.values {
			n := length(v)
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`, labelWidth, y+i*barHeight, n, barHeight-2, colours[i])
			fmt.Fprintf(&b, `<text x="%.1f" y="%d">%s</text>`+"\n", labelWidth+n+4, y+i*barHeight+10, number(v)+p.unit)
		}
		y += groupHeight
	}
	if p.mark > 0 {
		x := labelWidth + length(p.mark)
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="black" stroke-dasharray="4 3"/>`+"\n", x, headHeight-6, x, height-6)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
