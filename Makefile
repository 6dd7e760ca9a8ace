# make run    the main job on a generated model and dataset
# make test   the test suite
# make check  ruff and mypy
# make wheels the package and the robot's client, in build/wheels
# make bench  timings of every submodule and of a whole request on this machine
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

run: $(STAMP)
	$(BIN)/python run_groot_torchtrt.py --model_path synthetic --dataset_path synthetic --use_fp32_acc \
	    --num_iterations 5 --warmup_iterations 2

test: $(STAMP)
	@# One process a core and one thread each: threads of several processes would wait for one another.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheels: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheels . ./client

bench: $(STAMP)
	$(BIN)/python -m pytest bench --benchmark-columns=min,median,max,rounds

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (torch and TensorRT-RTX are large: a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@# torch by itself first: it keeps pip from weighing releases that the constraints rule out anyway.
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[rtx,onnx,serve,sim,finetune,plots,rerun,notebooks,test,lint]'
	@# Pinned to numpy 1 without need; the test of openpi's protocol speaks through it.
	@$(BIN)/python -m pip install --quiet --no-deps openpi-client==0.1.2
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

.PHONY: run test check wheels bench clean
