// Command bs3 is a daemon that gives Linux a block device whose bytes live in
// an object store, as a log of immutable objects in a bucket or a directory.
// What it does is in package cli and below; docs/ARCHITECTURE.md has the tree of
// packages and the reasons for it.
package main

import (
	"os"

	"bs3/internal/cli"
)

// version is set by the linker (Makefile).
var version = "unknown"

func main() { os.Exit(cli.Main(version, os.Args[1:])) }
