// Package config is the configuration of the daemon: what can be set, where it
// is read from and what is allowed. It is the only package that knows TOML and
// environment variables; what it returns is a plain value.
//
// Values come from these places, of which later ones win: Default, a TOML file,
// for secrets the credentials of a systemd unit, the environment. Everything that
// is wrong is collected in one *Error, so that a user corrects a configuration
// once and not once per mistake.
package config

import (
	"encoding/base64"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// DefaultPath is the file that is read if none is named. It need not exist.
const DefaultPath = "/etc/bs3/config.toml"

// GB and MB mean this in the configuration.
const (
	GB = 1 << 30 // bytes
	MB = 1 << 20 // bytes
)

// Values of the keys that are choices.
const (
	StoreS3  = "s3"
	StoreDir = "dir"

	TransportAuto = "auto"
	TransportBUSE = "buse"
	TransportUblk = "ublk"
	TransportNBD  = "nbd"

	TakeoverRefuse = "refuse"
	TakeoverAuto   = "auto"

	ChecksumsWhenRequired  = "when_required"
	ChecksumsWhenSupported = "when_supported"

	SignPayloadAuto   = "auto"
	SignPayloadAlways = "always"
	SignPayloadNever  = "never"

	PathStyleAuto   = "auto"
	PathStyleAlways = "always"
	PathStyleNever  = "never"

	WholeObjectsAuto = "auto"
	WholeObjectsOff  = "off"

	SSENone = ""
	SSEAES  = "AES256"
	SSEKMS  = "aws:kms"
)

// Stores lists the values of the key store.
func Stores() []string { return []string{StoreS3, StoreDir} }

// Transports lists the values of the key transport but for TransportAuto.
func Transports() []string { return []string{TransportBUSE, TransportUblk, TransportNBD} }

// Config holds every key in the unit of the file. This package reads the tags:
// toml and env name the key and its variable, env-description is its line in the
// help, and later names the part of bs3 that is still missing for the key: such a
// key is refused if it is set to anything but its default.
type Config struct {
	// Name is the base name of the file without its extension. It names the
	// default state directory and the NBD export.
	Name string `toml:"-"`
	// ForgetLocalLog is not a key; it is for one start. The volume is opened even if
	// a local log that is not here may hold flushed writes.
	ForgetLocalLog bool `toml:"-"`
	// Snapshot is not a key either: the name of a snapshot of the volume, which is
	// served instead of it. ForSnapshot sets it.
	Snapshot string `toml:"-"`

	Null        bool   `toml:"null" env:"BS3_NULL" env-description:"Serve a device that drops writes and reads zeros, to measure the transport"`
	Store       string `toml:"store" env:"BS3_STORE" env-description:"Where the objects live: s3 or dir"`
	Transport   string `toml:"transport" env:"BS3_TRANSPORT" env-description:"How the device is shown: auto, buse, ublk or nbd"`
	Takeover    string `toml:"takeover" env:"BS3_TAKEOVER" env-description:"What to do with a volume that another host did not release: refuse or auto (also --takeover)"`
	Major       int    `toml:"major" env:"BS3_MAJOR" env-description:"BUSE: number N of /dev/buseN"`
	Threads     int    `toml:"threads" env:"BS3_THREADS" env-description:"BUSE, ublk: queues of the device, with a thread each; 0 = one per CPU, of ublk at most 4"`
	CPUsPerNode int    `toml:"cpus_per_node" env:"BS3_CPUS_PER_NODE" env-description:"BUSE: CPUs of one NUMA node; 0 = all"`
	Size        int64  `toml:"size" env:"BS3_SIZE" env-description:"Size of the device in GB"`
	BlockSize   int    `toml:"block_size" env:"BS3_BLOCKSIZE" env-description:"Block size of the device in bytes: 512 or 4096"`
	IOMin       int    `toml:"io_min" env:"BS3_IO_MIN" env-description:"Preferred smallest request in bytes; 0 = block_size"`
	IOOpt       int    `toml:"io_opt" env:"BS3_IO_OPT" env-description:"Preferred request size in bytes; 0 = none"`
	Scheduler   bool   `toml:"scheduler" env:"BS3_SCHEDULER" env-description:"Let the kernel's I/O scheduler order requests"`
	QueueDepth  int    `toml:"queue_depth" env:"BS3_QUEUEDEPTH" env-description:"BUSE, ublk: requests per queue of the device"`

	S3         S3         `toml:"s3"`
	Dir        Dir        `toml:"dir"`
	State      State      `toml:"state"`
	NBD        NBD        `toml:"nbd"`
	Ublk       Ublk       `toml:"ublk"`
	Write      Write      `toml:"write"`
	Read       Read       `toml:"read"`
	Cache      Cache      `toml:"cache"`
	Checkpoint Checkpoint `toml:"checkpoint"`
	GC         GC         `toml:"gc"`
	Control    Control    `toml:"control"`
	Log        Log        `toml:"log"`

	SkipCheckpoint bool `toml:"skip_checkpoint" env:"BS3_SKIP" env-description:"Neither write checkpoints nor use one; refused for a volume that has one"`
	Profiler       bool `toml:"profiler" env:"BS3_PROFILER" env-description:"Serve Go's profiler on 127.0.0.1"`
	ProfilerPort   int  `toml:"profiler_port" env:"BS3_PROFILER_PORT" env-description:"TCP port of the profiler"`
}

// S3 is the object store behind an S3 API.
type S3 struct {
	Bucket          string `toml:"bucket" env:"BS3_S3_BUCKET" env-description:"Bucket; made if it is missing and the credentials allow it"`
	Prefix          string `toml:"prefix" env:"BS3_S3_PREFIX" env-description:"Put all names below PREFIX/, so that volumes can share a bucket"`
	Remote          string `toml:"remote" env:"BS3_S3_REMOTE" env-description:"Address of the server, http(s)://HOST[:PORT]; empty = AWS"`
	Region          string `toml:"region" env:"BS3_S3_REGION" env-description:"Region; empty = AWS_REGION, the AWS SDK's files, or else us-east-1"`
	AccessKey       Secret `toml:"access_key" env:"BS3_S3_ACCESSKEY" env-description:"Access key; empty = the AWS SDK's own credential chain"`
	SecretKey       Secret `toml:"secret_key" env:"BS3_S3_SECRETKEY" env-description:"Secret key; empty = the AWS SDK's own credential chain"`
	SessionToken    Secret `toml:"session_token" env:"BS3_S3_SESSIONTOKEN" env-description:"Session token of temporary keys; empty = AWS_SESSION_TOKEN, if that belongs to the access key"`
	CACert          string `toml:"ca_cert" env:"BS3_S3_CACERT" env-description:"File of certificates that may sign the server's, beside the system's; empty = AWS_CA_BUNDLE"`
	PathStyle       string `toml:"path_style" env:"BS3_S3_PATHSTYLE" env-description:"Name the bucket in the path of addresses: auto (unless the server refuses that), always or never"`
	Uploaders       int    `toml:"uploaders" env:"BS3_S3_UPLOADERS" env-description:"Most uploads at a time"`
	Downloaders     int    `toml:"downloaders" env:"BS3_S3_DOWNLOADERS" env-description:"Most downloads at a time"`
	Checksums       string `toml:"checksums" env:"BS3_S3_CHECKSUMS" env-description:"Checksums of requests: when_required or when_supported"`
	SignPayload     string `toml:"sign_payload" env:"BS3_S3_SIGNPAYLOAD" env-description:"Hash uploaded data for the signature: auto (unless sent over TLS), always or never"`
	HTTP2           bool   `toml:"http2" env:"BS3_S3_HTTP2" env-description:"Use HTTP/2 if the server does"`
	StorageClass    string `toml:"storage_class" env:"BS3_S3_STORAGECLASS" env-description:"Storage class of new objects; empty = the bucket's own"`
	SSE             string `toml:"sse" env:"BS3_S3_SSE" env-description:"Encryption by the server: AES256 or aws:kms; empty = the bucket's own"`
	SSEKMSKeyID     string `toml:"sse_kms_key_id" env:"BS3_S3_SSEKMSKEYID" env-description:"Key of aws:kms; empty = the bucket's own"`
	SSECustomerKey  Secret `toml:"sse_customer_key" env:"BS3_S3_SSECUSTOMERKEY" env-description:"Encryption by the server with this key, 32 bytes in base64"`
	UnsafeNoFencing bool   `toml:"unsafe_no_fencing" env:"BS3_S3_UNSAFENOFENCING" env-description:"Use even a store without conditional puts, where nothing keeps two writers apart"`
}

// Dir is the object store in a directory.
type Dir struct {
	Path        string `toml:"path" env:"BS3_DIR_PATH" env-description:"Directory of the store, for store dir"`
	Uploaders   int    `toml:"uploaders" env:"BS3_DIR_UPLOADERS" env-description:"Most objects written at a time"`
	Downloaders int    `toml:"downloaders" env:"BS3_DIR_DOWNLOADERS" env-description:"Most objects read at a time"`
}

// State is what must outlive the daemon, though not the machine.
type State struct {
	Path string `toml:"path" env:"BS3_STATE_PATH" env-description:"Directory of the chunk memory; empty = /run/bs3/NAME, NAME being the configuration's"`
}

// NBD is the NBD server.
type NBD struct {
	Listen  string `toml:"listen" env:"BS3_NBD_LISTEN" env-description:"unix:PATH or tcp:HOST:PORT; empty = unix:STATE/nbd.sock, STATE being state.path"`
	Device  string `toml:"device" env:"BS3_NBD_DEVICE" env-description:"Device /dev/nbdN of the kernel to attach to the server, for transport nbd; empty = none"`
	Memory  int    `toml:"memory" env:"BS3_NBD_MEMORY" env-description:"Most memory of all clients together, in MB"`
	TLSCert string `toml:"tls_cert" env:"BS3_NBD_TLSCERT" env-description:"Certificate of the server" later:"TLS for NBD"`
	TLSKey  string `toml:"tls_key" env:"BS3_NBD_TLSKEY" env-description:"File of the certificate's private key" later:"TLS for NBD"`
	TLSCA   string `toml:"tls_ca" env:"BS3_NBD_TLSCA" env-description:"Certificates that sign those of clients" later:"TLS for NBD"`
}

// Ublk is the ublk transport.
type Ublk struct {
	ID int `toml:"id" env:"BS3_UBLK_ID" env-description:"Number N of /dev/ublkbN; -1 = the first free one, or the one that a killed daemon left"`
}

// Write is the path of a write.
type Write struct {
	Durable       bool `toml:"durable" env:"BS3_WRITE_DURABLE" env-description:"true: a flush waits until all writes before it are in the store; false: until they are in the local log (cache.path), or without one it only keeps the order"`
	BufSize       int  `toml:"shared_buffer_size" env:"BS3_WRITE_BUFSIZE" env-description:"BUSE: memory per thread shared with the kernel for writes, in MB"`
	ChunkSize     int  `toml:"chunk_size" env:"BS3_WRITE_CHUNKSIZE" env-description:"Data of one object in MB; fixed when the volume is made"`
	CollisionSize int  `toml:"collision_chunk_size" env:"BS3_WRITE_COLSIZE" env-description:"BUSE: size of the areas whose writes the kernel numbers, in MB"`
	Memory        int  `toml:"memory" env:"BS3_WRITE_MEMORY" env-description:"Memory for writes that are not in the store yet, in MB"`
	Linger        int  `toml:"linger" env:"BS3_WRITE_LINGER" env-description:"Longest time that a write waits for its object to fill, in ms"`
}

// Read is the path of a read.
type Read struct {
	BufSize      int    `toml:"shared_buffer_size" env:"BS3_READ_BUFSIZE" env-description:"BUSE: memory per thread shared with the kernel for reads, in MB"`
	CacheSize    int    `toml:"cache_size" env:"BS3_READ_CACHESIZE" env-description:"Memory for recently read or written data, in MB; 0 = none"`
	Readahead    int    `toml:"readahead" env:"BS3_READ_READAHEAD" env-description:"Most data to read ahead of a sequential stream, in MB; 0 = none"`
	WholeObjects string `toml:"whole_objects" env:"BS3_READ_WHOLEOBJECTS" env-description:"auto: fetch objects whole of which little is wanted, where the read cache has room for all that is mapped; off: never"`
}

// Cache is the local log and the disk cache.
type Cache struct {
	Path string `toml:"path" env:"BS3_CACHE_PATH" env-description:"Directory of the local log and the disk cache; empty = neither"`
	Size int    `toml:"size" env:"BS3_CACHE_SIZE" env-description:"Size of both together in GB"`
}

// Checkpoint is when the map is written to the store.
type Checkpoint struct {
	Interval int `toml:"interval" env:"BS3_CHECKPOINT_INTERVAL" env-description:"Shortest time between two small checkpoints, in s"`
}

// GC is the garbage collection.
type GC struct {
	Step        int     `toml:"step" env:"BS3_GC_STEP" env-description:"Blocks looked at or moved before the device gets its turn"`
	LiveData    float64 `toml:"live_data" env:"BS3_GC_LIVEDATA" env-description:"Move the live blocks out of objects whose live share is below this"`
	IdleTimeout int     `toml:"idle_timeout" env:"BS3_GC_IDLETIMEOUT" env-description:"Longest time that a step waits while the device is busy, in ms"`
	Wait        int     `toml:"wait" env:"BS3_GC_WAIT" env-description:"Time between two automatic collections, in s; 0 = none"`
	MaxGarbage  float64 `toml:"max_garbage" env:"BS3_GC_MAXGARBAGE" env-description:"Move live blocks automatically if more than this share of the objects that hold some is garbage; 0 = never"`
	MaxMoves    float64 `toml:"max_moves" env:"BS3_GC_MAXMOVES" env-description:"Most data moved automatically to merge small objects and to put scattered blocks in order, as a share of what was written; 0 = none"`
}

// Control is how to talk to a running daemon.
type Control struct {
	Socket string `toml:"socket" env:"BS3_CONTROL_SOCKET" env-description:"Unix socket on which a running daemon answers commands; empty = STATE/control.sock, STATE being state.path"`
	Listen string `toml:"listen" env:"BS3_CONTROL_LISTEN" env-description:"HOST:PORT of metrics and status page; empty = off" later:"metrics and the status page"`
}

// Log is the log.
type Log struct {
	Level  int  `toml:"level" env:"BS3_LOG_LEVEL" env-description:"Lowest level: trace -1, debug 0, info 1, warn 2, error 3, fatal 4, panic 5"`
	Pretty bool `toml:"pretty" env:"BS3_LOG_PRETTY" env-description:"Lines for people instead of JSON"`
}

// Default returns the configuration in which nothing is set. State.Path,
// NBD.Listen and Control.Socket are empty in it; Load and Parse fill them in.
func Default() Config {
	return Config{
		Store:      StoreS3,
		Transport:  TransportAuto,
		Takeover:   TakeoverRefuse,
		Size:       8,
		BlockSize:  4096,
		QueueDepth: 128,
		S3: S3{
			Bucket:      "bs3",
			Uploaders:   32,
			Downloaders: 128,
			Checksums:   ChecksumsWhenRequired,
			SignPayload: SignPayloadAuto,
			PathStyle:   PathStyleAuto,
		},
		Dir:  Dir{Uploaders: 32, Downloaders: 128},
		NBD:  NBD{Memory: 256},
		Ublk: Ublk{ID: -1},
		Write: Write{
			Durable:       true,
			BufSize:       32,
			ChunkSize:     4,
			CollisionSize: 1,
			Memory:        160,
			Linger:        1000,
		},
		Read:         Read{BufSize: 32, CacheSize: 256, Readahead: 32, WholeObjects: WholeObjectsAuto},
		Cache:        Cache{Size: 4},
		Checkpoint:   Checkpoint{Interval: 60},
		GC:           GC{Step: 1024, LiveData: 0.3, IdleTimeout: 200, Wait: 600, MaxGarbage: 0.5, MaxMoves: 0.5},
		Log:          Log{Level: 1, Pretty: true},
		ProfilerPort: 6060,
	}
}

// fill sets what depends on other values.
func (c *Config) fill(name string) {
	c.Name = name
	if c.State.Path == "" {
		c.State.Path = filepath.Join("/run/bs3", name)
	}
	if c.NBD.Listen == "" {
		c.NBD.Listen = "unix:" + filepath.Join(c.State.Path, "nbd.sock")
	}
	if c.Control.Socket == "" {
		c.Control.Socket = filepath.Join(c.State.Path, "control.sock")
	}
}

// Directory is a directory of the daemon and the key that names it.
type Directory struct{ Key, Path string }

// Directories lists those that a daemon with this configuration uses for a
// volume.
func (c Config) Directories() []Directory {
	list := []Directory{{"state.path", c.State.Path}}
	if c.Cache.Path != "" {
		list = append(list, Directory{"cache.path", c.Cache.Path})
	}
	if c.Store == StoreDir {
		list = append(list, Directory{"dir.path", c.Dir.Path})
	}
	return list
}

// CustomerKey decodes SSECustomerKey.
func (s S3) CustomerKey() ([]byte, error) {
	return base64.StdEncoding.DecodeString(string(s.SSECustomerKey))
}

// Secret is a string that is hidden unless it is converted to one.
type Secret string

// String hides the secret, but not whether there is one.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(hidden)"
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// MarshalText hides the secret from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// maxSocketPath is the longest path of a unix socket: 108 bytes in Linux, one
// of them the final 0.
const maxSocketPath = 107

// socketPath reports whether s can be the path of a socket. If it begins with @,
// package net makes a socket without a file, and so without a mode that keeps
// others out.
func socketPath(s string) bool {
	return s != "" && len(s) <= maxSocketPath && s[0] != '@'
}

// Address splits Listen into the network ("unix" or "tcp") and the address of
// package net.
func (n NBD) Address() (network, address string, err error) {
	network, address, _ = strings.Cut(n.Listen, ":")
	switch network {
	case "unix":
		if !socketPath(address) {
			return "", "", fmt.Errorf("unix:PATH needs a path of 1 to %d bytes that does not begin with @, this one has %d", maxSocketPath, len(address))
		}
	case "tcp":
		host, port, err := net.SplitHostPort(address)
		if err != nil || host == "" {
			return "", "", fmt.Errorf("must be tcp:HOST:PORT")
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return "", "", fmt.Errorf("must be tcp:HOST:PORT with a PORT from 0 (any free one) to 65535")
		}
	default:
		return "", "", fmt.Errorf("must be unix:PATH or tcp:HOST:PORT")
	}
	return network, address, nil
}

// LingerTime returns Linger as a duration.
func (w Write) LingerTime() time.Duration { return time.Duration(w.Linger) * time.Millisecond }

// WaitTime returns Wait as a duration.
func (g GC) WaitTime() time.Duration { return time.Duration(g.Wait) * time.Second }

// IdleTime returns IdleTimeout as a duration.
func (g GC) IdleTime() time.Duration { return time.Duration(g.IdleTimeout) * time.Millisecond }

// IntervalTime returns Interval as a duration.
func (c Checkpoint) IntervalTime() time.Duration { return time.Duration(c.Interval) * time.Second }
