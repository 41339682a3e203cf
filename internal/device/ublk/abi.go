package ublk

import "unsafe"

// What follows is Linux' ABI, from linux/ublk_cmd.h (up to Linux 6.12; the names
// are those of the header, shortened). The tests pin sizes and offsets. Integers
// have the byte order of the machine.

// The numbers of the control commands, given to /dev/ublk-control.
const (
	cmdGetDevInfo        = 0x02
	cmdAddDev            = 0x04
	cmdDelDev            = 0x05
	cmdStartDev          = 0x06
	cmdStopDev           = 0x07
	cmdSetParams         = 0x08
	cmdGetParams         = 0x09
	cmdStartUserRecovery = 0x10
	cmdEndUserRecovery   = 0x11
	cmdGetFeatures       = 0x13 // Linux 6.5; has no number without encoding
	cmdDelDevAsync       = 0x14 // Linux 6.9; likewise
)

// The numbers of the commands of a queue, given to /dev/ublkcN.
const (
	ioFetchReq          = 0x20
	ioCommitAndFetchReq = 0x21
	ioNeedGetData       = 0x22
)

// What a command of a queue completes with. Negative values are errors.
const (
	resOK          = 0
	resNeedGetData = 1
)

const (
	maxQueues     = 4096
	maxQueueDepth = 4096
	// The descriptors of queue q are mapped at offset q*descriptorArea of the
	// character device.
	descriptorArea = maxQueueDepth * int64(unsafe.Sizeof(ioDesc{}))
	// With flagUserCopy the data of a request is read and written at offsets of
	// the character device that name queue and tag, see dataOffset.
	ioBufOffset = 0x80000000
	ioBufBits   = 25 // so a request has at most 32 MiB
	tagBits     = 16
)

// UBLK_F_*: features of the driver and of a device.
const (
	flagNeedGetData         = 1 << 2
	flagUserRecovery        = 1 << 3 // Linux 6.1
	flagUserRecoveryReissue = 1 << 4
	flagUserCopy            = 1 << 7 // Linux 6.5
)

// UBLK_S_*: states of a device.
const (
	stateDead     = 0 // not started, or stopped
	stateLive     = 1
	stateQuiesced = 2 // its server died, its requests wait
)

// UBLK_IO_OP_*, in the low 8 bits of ioDesc.opFlags, and the one flag above them
// that matters to us.
const (
	opRead        = 0
	opWrite       = 1
	opFlush       = 2
	opDiscard     = 3
	opWriteZeroes = 5

	ioFlagFUA = 1 << 13
)

// UBLK_PARAM_TYPE_* and UBLK_ATTR_*.
const (
	paramTypeBasic   = 1 << 0
	paramTypeDiscard = 1 << 1

	attrReadOnly      = 1 << 0
	attrVolatileCache = 1 << 2
	attrFUA           = 1 << 3
)

// ctrlCmd is struct ublksrv_ctrl_cmd.
type ctrlCmd struct {
	devID   uint32
	queueID uint16 // noQueue
	len     uint16 // of the data at addr
	addr    uint64
	data    [2]uint64
}

const (
	noQueue = ^uint16(0)
	anyID   = ^uint32(0) // in cmdAddDev: the lowest free
)

// devInfo is struct ublksrv_ctrl_dev_info.
type devInfo struct {
	queues      uint16
	depth       uint16
	state       uint16
	_           uint16
	maxIOBytes  uint32
	id          uint32
	pid         int32 // of its server, as the server reported it
	_           uint32
	flags       uint64
	serverFlags uint64    // for the server; the kernel only keeps them
	_           [2]uint32 // uid and gid of its owner
	_           [2]uint64
}

// ioDesc is struct ublksrv_io_desc: a request, in memory shared with the kernel.
type ioDesc struct {
	opFlags        uint32
	sectors512     uint32
	startSector512 uint64
	addr           uint64
}

// ioCmd is struct ublksrv_io_cmd.
type ioCmd struct {
	queue  uint16
	tag    uint16
	result int32
	addr   uint64
}

// paramBasic is struct ublk_param_basic.
type paramBasic struct {
	attrs         uint32
	logicalShift  uint8
	physicalShift uint8
	ioOptShift    uint8
	ioMinShift    uint8
	maxSectors512 uint32
	_             uint32 // chunk_sectors, for zones
	devSectors512 uint64
	_             uint64 // virt_boundary_mask
}

// paramDiscard is struct ublk_param_discard. granularity is bytes.
type paramDiscard struct {
	_                 uint32 // discard_alignment
	granularity       uint32
	maxSectors512     uint32
	maxWriteZeroes512 uint32
	maxSegments       uint16
	_                 uint16
}

// params is struct ublk_params as of Linux 6.0. The kernel observes len.
type params struct {
	len     uint32
	types   uint32
	basic   paramBasic
	discard paramDiscard
	_       uint32
}

// encode returns the operation code of command nr in the encoding of ioctl
// numbers, which newer drivers require and those before Linux 6.4 do not know.
// ioctl.h: direction in bits 30-31 (2 = the server reads), size of the
// argument from bit 16, type from bit 8, number.
func encode(nr uint32) uint32 {
	const write, read = 1, 2
	dir, size := uint32(read|write), uint32(unsafe.Sizeof(ctrlCmd{}))
	switch nr {
	case cmdGetDevInfo, cmdGetParams, cmdGetFeatures, cmdDelDevAsync:
		dir = read
	case ioFetchReq, ioCommitAndFetchReq, ioNeedGetData:
		size = uint32(unsafe.Sizeof(ioCmd{}))
	}
	return dir<<30 | size<<16 | 'u'<<8 | nr
}

// dataOffset returns where the data of a request begins in the character device.
func dataOffset(queue, tag uint16) int64 {
	return ioBufOffset + int64(queue)<<(ioBufBits+tagBits) + int64(tag)<<ioBufBits
}
