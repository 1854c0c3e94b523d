# make run    set-up, then the main job on the embedded default; ARGS="seed=2 name=second" adds to its command
# make test   set-up, then all tests, the slow ones too; ARGS="-k advantages" adds to pytest's
# make setup  the virtual environment in .venv alone; RUYI_VLLM=auto|cpu|cuda|none chooses vLLM's package
# make lint   ruff
# make clean-venv

PYTHON ?= $(firstword $(foreach name,python3 python3.12 python3.11 python3.13,$(shell command -v $(name))))
# nproc would answer OMP_NUM_THREADS where that is set.
CORES := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# One more than cores, for many tests wait for processes that they have started. Every worker holds torch and a test's
# models, so more than four would ask for more memory than a laptop has.
WORKERS ?= $(shell echo $$(( $(CORES) < 4 ? $(CORES) + 1 : 4 )))

.PHONY: help run test setup lint clean-venv

help:
	@sed -n '/^# make/s/^# //p' Makefile

run: setup
	@.venv/bin/python -m ruyi_rl stage=grpo $(ARGS)

# One thread a worker, for cores and workers are about as many. worksteal, because a few tests take most of the time.
test: setup
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m "" -n $(WORKERS) --dist worksteal --durations=15 $(ARGS)

setup:
	@$(if $(PYTHON),,echo "set-up needs Python 3.11 or newer, and there is no python3 on the PATH" >&2; exit 2;) \
	$(PYTHON) scripts/setup.py

lint: setup
	@.venv/bin/python -m ruff check .

clean-venv:
	rm -rf .venv
