package reader

import (
	"bs3/internal/bs3/era"
	"bs3/internal/bs3/key"
	"bs3/internal/bs3/layout"
	"bs3/internal/bs3/mapproxy"
)

// Stored returns the Memory of a volume that nobody writes: the store has all of it.
// maps must not change any more.
func Stored(maps *mapproxy.Proxy) Memory { return stored{maps} }

type stored struct{ maps *mapproxy.Proxy }

func (stored) Enter() era.Visit                  { return era.Visit{} }
func (stored) Leave(era.Visit)                   {}
func (stored) Read([]byte, layout.Location) bool { return false }
func (stored) Has(layout.Location) bool          { return false }

func (s stored) Object(k key.Key) layout.ObjectInfo {
	info, _ := s.maps.Object(k)
	return info
}
