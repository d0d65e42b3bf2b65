"""Hyperparameter searches that go on where they stopped; optuna's sweeper itself always adds its n_trials anew."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from babylm_train.errors import InputError, InUse


@contextlib.contextmanager
def hold_search(directory: Path, sweeper: dict[str, Any]) -> Iterator[list[str]]:
    """Holds the search in a study's directory; yields overrides for the sweeper: the trials left, the sampler's seed.

    A trial that was running when its command died is queued again with its values, so that its job resumes. The sampler
    is seeded by the trials there are: with one seed for every start it would draw the same values again.

    Raises:
        InUse: another command is at this search. InputError: it has no storage or name to go on from.
    """
    os.environ["SQLALCHEMY_SILENCE_UBER_WARNING"] = "1"  # of optuna 2's models; the sweeper needs that version
    import optuna
    from optuna.trial import TrialState

    name, storage, total = sweeper["study_name"], sweeper["storage"], sweeper["n_trials"]
    if not name or not storage:
        raise InputError("hydra.sweeper.study_name and hydra.sweeper.storage must be set: experiment=hpo sets both")
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(directory / ".search.lock").acquire(timeout=0)
    except Timeout as error:
        raise InUse(f"{directory}: another command is at this search; for trials side by side: n_jobs") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # type: ignore[attr-defined]
    with lock:
        study = optuna.create_study(study_name=name, storage=storage, direction="minimize", load_if_exists=True)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
        done = len(study.get_trials(states=(TrialState.COMPLETE,)))
        print(f"search: {done} of {total} trials done", flush=True)
        seed = sweeper["sampler"].get("seed")
        again = [] if seed is None else [f"hydra.sweeper.sampler.seed={seed + done}"]
        yield [f"hydra.sweeper.n_trials={max(0, total - done)}", *again]
