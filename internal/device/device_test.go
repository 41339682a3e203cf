package device

import (
	"errors"
	"slices"
	"testing"
)

func TestPieces(t *testing.T) {
	for _, test := range []struct {
		max  int64
		want []int64 // offset and length of each piece
	}{
		{0, []int64{4096, 20480}},
		{8192, []int64{4096, 8192, 12288, 8192, 20480, 4096}},
		{12000, []int64{4096, 8192, 12288, 8192, 20480, 4096}}, // pieces are whole blocks
		{1 << 30, []int64{4096, 20480}},
	} {
		var got []int64
		g := Geometry{Size: 1 << 20, BlockSize: 4096, MaxDiscard: test.max}
		err := g.Pieces(4096, 20480, func(off, n int64) error {
			got = append(got, off, n)
			return nil
		})
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("at most %d: %v, %v, want %v", test.max, got, err, test.want)
		}
	}
	failure, calls := errors.New("failed"), 0
	err := Geometry{BlockSize: 512, MaxDiscard: 512}.Pieces(0, 5120, func(int64, int64) error {
		calls++
		return failure
	})
	if !errors.Is(err, failure) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}
