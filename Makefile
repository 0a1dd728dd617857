# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
CONFIG ?= configs/cold_start/sd35m.yaml
MODELS := sd3m sd35m flux1_dev flux2_klein_4b flux2_klein_9b
# Processes that share the tests, file by file.
WORKERS ?= 2
# Of the campaign.
MINUTES ?= 20
SEED ?= 0
PYTEST := $(PY) -m pytest -q -n $(WORKERS) --dist loadfile

# `make demo TORCH=cpu` installs torch without CUDA, from PyTorch's own index.
ifneq ($(filter-out cpu,$(TORCH)),)
$(error TORCH may be cpu, or nothing for the build with CUDA, not $(TORCH))
endif
INDEX := $(if $(TORCH),--extra-index-url https://download.pytorch.org/whl/$(TORCH))

# glibc hands freed memory back to the kernel after every small CPU step and faults it in again: a third of the time.
export MALLOC_TRIM_THRESHOLD_ := 8589934592
export MALLOC_TOP_PAD_ := 268435456
export MALLOC_MMAP_MAX_ := 0
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install demo quick test campaign mutations lint format typecheck unit teacher tiny-clip cold-start rtdmd compare-cold-start ablations \
	bench eval prompts doctor plan plan-tables figures tensorboard clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-20s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Make .venv and install the pinned requirements (other targets do it when needed; TORCH=cpu: no CUDA)

$(VENV)/.installed: requirements.txt requirements-no-deps.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(INDEX) -r requirements.txt
	$(PY) -m pip install --quiet --no-deps -r requirements-no-deps.txt
	$(PY) -m pip install --quiet --no-deps -e .
	@touch $@

demo: install ## Both stages on the toy world in minutes: table, picture, TensorBoard log
	$(PY) -m rtdmd_lightning.demo

quick: install lint typecheck ## Lint, type-check and run the tests that are not slow: 90 seconds on two cores
	$(PYTEST) -m "not slow"

test: install lint typecheck unit ## Lint, type-check and run all tests: 12 minutes on two cores (WORKERS=8 on more)

campaign: install ## Kills, signals, full disks, dead ranks, server faults, at random moments: MINUTES=20 SEED=0
	OMP_NUM_THREADS=1 $(PY) -m tests.campaign.campaign --minutes $(MINUTES) --seed $(SEED)

mutations: install ## Break the code in one place at a time; each time a test must fail: 20 minutes
	$(PY) -m tests.campaign.mutate

lint: install ## ruff: rules and formatting; import-linter: imports go down (.importlinter is the map)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-logo

format: install ## Rewrite the code in ruff's format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

typecheck: install ## mypy over the package
	$(VENV)/bin/mypy

unit: install ## All tests and nothing else
	$(PYTEST)

teacher: install ## Train the toy world's teacher again (about an hour on two cores) into checkpoints/tiny-sd3
	$(PY) -m rtdmd_lightning.pretrain_teacher --compile true

cold-start: install ## The full stage 1 on the toy world
	$(PY) -m rtdmd_lightning.fit --config configs/cold_start/tiny_sd3.yaml

rtdmd: install ## The full stage 2 on the toy world, from checkpoints/tiny-sd3-cold-start
	$(PY) -m rtdmd_lightning.fit --config configs/rtdmd/tiny_sd3.yaml

compare-cold-start: install ## AC-DMD against DMD2 and its other variants (resumable; half an hour): table and curves in notebooks/results
	$(PY) -m rtdmd_lightning.study --study configs/compare/cold_start.yaml

ablations: install ## RTDMD against itself with one part taken out (resumable; 45 minutes): the same of stage 2
	$(PY) -m rtdmd_lightning.study --study configs/compare/ablations.yaml

bench: install ## Seconds per update and peak memory of the cold start
	$(PY) -m rtdmd_lightning.bench

eval: install ## Teacher and students on held-out prompts: table, picture, report.html
	$(PY) -m rtdmd_lightning.evaluate --config configs/evaluate/tiny_sd3.yaml

tiny-clip: install ## Train the toy world's CLIP again into checkpoints/tiny-clip
	$(PY) -m rtdmd_lightning.pretrain_clip

prompts: install ## Make or fetch the prompt sets that the configs name, into prompts/
	$(PY) -m rtdmd_lightning.prompts

doctor: install ## Which rewards work here, and what the others want
	$(PY) -m rtdmd_lightning.doctor

plan: install ## Memory that a run will need, without weights or GPU: make plan CONFIG=configs/rtdmd/sd35m.yaml
	$(PY) -m rtdmd_lightning.plan --config $(CONFIG)

plan-tables: install ## The two tables of rtdmd_lightning/planning/README.md: memory of every real config, and how it fits one card
	@for options in "" "--card=12,16,24"; do for model in $(MODELS); do for stage in cold_start rtdmd; do \
		$(PY) -m rtdmd_lightning.plan --config configs/$$stage/$$model.yaml --markdown $$options; \
	done; done; done | awk '!seen[$$0]++'

figures: install ## Draw the README's figure of the method again
	$(PY) notebooks/figures/method.py

tensorboard: install ## Curves and pictures of the runs
	$(VENV)/bin/tensorboard --logdir runs

clean: ## Remove caches (not runs, not .venv)
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -exec rm -rf {} +
