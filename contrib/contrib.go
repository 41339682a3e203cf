// Package contrib holds what ships beside the program.
package contrib

import _ "embed"

// LocalName is the file name of the configuration that Local returns.
const LocalName = "local.toml"

//go:embed local.toml
var local []byte

// Local returns a copy of the configuration for trying bs3 in the current
// directory.
func Local() []byte { return append([]byte(nil), local...) }
