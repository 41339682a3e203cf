package layout

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"bs3/internal/bs3/key"
)

func TestVolumeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := sampleVolume()
		v.UUID = UUID(rapid.SliceOfN(rapid.ByteRange(1, 255), 16, 16).Draw(t, "uuid"))
		v.Generation = rapid.Uint64().Draw(t, "generation")
		v.Epoch = rapid.Uint64().Draw(t, "epoch")
		v.BlockSize = rapid.SampledFrom([]uint32{512, 4096}).Draw(t, "block size")
		v.Size = rapid.Int64Range(1, MaxBlocks).Draw(t, "blocks") * int64(v.BlockSize)
		v.LargestSize = rapid.Int64Range(v.Size/int64(v.BlockSize), MaxBlocks).Draw(t, "largest") * int64(v.BlockSize)
		v.ChunkSize = rapid.Uint32Range(1, 4096).Draw(t, "chunk") * v.BlockSize
		v.Created = time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "created"), rapid.Int64Range(0, 999999999).Draw(t, "ns")).UTC()
		v.Writer = Writer{
			Host: rapid.String().Draw(t, "host"), Product: rapid.String().Draw(t, "product"), StateID: rapid.String().Draw(t, "state id"), Hostname: rapid.String().Draw(t, "hostname"), StatePath: rapid.String().Draw(t, "state"),
			PID: rapid.IntRange(0, 1<<22).Draw(t, "pid"), Released: rapid.Bool().Draw(t, "released"),
		}
		v.ChangeID, v.Deleted = rapid.String().Draw(t, "change"), rapid.Bool().Draw(t, "deleted")
		v.Checkpoints = v.Checkpoints[:rapid.IntRange(0, 2).Draw(t, "checkpoints")]
		v.Snapshots = sampleVolumeWithSnapshots().Snapshots[:rapid.IntRange(0, 2).Draw(t, "snapshots")]
		if len(v.Snapshots) == 0 {
			v.Snapshots = nil
		}
		if rapid.Bool().Draw(t, "logged") {
			v.LocalLog = &LocalLog{
				Host: rapid.String().Draw(t, "log host"), Hostname: rapid.String().Draw(t, "log hostname"), Path: rapid.String().Draw(t, "log path"),
			}
		}
		b, err := EncodeVolume(v)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeVolume(b)
		if err != nil {
			t.Fatalf("%v:\n%s", err, b)
		}
		if !reflect.DeepEqual(got, v) {
			t.Fatalf("got %+v, want %+v", got, v)
		}
	})
}

func TestEncodeVolumeSets(t *testing.T) {
	v := sampleVolume()
	v.Format, v.Checkpoints = 0, nil
	v.Created = v.Created.In(time.FixedZone("east", 3600))
	b, err := EncodeVolume(v)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeVolume(b)
	if err != nil {
		t.Fatal(err)
	}
	if got.Format != VolumeFormat || got.Checkpoints == nil || !got.Created.Equal(v.Created) || got.Created.Location() != time.UTC {
		t.Errorf("got %+v", got)
	}
	if v.Format != 0 || v.Checkpoints != nil {
		t.Error("EncodeVolume changed its argument")
	}
}

// sealVolume frames what is between the first and the last member of a record.
func sealVolume(middle string) []byte {
	b := []byte(volumeMagic + middle)
	return fmt.Appendf(b, volumeEnd, CRC(b))
}

// volumeMiddle is what sealVolume frames, for the sample.
func volumeMiddle(t testing.TB) string {
	b, err := EncodeVolume(sampleVolume())
	if err != nil {
		t.Fatal(err)
	}
	return string(b[len(volumeMagic) : len(b)-len(fmt.Sprintf(volumeEnd, 0))])
}

func TestVolumeRules(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(v *Volume)
		want   string
	}{
		{"uuid", func(v *Volume) { v.UUID = UUID{} }, "uuid is zero"},
		{"block size", func(v *Volume) { v.BlockSize = 0 }, "block size is 0"},
		{"no size", func(v *Volume) { v.Size = 0 }, "size is 0"},
		{"negative size", func(v *Volume) { v.Size = -4096 }, "size is -4096"},
		{"uneven size", func(v *Volume) { v.Size++ }, "size is 8589934593"},
		{"too large", func(v *Volume) { v.LargestSize = (MaxBlocks + 1) * 4096 }, "largest_size is 72057594037932032"},
		{"largest", func(v *Volume) { v.LargestSize = 4096 }, "largest_size 4096 is less than"},
		{"no chunk", func(v *Volume) { v.ChunkSize = 0 }, "chunk_size is 0"},
		{"uneven chunk", func(v *Volume) { v.ChunkSize++ }, "chunk_size is 4194305"},
		{"pid", func(v *Volume) { v.Writer.PID = -1 }, "pid is -1"},
		{"checkpoint name", func(v *Volume) { v.Checkpoints[0] = "checkpoint/1" }, "checkpoint/1"},
		{"checkpoint order", func(v *Volume) { v.Checkpoints[1] = v.Checkpoints[0] }, "is not older than"},
		{"three checkpoints", func(v *Volume) { v.Checkpoints = append(v.Checkpoints, CheckpointName(1<<39, 4, 1)) }, "3 checkpoints"},
		{"snapshot name", func(v *Volume) { v.Snapshots[0].Name = "a/b" }, `"a/b" is no name of a snapshot`},
		{"snapshot name twice", func(v *Volume) { v.Snapshots[0].Name = v.Snapshots[1].Name }, "two are called 0"},
		{"snapshot directory", func(v *Volume) { v.Snapshots[0].Directory = PackName(1, 1) }, "snapshot daily.2024-05-06"},
		{"too many snapshots", func(v *Volume) { v.Snapshots = make([]Snapshot, MaxSnapshots+1) }, "4097 snapshots"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := sampleVolumeWithSnapshots()
			c.change(v)
			_, err := EncodeVolume(v)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("encode: error is %v, want ErrDamaged with %q", err, c.want)
			}
		})
	}
	for name, change := range map[string]func(v *Volume){
		"host":       func(v *Volume) { v.Writer.Host = "\xff" },
		"product":    func(v *Volume) { v.Writer.Product = "\xff" },
		"state_id":   func(v *Volume) { v.Writer.StateID = "\xff" },
		"hostname":   func(v *Volume) { v.Writer.Hostname = "\xff" },
		"state_path": func(v *Volume) { v.Writer.StatePath = "\xff" },
		"change_id":  func(v *Volume) { v.ChangeID = "\xff" },

		"local_log.host":     func(v *Volume) { v.LocalLog = &LocalLog{Host: "\xff"} },
		"local_log.hostname": func(v *Volume) { v.LocalLog = &LocalLog{Hostname: "\xff"} },
		"local_log.path":     func(v *Volume) { v.LocalLog = &LocalLog{Path: "\xff"} },
	} {
		v := sampleVolume()
		change(v)
		if _, err := EncodeVolume(v); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name+` "\xff" is not UTF-8`) {
			t.Errorf("%s not UTF-8: error is %v", name, err)
		}
	}
	v := sampleVolume()
	v.Created = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	if _, err := EncodeVolume(v); !errors.Is(err, ErrDamaged) {
		t.Errorf("year 10000: error is %v", err)
	}
	v = sampleVolume()
	v.Features = []string{"clone"}
	if _, err := EncodeVolume(v); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), `feature "clone"`) {
		t.Errorf("an unknown feature: error is %v", err)
	}
	v = sampleVolume()
	v.Writer.Hostname = strings.Repeat("x", MaxVolumeRecord)
	if _, err := EncodeVolume(v); !errors.Is(err, ErrDamaged) {
		t.Errorf("too long: error is %v", err)
	}
}

func TestDecodeVolumeRules(t *testing.T) {
	middle := volumeMiddle(t)
	if _, err := DecodeVolume(sealVolume(middle)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		old, new string
		is       error
		want     string
	}{
		{"newer", `"format": 2`, `"format": 3`, ErrVersion, "format 3, not 2"},
		{"older", `"format": 2`, `"format": 1`, ErrVersion, "format 1, not 2"},
		{"format 0", `"format": 2`, `"format": 0`, ErrDamaged, "format is 0"},
		{"format text", `"format": 2`, `"format": "2"`, ErrDamaged, "format"},
		{"no format", `"format": 2,`, ``, ErrDamaged, "format is 0"},
		{"not JSON", `"format": 2,`, `"format": 2`, ErrDamaged, "invalid character"},
		{"unknown", `"format": 2,`, `"format": 2, "parent": {},`, ErrVersion, `unknown field "parent"`},
		{"feature", `"format": 2,`, `"format": 2, "parent": {}, "features": ["clone", "other"],`, ErrVersion, `feature "clone"`},
		{"features", `"format": 2,`, `"format": 2, "features": "clone",`, ErrDamaged, "features"},
		{"unknown inside", `"pid": 4711,`, `"pid": 4711, "lease": 1,`, ErrVersion, `unknown field "lease"`},
		{"type", `"generation": 9`, `"generation": "9"`, ErrDamaged, "generation"},
		{"range", `"generation": 9`, `"generation": -9`, ErrDamaged, "generation"},
		{"uuid", `"uuid": "1`, `"uuid": "g`, ErrDamaged, "8-4-4-4-12"},
		{"nonce", `"nonce": "a`, `"nonce": "A`, ErrDamaged, "32 lower-case"},
		{"time", `"created": "2`, `"created": "x`, ErrDamaged, "time"},
		{"rule", `"block_size": 4096`, `"block_size": 4097`, ErrDamaged, "block size is 4097"},
	} {
		text := strings.Replace(middle, c.old, c.new, 1)
		if text == middle {
			t.Fatalf("%s: nothing replaced", c.name)
		}
		if _, err := DecodeVolume(sealVolume(text)); !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want %v with %q", c.name, err, c.is, c.want)
		}
	}
	for name, b := range map[string][]byte{
		"nothing": nil,
		"text":    []byte("hello"),
		"JSON":    []byte(`{"format": 1}`),
		"zeros":   make([]byte, 4096),
		"object":  AppendTail(sampleData(), sampleObject()),
	} {
		if _, err := DecodeVolume(b); !errors.Is(err, ErrMagic) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	long := sealVolume(middle + strings.Repeat(" ", MaxVolumeRecord))
	if _, err := DecodeVolume(long); !errors.Is(err, ErrDamaged) {
		t.Errorf("too long: error is %v", err)
	}
	if _, err := DecodeVolume([]byte(volumeMagic + `"format":2}`)); !errors.Is(err, ErrDamaged) {
		t.Errorf("too short for a checksum: error is %v", err)
	}
	if _, err := DecodeVolume(bytes.ReplaceAll(sealVolume(middle), []byte("\n"), []byte("\r\n"))); err == nil {
		t.Error("other line ends were accepted")
	}
}

// TestVolumeFormat1 refuses the records of the format before, by name.
func TestVolumeFormat1(t *testing.T) {
	for _, name := range []string{"volume-v1.json", "volume-log-v1.json"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeVolume(b); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "format 1") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestVolumeWithoutFeatures: an empty list is none, and is not written.
func TestVolumeWithoutFeatures(t *testing.T) {
	v, err := DecodeVolume(sealVolume(strings.Replace(volumeMiddle(t), `"format": 2,`, `"format": 2, "features": [],`, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(v, sampleVolume()) {
		t.Errorf("got %+v", v)
	}
	if strings.Contains(volumeMiddle(t), "features") {
		t.Error("no features are written as an empty list")
	}
}

// The record of a volume with the most snapshots, of the longest names, fits.
func TestMostSnapshotsFit(t *testing.T) {
	v := sampleVolume()
	for i := range MaxSnapshots {
		v.Snapshots = append(v.Snapshots, Snapshot{
			Name: fmt.Sprintf("%063d", i), Directory: SnapshotName(1<<39, sampleNonce), Created: time.Unix(1, 123456789),
		})
	}
	b, err := EncodeVolume(v)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeVolume(b); err != nil {
		t.Error(err)
	}
}

func TestSnapshotNames(t *testing.T) {
	for _, name := range []string{"a", "0", "Z9", "daily-2024-05-06", "a.b_c-d", strings.Repeat("x", 63)} {
		if err := CheckSnapshotName(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "-a", "_a", ".a", "a b", "a/b", "a@b", "a\n", "\xff", "ä", strings.Repeat("x", 64)} {
		if err := CheckSnapshotName(name); !errors.Is(err, ErrDamaged) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSnapshotKey(t *testing.T) {
	for _, s := range sampleVolumeWithSnapshots().Snapshots {
		if want := map[string]key.Key{"0": 0x1234567890}[s.Name]; want != 0 && s.Key() != want || want == 0 && s.Key() != 11 {
			t.Errorf("%s is at key %d", s.Name, s.Key())
		}
	}
}
