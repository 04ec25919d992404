# Entry points. Each one first makes what it needs; as root that includes missing Debian packages.
#   make demo      two hosts, one policy each, protected traffic, in under a minute
#   make test      everything: unit tests, a bounded fuzz run, strongSwan, containers
#   make unit      the tests that need neither root nor network, without the long ones: under a minute
#   make interop   real peers in network namespaces and containers (root); what runs without, and where, it says
#   make bench     establishments per second beside strongSwan's, and AuthIP beside IKEv2
#   make fuzz      octets, and hostile peers inside the encryption; FUZZ_SECONDS=600 for longer
#   make soak      daemons that are restarted, and rekey without end (root); SOAK_SECONDS=3600 for longer
#   make lint      formatter, linter, type checker
#   make install-systemd   units, user and directories of the service (root; docs/operator.md)
#   make clean     remove what the targets above made in this directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROOT := $(filter 0,$(shell id -u))
FUZZ_SECONDS ?= 30
SOAK_SECONDS ?= 120
PYTEST := $(BIN)/python -m pytest
# one more than cores: tests with real peers mostly wait
WORKERS ?= $(shell expr $$(nproc) + 1)

# With root, a tool that is missing is a failure and not a skipped test.
export REQUIRE_INTEROP := $(if $(ROOT),1,)
export FUZZ_SECONDS SOAK_SECONDS

.PHONY: help demo test unit interop bench fuzz soak lint clean install-systemd system system-demo compiled
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

$(STAMP): pyproject.toml setup.py .ci/setup-venv
	@.ci/setup-venv $(VENV)
	@touch $@

system:
	@.ci/setup-system test

system-demo:
	@.ci/setup-system demo

# What is compiled against Debian's libraries, after they are there.
compiled: $(STAMP)
	@.ci/setup-venv $(VENV) kerberos
	@.ci/setup-venv $(VENV) native

demo: system-demo $(STAMP)
	@$(BIN)/python -m ikd.demo

# One run, so that one summary counts everything.
test: system $(STAMP) compiled
	$(PYTEST) -n $(WORKERS) --dist worksteal tests

unit: export HYPOTHESIS_PROFILE = quick
unit: $(STAMP) compiled
	$(PYTEST) -n $(WORKERS) -m "not interop and not container and not long" --ignore=tests/fuzz tests

interop: system $(STAMP) compiled
	$(PYTEST) -m "interop or container" tests

bench: system $(STAMP) compiled
	$(BIN)/ikctl bench ike

fuzz: $(STAMP)
	INSIDE_SECONDS=$(FUZZ_SECONDS) $(PYTEST) tests/fuzz tests/scenarios/test_inside.py

soak: system $(STAMP) compiled
	$(PYTEST) -s tests/interop/test_soak.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install-systemd:
	install -m 0644 systemd/*.service systemd/*.socket /etc/systemd/system/
	install -D -m 0644 systemd/ikd.sysusers /etc/sysusers.d/ikd.conf
	install -D -m 0644 systemd/ikd.tmpfiles /etc/tmpfiles.d/ikd.conf
	systemd-sysusers ikd.conf
	systemd-tmpfiles --create ikd.conf
	systemctl daemon-reload

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build offload/*.so
