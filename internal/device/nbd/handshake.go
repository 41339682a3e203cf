package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// The only metadata context, base:allocation, and its number.
const (
	contextID   = 1
	contextBase = "base:"
	contextName = "base:allocation"
)

// errAborted ends a connection whose client aborted the handshake.
var errAborted = errors.New("client aborted the handshake")

// handshake negotiates until the client chooses the export (nil) or the connection
// has to end (an error). Reading the next option sends the replies, see Read.
func (c *conn) handshake() error {
	if err := c.nc.SetDeadline(time.Now().Add(c.srv.opts.HandshakeTimeout)); err != nil {
		return err
	}
	if c.stopping.Load() {
		return errStopping // the deadline may have replaced the one that stop sets
	}
	c.out = binary.BigEndian.AppendUint64(c.out, magicServer)
	c.out = binary.BigEndian.AppendUint64(c.out, magicOption)
	c.out = binary.BigEndian.AppendUint16(c.out, flagFixedNewstyle|flagNoZeroes)
	b, err := c.r.Peek(4)
	if err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(b)
	c.skip(4)
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("%w: client flags %#x", errProtocol, flags)
	}
	for {
		b, err := c.r.Peek(optionSize)
		if err != nil {
			return err
		}
		option, length, err := parseOption(b)
		if err != nil {
			return err
		}
		c.skip(optionSize)
		data, err := c.r.Peek(int(length)) // fits: the buffer holds maxOption
		if err != nil {
			return err
		}
		done, err := c.option(option, data, flags&flagNoZeroes != 0)
		if err != nil {
			return err
		}
		c.skip(int(length))
		if done {
			return c.nc.SetDeadline(time.Time{})
		}
		if len(c.out) > maxOption {
			c.flush(nil)
		}
	}
}

// option answers one option. It reports whether the transmission phase begins.
func (c *conn) option(option uint32, data []byte, noZeroes bool) (done bool, err error) {
	switch option {
	case optExportName:
		// The only option that has no error reply.
		if name := string(data); !c.srv.exports(name) {
			return false, fmt.Errorf("client asked for unknown export %.64q", name)
		}
		if err := c.srv.admit(c); err != nil {
			return false, err
		}
		c.out = c.appendExport(c.out)
		if !noZeroes {
			c.out = append(c.out, make([]byte, 124)...)
		}
		c.choose(string(data))
		return true, nil
	case optAbort:
		c.reply(option, repAck)
		return false, errAborted
	case optList:
		if len(data) != 0 {
			c.refuse(option, repErrInvalid, "NBD_OPT_LIST takes no data")
			return false, nil
		}
		name := c.srv.opts.ExportName
		c.reply(option, repServer, append(binary.BigEndian.AppendUint32(nil, uint32(len(name))), name...)...)
		c.reply(option, repAck)
		return false, nil
	case optInfo, optGo:
		return c.info(option, data), nil
	case optStructuredReply:
		if len(data) != 0 {
			c.refuse(option, repErrInvalid, "NBD_OPT_STRUCTURED_REPLY takes no data")
			return false, nil
		}
		c.structured = true
		c.reply(option, repAck)
		return false, nil
	case optListMetaContext, optSetMetaContext:
		c.meta(option, data)
		return false, nil
	default:
		c.refuse(option, repErrUnsup, "option is not supported")
		return false, nil
	}
}

// info answers NBD_OPT_INFO and NBD_OPT_GO, and reports whether to go.
func (c *conn) info(option uint32, data []byte) bool {
	name, kinds, err := parseInfo(data)
	if err != nil {
		c.refuse(option, repErrInvalid, err.Error())
		return false
	}
	if !c.srv.exports(name) {
		c.refuse(option, repErrUnknown, "no such export")
		return false
	}
	if option == optGo {
		if err := c.srv.admit(c); err != nil {
			c.refuse(option, repErrPolicy, err.Error())
			return false
		}
	}
	c.reply(option, repInfo, c.appendExport(binary.BigEndian.AppendUint16(nil, infoExport))...)
	told := make(map[uint16]bool)
	for _, kind := range kinds {
		if told[kind] {
			continue
		}
		told[kind] = true
		b := binary.BigEndian.AppendUint16(nil, kind)
		switch kind {
		case infoName:
			c.reply(option, repInfo, append(b, name...)...)
		case infoBlockSize:
			b = binary.BigEndian.AppendUint32(b, 1)
			b = binary.BigEndian.AppendUint32(b, c.srv.preferredBlockSize())
			b = binary.BigEndian.AppendUint32(b, maxRequest)
			c.reply(option, repInfo, b...)
		}
	}
	c.reply(option, repAck)
	if option == optGo {
		c.choose(name)
	}
	return option == optGo
}

// meta answers NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
func (c *conn) meta(option uint32, data []byte) {
	if option == optSetMetaContext {
		c.status = false // even if it fails, it forgets the previous selection
	}
	name, queries, err := parseMeta(data)
	switch {
	case err != nil:
		c.refuse(option, repErrInvalid, err.Error())
		return
	case !c.structured:
		c.refuse(option, repErrInvalid, "structured replies have to be negotiated first")
		return
	case !c.srv.exports(name):
		c.refuse(option, repErrUnknown, "no such export")
		return
	}
	match := option == optListMetaContext && len(queries) == 0
	for _, q := range queries {
		if !strings.Contains(q, ":") {
			c.refuse(option, repErrInvalid, "a query begins with a namespace and a colon")
			return
		}
		match = match || q == contextName || option == optListMetaContext && q == contextBase
	}
	if match && c.srv.alloc != nil {
		id := uint32(0) // means nothing in a list
		if option == optSetMetaContext {
			id = contextID
			c.status, c.statusOf = true, name
		}
		c.reply(option, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), contextName...)...)
	}
	c.reply(option, repAck)
}

// choose takes the export name that the client chose. A metadata context that was
// selected for another name is dropped: the protocol ties them together.
func (c *conn) choose(name string) {
	if c.statusOf != name {
		c.status = false
	}
}

// reply appends a reply to an option.
func (c *conn) reply(option, kind uint32, data ...byte) {
	c.out = appendOptReply(c.out, option, kind, data...)
}

// refuse appends an error reply to an option, with a reason for humans.
func (c *conn) refuse(option, kind uint32, why string) {
	c.reply(option, kind, []byte(why)...)
}

// appendExport appends size and transmission flags.
func (c *conn) appendExport(b []byte) []byte {
	g, flags := c.srv.geometry, c.srv.flags()
	if c.structured {
		flags |= flagSendDF
	}
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint64(b, uint64(g.Size)), flags)
}

// flags returns the transmission flags that need no structured replies.
func (s *Server) flags() uint16 {
	flags := uint16(flagHasFlags | flagSendFlush | flagSendFUA | flagMultiConn)
	if s.geometry.ReadOnly {
		return flags | flagReadOnly
	}
	return flags | flagSendTrim | flagSendWriteZeroes | flagSendFastZero
}

// exports reports whether a client may ask for name.
func (s *Server) exports(name string) bool { return name == "" || name == s.opts.ExportName }

// preferredBlockSize returns the size that the volume prefers or, unless that is a
// usable power of two, the block size, in bytes.
func (s *Server) preferredBlockSize() uint32 {
	p := s.geometry.IOMin
	if p < s.geometry.BlockSize || p > maxRequest || bits.OnesCount(uint(p)) != 1 {
		p = s.geometry.BlockSize
	}
	return uint32(p)
}
