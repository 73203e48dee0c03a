# make demo    install into .venv and train GAGPO on the built-in environment, from the first model to the report
# make test    install and run all tests
# make test-interop   let programs of others read our exports and play with our environments, each in a venv of its own
# make check   check formatting, lint and types
# make mutants break one thing at a time in a copy and check that the tests notice
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
SEED ?= 0
JOBS ?= 2
BACKEND ?= distributed
DEMO_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

BIN := $(VENV)/bin
# Where the caller's environment forbids bytecode, every process would compile all that it imports, torch and vLLM too.
export PYTHONDONTWRITEBYTECODE :=

FIND_LINKS := $(addprefix --find-links ,$(PIP_FIND_LINKS))

.PHONY: install demo test test-fast test-interop check mutants clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements/cpu.txt setup.py pyproject.toml
	$(PYTHON) scripts/check_python.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --retries 1 --no-deps --extra-index-url $(TORCH_INDEX) torch==2.13.0
	$(PYTHON) scripts/check_torch.py $(VENV)
	$(BIN)/pip install --quiet --retries 1 uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(FIND_LINKS) --no-deps -r requirements/cpu.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

demo: install
	$(BIN)/gagpo warmstart --env.name vault --env.options max_steps=30 --episodes 500 --noise 0.55 --steps 130 \
	    --out $(DEMO_DIR)/start --seed $(SEED)
	$(BIN)/gagpo train --config examples/recipes/vault_demo.yaml --backend $(BACKEND) --train.seed $(SEED) \
	    --actor.model_name_or_path $(DEMO_DIR)/start --run_dir $(DEMO_DIR)/run --eval.tasks 128

# Side by side, but for the tests of the real stack: each of those starts processes enough for all cores.
FAST_TESTS := $(BIN)/python -m pytest -m "not stack" -n $(JOBS) --dist worksteal

test: install
	status=0; $(FAST_TESTS) || status=$$?; $(BIN)/python -m pytest -m stack tests/stack || status=$$?; exit $$status

test-fast: install
	$(FAST_TESTS)

# Their packages do not fit ours, and of ours only what needs no package is used: the other tests have stand-ins.
INTEROP := inspect atif textarena openenv verifiers

test-interop: $(INTEROP:%=$(VENV)/interop/%/.installed)
	for name in $(INTEROP); do \
	    $(VENV)/interop/$$name/bin/python tests/interop/check_$$name.py tests/data/export || exit 1; \
	done

# harbor asks for a newer Python than the part of it that is used needs.
$(VENV)/interop/%/.installed: requirements/interop-%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --retries 1 --no-deps --ignore-requires-python $(FIND_LINKS) -r $<
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

mutants: install
	$(BIN)/python scripts/mutants.py

clean:
	rm -rf $(VENV) build *.egg-info
