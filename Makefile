# Start with `make run` and `make test`.
#
# Tools that are not written in Go come from Debian (make deps, as root); the
# rest is built into .tools/bin at the versions pinned here. Apart from Debian
# packages, and from make install, nothing outside of the checkout changes.

SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -c
GO          ?= go
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS     := -X main.version=$(VERSION)
TOOLS       := $(CURDIR)/.tools/bin
VERSITYGW   := v1.8.0
GOLANGCI    := v2.15.0
BENCHSTAT   := v0.0.0-20260908200009-22c9c6c9d4da
FUZZTIME    ?= 100000x
MINCOVER    := 85
COVERED     := ./internal/bs3/layout ./internal/bs3/mapproxy/sectormap ./internal/device/nbd

# A plain `go test` skips tests whose programs are missing; here that is an
# error.
unit cover fuzz e2e e2e-long: export BS3_REQUIRE_TOOLS := 1
unit cover fuzz e2e e2e-long: export BS3_VERSITYGW     := $(TOOLS)/versitygw

.PHONY: build install uninstall run test test-vm deps apt-deps fmt vet lint picture unit cover fuzz sim rules e2e e2e-long bench bench-quick bench-compare clean

# The binary is static. Only the tests, for -race, need cgo.
build:
	CGO_ENABLED=0 $(GO) build -ldflags '$(LDFLAGS)' -o bs3 .

# Where make install puts things; DESTDIR, in front of all of them, is for
# packagers. make install builds nothing: run make build first, as the user who
# has Go.
PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
BINDIR      = $(DESTDIR)$(PREFIX)/bin
UNITDIR     = $(DESTDIR)$(PREFIX)/lib/systemd/system
DOCDIR      = $(DESTDIR)$(PREFIX)/share/doc/bs3
CONFDIR     = $(DESTDIR)$(SYSCONFDIR)/bs3
UNITS      := bs3.service bs3@.service bs3-gc.service bs3-gc.timer

# An existing configuration stays as it is.
install:
	@[ -x bs3 ] || { echo "there is no bs3 to install: make build" >&2; exit 1; }
	install -D -m 0755 bs3 $(BINDIR)/bs3
	install -d $(UNITDIR) $(DOCDIR) $(CONFDIR)
	for u in $(UNITS); do \
	  sed 's,/usr/local/,$(PREFIX)/,g; s,/etc/bs3/,$(SYSCONFDIR)/bs3/,g' contrib/systemd/$$u > $(UNITDIR)/$$u && chmod 0644 $(UNITDIR)/$$u || exit 1; \
	done
	install -m 0644 README.md CHANGELOG.md config.toml $(DOCDIR)
	for f in docs/*.md docs/*/*.md docs/*/*.svg; do install -D -m 0644 $$f $(DOCDIR)/$$f || exit 1; done
	[ -e $(CONFDIR)/config.toml ] || install -m 0600 config.toml $(CONFDIR)/config.toml
	$(RELOAD_UNITS)

# Keeps the configuration, the state and what the store holds.
uninstall:
	rm -f $(BINDIR)/bs3 $(addprefix $(UNITDIR)/,$(UNITS))
	rm -rf $(DOCDIR)
	$(RELOAD_UNITS)

# Tells the running service manager of new units, if its own root has changed.
RELOAD_UNITS = @[ -n '$(DESTDIR)' ] || [ ! -d /run/systemd/system ] || systemctl daemon-reload

# Serves a volume below .bs3 until Ctrl-C.
run: build
	./bs3 --local

test: deps vet unit cover fuzz e2e

unit:
	$(GO) test -race -timeout 20m . ./contrib/... ./docs/... ./internal/...
	$(GO) test -timeout 20m -run '^TestSim' ./internal/bs3

# The packages whose mistakes lose data must be covered to more than MINCOVER %.
cover:
	@$(GO) test -cover $(COVERED) | awk '{ print } \
	  match($$0, /coverage: [0-9.]+/) { n++; if (substr($$0, RSTART+10, RLENGTH-10)+0 <= $(MINCOVER)) low++ } \
	  END { if (low || n != $(words $(COVERED))) { print "coverage must be above $(MINCOVER) % in each"; exit 1 } }'

# Every fuzz target, for a number of inputs each and not for a time: at the end
# of a time go test fails now and then ("context deadline exceeded"). Interesting
# inputs are hardly minimised: that would take longer than the rest.
fuzz:
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' internal | sort | \
	while IFS=: read -r file func; do \
	  name=$${func#func }; echo "fuzz $$name in $$(dirname $$file)"; \
	  $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "./$$(dirname $$file)" </dev/null || exit 1; \
	done

# The engine in simulated worlds, one for each seed.
SEEDS ?= 20000
sim:
	$(GO) test ./internal/bs3 -count=1 -timeout 24h -v -run 'TestSim$$' -sim.seeds=$(SEEDS)

# The engine without each of its rules in turn; the tests must notice.
rules:
	$(GO) test ./internal/bs3 -tags rules -count=1 -timeout 24h -v -run '^TestLeftOut$$'

# The real daemon with third-party clients.
e2e: build
	$(GO) test -count=1 -timeout 20m ./test/...

# The same with more rounds, longer outages and more data.
e2e-long: build
	$(GO) test -count=1 -timeout 2h ./test/... -long

# What may need a newer kernel than this machine has, with ublk and NBD: the
# scripts of test/vm/guest, each in a virtual machine. VMTESTS names some of them.
test-vm:
	test/vm/all.sh $(VMTESTS)

# Measures bs3 against the raw limits of this machine, which should do nothing
# else for that half hour, and writes docs/PERFORMANCE.md. BENCHFLAGS="-run fsync"
# measures one part again and keeps the rest.
bench: build
	$(GO) build -o .tools/bench ./test/bench
	.tools/bench -bs3 ./bs3 -version $(VERSION) -results docs/performance/results.json -doc docs/PERFORMANCE.md $(BENCHFLAGS)

# The same in two minutes, to check that it works.
bench-quick: build
	$(GO) build -o .tools/bench ./test/bench
	.tools/bench -quick -bs3 ./bs3 $(BENCHFLAGS)

# The Go benchmarks of the tree against those of a commit: make bench-compare REF=HEAD
bench-compare: .tools/benchstat-$(BENCHSTAT)
	@[ -n "$(REF)" ] || { echo "usage: make bench-compare REF=COMMIT [BENCH=... COUNT=...]"; exit 1; }
	BENCHSTAT=$(TOOLS)/benchstat test/bench/compare.sh $(REF)

# docs/pictures/paths.svg, from the program that draws it.
picture:
	$(GO) run ./docs/pictures > docs/pictures/paths.svg

fmt:
	gofmt -w $$(git ls-files '*.go')

vet:
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "make fmt would change: $$out"; exit 1; fi
	$(GO) vet ./...

lint: .tools/golangci-lint-$(GOLANGCI)
	$(TOOLS)/golangci-lint run --allow-parallel-runners ./...
	test/lintguard.sh $(TOOLS)/golangci-lint

deps: apt-deps .tools/versitygw-$(VERSITYGW)

# Each has or need names a program, or a command that succeeds if nothing is
# missing, and the Debian packages that bring it.
apt-deps:
	@missing=; \
	need() { eval "$$1" >/dev/null 2>&1 || missing="$$missing $$2"; }; \
	has() { need "command -v $$1" "$$2"; }; \
	has gcc "gcc libc6-dev"; has fio fio; has nbdkit nbdkit; \
	has nbdinfo libnbd-bin; has nbdcopy libnbd-bin; has nbdfuse libnbd-bin; \
	need "/usr/bin/python3 -c 'import nbd'" python3-libnbd; \
	has qemu-img qemu-utils; has mkfs.xfs xfsprogs; has mkfs.btrfs btrfs-progs; has mkfs.ext4 e2fsprogs; \
	has fusermount3 fuse3; has losetup mount; has setpriv util-linux; has systemd-analyze systemd; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	  echo "the tests need these Debian packages; install them or run make deps as root:$$missing"; exit 1; fi; \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing

# An empty file named after the version records what .tools/bin holds.
.tools/versitygw-$(VERSITYGW):
	GOBIN=$(TOOLS) $(GO) install github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW)
	rm -f .tools/versitygw-* && touch $@

.tools/golangci-lint-$(GOLANGCI):
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	rm -f .tools/golangci-lint-* && touch $@

.tools/benchstat-$(BENCHSTAT):
	GOBIN=$(TOOLS) $(GO) install golang.org/x/perf/cmd/benchstat@$(BENCHSTAT)
	rm -f .tools/benchstat-* && touch $@

# Removes what make built; the volume of make run stays.
clean:
	rm -rf bs3 .tools coverage.out
