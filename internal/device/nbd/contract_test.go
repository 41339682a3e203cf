package nbd

import (
	"testing"

	"bs3/internal/device"
	"bs3/internal/device/devtest"
)

// slow hides device.Fast, so that every request takes the path of one that may wait.
type slow struct{ device.Volume }

func TestContract(t *testing.T) {
	g := device.Geometry{Size: 8 << 20, BlockSize: 4096}
	for name, test := range map[string]struct {
		geometry device.Geometry
		slow     bool
		opts     Options
		client   clientOptions
	}{
		"Unix":          {geometry: g},
		"TCP":           {geometry: g, opts: Options{Network: "tcp", Address: "127.0.0.1:0"}},
		"SimpleReplies": {geometry: g, client: clientOptions{simple: true}},
		"Block512":      {geometry: device.Geometry{Size: 1 << 20, BlockSize: 512}},
		"MaxDiscard":    {geometry: device.Geometry{Size: 8 << 20, BlockSize: 4096, MaxDiscard: 5 * 4096}},
		"WithoutFast":   {geometry: g, slow: true},
		"InParts":       {geometry: g, slow: true, opts: scarce(), client: clientOptions{parts: true}},
	} {
		t.Run(name, func(t *testing.T) {
			devtest.Run(t, func(t *testing.T) device.Volume {
				var vol device.Volume = devtest.NewMemory(test.geometry)
				if test.slow {
					vol = slow{vol}
				}
				c := dial(t, startServer(t, vol, test.opts), test.client)
				if !c.structured || test.slow {
					return struct{ device.Volume }{c} // no block status to ask
				}
				return c
			})
		})
	}
}

// Two connections show one device.
func TestConnectionsShareTheVolume(t *testing.T) {
	s := startServer(t, devtest.NewMemory(device.Geometry{Size: 1 << 20, BlockSize: 4096}), Options{})
	a, b := dial(t, s, clientOptions{}), dial(t, s, clientOptions{simple: true})
	if a.flags&flagMultiConn == 0 {
		t.Error("multi-conn is not advertised")
	}
	a.mustWrite(100, []byte("written on one connection"))
	if got := string(b.mustRead(100, 25)); got != "written on one connection" {
		t.Errorf("the other connection reads %q", got)
	}
	a.halfClose()
	a.awaitEnd()
	if got := string(b.mustRead(108, 2)); got != "on" {
		t.Errorf("after the first has ended the other reads %q", got)
	}
}
