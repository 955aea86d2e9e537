# Each target creates the environment it needs; later runs skip the installation.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: r1-zero r1 test check format clean gpu-check

r1-zero: $(INSTALLED)  ## train the embedded base with GRPO through vLLM
	$(BIN)/accelerate launch recipes/r1_zero.yaml $(ARGS)

r1: $(INSTALLED)  ## all stages of R1, from the embedded base to the distilled student
	$(BIN)/accelerate launch recipes/r1.yaml $(ARGS)

test: $(INSTALLED)  ## run the tests, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

check: $(INSTALLED)  ## lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(INSTALLED)  ## fix lint and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gpu-check:  ## what only a GPU can show, into gpu-report.txt; GPU_CHECK_MODEL=folder of a 0.5B model
	@nvidia-smi -L > /dev/null 2>&1 || { echo "gpu-check needs a CUDA GPU, and nvidia-smi finds none here."; exit 2; }
	test -x .venv-gpu/bin/python || $(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install -qq --no-deps -r requirements/gpu.txt
	.venv-gpu/bin/python -m pip install -qq --no-deps --no-build-isolation -e .
	.venv-gpu/bin/python -m pytest tests/gpu -m gpu $(ARGS)

clean:
	rm -rf .venv .pytest_cache .ruff_cache

$(INSTALLED): requirements/cpu.txt pyproject.toml grpo/launch/codec.pth
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is required and $(PYTHON) is older. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing requirements/cpu.txt into .venv: takes a minute or more and 3 GB"
	$(BIN)/python -m pip install -qq --no-deps --no-compile -r requirements/cpu.txt  # most modules are never imported
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
	touch $@
