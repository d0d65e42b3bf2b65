# `make train` and `make test` need Python 3.11 or newer and nothing else: they set up .venv first.
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready

.PHONY: help docs study-recipe wheel train test coverage stories torture fuzz lint format sweep bench gpu versus scale torture-studies processes ray hydra-next lm-eval compat clean

help:  ## this list
	@grep -hE '^[a-z%-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*  ## /\t/' | expand -t 18

train: $(READY)  ## the default run: a small GPT-2 on the built-in Hindi stories
	$(PY) -m babylm_train experiment=stories

test: $(READY)  ## the whole suite
	$(PY) -m pytest -n 2 --dist worksteal

coverage: $(READY)  ## the suite, and which lines of the package it runs in its own processes
	$(PY) -m pytest -n 2 --dist worksteal -q --cov=babylm_train --cov-report=term-missing:skip-covered

torture: $(READY)  ## 324 SIGKILLs and 50 preemptions of whole runs, each compared with one that nobody touched; 15 minutes
	PYTHONPATH=tests $(PY) benchmarks/torture.py
	PYTHONPATH=tests $(PY) benchmarks/fuzz.py

fuzz: $(READY)  ## part of torture: 2 000 random configurations: each trains 2 steps or is refused
	PYTHONPATH=tests $(PY) benchmarks/fuzz.py

stories: $(READY)  ## writes the built-in stories and their minimal pairs anew from corpora/hindi_stories; git diff shows a change
	cd corpora && ../$(PY) -m hindi_stories

lint: $(READY)  ## style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY)  ## what ruff can put right by itself
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs: $(READY)  ## docs/CONFIG.md anew from conf/
	$(PY) docs/write_config.py

sweep: $(READY)  ## three optimizers by three schedules, 20 updates each, in one study directory
	$(PY) -m babylm_train -m study=sweep optimizer=adamw,adam,sgd scheduler=linear,cosine,constant trainer.max_steps=20

study-recipe: $(READY)  ## baseline, baseline_tuned and best, three seeds each, and best against both; scale=nano for a CPU, args="data=text ..."
	$(PY) -m babylm_train -m experiment=baseline,baseline_tuned,best seed=1,2,3 data.seed=0 study=recipe$(if $(scale),-$(scale) scale=$(scale)) $(args)
	$(PY) -m babylm_train.report multirun_outputs/recipe$(if $(scale),-$(scale)) baseline=experiment=baseline_tuned
	$(PY) -m babylm_train.report multirun_outputs/recipe$(if $(scale),-$(scale)) baseline=experiment=baseline

study-%: $(READY)  ## a standard experiment: optimizers, schedulers, precisions, curricula, tokenizers, hpo; scale=small for a CPU
	$(PY) -m babylm_train experiment=$* study=$*$(if $(scale),-$(scale) scale=$(scale)) $(args)

torture-studies: $(READY)  ## 40 jobs, 4 broken, under each launcher; a killed controller; two commands at once
	$(PY) benchmarks/studies.py

processes: $(READY)  ## the curves of one run by 1, 2 and 4 processes, and by 2, then 1, then 4
	$(PY) benchmarks/processes.py

ray: $(READY)  ## the test of hydra/launcher=ray; installs ray first
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[ray]"
	$(PY) -m pytest tests/study/test_sweeps.py -k ray

hydra-next: $(READY)  ## the suite under Hydra 1.4.0rc3 and its sweeper, which takes optuna 5; an environment of its own
	$(PYTHON) -m venv .venv/hydra
	grep -vE '^(hydra|omegaconf|optuna|antlr4)' constraints.txt > .venv/hydra/constraints.txt
	.venv/hydra/bin/pip install --quiet --constraint .venv/hydra/constraints.txt hydra-core==1.4.0rc3 omegaconf==2.4.1rc1 \
		hydra-optuna-sweeper==1.4.0rc3 --editable ".[dev]"
	.venv/hydra/bin/python -m pytest -n 2 --dist worksteal

lm-eval: $(READY)  ## the test that lm_eval reads an exported model as we do; installs lm_eval first
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[lm-eval]"
	$(PY) -m pytest tests/babylm/test_preflight.py -k lm_eval

compat: $(READY)  ## exports read by transformers 4.51.3, which the BabyLM 2025 pipeline pins, against our own reading
	$(PYTHON) -m venv .venv/transformers4
	.venv/transformers4/bin/pip install --quiet torch==2.13.0 transformers==4.51.3
	$(PY) benchmarks/compat.py .venv/transformers4/bin/python

bench: .venv/.bench  ## speed beside HF Trainer, Lightning and bare loops on this CPU; TEXT=FILE for a text of yours
	$(PY) benchmarks/speed.py $(TEXT)

gpu: .venv/.bench  ## on one GPU: the tests that need it, then speed at three sizes beside HF Trainer and a plain loop
	$(PY) -m pytest -m gpu -n 4
	$(PY) benchmarks/gpu.py

versus: $(READY)  ## speed and memory of training against another checkout, in turn: BEFORE=FOLDER
	$(PY) benchmarks/versus.py $(BEFORE)

scale: $(READY)  ## seconds and memory of preparing 1, 10 and 100 million tokens; SIZES="10 100 1000" for others
	$(PY) benchmarks/scale.py --millions $(or $(SIZES),1 10 100)

wheel: $(READY)  ## builds dist/*.whl, installs it into a clean environment and runs it from an empty folder
	rm -rf dist build/wheel && mkdir -p build/wheel/empty
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build/wheel/empty && WANDB_MODE=disabled ../venv/bin/babylm-train experiment=smoke hydra.run.dir=run
	grep '"babylm_train": "'"$$(basename dist/*.whl | cut -d- -f2)"'"' build/wheel/empty/run/result.json

clean:  ## the environment, the cache and what was built
	rm -rf .venv build dist multirun_outputs/.cache

.venv/.bench: $(READY)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	touch $@

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
