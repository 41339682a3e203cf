// Package contrib holds what ships beside the program.
package contrib

import _ "embed"

// LocalName is the file name of the local configuration.
const LocalName = "local.toml"

//go:embed local.toml
var local []byte

// Local is the configuration for trying bs3 in the current directory. The
// caller gets its own copy.
func Local() []byte { return append([]byte(nil), local...) }
