//go:build race

package bs3

// simDefault is how many seeds a plain `go test` runs.
const simDefault = 40
