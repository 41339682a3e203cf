package layout

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"time"
	"unicode/utf8"

	"bs3/internal/bs3/key"
)

// Volume is the volume record: the commit point of everything that is not an
// object of the log. Only conditional puts change it.
type Volume struct {
	Format      int       `json:"format"` // set by DecodeVolume; EncodeVolume always writes VolumeFormat
	UUID        UUID      `json:"uuid"`
	Generation  uint64    `json:"generation"`   // +1 with each change, so that no content repeats
	BlockSize   uint32    `json:"block_size"`   // bytes, 512 or 4096
	Size        int64     `json:"size"`         // bytes
	LargestSize int64     `json:"largest_size"` // bytes, the largest Size ever committed
	ChunkSize   uint32    `json:"chunk_size"`   // bytes of data per object
	Created     time.Time `json:"created"`
	Epoch       uint64    `json:"epoch"` // of the newest writer; 0 = none yet
	Writer      Writer    `json:"writer"`
	Checkpoints []string  `json:"checkpoints"` // names of the kept ones, oldest first
	ChangeID    string    `json:"change_id"`   // random, by which a writer knows its own change
	Deleted     bool      `json:"deleted"`     // tombstone
	// Features name what a reader must know to read the volume right, beyond the
	// format. This program knows none yet, and refuses the record that names one.
	Features []string `json:"features,omitempty"`
	// LocalLog is where flushed writes may lie that the store does not have; nil
	// means nowhere. Without that log, the volume opens only for an administrator
	// who gives those writes up.
	LocalLog *LocalLog `json:"local_log,omitempty"`
	// Snapshots are the states of the volume that are kept, in the order in which they
	// were committed. Whoever can change the record may add and remove some.
	Snapshots []Snapshot `json:"snapshots,omitempty"`
}

// Snapshot is a state of the volume that is kept: a checkpoint that has a name.
type Snapshot struct {
	Name      string    `json:"name"`      // CheckSnapshotName accepts it; no other snapshot of the volume has it
	Directory string    `json:"directory"` // CheckpointName or SnapshotName
	Created   time.Time `json:"created"`
}

// Key returns the key of the last object that s holds.
func (s Snapshot) Key() key.Key {
	k, _, _, err := ParseCheckpointName(s.Directory)
	if err != nil {
		k, _, _ = ParseSnapshotName(s.Directory) // one of both: the record was checked
	}
	return k
}

// snapshotNames is what a snapshot may be called: it is typed on command lines, is a
// part of the names of NBD exports, and may be that of a file.
var snapshotNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// SnapshotNameRule says what a snapshot may be called.
const SnapshotNameRule = "1 to 63 of A-Z a-z 0-9 . _ -, the first a letter or digit"

// CheckSnapshotName returns an error that says what a snapshot may be called, if it
// may not be called name: ErrDamaged, wrapped.
func CheckSnapshotName(name string) error {
	if !snapshotNames.MatchString(name) {
		return damaged("%q is no name of a snapshot: %s", name, SnapshotNameRule)
	}
	return nil
}

// LocalLog is where the local log of a writer lies.
type LocalLog struct {
	Host     string `json:"host"`     // machine id; empty: it has none
	Hostname string `json:"hostname"` // for people
	Path     string `json:"path"`     // its directory
}

// Writer identifies the process that holds, or held, the epoch of a volume. What
// is empty of Host, Product and StateID is not known.
type Writer struct {
	Host      string    `json:"host"`       // machine id
	Product   string    `json:"product"`    // digest of what the firmware calls the machine
	Hostname  string    `json:"hostname"`   // for people
	StatePath string    `json:"state_path"` // the directory, on Host, of its chunk memory
	StateID   string    `json:"state_id"`   // that this directory was given when it was first used
	PID       int       `json:"pid"`
	Nonce     Nonce     `json:"nonce"`
	Since     time.Time `json:"since"`    // for people
	Released  bool      `json:"released"` // closed cleanly
}

const (
	// VolumeFormat is the format number that this program writes, and the only
	// one it reads.
	VolumeFormat = 2
	// MaxVolumeRecord is the largest volume record in bytes.
	MaxVolumeRecord = 1 << 20
	// MaxCheckpoints is the most checkpoints that a volume keeps.
	MaxCheckpoints = 2
	// MaxSnapshots is the most snapshots of a volume: the record has room for them.
	MaxSnapshots = 4096

	// volumeMagic is the start of every volume record, in every format.
	volumeMagic = "{\n  \"bs3\": \"volume\",\n"
	// volumeEnd is the end of a record of this format: the CRC32C, in eight
	// lower-case digits, of all bytes before it.
	volumeEnd = ",\n  \"crc32c\": \"%08x\"\n}\n"
)

// volumeText is the record as it is written: a Volume between magic and
// checksum.
type volumeText struct {
	Magic string `json:"bs3"`
	Volume
	CRC string `json:"crc32c,omitempty"`
}

// EncodeVolume returns the text of v, with times in UTC, to the nanosecond.
// What DecodeVolume would refuse is an error that names the field: ErrVersion for
// a feature, otherwise ErrDamaged.
func EncodeVolume(v *Volume) ([]byte, error) {
	if err := v.check(); err != nil {
		return nil, fmt.Errorf("volume record: %w", err)
	}
	t := volumeText{Magic: "volume", Volume: *v}
	t.Format = VolumeFormat
	t.Created, t.Writer.Since = v.Created.UTC(), v.Writer.Since.UTC()
	t.Snapshots = slices.Clone(v.Snapshots)
	for i := range t.Snapshots {
		t.Snapshots[i].Created = t.Snapshots[i].Created.UTC()
	}
	if t.Checkpoints == nil {
		t.Checkpoints = []string{}
	}
	b, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("volume record: %w", damaged("%v", err))
	}
	b = bytes.TrimSuffix(b, []byte("\n}"))
	b = fmt.Appendf(b, volumeEnd, CRC(b))
	if len(b) > MaxVolumeRecord {
		return nil, fmt.Errorf("volume record: %w", damaged("%d bytes, more than %d", len(b), MaxVolumeRecord))
	}
	return b, nil
}

// DecodeVolume decodes a volume record and checks every field. It refuses a
// feature and a field that this program does not know as a newer version: a
// program that ignored, say, a parent would serve zeros for its data. Errors: ErrMagic,
// ErrVersion, ErrDamaged.
func DecodeVolume(b []byte) (*Volume, error) {
	v, err := decodeVolume(b)
	if err != nil {
		return nil, fmt.Errorf("volume record: %w", err)
	}
	return v, nil
}

func decodeVolume(b []byte) (*Volume, error) {
	if !bytes.HasPrefix(b, []byte(volumeMagic)) {
		return nil, fmt.Errorf("%w: it starts with %.40q", ErrMagic, b)
	}
	if len(b) > MaxVolumeRecord {
		return nil, damaged("%d bytes, more than %d", len(b), MaxVolumeRecord)
	}
	var head struct {
		Format int64 `json:"format"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, damaged("%v", err)
	}
	switch {
	case head.Format == VolumeFormat:
	case head.Format < 1:
		return nil, damaged("format is %d", head.Format)
	default:
		return nil, fmt.Errorf("%w: format %d, not %d", ErrVersion, head.Format, VolumeFormat)
	}
	body := len(b) - len(fmt.Sprintf(volumeEnd, 0))
	if body < 0 || string(b[body:]) != fmt.Sprintf(volumeEnd, CRC(b[:body])) {
		return nil, damaged("checksum")
	}
	var t volumeText
	if err := json.Unmarshal(b, &t); err != nil {
		return nil, damaged("%v", err)
	}
	if err := checkFeatures(t.Features); err != nil {
		return nil, err // before the fields that may come with them
	}
	strict := json.NewDecoder(bytes.NewReader(b))
	strict.DisallowUnknownFields()
	if err := strict.Decode(new(volumeText)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrVersion, err) // the checksum holds, so the field was meant
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	t.Features = nil // "[]" is as good as none
	if len(t.Snapshots) == 0 {
		t.Snapshots = nil
	}
	return &t.Volume, nil
}

// checkFeatures refuses features that this program does not know: it knows none.
func checkFeatures(names []string) error {
	if len(names) > 0 {
		return fmt.Errorf("%w: feature %q", ErrVersion, names[0])
	}
	return nil
}

func (v *Volume) check() error {
	if err := checkFeatures(v.Features); err != nil {
		return err
	}
	if v.UUID == (UUID{}) {
		return damaged("uuid is zero")
	}
	if err := checkBlockSize(v.BlockSize); err != nil {
		return err
	}
	bs := int64(v.BlockSize)
	for _, f := range []struct {
		name string
		size int64
	}{{"size", v.Size}, {"largest_size", v.LargestSize}} {
		if f.size <= 0 || f.size%bs != 0 || f.size/bs > MaxBlocks {
			return damaged("%s is %d, not a multiple of the block size %d from 1 to %d blocks", f.name, f.size, bs, int64(MaxBlocks))
		}
	}
	if v.LargestSize < v.Size {
		return damaged("largest_size %d is less than size %d", v.LargestSize, v.Size)
	}
	if v.ChunkSize == 0 || v.ChunkSize%v.BlockSize != 0 { // 32 bits are fewer than MaxObjectBlocks
		return damaged("chunk_size is %d, not a multiple of the block size %d", v.ChunkSize, bs)
	}
	if v.Writer.PID < 0 {
		return damaged("pid is %d", v.Writer.PID)
	}
	var log LocalLog
	if v.LocalLog != nil {
		log = *v.LocalLog
	}
	for _, f := range []struct{ name, text string }{
		{"local_log.host", log.Host},
		{"local_log.hostname", log.Hostname},
		{"local_log.path", log.Path},
		{"host", v.Writer.Host},
		{"product", v.Writer.Product},
		{"hostname", v.Writer.Hostname},
		{"state_path", v.Writer.StatePath},
		{"state_id", v.Writer.StateID},
		{"change_id", v.ChangeID},
	} {
		if !utf8.ValidString(f.text) { // encoding/json would change it silently
			return damaged("%s %q is not UTF-8", f.name, f.text)
		}
	}
	if len(v.Checkpoints) > MaxCheckpoints {
		return damaged("%d checkpoints, more than %d", len(v.Checkpoints), MaxCheckpoints)
	}
	for i, name := range v.Checkpoints {
		if _, _, _, err := ParseCheckpointName(name); err != nil {
			return damaged("checkpoints: %v", err)
		}
		if i > 0 && v.Checkpoints[i-1] >= name {
			return damaged("checkpoints: %s is not older than %s", v.Checkpoints[i-1], name)
		}
	}
	return checkSnapshots(v.Snapshots)
}

func checkSnapshots(snapshots []Snapshot) error {
	if len(snapshots) > MaxSnapshots {
		return damaged("%d snapshots, more than %d", len(snapshots), MaxSnapshots)
	}
	names := make(map[string]bool)
	for _, s := range snapshots {
		if err := CheckSnapshotName(s.Name); err != nil {
			return fmt.Errorf("snapshots: %w", err)
		}
		if names[s.Name] {
			return damaged("snapshots: two are called %s", s.Name)
		}
		names[s.Name] = true
		if _, _, _, err := ParseCheckpointName(s.Directory); err == nil {
			continue
		}
		if _, _, err := ParseSnapshotName(s.Directory); err != nil {
			return damaged("snapshot %s: %v", s.Name, err)
		}
	}
	return nil
}
