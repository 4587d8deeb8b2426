# Two commands do everything on a machine with Python 3.11 and pip: `make test` and `make demo`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv postgres chromium test demo bench lint format clean

venv: $(STAMP)

# torch first and pinned: that takes the CPU build where there is one. torchvision has no CPU build of its own,
# and imports beside CPU torch once its missing operators are declared (benchmarks/networks.py).
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0
	$(BIN)/python -m pip install --quiet --editable '.[openvino,onnx,demo,service,dev,bench]'
	$(BIN)/python -m pip install --quiet --no-deps torch-pruning==1.6.1 timm==1.0.31
	touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The storage is tested on a real server too. Where it cannot be installed those tests are skipped, and say so.
postgres:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends postgresql >/dev/null; } || \
	  echo "no PostgreSQL server, and none can be installed here; its tests will be skipped"

# The service's page is tested in a real browser, the system's own.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "no Chromium, and none can be installed here; the page's tests will be skipped"

# A process per core, each a whole file and one thread: two with two threads each wait for one another.
test: lint postgres chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: venv
	$(BIN)/python -m examples.demo --out demo

# Real weights and photos, slow: needs the data folder (NARROWGAUGE_DATA) and a quiet machine.
bench: venv
	$(BIN)/python -m benchmarks.spine --out bench

# What was measured and made, in bench and demo, stays.
clean:
	rm -rf $(VENV) build dist *.egg-info
