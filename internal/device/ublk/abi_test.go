package ublk

import (
	"testing"
	"unsafe"

	"bs3/internal/device"
)

// Sizes and offsets as a C compiler has them for linux/ublk_cmd.h and
// linux/io_uring.h of Linux 6.12.
func TestLayout(t *testing.T) {
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"ublksrv_ctrl_cmd", unsafe.Sizeof(ctrlCmd{}), 32},
		{"ublksrv_ctrl_cmd.queue_id", unsafe.Offsetof(ctrlCmd{}.queueID), 4},
		{"ublksrv_ctrl_cmd.len", unsafe.Offsetof(ctrlCmd{}.len), 6},
		{"ublksrv_ctrl_cmd.addr", unsafe.Offsetof(ctrlCmd{}.addr), 8},
		{"ublksrv_ctrl_cmd.data", unsafe.Offsetof(ctrlCmd{}.data), 16},

		{"ublksrv_ctrl_dev_info", unsafe.Sizeof(devInfo{}), 64},
		{"ublksrv_ctrl_dev_info.state", unsafe.Offsetof(devInfo{}.state), 4},
		{"ublksrv_ctrl_dev_info.max_io_buf_bytes", unsafe.Offsetof(devInfo{}.maxIOBytes), 8},
		{"ublksrv_ctrl_dev_info.dev_id", unsafe.Offsetof(devInfo{}.id), 12},
		{"ublksrv_ctrl_dev_info.ublksrv_pid", unsafe.Offsetof(devInfo{}.pid), 16},
		{"ublksrv_ctrl_dev_info.flags", unsafe.Offsetof(devInfo{}.flags), 24},
		{"ublksrv_ctrl_dev_info.ublksrv_flags", unsafe.Offsetof(devInfo{}.serverFlags), 32},

		{"ublksrv_io_desc", unsafe.Sizeof(ioDesc{}), 24},
		{"ublksrv_io_desc.nr_sectors", unsafe.Offsetof(ioDesc{}.sectors512), 4},
		{"ublksrv_io_desc.start_sector", unsafe.Offsetof(ioDesc{}.startSector512), 8},
		{"ublksrv_io_desc.addr", unsafe.Offsetof(ioDesc{}.addr), 16},

		{"ublksrv_io_cmd", unsafe.Sizeof(ioCmd{}), 16},
		{"ublksrv_io_cmd.tag", unsafe.Offsetof(ioCmd{}.tag), 2},
		{"ublksrv_io_cmd.result", unsafe.Offsetof(ioCmd{}.result), 4},
		{"ublksrv_io_cmd.addr", unsafe.Offsetof(ioCmd{}.addr), 8},

		{"ublk_param_basic", unsafe.Sizeof(paramBasic{}), 32},
		{"ublk_param_basic.logical_bs_shift", unsafe.Offsetof(paramBasic{}.logicalShift), 4},
		{"ublk_param_basic.io_opt_shift", unsafe.Offsetof(paramBasic{}.ioOptShift), 6},
		{"ublk_param_basic.io_min_shift", unsafe.Offsetof(paramBasic{}.ioMinShift), 7},
		{"ublk_param_basic.max_sectors", unsafe.Offsetof(paramBasic{}.maxSectors512), 8},
		{"ublk_param_basic.dev_sectors", unsafe.Offsetof(paramBasic{}.devSectors512), 16},
		{"ublk_param_discard", unsafe.Sizeof(paramDiscard{}), 20},
		{"ublk_param_discard.max_discard_sectors", unsafe.Offsetof(paramDiscard{}.maxSectors512), 8},
		{"ublk_param_discard.max_write_zeroes_sectors", unsafe.Offsetof(paramDiscard{}.maxWriteZeroes512), 12},
		{"ublk_param_discard.max_discard_segments", unsafe.Offsetof(paramDiscard{}.maxSegments), 16},
		{"ublk_params", unsafe.Sizeof(params{}), 64}, // Linux 6.0; it has grown at its end since
		{"ublk_params.basic", unsafe.Offsetof(params{}.basic), 8},
		{"ublk_params.discard", unsafe.Offsetof(params{}.discard), 40},

		{"io_uring_sqe", unsafe.Sizeof(sqe{}), 128},
		{"io_uring_sqe.fd", unsafe.Offsetof(sqe{}.fd), 4},
		{"io_uring_sqe.cmd_op", unsafe.Offsetof(sqe{}.cmdOp), 8},
		{"io_uring_sqe.addr", unsafe.Offsetof(sqe{}.addr), 16},
		{"io_uring_sqe.len", unsafe.Offsetof(sqe{}.len), 24},
		{"io_uring_sqe.poll32_events", unsafe.Offsetof(sqe{}.pollEvents), 28},
		{"io_uring_sqe.user_data", unsafe.Offsetof(sqe{}.userData), 32},
		{"io_uring_sqe.cmd", unsafe.Offsetof(sqe{}.cmd), 48},
		{"io_uring_cqe", unsafe.Sizeof(cqe{}), 16},
		{"io_uring_cqe.res", unsafe.Offsetof(cqe{}.res), 8},
		{"io_uring_params", unsafe.Sizeof(uringParams{}), 120},
		{"io_uring_params.features", unsafe.Offsetof(uringParams{}.features), 20},
		{"io_uring_params.sq_off", unsafe.Offsetof(uringParams{}.sq), 40},
		{"io_sqring_offsets.array", unsafe.Offsetof(sqOffsets{}.array), 24},
		{"io_uring_params.cq_off", unsafe.Offsetof(uringParams{}.cq), 80},
		{"io_cqring_offsets.cqes", unsafe.Offsetof(cqOffsets{}.cqes), 20},
		{"io_uring_getevents_arg", unsafe.Sizeof(geteventsArg{}), 24},
		{"io_uring_getevents_arg.ts", unsafe.Offsetof(geteventsArg{}.timeout), 16},
		{"__kernel_timespec", unsafe.Sizeof(timespec{}), 16},
	} {
		if c.got != c.want {
			t.Errorf("%s is at, or has, %d bytes, want %d", c.name, c.got, c.want)
		}
	}
}

// The values of the header's UBLK_U_* macros.
func TestEncode(t *testing.T) {
	for nr, want := range map[uint32]uint32{
		cmdGetDevInfo:        0x80207502,
		cmdAddDev:            0xc0207504,
		cmdDelDev:            0xc0207505,
		cmdStartDev:          0xc0207506,
		cmdStopDev:           0xc0207507,
		cmdSetParams:         0xc0207508,
		cmdGetParams:         0x80207509,
		cmdStartUserRecovery: 0xc0207510,
		cmdEndUserRecovery:   0xc0207511,
		cmdGetFeatures:       0x80207513,
		cmdDelDevAsync:       0x80207514,
		ioFetchReq:           0xc0107520,
		ioCommitAndFetchReq:  0xc0107521,
		ioNeedGetData:        0xc0107522,
	} {
		if got := encode(nr); got != want {
			t.Errorf("command %#x is encoded as %#x, want %#x", nr, got, want)
		}
	}
}

func TestDataOffset(t *testing.T) {
	for _, c := range []struct {
		queue, tag uint16
		want       int64
	}{
		{0, 0, 0x80000000},
		{0, 1, 0x80000000 + 32<<20},
		{0, 4095, 0x80000000 + 4095*32<<20},
		{1, 0, 0x80000000 + 2<<40},
		{3, 7, 0x80000000 + 3*2<<40 + 7*32<<20},
	} {
		if got := dataOffset(c.queue, c.tag); got != c.want {
			t.Errorf("queue %d tag %d: %#x, want %#x", c.queue, c.tag, got, c.want)
		}
	}
	if descriptorArea != 98304 {
		t.Errorf("the descriptors of a queue are %d bytes apart, want UBLK_MAX_QUEUE_DEPTH of them", descriptorArea)
	}
}

func TestParams(t *testing.T) {
	p := newParams(device.Geometry{Size: 10 << 30, BlockSize: 4096, IOMin: 8192, IOOpt: 3 << 20, MaxDiscard: 64 << 20})
	want := params{
		len: 64, types: 3,
		basic: paramBasic{
			attrs: 4 | 8, logicalShift: 12, physicalShift: 12, ioMinShift: 13, ioOptShift: 21,
			maxSectors512: 2048, devSectors512: 20 << 20,
		},
		discard: paramDiscard{granularity: 4096, maxSectors512: 128 << 10, maxWriteZeroes512: 128 << 10, maxSegments: 1},
	}
	if p != want {
		t.Errorf("got  %+v\nwant %+v", p, want)
	}

	p = newParams(device.Geometry{Size: 1 << 20, BlockSize: 512, ReadOnly: true})
	want = params{
		len: 64, types: 3,
		basic: paramBasic{
			attrs: 1, logicalShift: 9, physicalShift: 9, ioMinShift: 9, ioOptShift: 9,
			maxSectors512: 2048, devSectors512: 2048,
		},
		discard: paramDiscard{granularity: 512, maxSegments: 1},
	}
	if p != want {
		t.Errorf("read-only: got  %+v\nwant %+v", p, want)
	}

	p = newParams(device.Geometry{Size: 1 << 40, BlockSize: 512})
	if p.discard.maxSectors512 != 4<<20 {
		t.Errorf("without a limit: %d sectors to discard at once, want 2 GiB", p.discard.maxSectors512)
	}
}

func TestFits(t *testing.T) {
	g := device.Geometry{Size: 1 << 30, BlockSize: 4096, MaxDiscard: 1 << 20}
	for _, c := range []struct {
		name   string
		change func(*device.Geometry)
		want   bool
	}{
		{"same", func(*device.Geometry) {}, true},
		{"other hint", func(g *device.Geometry) { g.IOOpt = 1 << 20 }, true},
		{"larger discards", func(g *device.Geometry) { g.MaxDiscard = 2 << 20 }, true},
		{"smaller discards", func(g *device.Geometry) { g.MaxDiscard = 1 << 19 }, false},
		{"grown", func(g *device.Geometry) { g.Size *= 2 }, false},
		{"other blocks", func(g *device.Geometry) { g.BlockSize = 512 }, false},
		{"read-only", func(g *device.Geometry) { g.ReadOnly = true }, false},
	} {
		now := g
		c.change(&now)
		if got := newParams(g).fits(now); got != c.want {
			t.Errorf("%s: fits is %v, want %v", c.name, got, c.want)
		}
	}
}
