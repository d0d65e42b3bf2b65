"""Hydra's launchers of a study's jobs: on this machine, or as tasks of submitit's (SLURM)."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.core.utils import run_job as run_hydra_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from babylm_train.errors import SIGNALS, InputError, Interrupted, InUse, PreemptedError, RunError, fail, handle_signals
from babylm_train.study.jobs import BUSY, Job, JobRunner, Outcome, time_on_disk

# What submitit calls the same for every cluster.
COMMON = ["stderr_to_stdout", "name", "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node"]
COMMON += ["mem_gb"]
QUEUE_GRACE = 100.0  # seconds a job in a queue has to save its state; SLURM's signal leaves 120


class StudyLauncher(Launcher):
    """Composes the jobs of a study and tells what became of each; a subclass runs them.

    A job that finished is not run again, nor one that failed since this command began, at the hands of another one.
    """

    exit_codes: ClassVar[list[int]] = []  # of the jobs that failed: Hydra hands the caller of a sweep no launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra, once a sweep."""
        self.hydra_context, self.config = hydra_context, config
        self.since = 0

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra, once a batch: runs a job for each list of overrides; infinity is a failed job's value."""
        setup_globals()
        study = Path(self.config.hydra.sweep.dir).absolute()
        study.mkdir(parents=True, exist_ok=True)
        self.since = self.since or time_on_disk(study)
        swept = [f"{key}={values}" for key, values in (self.config.hydra.sweeper.get("params") or {}).items()]
        parser = OverridesParser.create(self.hydra_context.config_loader)
        typed = parser.parse_overrides([*swept, *self.config.hydra.overrides.task])
        job_overrides = take_together(job_overrides, typed, self.config.zip)
        values: dict[int, float] = {}
        with tqdm(total=len(job_overrides), desc=study.name, unit="job", disable=None) as bar:

            def tell(job: Job, outcome: Outcome) -> None:
                values[job.number] = outcome.val_loss
                if outcome.exit_code:
                    self.exit_codes.append(outcome.exit_code)
                    bar.write(f"error: {job.name}: {outcome.cause}", file=sys.stderr)
                else:
                    bar.write(f"{job.name}: validation loss {outcome.val_loss:.4f}, {outcome.seconds:,.0f} s")
                bar.update()

            self.run((self._job(study, o, number) for number, o in enumerate(job_overrides, initial_job_idx)), tell)
        returns = [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]
        for number, made in enumerate(returns, initial_job_idx):
            made.return_value = values.get(number, math.inf)
        return returns

    def run(self, jobs: Iterable[Job], tell: Any) -> None:
        """Runs `jobs` and calls tell(job, outcome) for each. Raises PreemptedError."""
        raise NotImplementedError

    def _job(self, study: Path, overrides: Sequence[str], number: int) -> Job:
        from babylm_train.config import config_hash

        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        digest, words = config_hash(config), list(config.hydra.overrides.task)
        varying = [word for word in words if word not in self.config.hydra.overrides.task] or words
        with open_dict(config):
            config.hydra.overrides.task = varying  # what a run is named for
            directory = study / str(config.hydra.sweep.subdir)
            config.hydra.overrides.task = words
        directory.mkdir(parents=True, exist_ok=True)
        with open_dict(config):
            config.hydra.sweep.subdir = str(directory.relative_to(study))
        work, record = partial(run_under_hydra, config, self.hydra_context), partial(write_failure, config)
        timeout = math.inf if config.job_timeout is None else config.job_timeout
        return Job(" ".join(varying) or "defaults", number, directory, digest, work, record, timeout)


def take_together(
    job_overrides: Sequence[Sequence[str]], typed: Sequence[Override], keys: Sequence[str]
) -> list[Sequence[str]]:
    """The jobs of a sweep in which each of `keys` has the value of the same place in its list.

    Args:
        job_overrides: every combination. typed: the sweep's overrides, with the lists.

    Raises:
        InputError: one of `keys` has no list of values, or one of another length.
    """
    swept = {o.get_key_element(): o for o in typed if o.is_discrete_sweep()}
    if unknown := [key for key in keys if key not in swept]:
        raise InputError(f"zip: {unknown[0]} has no list of values (there are {', '.join(swept)})")
    lists = [[f"{key}={value}" for value in swept[key].sweep_string_iterator()] for key in keys]
    if len({len(values) for values in lists}) > 1:
        found = ", ".join(f"{len(values)} of {key}" for key, values in zip(keys, lists, strict=True))
        raise InputError(f"zip takes lists of one length together, got {found}")
    rows = [set(row) for row in zip(*lists, strict=True)] or [set[str]()]
    return [overrides for overrides in job_overrides if any(row <= set(overrides) for row in rows)]


def run_under_hydra(config: DictConfig, context: HydraContext) -> None:
    """A job in its own process: ends it with the exit code of how the run ended."""
    setup_globals()
    done = run_hydra_job(_train, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    _ = done.return_value  # raises what the job did


def write_failure(config: DictConfig, directory: Path, outcome: Outcome) -> None:
    """The result.json of a job that failed, and what else it may not have come to write."""
    from babylm_train.config import config_hash, saved_config
    from babylm_train.run import record_failure

    typed = [str(override) for override in config.hydra.overrides.task]
    record_failure(directory, outcome, config_hash(config), saved_config(config), typed)


def _train(config: DictConfig) -> float:
    from babylm_train.cli import run_job

    try:
        return run_job(config, Path(HydraConfig.get().runtime.output_dir))
    except InUse:
        sys.exit(BUSY)
    except RunError as error:
        fail(error)


class LocalLauncher(StudyLauncher):
    """Jobs on this machine. n_jobs: at a time; `auto`: as many as there are GPUs, or one."""

    def __init__(self, n_jobs: int | str) -> None:
        self.n_jobs = n_jobs

    def run(self, jobs: Iterable[Job], tell: Any) -> None:
        """See StudyLauncher."""
        JobRunner(share_gpus(self.n_jobs, find_gpus()), tell, self.since).run(jobs)


def share_gpus(n_jobs: int | str, gpus: Sequence[str]) -> list[dict[str, str]]:
    """The environment variables of each of `n_jobs` places: a GPU of its own, or shared where there are fewer.

    Raises:
        InputError: `n_jobs` is neither `auto` nor a whole number of at least 1.
    """
    if n_jobs != "auto" and (not isinstance(n_jobs, int) or isinstance(n_jobs, bool) or n_jobs < 1):
        raise InputError(f"hydra.launcher.n_jobs must be auto or at least 1, got {n_jobs!r}")
    count = n_jobs if isinstance(n_jobs, int) else max(1, len(gpus))
    return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(count)]


def find_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES lists them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


class SubmititLauncher(StudyLauncher):
    """Each job as a task of its own in a queue, `cluster` to submitit. They outlive this command; it waits for all.

    Args:
        submitit_folder: for scripts and logs. parameters: submitit's, without `slurm_`; null: not given.
    """

    cluster: ClassVar[str]

    def __init__(self, submitit_folder: str, **parameters: Any) -> None:
        self.folder = submitit_folder
        parameters.pop("max_num_timeout", None)  # of a schema that Hydra's own submitit plugin, if it is there, adds
        plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in parameters.items()}
        given = {key: value for key, value in plain.items() if value is not None}
        self.parameters = {key if key in COMMON else f"{self.cluster}_{key}": value for key, value in given.items()}

    def run(self, jobs: Iterable[Job], tell: Any) -> None:
        """See StudyLauncher. Jobs that another command's tasks are at are waited for, not submitted."""
        import submitit

        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        executor.update_parameters(**self.parameters)
        left, tasks = list(jobs), dict[Any, Job]()
        with handle_signals(_leave, (*SIGNALS, signal.SIGINT)):
            while left or tasks:
                busy, ready = list[Job](), list[Job]()
                for job in left:
                    if (outcome := job.outcome(self.since)) is not None:
                        tell(job, outcome)
                    else:
                        (busy if job.is_locked() else ready).append(job)
                if ready:  # one array of SLURM's
                    submitted = executor.map_array(run_in_queue, ready, [self.since] * len(ready))
                    tasks |= dict(zip(submitted, ready, strict=True))
                left = busy
                for task in [task for task in tasks if task.done()]:
                    tell(tasks[task], self._outcome(task, tasks[task]))
                    del tasks[task]
                time.sleep(0.5)

    def _outcome(self, task: Any, job: Job) -> Outcome:
        """What a task returned; one that died without a word failed, and that is written down."""
        import submitit

        try:
            return task.result()
        except submitit.core.utils.UncompletedJobError as error:
            cause = str(error).strip().splitlines() or ["no reason given"]
            outcome = Outcome("killed", f"the queue says: {cause[0][:300]}", 1)
            job.record(job.directory, outcome)
            return outcome


class SubmititLocalLauncher(SubmititLauncher):
    """On this machine."""

    cluster = "local"


class SubmititSlurmLauncher(SubmititLauncher):
    """In SLURM's queue."""

    cluster = "slurm"


def _leave(number: int, _frame: object) -> None:
    kind = Interrupted if number == signal.SIGINT else PreemptedError
    raise kind("asked to stop: the submitted jobs go on, and the same command waits for them")


def run_in_queue(job: Job, since: int) -> Outcome:
    """A task of submitit's: runs `job` in a process of its own; one that SLURM preempts goes back into the queue."""
    from submitit import JobEnvironment

    outcomes: list[Outcome] = []
    runner = JobRunner([{}], lambda _, outcome: outcomes.append(outcome), since, QUEUE_GRACE)
    try:
        runner.run([job])
    except PreemptedError as error:
        environment = JobEnvironment()
        if environment.cluster == "slurm":
            print(f"{error}: back into the queue", flush=True)
            subprocess.run(["scontrol", "requeue", environment.job_id], check=False)  # SLURM may have done it already
        sys.exit(error.exit_code)
    return outcomes[0]
