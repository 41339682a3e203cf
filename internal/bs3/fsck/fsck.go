// Package fsck checks what the store holds of a volume.
//
// It makes the map from the first object of the log, or from the oldest
// checkpoint where the log does not begin there any more, and compares it with
// each newer checkpoint up to the end of the log (log.go, end.go, kept.go); then
// it checks the objects that are needed, and their data (objects.go).
package fsck

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/bs3/volume"
)

// ErrDamage: the volume is damaged (Report.Err).
var ErrDamage = errors.New("the volume is damaged")

// Options say what Check does besides its usual checks.
type Options struct {
	// Data reads all objects that the map needs and checks every block of them.
	Data bool
	// Progress, if set, is called now and then, by one goroutine at a time.
	Progress func(Progress)
}

// Progress says how far a check is. Stages follow each other, and all of
// them begin again when the writer has replaced what was being read.
type Progress struct {
	Stage string // what is read now
	Done  int64  // of them
	Total int64  // of them, as far as it is known; it may grow
}

// Severity says what a finding means.
type Severity string

// The severities. Only an error is damage.
const (
	// SeverityError: a rule of the format or of the log does not hold.
	SeverityError Severity = "error"
	// SeverityWarning: what a crash leaves and what damage leaves look the same here.
	SeverityWarning Severity = "warning"
	// SeverityInfo: nothing is wrong.
	SeverityInfo Severity = "info"
)

// Kind says what a finding is about.
type Kind string

// The kinds of findings.
const (
	KindVolume     Kind = "volume"     // the volume record
	KindCheckpoint Kind = "checkpoint" // a kept checkpoint, without its leaves
	KindPack       Kind = "pack"       // a pack of leaves, or a leaf in it
	KindMissing    Kind = "missing"    // something that is needed is not there
	KindObject     Kind = "object"     // footer or records of an object of the log
	KindMap        Kind = "map"        // the map of a checkpoint is not what the log makes
	KindLive       Kind = "live"       // the object table of a checkpoint
	KindSnapshot   Kind = "snapshot"   // a snapshot, without its leaves
	KindData       Kind = "data"       // a data block does not have its checksum
	KindGap        Kind = "gap"        // objects above the end of the log, of its last writer
	KindLeftover   Kind = "leftover"   // something that nothing needs
)

// Finding is one thing that Check found. Its JSON form is a contract, but
// for the wording of Text.
type Finding struct {
	Severity Severity `json:"severity"`
	Kind     Kind     `json:"kind"`
	Name     string   `json:"name"` // in the store, below the volume's prefix
	Text     string   `json:"text"`
}

func (f Finding) String() string {
	return fmt.Sprintf("%s: %s: %s: %s", f.Severity, f.Kind, f.Name, f.Text)
}

// Report is what Check found. Its JSON form is a contract.
type Report struct {
	UUID        layout.UUID `json:"uuid"`        // zero if the volume record cannot be read
	Epoch       uint64      `json:"epoch"`       // of the last writer
	Released    bool        `json:"released"`    // by it
	Checkpoints []string    `json:"checkpoints"` // that the record names, oldest first
	Snapshots   []string    `json:"snapshots"`   // that it names, in the order in which they were made

	FromStart bool    `json:"from_start"` // the whole log is there, and the map was made from its first object on
	LogEnd    key.Key `json:"log_end"`    // the first key that is not of the log
	Objects   int     `json:"objects"`    // of the log whose footer and records were read
	Blocks    int64   `json:"blocks"`     // of data that were read (--data)
	Restarts  int     `json:"restarts"`   // because the writer had replaced what was being read

	LiveBytes   int64 `json:"live_bytes"`   // that the map needs
	DeadObjects int   `json:"dead_objects"` // of the log, that neither the map nor a snapshot needs
	DeadBytes   int64 `json:"dead_bytes"`   // their size: garbage collection gives it back
	HeldObjects int   `json:"held_objects"` // of the log, that the map does not need and a snapshot does
	HeldBytes   int64 `json:"held_bytes"`   // their size
	GoneObjects int   `json:"gone_objects"` // that the newest checkpoint lists as dead, and that were deleted since
	StoredBytes int64 `json:"stored_bytes"` // size of all objects of the log, and leftovers

	Errors   int       `json:"errors"`
	Warnings int       `json:"warnings"`
	Infos    int       `json:"infos"`
	Findings []Finding `json:"findings"` // the first 10,000 of them
}

// Err is nil if nothing is damaged, otherwise ErrDamage (wrapped).
func (r *Report) Err() error {
	if r.Errors == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d errors", ErrDamage, r.Errors)
}

const (
	// mostFindings bounds the memory of a report.
	mostFindings = 10_000
	// readers is how many objects are read at a time.
	readers = 32
)

// Check checks all that the store holds of a volume, and reports everything
// that it finds, not only the first. It changes nothing, holds no epoch and may
// run beside a writer. Damage is not an error of Check: see Report.Err. Errors:
// volume.ErrNoVolume, volume.ErrRefused (deleted, or newer than this program),
// volume.ErrMoving, those of the store.
func Check(ctx context.Context, store objproxy.Store, opts Options) (*Report, error) {
	for restarts := 0; ; restarts++ {
		f := &check{store: store, opts: opts, bad: make(map[key.Key]bool)}
		f.report = &Report{Restarts: restarts, Checkpoints: []string{}, Snapshots: []string{}, Findings: []Finding{}}
		err := f.run(ctx)
		switch {
		case err == nil:
			return f.report, nil
		case !errors.Is(err, volume.ErrMoved):
			return nil, err
		case restarts == volume.MostRestarts:
			return nil, fmt.Errorf("%w: begun %d times", volume.ErrMoving, restarts+1)
		}
	}
}

// check is one try at checking a volume, as one volume record describes it.
type check struct {
	store     objproxy.Store
	opts      Options
	v         *layout.Volume
	tails     volume.Tails
	epoch     uint64 // the highest that a record was seen with
	listed    listing
	kept      []volume.Checkpoint    // whose directory can be used, oldest first
	walked    key.Key                // objects from here on were read in the order of the log
	maps      *mapproxy.Proxy        // at the end of the log; nil if it is not known
	held      map[key.Key]heldObject // objects with blocks that a snapshot reads
	heldNames map[string]bool        // directories and packs of snapshots
	counted   bool                   // the live counts of maps are what its leaves make

	mu     sync.Mutex // covers the rest
	report *Report
	bad    map[key.Key]bool // objects that something was found about
	stage  Progress
	later  laterKept
}

func (f *check) run(ctx context.Context) error {
	v, _, err := volume.ReadRecord(ctx, f.store)
	switch {
	case errors.Is(err, objproxy.ErrNotFound):
		return f.noRecord(ctx, err)
	case errors.Is(err, layout.ErrVersion):
		return err
	case volume.IsDamage(err):
		f.found(SeverityError, KindVolume, layout.VolumeName, "%w", err)
		return nil
	case err != nil:
		return err
	case v.Deleted:
		return fmt.Errorf("%w: volume %s was deleted", volume.ErrRefused, v.UUID)
	}
	f.v, f.epoch = v, v.Epoch
	f.tails = volume.TailsOf(v, f.store)
	f.report.UUID, f.report.Epoch, f.report.Released = v.UUID, v.Epoch, v.Writer.Released
	f.report.Checkpoints = append(f.report.Checkpoints, v.Checkpoints...)
	if f.listed, err = f.list(ctx); err != nil {
		return err
	}
	if err := f.readKept(ctx); err != nil {
		return err
	}
	if err := f.checkLog(ctx); err != nil {
		return err
	}
	if err := f.checkSnapshots(ctx); err != nil {
		return err
	}
	if err := f.checkObjects(ctx); err != nil {
		return err
	}
	f.sumUp()
	return nil
}

// noRecord tells a place without a volume from a volume without its record.
func (f *check) noRecord(ctx context.Context, err error) error {
	parts, example := 0, ""
	listErr := volume.List(ctx, f.store, "", func(page []objproxy.Info) error {
		for _, o := range page {
			if volume.IsPart(o.Name) {
				parts, example = parts+1, o.Name
			}
		}
		return nil
	})
	switch {
	case listErr != nil:
		return listErr
	case parts == 0:
		return fmt.Errorf("%w: %w", volume.ErrNoVolume, err)
	}
	f.found(SeverityError, KindMissing, layout.VolumeName, "there is no volume record, but %d parts of some volume are there, such as %s; to make the record again: bs3 fsck --rebuild-record", parts, example)
	return nil
}

// moved reports whether the volume record names other checkpoints than those that
// this try reads, or, for what a snapshot needs, not all of its snapshots.
func (f *check) moved(ctx context.Context, snapshot bool) (bool, error) {
	v, _, err := volume.ReadRecord(ctx, f.store)
	if err != nil {
		return false, err
	}
	if v.UUID != f.v.UUID || v.Deleted {
		return true, nil
	}
	if snapshot {
		return f.removed(v), nil
	}
	return !slices.Equal(v.Checkpoints, f.v.Checkpoints), nil
}

// found adds a finding.
func (f *check) found(severity Severity, kind Kind, name, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.report
	switch severity {
	case SeverityError:
		r.Errors++
	case SeverityWarning:
		r.Warnings++
	case SeverityInfo:
		r.Infos++
	}
	if len(r.Findings) < mostFindings {
		r.Findings = append(r.Findings, Finding{severity, kind, name, fmt.Errorf(format, args...).Error()})
	}
}

// foundIn adds an error about object k.
func (f *check) foundIn(k key.Key, kind Kind, format string, args ...any) {
	f.foundErr(k, kind, fmt.Errorf("object %d: "+format, append([]any{k}, args...)...))
}

// foundErr adds an error about object k that says itself which it is.
func (f *check) foundErr(k key.Key, kind Kind, err error) {
	f.mu.Lock()
	f.bad[k] = true
	f.mu.Unlock()
	f.found(SeverityError, kind, k.Name(), "%w", err)
}

func (f *check) isBad(k key.Key) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bad[k]
}

// begin starts a stage of the progress.
func (f *check) begin(stage string, total int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stage = Progress{Stage: stage, Total: int64(total)}
	if f.opts.Progress != nil {
		f.opts.Progress(f.stage)
	}
}

// step counts one thing of the stage as done.
func (f *check) step() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stage.Done++
	f.stage.Total = max(f.stage.Total, f.stage.Done)
	if f.opts.Progress != nil {
		f.opts.Progress(f.stage)
	}
}
