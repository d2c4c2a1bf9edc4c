# `make demo` and `make test` need nothing but make and Python >= 3.11: the environment makes itself.

PY     = .venv/bin/python
LATEST = .venv-latest/bin/python
OLDEST = .venv-oldest/bin/python
PARITY = .venv-parity/bin/python

# More than 8 workers cost more memory (each is a JAX process with 8 fake devices) than they save time.
JOBS  ?= auto
PYTEST = -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal
FAST   = not suite and not slow
# pyright finds the packages through the first python on the path (--verifytypes does not honour --pythonpath).
PYRIGHT = PATH="$(CURDIR)/.venv/bin:$$PATH" pyright
# Extra arguments for the command itself: make demo ARGS="--dataset digits --steps 100".
ARGS  ?=

find    = $$(python3 .ci/find_python.py $(1))
install = -m pip install -qq --editable
report  = -m pip list --format freeze 2>/dev/null | grep -E '^(jax|jaxlib|optax|chex|numpy|flax)=='

.PHONY: demo test test-fast test-all test-latest test-oldest lint bench bench-dense bench-sparse bench-embeddings bench-injection bench-sweep bench-precision mutate parity clean

demo: .venv/stamp
	$(PY) -m benchmarks.demo $(ARGS)

test: .venv/stamp
	$(PY) $(PYTEST) -m "not slow" $(ARGS)

test-fast: .venv/stamp
	$(PY) $(PYTEST) -m "$(FAST)" $(ARGS)

test-all: .venv/stamp
	$(PY) $(PYTEST) $(ARGS)

test-latest: .venv-latest/stamp
	$(LATEST) $(install) ".[test]" --upgrade --upgrade-strategy eager  # newest today, not when it was made
	@$(LATEST) --version; $(LATEST) $(report)
	$(LATEST) $(PYTEST) -m "$(FAST)" $(ARGS)

test-oldest: .venv-oldest/stamp
	@$(OLDEST) --version; $(OLDEST) $(report)
	$(OLDEST) $(PYTEST) -m "$(FAST)" $(ARGS)

lint: .venv/stamp
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PYRIGHT)
	$(PYRIGHT) --verifytypes adaptx --ignoreexternal

bench: bench-dense bench-sparse bench-embeddings bench-injection bench-sweep bench-precision

bench-dense: .venv/stamp
	$(PY) -m benchmarks.dense $(ARGS)

bench-sparse: .venv/stamp
	$(PY) -m benchmarks.sparse $(ARGS)

bench-embeddings: .venv/stamp
	$(PY) -m benchmarks.embeddings $(ARGS)

bench-injection: .venv/stamp
	$(PY) -m benchmarks.injection $(ARGS)

bench-sweep: .venv/stamp
	$(PY) -m benchmarks.sweep $(ARGS)

bench-precision: .venv/stamp
	$(PY) -m benchmarks.precision $(ARGS)

mutate: .venv/stamp
	$(PY) tests/mutate.py $(ARGS)

# The presets beside torch, Keras and Optax themselves, also at random hyperparameters: make parity ARGS="--seed 1".
parity: .venv-parity/stamp
	$(PARITY) -m tests.parity.live $(ARGS)

clean:
	rm -rf .venv .venv-latest .venv-oldest .venv-parity build dist out .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is touched last, so an interrupted installation is done again.
.venv/stamp: pyproject.toml
	python=$(call find,any) && $$python -m venv .venv
	$(PY) $(install) ".[dev]"
	touch $@

.venv-latest/stamp: pyproject.toml
	python=$(call find,newest) && $$python -m venv .venv-latest
	touch $@

.venv-parity/stamp: pyproject.toml
	python=$(call find,any) && $$python -m venv .venv-parity
	$(PARITY) $(install) ".[parity]"
	touch $@

.venv-oldest/stamp: pyproject.toml .ci/oldest.py
	python=$(call find,oldest) && $$python -m venv .venv-oldest
	$(OLDEST) .ci/oldest.py > .venv-oldest/constraints.txt
	$(OLDEST) $(install) ".[test]" --constraint .venv-oldest/constraints.txt
	touch $@
