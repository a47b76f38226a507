# jitgate: make help lists the targets. Everything runs on a fresh Debian or
# Ubuntu machine as root: setup.sh installs what a target needs.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  := $(shell git rev-parse --short HEAD 2>/dev/null)
# The commit's time, so that the same commit gives the same bytes.
BUILT   := $(shell TZ=UTC git log -1 --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ 2>/dev/null)
CLI     := github.com/jitgate/jitgate/cli
LDFLAGS := -s -w $(foreach p,$(CLI) main,-X $(p).version=$(VERSION) -X $(p).commit=$(COMMIT) -X $(p).built=$(BUILT))
FUZZTIME ?= 100000x
SCHEDULES ?= 100000

export CGO_ENABLED = 0
# The version comes from LDFLAGS; asking git again fails where the checkout belongs to another user.
export GOFLAGS = -buildvcs=false
export PATH := $(shell ./setup.sh path):$(PATH)
GO_BUILD = go build -trimpath -ldflags "$(LDFLAGS)"

.PHONY: help setup build test model race fuzz bench bench-fleet lists demo play screenshots lint cross check package msi pkglint repo machines e2e e2e-vm e2e-wine soak clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

setup: ## install what the other targets need (Go, nftables, sshd, PostgreSQL, Node, …)
	@./setup.sh

build: setup ## build bin/jitgate and bin/jitgate-control for this machine
	$(GO_BUILD) -o bin/ . ./cmd/jitgate-control

# The root directories of the machines that boot, made before the tests and
# not beside them: whoever writes a gigabyte holds up everybody's fsync.
machines: setup
	@if [ "$$(id -u)" = 0 ]; then ./e2e/machine.sh && ./e2e/neighbours.sh; fi

test: build machines ## run every test; as root this includes those on the real kernel
	go test -timeout 30m $(TESTFLAGS) ./...

model: setup ## SCHEDULES random schedules (100,000) of the agent against an oracle
	JITGATE_SCHEDULES=$(SCHEDULES) go test -count=1 -timeout 60m -v -run 'TestRandomSchedules$$' ./agent

race: setup ## the tests under the race detector, but for e2e: those run the program itself
	CGO_ENABLED=1 JITGATE_SCHEDULES=300 go test -timeout 30m $(TESTFLAGS) -race $$(go list ./... | grep -v /e2e)

fuzz: setup ## fuzz every parser with FUZZTIME inputs (100000x), or so long (20s)
	@./testdata/fuzz.sh $(FUZZTIME)

bench: build ## measure, as ratios within one run (docs/performance.md)
	go run ./bench -jitgate bin/jitgate -control bin/jitgate-control

# -rate, -seconds, -replicas, -picture, -strict, …: go run ./bench/fleet -help
FLEETFLAGS ?=
AGENTS ?= 10000
STORE ?= sqlite

bench-fleet: build ## a fleet of AGENTS against a control plane on STORE (sqlite, postgres): docs/fleet.md
	go run ./bench/fleet -control bin/jitgate-control -agents "$(AGENTS)" -store "$(STORE)" $(FLEETFLAGS)

lists: build ## list 100,000 machines and two million lines of the log, on both stores
	go run ./bench -only lists -jitgate bin/jitgate -control bin/jitgate-control

demo: build ## the main job for real, in network namespaces of its own
	@./demo/demo.sh bin/jitgate bin/jitgate-control

play: build ## a control plane, its page and a guarded machine to play with, until Ctrl-C
	@./demo/demo.sh bin/jitgate bin/jitgate-control play

screenshots: build ## the pictures of the page in docs/screenshots, made by the browser test
	@mkdir -p docs/screenshots
	JITGATE_SCREENSHOTS=$(CURDIR)/docs/screenshots go test -count=1 -timeout 10m -run 'TestPage$$' ./e2e

lint: setup ## gofmt, vet, staticcheck, on Linux and Windows
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w on these files"; exit 1; }
	go vet ./...
	GOOS=windows go vet ./...
	go vet -tags vm,wine,soak ./e2e
	go tool staticcheck ./...
	GOOS=windows $$(go tool -n staticcheck) ./...

cross: setup ## build for linux amd64 and arm64, and the agent for windows amd64, into dist/
	GOOS=linux   GOARCH=amd64 $(GO_BUILD) -o dist/jitgate-linux-amd64 .
	GOOS=linux   GOARCH=arm64 $(GO_BUILD) -o dist/jitgate-linux-arm64 .
	GOOS=linux   GOARCH=amd64 $(GO_BUILD) -o dist/jitgate-control-linux-amd64 ./cmd/jitgate-control
	GOOS=linux   GOARCH=arm64 $(GO_BUILD) -o dist/jitgate-control-linux-arm64 ./cmd/jitgate-control
	@VERSION="$(VERSION)" ./packaging/windows/build.sh $(GO_BUILD) -o dist/jitgate-windows-amd64.exe .

check: lint cross test race demo ## what CI runs

package: cross ## the programs as archives, deb and rpm in dist/
	@./packaging/archive.sh dist
	@./packaging/package.sh dist $(VERSION)

msi: setup ## the installer for Windows in dist/, signed with CERT and KEY if given
	@mkdir -p dist
	@VERSION="$(VERSION)" ./packaging/windows/build.sh $(GO_BUILD) -o dist/jitgate-windows-amd64.exe .
	@./packaging/windows/msi.sh dist $(VERSION)

pkglint: package ## hold the packages against lintian and rpmlint
	@./packaging/lint.sh dist/*.deb dist/*.rpm

repo: package ## signed repositories for apt and dnf in dist/repo, with KEY as gpg --local-user takes it
	@./packaging/repo.sh dist "$(KEY)"

e2e: build machines ## the installed host: the packages on machines that boot
	go test -timeout 30m -count=1 -v -run 'TestInstalled|TestBoots|TestProvision|TestPackages|TestRepository' ./e2e

# It is no part of check: an emulated machine takes its time.
e2e-vm: build ## the same in a Debian 12 under QEMU: its own kernel, real boots, a power cut
	@./setup.sh vm
	JITGATE_CI=1 go test -timeout 60m -count=1 -v -tags vm -run 'TestVM' ./e2e

e2e-wine: setup ## the installer and the program under Wine, which has no firewall: see docs/windows.md
	@./e2e/wine.sh >/dev/null
	go test -tags wine -timeout 30m -count=1 -v -run 'TestWine' ./e2e

MINUTES ?= 30
SEED ?= 0

# The schedule is SEED's; 0 draws one.
soak: AGENTS = 200
soak: setup ## MINUTES (30) of random requests, edits, revocations and faults on AGENTS real hosts (200): docs/testing.md
	JITGATE_CI=1 go test -tags soak -timeout 0 -count=1 -v -run '^TestSoak' ./e2e -args -agents $(AGENTS) -minutes $(MINUTES) -seed $(SEED)

clean: ## remove what was built
	rm -rf bin dist
