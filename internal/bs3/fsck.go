package bs3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
	"bs3/internal/bs3/objproxy"
)

// What Fsck may answer besides the errors of Info. They come wrapped.
var (
	// ErrDamage: the volume is damaged (FsckReport.Err).
	ErrDamage = errors.New("the volume is damaged")
	// ErrMoving: a writer replaced checkpoints faster than they could be read.
	ErrMoving = errors.New("the volume changes faster than it can be checked; try again, or while it is not written")
)

// FsckOptions say what Fsck does besides its usual checks.
type FsckOptions struct {
	// Data reads all objects that the map needs and checks every block of them.
	Data bool
	// Progress, if set, is called now and then, by one goroutine at a time.
	Progress func(FsckProgress)
}

// FsckProgress says how far a check is. Stages follow each other, and all of
// them begin again when the writer has replaced what was being read.
type FsckProgress struct {
	Stage string // what is read now
	Done  int64  // of them
	Total int64  // of them, as far as it is known; it may grow
}

// FsckSeverity says what a finding means.
type FsckSeverity string

// The severities. Only an error is damage.
const (
	// FsckError: a rule of the format or of the log does not hold.
	FsckError FsckSeverity = "error"
	// FsckWarning: what a crash leaves and what damage leaves look the same here.
	FsckWarning FsckSeverity = "warning"
	// FsckInfo: nothing is wrong.
	FsckInfo FsckSeverity = "info"
)

// FsckKind says what a finding is about.
type FsckKind string

// The kinds of findings.
const (
	FsckVolume     FsckKind = "volume"     // the volume record
	FsckCheckpoint FsckKind = "checkpoint" // a kept checkpoint, without its leaves
	FsckPack       FsckKind = "pack"       // a pack of leaves, or a leaf in it
	FsckMissing    FsckKind = "missing"    // something that is needed is not there
	FsckObject     FsckKind = "object"     // footer or records of an object of the log
	FsckMap        FsckKind = "map"        // the map of a checkpoint is not what the log makes
	FsckLive       FsckKind = "live"       // the object table of a checkpoint
	FsckData       FsckKind = "data"       // a data block does not have its checksum
	FsckGap        FsckKind = "gap"        // objects above the end of the log, of its last writer
	FsckLeftover   FsckKind = "leftover"   // something that nothing needs
)

// FsckFinding is one thing that Fsck found. Its JSON form is a contract, but
// for the wording of Text.
type FsckFinding struct {
	Severity FsckSeverity `json:"severity"`
	Kind     FsckKind     `json:"kind"`
	Name     string       `json:"name"` // in the store, below the volume's prefix
	Text     string       `json:"text"`
}

func (f FsckFinding) String() string {
	return fmt.Sprintf("%s: %s: %s: %s", f.Severity, f.Kind, f.Name, f.Text)
}

// FsckReport is what Fsck found. Its JSON form is a contract.
type FsckReport struct {
	UUID        layout.UUID `json:"uuid"`        // zero if the volume record can not be read
	Epoch       uint64      `json:"epoch"`       // of the last writer
	Released    bool        `json:"released"`    // by it
	Checkpoints []string    `json:"checkpoints"` // that the record names, oldest first

	FromStart bool    `json:"from_start"` // the whole log is there, and the map was made from its first object on
	LogEnd    key.Key `json:"log_end"`    // the first key that is not of the log
	Objects   int     `json:"objects"`    // of the log whose footer and records were read
	Blocks    int64   `json:"blocks"`     // of data that were read (--data)
	Restarts  int     `json:"restarts"`   // because the writer had replaced what was being read

	LiveBytes   int64 `json:"live_bytes"`   // that the map needs
	DeadObjects int   `json:"dead_objects"` // of the log, that nothing in the map needs
	DeadBytes   int64 `json:"dead_bytes"`   // their size: garbage collection gives it back
	StoredBytes int64 `json:"stored_bytes"` // size of all objects of the log, and leftovers

	Errors   int           `json:"errors"`
	Warnings int           `json:"warnings"`
	Infos    int           `json:"infos"`
	Findings []FsckFinding `json:"findings"` // the first 10,000 of them
}

// Err is nil if nothing is damaged, otherwise ErrDamage (wrapped).
func (r *FsckReport) Err() error {
	if r.Errors == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d errors", ErrDamage, r.Errors)
}

const (
	// mostFindings bounds the memory of a report.
	mostFindings = 10_000
	// mostRestarts is how often a check begins again because the writer has
	// replaced the checkpoints that it was reading.
	mostRestarts = 20
	// readers is how many objects are read at a time.
	readers = 32
)

// errMoved: what was read is not what the volume record names any more.
var errMoved = errors.New("the writer has replaced the checkpoints")

// Fsck checks all that the store holds of a volume, and reports everything
// that it finds, not only the first. It changes nothing, holds no epoch and may
// run beside a writer. A damaged volume is no error of Fsck: see
// FsckReport.Err. Errors: ErrNoVolume, ErrRefused (deleted, or newer than this
// program), ErrMoving, those of the store.
func Fsck(ctx context.Context, store objproxy.Store, opts FsckOptions) (*FsckReport, error) {
	for restarts := 0; ; restarts++ {
		f := &fsck{store: store, opts: opts, bad: make(map[key.Key]bool)}
		f.report = &FsckReport{Restarts: restarts, Checkpoints: []string{}, Findings: []FsckFinding{}}
		err := f.run(ctx)
		switch {
		case err == nil:
			return f.report, nil
		case !errors.Is(err, errMoved):
			return nil, err
		case restarts == mostRestarts:
			return nil, fmt.Errorf("%w: begun %d times", ErrMoving, restarts+1)
		}
	}
}

// fsck is one try at checking a volume as one volume record describes it.
type fsck struct {
	store   objproxy.Store
	opts    FsckOptions
	v       *layout.Volume
	tails   tails
	epoch   uint64 // the highest that a record was seen with
	listed  listing
	kept    []keptCheckpoint // whose directory can be used, oldest first
	walked  key.Key          // objects from here on were read in the order of the log
	maps    *mapproxy.Proxy  // at the end of the log; nil if it is not known
	counted bool             // the live counts of maps are what its leaves make

	mu     sync.Mutex // covers the rest
	report *FsckReport
	bad    map[key.Key]bool // objects that something was found about
	stage  FsckProgress
	later  laterKept
}

// keptCheckpoint is one that the volume record names.
type keptCheckpoint struct {
	name string
	*layout.Checkpoint
}

func (c keptCheckpoint) object(k key.Key) (layout.ObjectInfo, bool) {
	i, here := slices.BinarySearchFunc(c.Objects, k, func(o layout.ObjectInfo, k key.Key) int { return cmp.Compare(o.Key, k) })
	if !here {
		return layout.ObjectInfo{}, false
	}
	return c.Objects[i], true
}

func (f *fsck) run(ctx context.Context) error {
	v, _, err := readVolume(ctx, f.store)
	switch {
	case errors.Is(err, objproxy.ErrNotFound):
		return f.noRecord(ctx, err)
	case errors.Is(err, layout.ErrVersion):
		return err
	case isDamage(err):
		f.found(FsckError, FsckVolume, layout.VolumeName, "%w", err)
		return nil
	case err != nil:
		return err
	case v.Deleted:
		return fmt.Errorf("%w: volume %s was deleted", ErrRefused, v.UUID)
	}
	f.v, f.epoch = v, v.Epoch
	f.tails = tails{f.store, v.UUID, int(v.ChunkSize / v.BlockSize)}
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
	if err := f.checkObjects(ctx); err != nil {
		return err
	}
	f.sumUp()
	return nil
}

// noRecord tells a place without a volume from a volume without its record.
func (f *fsck) noRecord(ctx context.Context, err error) error {
	parts, example := 0, ""
	listErr := listAll(ctx, f.store, "", func(page []objproxy.Info) error {
		for _, o := range page {
			if isVolumePart(o.Name) {
				parts, example = parts+1, o.Name
			}
		}
		return nil
	})
	switch {
	case listErr != nil:
		return listErr
	case parts == 0:
		return fmt.Errorf("%w: %w", ErrNoVolume, err)
	}
	f.found(FsckError, FsckMissing, layout.VolumeName, "there is no volume record, but %d parts of some volume are there, such as %s", parts, example)
	return nil
}

// moved says whether the volume record names other checkpoints than those that
// this try reads.
func (f *fsck) moved(ctx context.Context) (bool, error) {
	v, _, err := readVolume(ctx, f.store)
	if err != nil {
		return false, err
	}
	return v.UUID != f.v.UUID || v.Deleted || !slices.Equal(v.Checkpoints, f.v.Checkpoints), nil
}

// found adds a finding.
func (f *fsck) found(severity FsckSeverity, kind FsckKind, name, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.report
	switch severity {
	case FsckError:
		r.Errors++
	case FsckWarning:
		r.Warnings++
	case FsckInfo:
		r.Infos++
	}
	if len(r.Findings) < mostFindings {
		r.Findings = append(r.Findings, FsckFinding{severity, kind, name, fmt.Errorf(format, args...).Error()})
	}
}

// foundIn adds an error about object k.
func (f *fsck) foundIn(k key.Key, kind FsckKind, format string, args ...any) {
	f.foundErr(k, kind, fmt.Errorf("object %d: "+format, append([]any{k}, args...)...))
}

// foundErr adds an error about object k that says itself which it is.
func (f *fsck) foundErr(k key.Key, kind FsckKind, err error) {
	f.mu.Lock()
	f.bad[k] = true
	f.mu.Unlock()
	f.found(FsckError, kind, k.Name(), "%w", err)
}

func (f *fsck) isBad(k key.Key) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bad[k]
}

// begin starts a stage of the progress.
func (f *fsck) begin(stage string, total int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stage = FsckProgress{Stage: stage, Total: int64(total)}
	if f.opts.Progress != nil {
		f.opts.Progress(f.stage)
	}
}

// step counts one thing of the stage as done.
func (f *fsck) step() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stage.Done++
	f.stage.Total = max(f.stage.Total, f.stage.Done)
	if f.opts.Progress != nil {
		f.opts.Progress(f.stage)
	}
}
