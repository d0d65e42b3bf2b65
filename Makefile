# `make train` and `make test` need Python 3.11 or newer and nothing else: they set up .venv first.
PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/.ready

.PHONY: train test lint format sweep clean

train: $(READY)  ## the default run: a small GPT-2 on the built-in Hindi stories
	$(PY) -m babylm_train experiment=stories

test: $(READY)  ## the whole suite
	$(PY) -m pytest -n 2 --dist worksteal

lint: $(READY)  ## style, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

sweep: $(READY)  ## three optimizers by three schedules, 20 updates each, in one study directory
	$(PY) -m babylm_train -m study=sweep optimizer=adamw,adam,sgd scheduler=linear,cosine,constant trainer.max_steps=20

clean:
	rm -rf .venv multirun_outputs/.cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

.PHONY: lm-eval
lm-eval: $(READY)  ## the test that lm_eval reads an exported model as we do; installs lm_eval first
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[lm-eval]"
	$(PY) -m pytest tests/test_babylm.py -k lm_eval
