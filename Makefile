# SPDX-License-Identifier: Apache-2.0
#
#   make demo     a load balancer in network namespaces, with real traffic
#   make test     every check and every test (needs root); THOROUGH=1 tries all examples of each,
#                 of which it is a third otherwise: some 8 minutes more
#   make kernels  the tests inside every supported kernel, in QEMU (needs root);
#                 CI=1 leaves out those that may fail, and divides the tests
#                 of programs among the others; WRITE=1 also writes
#                 docs/kernels.md, accepts programs' sizes, notes tests' costs
#   make kubernetes  a real Kubernetes on this machine, and the tests that need one (needs root,
#                 and Go 1.26 the first time: some 10 minutes); CI=1 runs a minute's worth, and
#                 says so where nothing was built before; KUBERNETES_ARGS="-- PATH" chooses;
#                 WRITE=1 also writes docs/kubernetes-conformance.md
#   make kubernetes-demo  the same Kubernetes, two nodes and a shell to look at them; nothing of it
#                 is left; DEMO_ARGS="--proxy kube-proxy" has others serve
#   make kernels-bench  pods' bandwidth in a guest of Linux 6.12, beside CAKE and the CNI
#                 bandwidth plugin, and a picture with 5.10 too; written to docs/results
#                 (needs root); BENCH_ARGS=--full measures at all limits,
#                 BENCH_ARGS="-- --part latency --rate 20M" what is chosen
#   make compilers  compile with the oldest clang that is supported and the newest
#                 that Debian has, and load what the newest makes in every kernel
#                 that must not fail (needs root); CI=1 leaves the kernels to
#                 make kernels, which does that as well; WRITE=1 also writes the
#                 table in docs/install.md and accepts sizes
#   make declared a few of the tests where this machine seems to have nothing
#                 but what outside.txt declares (needs root)
#   make kubernetes-bench  what a large cluster and endpoints that change cost, held to ratios of
#                 kube-proxy's figures in the same run (needs root, and what make kubernetes builds;
#                 some 25 minutes): SCALE_ARGS="--services 10", CHURN_ARGS="--seconds 255"
#   make bare     `make demo` and `make test` in fresh roots of Debian 12, 13 and
#                 unstable (needs root); BARE_ARGS="--on trixie --command demo"
#                 chooses, WRITE=1 also writes the table in docs/install.md
#   make bench    nanoseconds per packet, measured inside the kernel (needs root)
#   make bench-check  instructions per packet, held to budgets, counted in
#                 QEMU (needs root); WRITE=1 makes what is measured the budgets
#   make objects  compile the BPF programs and the native library, if out of date
#   make lint     formatting, types and import contract
#   make format   write Python and C as lint wants them
#   make clean    remove what the above have made, .venv included
#
# Each installs what it lacks first; a second run finds it there.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
SOURCES := src tests tools hatch_build.py
C_SOURCES := $(wildcard bpf/*/*.[ch] native/*.[ch] native/*/*.[ch])
# A module's tests stay together: they share what it has loaded. In the order of their names tests that wait
# for something come before the short ones, so that no worker is left alone with them at the end.
# Most of the time tests wait, so that there is one worker more than CPUs.
PYTEST_ARGS ?= -n $(shell expr $$(nproc) + 1) --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Should all limits of tests fail (pyproject.toml has them): the run is told to end, which names
# what was running, and a minute later it is ended.
TEST_LIMIT ?= 2h

# Tests get their own processes, so that stopping pytest, however it is stopped,
# stops every server and agent a test has started. The namespaces that they need
# beyond that (network, mounts) are made by tests/conftest.py.
ISOLATED := unshare --pid --fork --kill-child --mount-proc

.PHONY: demo test declared compilers kernels kernels-bench kubernetes kubernetes-demo bare bench objects lint format clean install-dev install-demo

demo: install-demo objects
	$(BIN)/towpath lab demo --output demo-out

# Lint has its say first; tests run whatever it is, and both have to be content. The shell is the
# namespace's first process: as such the timeout of coreutils 9.10 ends at once, with 125 and without
# a word, as if it had lost its parent.
test: install-dev objects
	@failed=; \
	$(MAKE) --no-print-directory lint-quick || failed="lint (above) and perhaps tests"; \
	$(ISOLATED) sh -c '"$$@"; exit $$?' sh \
	timeout --foreground --signal INT --kill-after 60 $(TEST_LIMIT) \
	$(if $(THOROUGH),env TOWPATH_THOROUGH=1) \
	$(BIN)/python -m tests.again $(PYTEST_ARGS) || failed="$${failed:-tests}"; \
	[ -z "$$failed" ] || { echo "make test: failed: $$failed" >&2; exit 1; }

# Tests that use each of what is declared for them, where there is nothing else:
# less than three minutes for what `make bare` takes an hour for.
DECLARED := tests/lab/test_group.py tests/lab/test_health_path.py tests/lab/test_l2.py \
	tests/lab/test_lab_life.py tests/lab/test_packaging.py tests/lab/test_record_command.py \
	tests/lab/test_socket_programs.py tests/lab/test_socket_resolvers.py \
	tests/lab/test_masquerade_programs.py \
	tests/prog/cgroup/test_systemd.py tests/prog/doctor/test_doctor.py tests/prog/recorder/test_expressions.py \
	tests/prog/kernel/test_links.py tests/unit/bench/test_rulesets.py \
	tests/unit/agent/health/test_check.py tests/unit/kernel/bpf/test_layout.py \
	tests/unit/test_outside.py
declared: install-dev objects
	$(BIN)/python -m tools.bare.view --for demo --for test $(VIEW_ARGS) -- \
		$(ISOLATED) $(BIN)/python -m tests.again $(PYTEST_ARGS) \
		--deselect tests/unit/agent/health/test_check.py::test_ten_thousand_checks_leave_nothing \
		$(DECLARED)
	$(BIN)/python -m pytest -q -p no:cacheprovider tools/bare/test_view.py

compilers: objects
	@tools/install dev,demo demo test kernels
	$(ISOLATED) $(BIN)/python -m tools.compilers $(if $(CI),--ci) $(if $(WRITE),--write) $(COMPILERS_ARGS)
	$(ISOLATED) $(BIN)/python -m pytest -q -p no:cacheprovider tools/compilers
	$(if $(CI),,$(ISOLATED) $(BIN)/python -m tools.kernels --ci --suite compilers $(if $(WRITE),--write))

kernels: objects
	@tools/install dev,demo demo test kernels
	$(ISOLATED) $(BIN)/python -m tools.kernels $(if $(CI),--ci) $(if $(WRITE),--write) $(KERNELS_ARGS)
	$(ISOLATED) $(BIN)/python -m pytest -q -p no:cacheprovider -n 2 $(if $(CI),-m "not thorough") tools/kernels

kernels-bench: objects
	@tools/install dev,demo demo kernels
	$(BIN)/python -m tools.kernels.bench $(BENCH_ARGS)

kubernetes: objects
	@tools/install dev,demo demo test kubernetes
	$(ISOLATED) $(BIN)/python -m tools.kubernetes $(if $(CI),--ci) $(if $(WRITE),--write) $(KUBERNETES_ARGS)

kubernetes-demo: objects
	@tools/install dev,demo demo test kubernetes
	@$(BIN)/python -m tools.kubernetes.demo $(DEMO_ARGS)

.PHONY: kubernetes-bench
kubernetes-bench: objects
	@tools/install dev,demo demo test kubernetes
	$(ISOLATED) --net --mount $(BIN)/python -m tools.kubernetes.scale --check $(SCALE_ARGS)
	$(ISOLATED) --net --mount $(BIN)/python -m tools.kubernetes.churn --check --slices --grace 1.5 \
		--parts endpoints --seconds 60 $(CHURN_ARGS)

bare:
	@tools/install dev,demo demo test bare
	$(BIN)/python -m tools.bare $(if $(WRITE),--write) $(BARE_ARGS)
	$(BIN)/python -m pytest -q -p no:cacheprovider tools/bare/test_machine.py

bench: install-demo objects
	$(BIN)/towpath bench lb --json

.PHONY: bench-check
bench-check: objects
	@tools/install dev,demo kernels
	$(BIN)/python -m tools.instructions $(if $(WRITE),--write) $(CHECK_ARGS)

objects: | $(VENV)
	@$(BIN)/python hatch_build.py

lint: install-dev lint-quick

format: install-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/clang-format -i $(C_SOURCES)

.PHONY: lint-quick
lint-quick:
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/clang-format --dry-run -Werror $(C_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

install-dev:
	@tools/install dev,demo demo test

install-demo:
	@tools/install demo demo

$(VENV):
	@tools/install demo demo

clean:
	rm -rf $(VENV) build dist demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf src/towpath/objects/*.o src/towpath/objects/*.so src/towpath/objects/include
