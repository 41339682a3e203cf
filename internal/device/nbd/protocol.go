package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The names, numbers and layouts of this file are those of doc/proto.md of
// the NBD project. Everything on the wire is big-endian.

// Magic numbers.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, of the server and in the client's answer.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags.
const (
	flagHasFlags        = 1 << 0
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6
	flagSendDF          = 1 << 7
	flagMultiConn       = 1 << 8
	flagSendFastZero    = 1 << 11
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Replies to options.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repErrUnsup    = 1<<31 + 1
	repErrPolicy   = 1<<31 + 2
	repErrInvalid  = 1<<31 + 3
	repErrUnknown  = 1<<31 + 6
)

// Kinds of information about an export.
const (
	infoExport    = 0
	infoName      = 1
	infoBlockSize = 3
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Command flags.
const (
	cmdFlagFUA      = 1 << 0
	cmdFlagNoHole   = 1 << 1
	cmdFlagDF       = 1 << 2
	cmdFlagReqOne   = 1 << 3
	cmdFlagFastZero = 1 << 4
)

// Structured replies: the only flag, the types of chunks, and the states of the
// base:allocation context.
const (
	replyFlagDone = 1 << 0

	chunkNone        = 0
	chunkOffsetData  = 1
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1

	stateHole = 1 << 0
	stateZero = 1 << 1
)

// errno is an error of the protocol; 0 is success.
type errno uint32

const (
	errnoPERM     errno = 1
	errnoIO       errno = 5
	errnoINVAL    errno = 22
	errnoNOSPC    errno = 28
	errnoNOTSUP   errno = 95
	errnoSHUTDOWN errno = 108
)

// Sizes on the wire, in bytes.
const (
	requestSize   = 28
	simpleSize    = 16
	chunkSize     = 20
	offsetSize    = 8 // of the offset that precedes the data of a read
	optionSize    = 16
	descriptorLen = 8
)

// Bounds on what a client may send, in bytes.
const (
	maxRequest = 32 << 20 // payload of a read or write; the maximum block size we advertise
	maxDropped = 64 << 20 // payload of a refused write that is read and dropped; above it the connection is closed
	maxOption  = 64 << 10 // data of an option
	maxName    = 4096     // an export name or a query, as the protocol says
	maxWaiting = 128      // requests waiting on one connection
	maxStatus  = 8 << 10  // extents in one reply to a block status request: 64 KiB
)

var errProtocol = errors.New("client broke the protocol")

// request is the header of a request of the transmission phase.
type request struct {
	flags  uint16
	cmd    uint16
	cookie uint64
	off    uint64 // bytes
	length uint32 // bytes
}

// parseRequest decodes the requestSize bytes of a request's header. A wrong magic
// number means that the stream is out of step for good.
func parseRequest(b []byte) (request, error) {
	_ = b[requestSize-1]
	if m := binary.BigEndian.Uint32(b); m != magicRequest {
		return request{}, fmt.Errorf("%w: request magic %#x", errProtocol, m)
	}
	return request{
		flags:  binary.BigEndian.Uint16(b[4:]),
		cmd:    binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		off:    binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint32(b[24:]),
	}, nil
}

// parseOption decodes the optionSize bytes of an option's header.
func parseOption(b []byte) (option, length uint32, err error) {
	_ = b[optionSize-1]
	if m := binary.BigEndian.Uint64(b); m != magicOption {
		return 0, 0, fmt.Errorf("%w: option magic %#x", errProtocol, m)
	}
	option, length = binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
	if length > maxOption {
		return 0, 0, fmt.Errorf("%w: option %d of %d bytes, at most %d are allowed", errProtocol, option, length, maxOption)
	}
	return option, length, nil
}

// errOption: the data of an option is not as the protocol describes it. The client
// gets an error reply and may continue.
var errOption = errors.New("malformed option")

// parseInfo decodes the data of NBD_OPT_INFO and NBD_OPT_GO:
//
//	32 bits length of the name, the name, 16 bits count, 16 bits for each kind
func parseInfo(b []byte) (name string, kinds []uint16, err error) {
	name, b, err = takeString(b)
	if err != nil {
		return "", nil, err
	}
	if len(b) < 2 || len(b) != 2+2*int(binary.BigEndian.Uint16(b)) {
		return "", nil, fmt.Errorf("%w: the count of information requests does not fit", errOption)
	}
	for b = b[2:]; len(b) > 0; b = b[2:] {
		kinds = append(kinds, binary.BigEndian.Uint16(b))
	}
	return name, kinds, nil
}

// parseMeta decodes the data of NBD_OPT_LIST_META_CONTEXT and
// NBD_OPT_SET_META_CONTEXT:
//
//	32 bits length of the name, the name, 32 bits count, then each query as
//	32 bits length and the query
func parseMeta(b []byte) (name string, queries []string, err error) {
	name, b, err = takeString(b)
	if err != nil {
		return "", nil, err
	}
	if len(b) < 4 {
		return "", nil, fmt.Errorf("%w: the count of queries is missing", errOption)
	}
	count := binary.BigEndian.Uint32(b)
	b = b[4:]
	if int64(count)*4 > int64(len(b)) {
		return "", nil, fmt.Errorf("%w: %d queries in %d bytes", errOption, count, len(b))
	}
	for range count {
		var q string
		if q, b, err = takeString(b); err != nil {
			return "", nil, err
		}
		queries = append(queries, q)
	}
	if len(b) != 0 {
		return "", nil, fmt.Errorf("%w: %d bytes too many", errOption, len(b))
	}
	return name, queries, nil
}

// takeString splits off b a string that its length in 32 bits precedes.
func takeString(b []byte) (s string, rest []byte, err error) {
	if len(b) < 4 {
		return "", nil, fmt.Errorf("%w: the length of a string is missing", errOption)
	}
	n := int64(binary.BigEndian.Uint32(b))
	b = b[4:]
	if n > int64(len(b)) {
		return "", nil, fmt.Errorf("%w: a string of %d bytes in %d", errOption, n, len(b))
	}
	if n > maxName {
		return "", nil, fmt.Errorf("%w: a string of %d bytes, at most %d are allowed", errOption, n, maxName)
	}
	return string(b[:n]), b[n:], nil
}

// appendOptReply appends the reply to an option, with its data.
func appendOptReply(b []byte, option, reply uint32, data ...byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, reply)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendSimple appends a simple reply.
func appendSimple(b []byte, cookie uint64, e errno) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// appendChunk appends the header of the only chunk of a reply; length bytes of
// payload have to follow.
func appendChunk(b []byte, cookie uint64, kind uint16, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, magicStructured)
	b = binary.BigEndian.AppendUint16(b, replyFlagDone)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// appendErrorChunk appends a chunk that says what went wrong.
func appendErrorChunk(b []byte, cookie uint64, e errno, message string) []byte {
	message = message[:min(len(message), maxName)]
	b = appendChunk(b, cookie, chunkError, 6+len(message))
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	return append(b, message...)
}
