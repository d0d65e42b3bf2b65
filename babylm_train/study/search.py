"""Searches that go on where they stopped (optuna's sweeper always adds its n_trials anew), their trials and pruning."""

from __future__ import annotations

import contextlib
import os
import shlex
import statistics
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from babylm_train.config import essential
from babylm_train.errors import InputError, InUse, one_line, printable
from babylm_train.files import read, read_lines, write_json
from babylm_train.state import LOSS
from babylm_train.study.jobs import Outcome
from babylm_train.study.results import RunRecord

OF_THE_LOSS = ("data", "tokenizer", "size")  # what other text, or other tokens, come from
STARTUP, WARMUP = 5, 0.3  # finished trials, and the share of its updates, before which no trial is pruned


@contextlib.contextmanager
def open_database(where: str | Path) -> Iterator[Any]:
    """Yields optuna. Raises InputError: what is read from the database, `where`, is damaged."""
    os.environ["SQLALCHEMY_SILENCE_UBER_WARNING"] = "1"  # of optuna 2's models; the sweeper needs that version
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of trials that are queued again
            yield optuna
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, ValueError, LookupError) as error:
        raise InputError(f"{where} holds no trials optuna can read: {one_line(error).partition(' [SQL')[0]}") from error


@contextlib.contextmanager
def hold_search(
    directory: Path, sweeper: dict[str, Any], pruner: str | None, drawn: Collection[str], config: dict[str, Any]
) -> Iterator[list[str]]:
    """Holds the search in a study's directory; yields overrides for the sweeper: the trials left, the sampler's seed.

    A trial that was running when its command died is queued again with its values, so that its job resumes. The sampler
    is seeded by the trials there are: with one seed for every start it would draw the same values again. drawn: keys,
    or groups, whose values are; of `config`, the rest is what all trials must have.

    Raises:
        InUse: another command is at this search. InputError: it has no storage or name to go on from, or a damaged one;
            it is of another configuration; its trials would have losses that do not compare.
    """
    name, storage, total = sweeper["study_name"], sweeper["storage"], sweeper["n_trials"]
    for key in drawn:
        if key == "objective" or key.partition(".")[0] in OF_THE_LOSS:
            raise InputError(f"{key}: a search compares losses, which it changes: sweep it with -m and seeds instead")
    given = {k: str(v) for k, v in essential(config).items() if not any(f"{k}.".startswith(f"{d}.") for d in drawn)}
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
            done, known = len(study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))), len(study.trials)
        path = directory / "search.json"  # not among the study's attributes, which some databases cut short
        before: dict[str, str] = read(path, dict[str, str]) if known and path.exists() else given
        write_json(path, before)
        for key in sorted(before.keys() | given.keys()):
            if before.get(key) != given.get(key):
                what = f"{key} is {given.get(key)}, {before.get(key)} before"
                raise InputError(f"{directory} holds another search ({what}): give this one a study= of its own")
        print(f"search: {done} of {total} trials done", flush=True)
        seed = sweeper["sampler"].get("seed")
        again = [] if seed is None else [f"hydra.sweeper.sampler.seed={seed + known}"]
        yield [f"hydra.sweeper.n_trials={max(0, total - done)}", *again]


def read_trials(path: Path, runs: Sequence[RunRecord]) -> tuple[pd.DataFrame, Any]:
    """A search's trials as a table, the best first; optuna's best. Raises InputError: damaged or empty."""
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
        return pd.DataFrame(rows), study.trials[rows[0]["trial"]]


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
