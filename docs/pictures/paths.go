// Command pictures draws how a write, a flush and a read travel through bs3,
// as SVG on standard output. `make picture` keeps it in paths.svg beside this
// file.
package main

import (
	"fmt"
	"html"
	"strings"
)

func main() { fmt.Print(paths()) }

// A colour for each path.
const (
	write = "#1f5fbf"
	flush = "#b35300"
	read  = "#1b7a3d"
)

// Lines: a request, or data on its way, and the answer.
const (
	request = ""
	answer  = ` stroke-dasharray="6 4"`
)

// Anchors of a label.
const (
	left   = "start"
	middle = "middle"
	right  = "end"
)

// paths returns the picture.
func paths() string {
	p := newPicture(1120, 730, "How a write, a flush and a read travel")

	p.box(30, 20, 1060, 50, "transport: ublk, NBD, BUSE")
	p.box(30, 120, 1060, 46, "bs3.Engine")
	p.box(30, 640, 1060, 46, "store: immutable objects in a bucket or a directory")
	p.box(705, 285, 110, 60, "the map", "block → place")

	p.frame(30, 215, 595, 360, "writer.Log")
	p.frame(270, 245, 345, 145, "chunk memory, outlives the daemon")
	p.box(478, 285, 128, 85, "open chunk", "in the order", "of the log")
	p.box(285, 285, 140, 85, "sealed chunks", "full, flushed,", "or old enough")
	p.box(285, 430, 140, 40, "upload queue")
	p.box(285, 510, 140, 46, "upload workers", "lowest key first")
	p.box(45, 285, 205, 85, "a flush waits", "durable mode: it first", "seals the open chunk")
	p.box(130, 440, 120, 46, "local log", "on a disk, synced")
	p.box(45, 510, 205, 46, "durable key", "all up to it is stored")

	p.frame(870, 215, 220, 360, "reader.Reader")
	p.box(885, 285, 190, 40, "1  look the blocks up")
	p.box(885, 351, 190, 36, "2  chunk memory")
	p.box(885, 413, 190, 36, "3  memory cache")
	p.box(885, 475, 190, 36, "4  disk cache")
	p.box(885, 525, 190, 42, "5  ranged GET", "fills the caches")

	p.arrow(write, request, 560, 70, 560, 120)
	p.arrow(write, answer, 590, 120, 590, 70)
	p.label(write, right, 552, 100, "write")
	p.label(write, left, 598, 100, "acknowledged")
	p.arrow(write, request, 560, 166, 560, 285)
	p.arrow(write, answer, 590, 285, 590, 166)
	p.label(write, left, 598, 196, "is in memory")
	p.arrow(write, request, 606, 315, 705, 315)
	p.label(write, middle, 664, 306, "new place")
	p.arrow(write, request, 478, 327, 425, 327)
	p.label(write, middle, 452, 318, "seal")
	p.arrow(write, request, 355, 370, 355, 430)
	p.arrow(write, request, 355, 470, 355, 510)
	p.arrow(write, request, 355, 556, 355, 640)
	p.label(write, left, 363, 612, "PUT of an object")
	p.arrow(write, answer, 147, 640, 147, 556)
	p.label(write, left, 155, 612, "stored")

	p.arrow(flush, request, 150, 70, 150, 120)
	p.arrow(flush, answer, 210, 120, 210, 70)
	p.label(flush, right, 142, 100, "flush")
	p.label(flush, left, 218, 100, "acknowledged")
	p.arrow(flush, request, 150, 166, 150, 285)
	p.arrow(flush, answer, 210, 285, 210, 166)
	p.label(flush, left, 218, 196, "all before it survives")
	p.arrow(flush, answer, 75, 510, 75, 370)
	p.label(flush, left, 83, 408, "durable", "mode")
	p.arrow(flush, request, 175, 370, 175, 440)
	p.arrow(flush, answer, 220, 440, 220, 370)
	p.label(flush, left, 228, 408, "local log", "mode")

	p.arrow(read, request, 990, 70, 990, 120)
	p.arrow(read, answer, 1040, 120, 1040, 70)
	p.label(read, right, 982, 100, "read")
	p.label(read, left, 1048, 100, "data")
	p.arrow(read, request, 990, 166, 990, 285)
	p.arrow(read, answer, 1040, 285, 1040, 166)
	p.arrow(read, request, 885, 300, 815, 300)
	p.arrow(read, answer, 815, 315, 885, 315)
	p.label(read, middle, 843, 291, "look up")
	p.arrow(read, answer, 615, 376, 885, 376)
	p.label(read, middle, 747, 396, "what is not in the store yet")
	p.arrow(read, request, 980, 325, 980, 351)
	p.arrow(read, request, 980, 387, 980, 413)
	p.arrow(read, request, 980, 449, 980, 475)
	p.arrow(read, request, 980, 511, 980, 525)
	p.label(read, left, 994, 404, "else")
	p.label(read, left, 994, 466, "else")
	p.arrow(read, request, 950, 567, 950, 640)
	p.arrow(read, answer, 1010, 640, 1010, 567)
	p.label(read, right, 942, 612, "ranges of objects")
	p.label(read, left, 1018, 612, "data")

	p.label("#555555", left, 30, 714, "Solid: a request, or data on its way. Dashed: the answer.")
	return p.end()
}

// A picture is an SVG document that grows. It has a ground of its own, so that
// it can be read on light and on dark pages.
type picture struct{ strings.Builder }

func newPicture(w, h int, title string) *picture {
	p := &picture{}
	p.line(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s" font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" font-size="14">`,
		w, h, w, h, html.EscapeString(title))
	p.line(`<defs>`)
	for _, colour := range []string{write, flush, read} {
		p.line(`<marker id="%s" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 L10 5 L0 10 z" fill="%s"/></marker>`, tip(colour), colour)
	}
	p.line(`</defs>`)
	p.line(`<rect x="0.5" y="0.5" width="%d" height="%d" rx="10" fill="#ffffff" stroke="#d0d0d0"/>`, w-1, h-1)
	return p
}

func (p *picture) line(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

func (p *picture) end() string { return p.String() + "</svg>\n" }

// box draws a part: its name, and below it what it is.
func (p *picture) box(x, y, w, h int, name string, more ...string) {
	p.line(`<rect x="%d" y="%d" width="%d" height="%d" rx="6" fill="#f2f5fa" stroke="#5b6675"/>`, x, y, w, h)
	const step = 18
	base := y + h/2 + 5 - step*len(more)/2
	p.text("#1b1f24", middle, `font-weight="bold"`, x+w/2, base, name)
	for i, m := range more {
		p.text("#1b1f24", middle, `font-size="12"`, x+w/2, base+step*(i+1), m)
	}
}

// frame draws what holds other parts.
func (p *picture) frame(x, y, w, h int, name string) {
	p.line(`<rect x="%d" y="%d" width="%d" height="%d" rx="8" fill="none" stroke="#8a94a3" stroke-dasharray="2 3"/>`, x, y, w, h)
	p.text("#1b1f24", left, `font-style="italic"`, x+12, y+22, name)
}

func (p *picture) arrow(colour, style string, x1, y1, x2, y2 int) {
	p.line(`<path d="M%d %d L%d %d" fill="none" stroke="%s" stroke-width="2" marker-end="url(#%s)"%s/>`, x1, y1, x2, y2, colour, tip(colour), style)
}

func (p *picture) label(colour, anchor string, x, y int, lines ...string) {
	for i, text := range lines {
		p.text(colour, anchor, `font-size="13"`, x, y+16*i, text)
	}
}

func (p *picture) text(colour, anchor, style string, x, y int, text string) {
	p.line(`<text x="%d" y="%d" text-anchor="%s" fill="%s" %s xml:space="preserve">%s</text>`, x, y, anchor, colour, style, html.EscapeString(text))
}

// tip returns the name of the arrow head of a colour.
func tip(colour string) string { return "tip" + strings.TrimPrefix(colour, "#") }
