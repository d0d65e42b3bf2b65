"""Searches that go on where they stopped (optuna's sweeper always adds its n_trials anew), their trials and pruning."""

from __future__ import annotations

import contextlib
import os
import shlex
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from babylm_train.errors import InputError, InUse, one_line, printable
from babylm_train.files import read, read_lines
from babylm_train.state import LOSS
from babylm_train.study.jobs import Outcome
from babylm_train.study.results import RunRecord

STARTUP, WARMUP = 5, 0.3  # finished trials, and the share of its updates, before which no trial is pruned


@contextlib.contextmanager
def open_database(where: str | Path) -> Iterator[Any]:
    """Yields optuna. Raises InputError: what is read from the database, `where`, is damaged."""
    os.environ["SQLALCHEMY_SILENCE_UBER_WARNING"] = "1"  # of optuna 2's models; the sweeper needs that version
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # type: ignore[attr-defined]
    try:
        yield optuna
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, ValueError, LookupError) as error:
        raise InputError(f"{where} holds no trials optuna can read: {one_line(error).partition(' [SQL')[0]}") from error


@contextlib.contextmanager
def hold_search(directory: Path, sweeper: dict[str, Any], pruner: str | None = None) -> Iterator[list[str]]:
    """Holds the search in a study's directory; yields overrides for the sweeper: the trials left, the sampler's seed.

    A trial that was running when its command died is queued again with its values, so that its job resumes. The sampler
    is seeded by the trials there are: with one seed for every start it would draw the same values again.

    Raises:
        InUse: another command is at this search. InputError: it has no storage or name to go on from, or a damaged one.
    """
    name, storage, total = sweeper["study_name"], sweeper["storage"], sweeper["n_trials"]
    if not name or not storage:
        raise InputError("hydra.sweeper.study_name and hydra.sweeper.storage must be set: experiment=hpo sets both")
    if pruner not in ("median", None):
        raise InputError(f"pruner={pruner}: median, or null for none")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(directory / ".search.lock").acquire(timeout=0)
    except Timeout as error:
        raise InUse(f"{directory}: another command is at this search; for trials side by side: n_jobs") from error
    with lock:
        with open_database(storage) as optuna:
            study = optuna.create_study(study_name=name, storage=storage, direction="minimize", load_if_exists=True)
            for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial(trial.params)
            done = len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))
        print(f"search: {done} of {total} trials done", flush=True)
        seed = sweeper["sampler"].get("seed")
        again = [] if seed is None else [f"hydra.sweeper.sampler.seed={seed + done}"]
        yield [f"hydra.sweeper.n_trials={max(0, total - done)}", *again]


def read_trials(path: Path, runs: Sequence[RunRecord]) -> tuple[pd.DataFrame, Any, str]:
    """A search's trials as a table, the best first; optuna's best; a note. Raises InputError: damaged or empty."""
    with open_database(path) as optuna:
        storage, rows = optuna.storages.RDBStorage(f"sqlite:///{path}"), []
        name = optuna.get_all_study_summaries(storage)[-1].study_name
        study = optuna.load_study(study_name=name, storage=storage)
        for trial in study.trials:
            words = {f"{key}={value}" for key, value in trial.params.items()}
            run = next((run for run in runs if words and words <= {*run.words, f"seed={run.seed}"}), None)
            state = run.result.status if run and trial.value is not None else trial.state.name.lower()
            row = {"trial": trial.number, "state": state, "value": trial.value, **trial.params}
            rows.append({**row, "run": run.name if run else ""})
        rows.sort(key=lambda row: (row["state"] != "finished", row["value"] is None, row["value"]))
        losses = [row["value"] for row in rows if row["state"] == "finished"] or [0.0]
        try:
            shares = optuna.importance.get_param_importances(study, target=lambda t: min(t.value, losses[-1])).items()
            note = f"Importances: {', '.join(f'{key} {share:.0%}' for key, share in shares)} of the loss's variance."
        except (ImportError, ValueError, RuntimeError) as error:  # too few trials
            note = f"No importances, which need scikit-learn: {one_line(error).partition('. ')[0]}."
        return pd.DataFrame(rows), study.trials[rows[0]["trial"]], note


def repeat_trial(trial: Any, study: str) -> str:
    """The command that trains a trial's configuration with three seeds, into a study of its own, without searching."""
    words = {**trial.user_attrs, **trial.params, "study": f"{study}_best", "seed": "1,2,3"}
    typed = shlex.join(f"{key}={value}" for key, value in words.items() if key != "pruner")
    return printable(f"python -m babylm_train -m {typed}".replace(" experiment=hpo ", " experiment=baseline "))


def judge_trial(judged: dict[Path, int], directory: Path) -> Outcome | None:
    """How to end the run in `directory`: pruned, by the rule of optuna's MedianPruner; None: it goes on.

    Its lowest validation loss is then above the median of what the finished runs beside it had at that update. Jobs see
    no trial of optuna's, so this reads their records. judged: the last update looked at, by run.
    """
    try:
        losses = read_losses(directory)
        update, results = max(losses, default=0), directory.parent.glob("*/result.json")
        if update == judged.get(directory, 0):
            return None
        judged[directory] = update
        plan: dict[str, Any] = read(directory / "plan.json", dict[str, Any])
        others = [read_losses(path.parent) for path in results if read(path, Outcome).status == "finished"]
    except InputError:  # a file that is damaged, or not there yet
        return None
    known = [other[update] for other in others if update in other]
    is_worse = len(known) >= STARTUP and min(losses.values()) > statistics.median(known)
    if not is_worse or not WARMUP * plan["updates"] <= update < plan["updates"]:
        return None
    cause = f"pruned at update {update}: worse than the median of {len(known)} finished trials there"
    return Outcome("pruned", cause, val_loss=losses[update])


def read_losses(directory: Path) -> dict[int, float]:
    """Validation losses of a run (nats a target), by update. Raises InputError: it has no record, or a damaged one."""
    lines: list[dict[str, Any]] = read_lines(directory / "metrics.jsonl", dict[str, Any])
    return {line["step"]: line[LOSS] for line in lines if line.get(LOSS) is not None}
