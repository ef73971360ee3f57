# Everything a developer does, on a machine with python3 (3.11 or newer) and make.
# The first target that needs it makes the environment in .venv; a change of the dependencies renews it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A process a core, each with one thread, as most tests are too small for two threads to help. Neighbours stay
# together, since they share fixtures, until a process has nothing left to do and takes some of another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

.PHONY: demo test test-slow bench lint field fuzz floors audit clean

demo: $(READY)
	@PATH="$(CURDIR)/$(BIN):$$PATH" examples/demo.sh

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(READY)
	$(PYTEST) -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python tests/benchmarks/bench_startup.py
	$(BIN)/python tests/benchmarks/bench_accuracy.py
	$(BIN)/python tests/benchmarks/bench_training.py
	$(BIN)/python tests/benchmarks/bench_forward.py
	$(BIN)/python tests/benchmarks/bench_factorize.py

# One small random model of every class of transformers: factorize, expand, from_pretrained and load, and a table.
field: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/field/run.py

# Coverage-guided fuzzing of the readers, 20 seconds each; its tool is fetched here, as nothing else needs it.
fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt atheris
	$(BIN)/python tests/fuzz/run.py

# The demo, and a picture, with the oldest packages that pyproject.toml allows.
floors:
	$(PYTHON) -m venv $(VENV)-floors
	$(VENV)-floors/bin/python -m pip install --quiet --disable-pip-version-check -c tests/floors.txt ".[plot]"
	@PATH="$(CURDIR)/$(VENV)-floors/bin:$$PATH" examples/demo.sh
	$(VENV)-floors/bin/embcompress report build/demo/intents.pt --plot build/demo/floors.png

# Known advisories against the installed packages, where the package index offers them; else it says that it could not.
audit: $(READY)
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip-audit
	$(VENV)-audit/bin/python tests/audit.py $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

clean:
	rm -rf build dist $(VENV) $(VENV)-audit $(VENV)-floors *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment serves the demo and the tests: the extras are small beside torch. The stamp is written last,
# so that an interrupted installation is started again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)
