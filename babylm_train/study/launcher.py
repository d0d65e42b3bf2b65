"""Hydra's launchers of a study's jobs: on this machine, or as tasks of submitit's (SLURM)."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.core.utils import run_job as run_hydra_job
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from babylm_train.errors import (
    SIGNALS,
    InputError,
    Interrupted,
    InUse,
    PreemptedError,
    RunError,
    StorageError,
    fail,
    handle_signals,
    one_line,
)
from babylm_train.study.jobs import BUSY, Job, JobRunner, Outcome, time_on_disk
from babylm_train.study.search import judge_trial

# What submitit calls the same for every cluster.
COMMON = ["stderr_to_stdout", "name", "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node"]
COMMON += ["mem_gb"]
QUEUE_GRACE = 100.0  # seconds a job in a queue has to save its state; SLURM's signal leaves 120


class StudyLauncher:
    """Composes the jobs of a study and tells what became of each; a subclass runs them.

    A job that finished is not run again, nor one that failed since this command began, at the hands of another one.
    """

    exit_codes: ClassVar[list[int]] = []  # of the jobs that failed: Hydra hands the caller of a sweep no launcher

    def setup(self, *, hydra_context: HydraContext, config: DictConfig, **_: Any) -> None:
        """Called by Hydra, once a sweep."""
        self.hydra_context, self.config = hydra_context, config
        self.since, self.judge = 0, partial(judge_trial, {}) if config.get("pruner") else None

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Called by Hydra, once a batch: runs a job for each list of overrides; infinity is a failed job's value."""
        setup_globals()
        if self.config.zip:
            if "n_trials" in self.config.hydra.sweeper:
                raise InputError("zip: a search draws its values, it takes no lists together")
            swept = [f"{key}={values}" for key, values in (self.config.hydra.sweeper.get("params") or {}).items()]
            parser = OverridesParser.create(self.hydra_context.config_loader)
            typed = parser.parse_overrides([*swept, *self.config.hydra.overrides.task])
            job_overrides = take_together(job_overrides, typed, self.config.zip)
        study = Path(self.config.hydra.sweep.dir).absolute()
        study.mkdir(parents=True, exist_ok=True)
        self.since = self.since or time_on_disk(study)
        numbered = dict(enumerate(job_overrides, initial_job_idx))
        values: dict[int, float] = {}

        def tell(job: Job, outcome: Outcome) -> None:
            if outcome.exit_code == StorageError.exit_code and "n_trials" in self.config.hydra.sweeper:
                raise StorageError(outcome.cause)  # it says nothing of the trial, which is queued again
            values[job.number] = outcome.val_loss
            place = f"[{len(values)} of {len(numbered)}]"
            if outcome.exit_code:
                self.exit_codes.append(outcome.exit_code)
                bar.write(f"error: {job.name}: {outcome.cause} {place}", file=sys.stderr)
            else:
                path = job.directory / "result.json"
                before = path.exists() and path.stat().st_mtime_ns < self.since
                took = outcome.cause or f"validation loss {outcome.val_loss:.4f}, {outcome.seconds:,.0f} s"
                took += ", finished before" * before
                bar.write(f"{job.name}: {took} {place}")
            bar.update()
            sys.stdout.flush()

        with tqdm(desc=study.name, total=len(numbered), unit="job", disable=None) as bar:  # on a terminal alone
            self.run((self._job(study, overrides, number) for number, overrides in numbered.items()), tell)
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=values.get(number, math.inf))
            for number, overrides in numbered.items()
        ]

    def run(self, jobs: Iterable[Job], tell: Any) -> None:
        """Runs `jobs` and calls tell(job, outcome) for each. Raises PreemptedError."""
        raise NotImplementedError

    def _job(self, study: Path, overrides: Sequence[str], number: int) -> Job:
        from babylm_train.config import config_hash, saved_config
        from babylm_train.runner import record_failure

        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        words = [str(word) for word in config.hydra.overrides.task]
        varying = [word for word in words if word not in self.config.hydra.overrides.task] or words
        digest = config_hash(config)
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
            config.hydra.overrides.task = varying  # what a run is named for
            directory = study / str(config.hydra.sweep.subdir)
            config.hydra.overrides.task = words
            directory.mkdir(parents=True, exist_ok=True)
            config.hydra.sweep.subdir = str(directory.relative_to(study))
        work = partial(run_under_hydra, config, self.hydra_context)
        record = partial(record_failure, config_hash=digest, config=saved_config(config), overrides=words)
        timeout = math.inf if config.job_timeout is None else config.job_timeout
        return Job(" ".join(varying) or "defaults", number, directory, digest, work, record, timeout, self.judge)


def take_together(
    jobs: Sequence[Sequence[str]], typed: Sequence[Override], keys: Sequence[str]
) -> list[tuple[str, ...]]:
    """Those of `jobs`, all combinations, in which each of `keys` has the value of one place in its list in `typed`.

    Raises InputError: their lists differ in length, or one of them has none.
    """
    swept = {o.get_key_element().lstrip("+"): o for o in typed if o.is_discrete_sweep()}
    lists = [[*swept[key].sweep_string_iterator()] if key in swept else [] for key in keys]
    if not all(0 < len(values) == len(lists[0]) for values in lists):
        found = ", ".join(f"{len(values)} of {key}" for key, values in zip(keys, lists, strict=True))
        raise InputError(f"zip takes lists of one length together, got {found}")
    names = [swept[key].get_key_element() for key in keys]
    rows = [{f"{name}={value}" for name, value in zip(names, row, strict=True)} for row in zip(*lists, strict=True)]
    return list(dict.fromkeys(tuple(job) for job in jobs if any(row <= set(job) for row in rows)))


def run_under_hydra(config: DictConfig, context: HydraContext) -> None:
    """A job in its own process: ends it with the exit code of how the run ended."""
    from babylm_train.runner import run_job

    def train(config: DictConfig) -> float:
        typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        try:
            return run_job(config, Path(HydraConfig.get().runtime.output_dir), typed)
        except InUse:
            sys.exit(BUSY)
        except RunError as error:
            fail(error)

    setup_globals()
    done = run_hydra_job(train, config, "hydra.sweep.dir", "hydra.sweep.subdir", context)
    _ = done.return_value  # raises what the job did


class LocalLauncher(StudyLauncher):
    """Jobs on this machine. n_jobs: at a time; `auto`: as many as there are GPUs, or one."""

    def __init__(self, n_jobs: int | str) -> None:
        self.n_jobs = n_jobs

    def run(self, jobs: Iterable[Job], tell: Any) -> None:
        """See StudyLauncher."""
        JobRunner(share_gpus(self.n_jobs), tell, self.since).run(jobs)


def share_gpus(n_jobs: int | str) -> list[dict[str, str]]:
    """The environment variables of each of `n_jobs` jobs: a visible GPU of its own, or shared where there are fewer."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = list(map(str, range(torch.cuda.device_count()))) if named is None else named.replace(" ", "").split(",")
    gpus = [gpu for gpu in gpus if gpu]
    count = max(1, len(gpus)) if n_jobs == "auto" else n_jobs
    if type(count) is not int or count < 1:
        raise InputError(f"hydra.launcher.n_jobs must be auto or at least 1, got {n_jobs!r}")
    return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(count)]


class QueueLauncher(StudyLauncher):
    """Each job as a task of its own in a queue, which a subclass speaks to. stopped: what becomes of them then."""

    stopped: ClassVar[str] = "the submitted jobs go on, and the same command waits for them"

    def open_queue(self) -> AbstractContextManager[object]:
        """Inside, `submit` may be called."""
        return contextlib.nullcontext()

    def submit(self, jobs: list[Job]) -> Sequence[Any]:
        """Puts jobs into the queue, to call run_in_queue; returns a task for each."""
        raise NotImplementedError

    def is_done(self, task: Any) -> bool:
        """Has it ended?"""
        raise NotImplementedError

    def result(self, task: Any) -> Outcome:
        """What a task that ended has returned. Raises LostTask: it died without a word."""
        raise NotImplementedError

    def run(self, jobs: Iterable[Job], tell: Any) -> None:
        """See StudyLauncher. Jobs that another command's tasks are at are waited for, not submitted."""
        left, tasks = list(jobs), dict[Any, Job]()
        with self.open_queue(), handle_signals(partial(_leave, self.stopped), (*SIGNALS, signal.SIGINT)):
            while left or tasks:
                ready = []
                for job in left.copy():
                    if (outcome := job.outcome(self.since)) is not None:
                        tell(job, outcome)
                    elif job.is_locked():
                        continue
                    else:
                        ready.append(job)
                    left.remove(job)
                if ready:
                    tasks |= dict(zip(self.submit(ready), ready, strict=True))
                for task in [task for task in tasks if self.is_done(task)]:
                    tell(tasks[task], self._outcome(task, tasks[task]))
                    del tasks[task]
                time.sleep(0.5)

    def _outcome(self, task: Any, job: Job) -> Outcome:
        try:
            return self.result(task)
        except LostTask as error:
            outcome = Outcome("killed", f"the queue says: {error}", 1)
            job.record(job.directory, outcome)
            return outcome


class LostTask(Exception):
    """A task of a queue that ended without a result."""


class SubmititLauncher(QueueLauncher):
    """Tasks of submitit's, `cluster` to it. They outlive this command; it waits for all.

    submitit_folder: for scripts and logs. parameters: submitit's, without `slurm_`; null: not given.
    """

    def __init__(self, cluster: str, submitit_folder: str, **parameters: Any) -> None:
        self.cluster, self.folder = cluster, submitit_folder
        parameters.pop("max_num_timeout", None)  # of a schema that Hydra's own submitit plugin, if it is there, adds
        plain = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in parameters.items()}
        self.parameters = {k if k in COMMON else f"{cluster}_{k}": v for k, v in plain.items() if v is not None}

    def submit(self, jobs: list[Job]) -> Sequence[Any]:
        """See QueueLauncher. One array of SLURM's."""
        import submitit

        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
        executor.update_parameters(**self.parameters)
        return executor.map_array(run_in_queue, jobs, [self.since] * len(jobs))

    def is_done(self, task: Any) -> bool:
        """See QueueLauncher."""
        return bool(task.done())

    def result(self, task: Any) -> Outcome:
        """See QueueLauncher."""
        import submitit

        try:
            return task.result()
        except submitit.core.utils.UncompletedJobError as error:
            raise LostTask((str(error).strip().splitlines() or ["no reason given"])[0][:300]) from error


class RayLauncher(QueueLauncher):
    """Tasks of Ray's, on the cluster at `address`, or null: on one of this machine alone, which ends with this command.

    cpus, gpus: of a job; null: one GPU where the cluster has any.
    """

    stopped = "jobs save and end; the same command continues"

    def __init__(self, address: str | None, cpus: float, gpus: float | None) -> None:
        self.address, self.cpus, self.gpus = address, cpus, gpus

    @contextlib.contextmanager
    def open_queue(self) -> Iterator[None]:
        """See QueueLauncher."""
        try:
            import ray
        except ImportError as error:
            raise InputError("hydra/launcher=ray needs the ray extra: pip install 'babylm-train[ray]'") from error

        try:
            ray.init(self.address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"hydra.launcher.address={self.address}: {one_line(error)[:200]}") from error
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        options = {"num_cpus": self.cpus, "num_gpus": float(has_gpus) if self.gpus is None else self.gpus}
        self.task = ray.remote(max_retries=0, **options)(run_from)
        try:
            yield
        finally:
            ray.shutdown()

    def submit(self, jobs: list[Job]) -> Sequence[Any]:
        """See QueueLauncher."""
        return [self.task.remote(job, self.since, os.getcwd()) for job in jobs]

    def is_done(self, task: Any) -> bool:
        """See QueueLauncher."""
        import ray

        return bool(ray.wait([task], timeout=0)[0])

    def result(self, task: Any) -> Outcome:
        """See QueueLauncher."""
        import ray

        try:
            return ray.get(task)
        except ray.exceptions.RayError as error:
            raise LostTask(one_line(error)[:300]) from error


SubmititLocalLauncher = partial(SubmititLauncher, "local")
SubmititSlurmLauncher = partial(SubmititLauncher, "slurm")


def _leave(what: str, number: int, _frame: object) -> None:
    kind = Interrupted if number == signal.SIGINT else PreemptedError
    raise kind(f"asked to stop: {what}")


def run_from(job: Job, since: int, folder: str) -> Outcome:
    """run_in_queue, in `folder`."""
    os.chdir(folder)
    return run_in_queue(job, since)


def run_in_queue(job: Job, since: int) -> Outcome:
    """A task of a queue: runs `job` in a process of its own; one that SLURM preempts goes back into its queue."""
    outcomes: list[Outcome] = []
    runner = JobRunner([{}], lambda _, outcome: outcomes.append(outcome), since, QUEUE_GRACE)
    try:
        runner.run([job])
    except PreemptedError as error:
        from submitit import JobEnvironment

        environment = JobEnvironment()
        if environment.cluster == "slurm":
            print(f"{error}: back into the queue", flush=True)
            subprocess.run(["scontrol", "requeue", environment.job_id], check=False)  # SLURM may have done it already
        sys.exit(error.exit_code)
    return outcomes[0]
