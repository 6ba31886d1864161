# Everything is set up by the target that needs it. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What runs beside what in the tests: more workers than cores, for most of them wait.
JOBS ?= 4
T ?=
K ?=
TABLE ?=
MINUTES ?= 60
SEED ?=
SECONDS_EACH ?= 60

BUILD_PACKAGES := clang llvm libbpf-dev linux-libc-dev make python3 python3-venv
TEST_PACKAGES := bpftool conntrack debian-archive-keyring debootstrap gcc graphviz iproute2 libc6-dev libseccomp2 musl-tools netcat-openbsd nftables openssl postgresql procps python3-dev \
	rabbitmq-server redis-server strace supervisor systemd tini util-linux
BENCH_PACKAGES := tshark
VM_PACKAGES := busybox-static debian-archive-keyring kmod python3-bpfcc qemu-system-arm qemu-system-x86
DEB_PACKAGES := debhelper dpkg-dev fakeroot lintian python3-pip
DEMO_PACKAGES := iproute2 nftables procps redis-server

# $(call install,PACKAGES): Debian packages that are not there yet; apt is not even asked when all are.
define install
	@missing=$$(for package in $(1); do dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
	if [ -n "$$missing" ]; then \
		echo "installing Debian packages:" $$missing; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null || \
		{ echo "could not install" $$missing "(run as root, on Debian 12)" >&2; exit 1; }; \
	fi
endef

.PHONY: help dev bpf lint format test test-packaging test-vm bench soak fuzz demo docs manifests wheel deb clean bench-packages deb-packages build-packages test-packages demo-packages vm-packages tests-ready

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

build-packages:
	$(call install,$(BUILD_PACKAGES))

test-packages:
	$(call install,$(TEST_PACKAGES))

bench-packages:
	$(call install,$(BENCH_PACKAGES))

vm-packages:
	$(call install,$(VM_PACKAGES))

demo-packages:
	$(call install,$(DEMO_PACKAGES))

$(BIN)/python: | build-packages
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --upgrade pip setuptools wheel

# Installed anew when a source file came or went, or a BPF program changed: an editable install links file by file.
SOURCES := $(sort $(wildcard agent/*.py agent/*.json agent/*/*.py agent/*/*.json collectors/*.py bpf/*.c bpf/*.h))
LISTED := $(shell mkdir -p $(VENV) && echo $(SOURCES) | cmp -s - $(VENV)/sources 2>/dev/null || echo $(SOURCES) > $(VENV)/sources)

$(VENV)/installed: pyproject.toml setup.py $(wildcard bpf/*.c bpf/*.h) $(VENV)/sources | $(BIN)/python
	@rm -rf build/lib build/bdist.* build/__editable__.*
	@PYTHONWARNINGS=ignore $(BIN)/pip install -qq --disable-pip-version-check --no-build-isolation -C editable_mode=strict -e .
	@touch $@

dev: build-packages $(VENV)/installed  ## leave the command at .venv/bin/stucktrace

bpf: dev  ## compile the BPF programs

$(VENV)/tests-installed: tests/requirements.txt $(VENV)/installed
	@$(BIN)/pip install -q --disable-pip-version-check -r tests/requirements.txt
	@touch $@

tests-ready: test-packages dev $(VENV)/tests-installed

lint: dev $(VENV)/tests-installed  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p stucktrace

format:  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Machines are noisy and these tests look at real ages: what fails beside other tests runs once more alone, and only what
# fails there too fails the run. Both runs print their failures.
test: tests-ready  ## all tests but the virtual machines; T=words chooses by name
	@ulimit -n 65536 2>/dev/null; $(BIN)/pytest -q -n $(JOBS) --dist loadgroup $(if $(T),-k "$(T)") tests/unit tests/live || { \
		echo "== once more, alone: what failed beside other tests"; \
		$(BIN)/pytest -q -n 0 --last-failed --last-failed-no-failures none tests/unit tests/live; }

test-packaging: tests-ready deb-packages  ## build the Debian package and the image's stages, and run them in an empty Debian 12
	@$(BIN)/pytest -q -n 2 --dist loadfile --timeout 1800 tests/packaging

# Two machines at a time: their processors are emulated, so each keeps a core busy.
test-vm: tests-ready vm-packages  ## what matters on other kernels, in emulated machines; K=bookworm (bullseye, trixie, arm64) chooses; TABLE=1 writes docs/kernels.md
	@$(BIN)/python -m tests.vm.suite $(K) $(if $(TABLE),--table)

bench: tests-ready bench-packages  ## measure what the design promises, as ratios within one run
	@$(BIN)/python -m tests.bench $(T)

soak: tests-ready  ## the agent for MINUTES=60 among processes that come, hang, recover and die; SEED=words repeats one
	@$(BIN)/python -m tests.bench.soak $(MINUTES) $(SEED)

$(VENV)/fuzz-installed: tests/fuzz-requirements.txt $(VENV)/tests-installed
	@$(BIN)/pip install -q --disable-pip-version-check -r $<
	@touch $@

fuzz: tests-ready $(VENV)/fuzz-installed  ## a fuzzer on every parser of foreign data, SECONDS_EACH=60; T=words chooses by name
	@$(BIN)/python -m tests.bench.fuzz $(SECONDS_EACH) $(T)

$(VENV)/demo-installed: tests/demo-requirements.txt $(VENV)/installed
	@$(BIN)/pip install -q --disable-pip-version-check -r $<
	@touch $@

docs: dev  ## write docs/verdicts from the docstrings of the rules
	@$(BIN)/python -c 'from stucktrace.verdict_pages import write; write("docs/verdicts")'

demo: demo-packages dev $(VENV)/demo-installed  ## stage a real hang, explain it, clean up
	@$(BIN)/python tests/demo.py

manifests: $(VENV)/tests-installed  ## write packaging/kubernetes/daemonset.yaml from the Helm chart
	@$(BIN)/python -m tests.harness.chart

wheel: build-packages $(BIN)/python  ## build the wheel into dist/
	@$(BIN)/pip install -q --disable-pip-version-check build
	@rm -rf build/lib build/bdist.* && $(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null && ls dist/*.whl

deb-packages:
	$(call install,$(DEB_PACKAGES))

# Built where nothing else is, from the wheel and the wheels of what it needs.
deb: wheel deb-packages  ## build the Debian package into dist/
	@rm -rf build/deb && mkdir -p build/deb/stucktrace/wheels
	@/usr/bin/python3 -m pip wheel -q --disable-pip-version-check --wheel-dir build/deb/stucktrace/wheels "$$(ls -t dist/*.whl | head -1)"
	@cp -r packaging/debian packaging/agent.toml README.md build/deb/stucktrace/
	@cp packaging/systemd/stucktrace-agent.service build/deb/stucktrace/debian/stucktrace.stucktrace-agent.service
	@cd build/deb/stucktrace && dpkg-buildpackage -b -us -uc >../log 2>&1 || { tail -30 ../log >&2; exit 1; }
	@mv build/deb/*.deb build/deb/*.changes build/deb/*.buildinfo dist/ && ls dist/*.deb

clean:  ## remove what was built
	rm -rf build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache bpf/*.o *.egg-info $(VENV)
