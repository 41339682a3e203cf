// Command bs3 is a daemon that gives Linux a block device whose bytes live in
// an object store. It keeps the device as a log of immutable objects in a
// bucket or a directory, and serves it over NBD.
//
// The tree, in the order of who calls whom:
//
//	main.go                 this; nothing but the call of internal/cli
//	internal/cli            the commands, and the wiring of everything below
//	internal/config         the configuration file and the environment
//	internal/control        the socket on which a running daemon is spoken to
//	internal/listen         sockets, with the manners that unix sockets need
//	internal/systemd        what the service manager is told
//	internal/device         what a transport serves; below it the transports
//	  nbd                   the NBD server
//	  devtest               a volume in memory and the tests every volume must pass
//	internal/null           the volume that does nothing, correctly
//	internal/bs3            the engine: write, read, flush, open, close
//	  key                   the numbers and names of objects
//	  layout                every byte that reaches a store or a file
//	  mapproxy              the map from blocks to where they are
//	  objproxy              the way to the store; below it the stores: s3, dir
//	  wlog                  chunk memory, which outlives the daemon
//	contrib                 what ships beside the program
//	test                    the whole daemon with real clients
//
// docs/ARCHITECTURE.md says why it is so.
package main

import (
	"os"

	"bs3/internal/cli"
)

// version is set by the linker (Makefile).
var version = "unknown"

func main() { os.Exit(cli.Main(version, os.Args[1:])) }
