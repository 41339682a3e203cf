package test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// fio writes blocks of all sizes over two connections, many requests at a time,
// and verifies them; over a third it trims and writes again.
func TestFioVerify(t *testing.T) {
	needTools(t, "fio")
	for _, store := range []string{onDir, onVersitygw} {
		t.Run(store, func(t *testing.T) {
			v := newVolume(t, store)
			d := v.start()
			report := filepath.Join(v.dir, "fio.json")
			job := func(name, offset, size, rw, depth string) []string {
				return []string{"--name=" + name, "--offset=" + offset, "--size=" + size, "--rw=" + rw, "--iodepth=" + depth}
			}
			args := []string{"--ioengine=nbd", "--uri=" + v.uri(), "--bsrange=4k-256k", "--randrepeat=0",
				"--verify=crc32c", "--verify_fatal=1", "--output-format=json", "--output=" + report}
			args = append(args, job("one", "256m", "256m", "randwrite", "16")...)
			args = append(args, job("two", "512m", "256m", "randrw", "16")...)
			// One at a time: otherwise fio sends the trim and the write of a block
			// together, and a server may do them in either order. And from offset 0:
			// elsewhere fio 3.33 forgets to write.
			args = append(args, job("trims", "0", "64m", "randtrimwrite", "1")...)
			fio := exec.Command("fio", args...)
			fio.Dir = v.dir // it leaves files behind
			if code, out, errs := run(t, fio); code != 0 {
				t.Fatalf("fio: exit code %d\n%s%s", code, out, errs)
			}
			d.stop()

			text, err := os.ReadFile(report)
			if err != nil {
				t.Fatal(err)
			}
			type count struct {
				IOs int `json:"total_ios"`
			}
			var result struct {
				Jobs []struct {
					Name              string `json:"jobname"`
					Error             int
					Read, Write, Trim count
				}
			}
			if err := json.Unmarshal(text, &result); err != nil {
				t.Fatal(err)
			}
			if len(result.Jobs) != 3 {
				t.Fatalf("fio reports %d jobs, want 3", len(result.Jobs))
			}
			for _, j := range result.Jobs {
				t.Logf("%s: %d reads, %d writes, %d trims", j.Name, j.Read.IOs, j.Write.IOs, j.Trim.IOs)
				if j.Error != 0 || j.Read.IOs == 0 || j.Write.IOs == 0 || (j.Trim.IOs > 0) != (j.Name == "trims") {
					t.Errorf("a job of fio did not do its work: %+v", j)
				}
			}
		})
	}
}

// Unaligned requests beside aligned ones lose nothing; see the script.
func TestUnalignedRequests(t *testing.T) {
	const python = "/usr/bin/python3" // Debian's python3-libnbd is for this one
	needTools(t, python)
	if exec.Command(python, "-c", "import nbd").Run() != nil {
		lack(t, "no libnbd for "+python+"; make test installs it")
	}
	for _, store := range []string{onDir, onVersitygw} {
		for _, size := range []int{512, 4096} {
			t.Run(store+"/"+strconv.Itoa(size), func(t *testing.T) {
				seed := strconv.FormatUint(uint64(rand.Uint32()), 10)
				t.Logf("seed %s", seed)
				v := newVolume(t, store).with("block_size", size)
				d := v.start()
				want := strings.TrimSpace(command(t, python, "testdata/unaligned.py", v.uri(), seed, "200"))
				d.kill()
				v.wipeState()
				d = v.start()
				got := sha256.Sum256(dial(t, v.socket).read(0, 64*blockSize))
				if hex.EncodeToString(got[:]) != want {
					t.Error("after a restart the area differs from what was flushed")
				}
				d.stop()
			})
		}
	}
}
