"""One run from start to result: lock the directory, restore, train, export, write down."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import transformers
import yaml
from filelock import FileLock, Timeout

from babylm_train import __version__
from babylm_train.checkpoint import BEST, Checkpoints, find_checkpoint, load, refuse_misfits
from babylm_train.errors import (
    InputError,
    InUse,
    OutOfMemory,
    Preemption,
    RunError,
    StorageError,
    memory_errors,
    one_line,
    watch_signals,
)
from babylm_train.evaluation.loss import use_float32
from babylm_train.files import file_digest, read, storage_errors, write_bytes, write_json, write_text
from babylm_train.metrics import Record, draw_curves
from babylm_train.state import Callback
from babylm_train.throughput import count_parameters
from babylm_train.tools.plan import count_exposures, plan_run

if TYPE_CHECKING:
    from babylm_train.build import Run
    from babylm_train.data.tokens import TokenizedSplit
    from babylm_train.study.jobs import Outcome
    from babylm_train.trainer import Trainer

LOCK = ".lock"
Metric = Callable[[Any, "TokenizedSplit"], float]


@contextlib.contextmanager
def lock_run(directory: Path) -> Iterator[None]:
    """Holds the run's directory, raises InUse or StorageError; what was empty is gone again if the run was refused."""
    try:
        made = [directory, *(path for path in directory.parents if not path.exists())]
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InUse(f"{directory} is in use by another run") from error
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror}") from error
    try:
        yield
    except RunError:
        with contextlib.suppress(OSError):  # it is not empty, or not there
            if [path.name for path in directory.iterdir()] == [LOCK]:
                (directory / LOCK).unlink()
                for path in made:
                    path.rmdir()
        raise
    finally:
        lock.release()  # the file stays: removing it could let two others in


def write_request(directory: Path, config: str, overrides: list[str]) -> None:
    """config.yaml, the composed configuration as YAML, and overrides.yaml, what was typed. Raises StorageError."""
    write_text(directory / "config.yaml", config)
    write_text(directory / "overrides.yaml", yaml.safe_dump(overrides, allow_unicode=True))


@dataclass(frozen=True)
class Result:
    """A run that finished: its directory, and what its result.json holds, also as `result["key"]`."""

    directory: Path
    values: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, which pandas.DataFrame takes."""
        return Record(self.directory).lines()


def run(
    overrides: Sequence[str] = (),
    *,
    config_dir: str | None = None,
    callbacks: Sequence[Callback] = (),
    metrics: Mapping[str, Metric] | None = None,
) -> Result:
    """What `python -m babylm_train` does with these overrides, from Python: trains, goes on, or finds the run finished.

    Args:
        config_dir: a folder of fragments of your own. callbacks: told of the moments of the run.
        metrics: functions of (model, validation split), asked at each validation and logged as val/NAME.

    Raises:
        RunError: one of the kinds in errors.py, with the command line's message.
    """
    from babylm_train import build
    from babylm_train import config as checks

    config = checks.compose_one(overrides, folder=config_dir)
    parts, directory = build.build_parts(config), Path(config.hydra.run.dir)
    build.rehearse(parts)
    run_job(config, directory, list(overrides), parts, callbacks, metrics or {})
    return Result(directory, read(directory / "result.json", dict[str, Any]))


def run_job(
    config: Any,
    directory: Path,
    typed: list[str],
    parts: Any = None,
    callbacks: Sequence[Callback] = (),
    metrics: Mapping[str, Metric] = MappingProxyType({}),
) -> float:
    """Trains what a composed and checked `config` describes in `directory`, or goes on; returns the validation loss.

    Args:
        typed: overrides. parts: what build_parts made of `config`, if it has been called. callbacks, metrics: see run.
    """
    from babylm_train import build
    from babylm_train import config as checks

    parts = parts or build.build_parts(config)
    with parts.distributed.join(torch.cuda.is_available()) as processes:
        main = processes.is_main
        with lock_run(directory) if main else contextlib.nullcontext(), watch_signals() as preemption:
            done = processes.share(main and find_finished(directory, checks.config_hash(config)))
            if done:
                said = f"finished already (validation loss {done.val_loss:.4f})"
                print(f"{directory}: {said}; to run it again, as after a change of its text, delete it")
                return float(done.val_loss)
            run = build.build_run(config, directory, parts, preemption, processes)
            if not main:
                return follow(run.trainer, preemption)
            add_own(run.trainer, callbacks, metrics)
            result = train_to_end(run, checks.saved_config(config), typed, preemption)
    print(f"{directory}\n{show_result(result)}", flush=True)
    if directory.parent.name == parts.study:
        print(f"compare: python -m babylm_train.report {shlex.quote(str(directory.parent))}", flush=True)
    return float(result["val_loss"])


def add_own(trainer: Trainer, callbacks: Sequence[Callback], metrics: Mapping[str, Metric]) -> None:
    """Adds a caller's callbacks and metrics to those of the configuration."""
    trainer.callbacks, own = [*trainer.callbacks, *callbacks], trainer.measures

    def measure() -> dict[str, float]:
        with use_float32(trainer.model):
            found = {f"val/{name}": float(of(trainer.model, trainer.validation_split)) for name, of in metrics.items()}
        return own() | found

    trainer.measures = measure


def find_finished(directory: Path, config_hash: str) -> Outcome | None:
    """What a run of this configuration that finished in `directory` has left."""
    if not (path := directory / "result.json").exists():
        return None
    from babylm_train.study.jobs import Outcome

    done: Outcome = read(path, Outcome)
    return done if (done.status, done.config_hash) == ("finished", config_hash) else None


def follow(trainer: Trainer, preemption: Preemption) -> float:
    """What the other processes of a run do: train along from where the main one starts; returns the loss."""
    if (content := trainer.processes.share()) is not None:
        trainer.load_checkpoint(content)
    with memory_errors(describe_batch(trainer)):
        preemption.training = True
        trainer.train()
    trainer.processes.leave()
    return trainer.state.val_loss or math.nan


def describe_batch(trainer: Trainer) -> str:
    """What does not fit where memory runs out."""
    rows = f"micro-batches of {trainer.options.batch_size} rows x {trainer.max_length} tokens do not fit"
    return f"{rows}, halve trainer.batch_size and double trainer.gradient_accumulation_steps"


def train_to_end(run: Run, config: str, overrides: list[str], preemption: Preemption) -> dict[str, Any]:
    """Trains `run` to its end and writes its result.json; returns what that holds. For `config` see write_request."""
    trainer, directory = run.trainer, run.trainer.directory
    start = find_start(trainer, directory, run.parts.resume)
    plan = plan_run(run)
    need, have = plan.size.memory["total"], os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if trainer.device.type == "cpu" and need > 2 * have:  # the kernel would kill the run, or another one
        sizes = f"about {need / 2**30:,.0f} GiB, there are {have / 2**30:,.0f}"
        raise OutOfMemory(f"out of memory: {describe_batch(trainer)} ({sizes})")
    size = (12 + 4 * bool(trainer.average.weights)) * sum(p.numel() for p in trainer.model.parameters())
    trainer.checkpoints.check(size, trainer.curriculum.total_updates)
    write_request(directory, config, overrides)
    with storage_errors(directory):
        (directory / "result.json").unlink(missing_ok=True)  # of an attempt that failed
    print(plan.table(), flush=True)
    write_json(directory / "plan.json", plan.as_dict())
    trainer.processes.share(start and start[1])
    if start is not None:
        restore(trainer, *start)
        print(f"resumed at update {trainer.state.updates} of {trainer.curriculum.total_updates}", flush=True)
    variant = " ".join(o for o in overrides if not o.lstrip("+").startswith(("seed=", "study=", "resume=")))
    state, names = trainer.state, {"name": directory.name, "group": run.parts.study, "variant": variant}
    state.run_id = trainer.logger.start(directory, run_id=state.run_id, config=run.config, **names)
    try:
        with memory_errors(describe_batch(trainer)):
            preemption.training = True
            trainer.train()
            preemption.training, trainer.processes = False, trainer.processes.leave()
            result = {**summarise_run(run), **finish(run)}
        draw_curves(trainer.record.lines(), directory / "curves.png")
        write_json(directory / "result.json", result)
    except RunError as error:
        trainer.logger.finish({"status": type(error).__name__}, exit_code=error.exit_code)
        raise
    trainer.logger.finish({k: v for k, v in result.items() if isinstance(v, (int, float, str))})
    return result


def find_start(trainer: Trainer, directory: Path, resume: str | None) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, and its content: the newest here that verifies, or what `resume` names; or None.

    `resume` counts from another run until this one has checkpoints, from this run until it has saved again.
    """
    own = chosen = trainer.checkpoints.newest()
    if resume is not None and (own is None or own[1].get("resume") != resume):
        path = find_checkpoint(resume)
        named = (path, load(path)) if path.is_file() else Checkpoints(path, 1).newest()
        if named is None:
            raise InputError(f"resume={resume}: no checkpoint there verifies")
        if own is None or path.resolve().is_relative_to(directory.resolve()):
            chosen = named
        else:
            logging.warning("resume=%s is not read: this run has checkpoints of its own", resume)
    if chosen is not None:
        trainer.check_compatible(chosen[1])
    return chosen


def restore(trainer: Trainer, path: Path, content: dict[str, Any]) -> None:
    """Loads the checkpoint `path`, with the record and the best checkpoint it refers to where it is another run's."""
    own, state = trainer.checkpoints, content["state"]
    if path.parent.resolve() != own.directory.resolve():
        theirs = path.resolve().parent.parent
        source, size = theirs / "metrics.jsonl", content["metrics_bytes"]
        data = source.read_bytes()[:size] if source.is_file() else b""
        if len(data) < size:
            raise InputError(f"resume: {source} has {len(data)} bytes, its checkpoint was taken at byte {size}")
        with storage_errors(trainer.directory):
            trainer.directory.mkdir(parents=True, exist_ok=True)
        write_bytes(trainer.record.metrics, data)
        for callback in trainer.callbacks:
            callback.adopt(theirs, state["words"])
        if state["best_update"] not in (0, state["updates"]):
            own.link_as(BEST, Checkpoints(path.parent, 1).best(state["best_update"])[0])
    own.forget_after(state["updates"])
    if state["best_update"] == state["updates"] != 0:
        own.link_as(BEST, path)  # a kill may have come between the two names
    trainer.load_checkpoint(content)


def finish(run: Run) -> dict[str, Any]:
    """Evaluates, exports and samples the weights that `trainer.export` decides; scores the built-in pairs."""
    trainer = run.trainer
    exported = asdict(trainer.state)
    if trainer.options.export == "best" and trainer.state.best_update != trainer.state.updates:
        best = trainer.checkpoints.best(trainer.state.best_update)[1]
        with refuse_misfits():
            for name in ("model", "optimizer", "average"):
                getattr(trainer, name).load_state_dict(best[name])
        exported = best["state"]
    with trainer.average.applied(trainer.optimizer):
        values = export(run)
    values |= {"exported_update": exported["updates"], "exported_words": exported["words"]}
    if trainer.average.count:
        values["raw_bits_per_byte"] = trainer.state.raw_bits_per_byte
    return {**values, "seconds": round(trainer.seconds, 2)}


def export(run: Run) -> dict[str, Any]:
    """Writes the weights that the model has into model/; their figures, samples and pairs."""
    from babylm_train.babylm.milestones import revisions
    from babylm_train.evaluation.generate import Options, sample, take_prompts
    from babylm_train.evaluation.pairs import score_pairs, texts_cut
    from babylm_train.model.export import WEIGHTS, write_model

    trainer, model, objective = run.trainer, run.trainer.model, run.trainer.objective
    final, words = trainer.evaluate(), {path: mark.words for path, mark in revisions(trainer.directory / "milestones")}
    write_model(model, run.tokenizer, trainer.directory / "model", objective.backends, like=list(words))
    prompts = [] if objective.encoder else take_prompts(run.corpus.validation)
    written = sample(model, run.tokenizer, prompts, Options(seed=run.parts.seed))
    samples = [{"prompt": prompt, "text": text} for prompt, text in written]
    values: dict[str, Any] = {"val_loss" if k == "loss" else k: v for k, v in final.figures().items()}
    values |= {"likelihood": objective.likelihood, "samples": samples}
    values["weights_sha256"] = file_digest(trainer.directory / "model" / WEIGHTS)
    values |= {"milestones": {path.name: n for path, n in words.items()}}
    if run.corpus.pairs:
        backend = objective.backends[0]
        values["pairs"] = score_pairs(model, run.tokenizer, run.corpus.pairs, backend=backend)
        values["texts_cut"] = texts_cut(run.tokenizer, run.corpus.pairs, backend)
    return values


def summarise_run(run: Run) -> dict[str, Any]:
    """Status and budget of a run that ended, and the software it ran on."""
    trainer, state, device = run.trainer, run.trainer.state, run.trainer.device
    versions = {"babylm_train": __version__, "python": platform.python_version()}
    return {
        "status": "finished",
        "stopped_early": state.stopped,
        **{key: getattr(state, key) for key in ("updates", "best_update", "tokens", "words", "skipped", "train_loss")},
        "planned_updates": trainer.curriculum.total_updates,
        "best_by": trainer.options.metric,
        "parameters": count_parameters(trainer.model),
        "track": run.config["track"]["name"],
        "exposures": asdict(count_exposures(trainer.curriculum, state.updates)),
        "config_hash": run.config_hash,
        "hashes": trainer.identity["hashes"],
        "unknown_share": trainer.validation.split.unknown / trainer.validation.tokens,
        "altered_share": run.altered_share,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "commit": _commit(),
        "versions": versions | {module.__name__: module.__version__ for module in (torch, transformers)},
    }


def _commit() -> str | None:
    """The commit this package is run from, `-dirty` with local changes; None outside a git checkout of its own."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    call = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(call, capture_output=True, text=True, check=False).stdout.strip() or None


def show_result(result: dict[str, Any]) -> str:
    figures = ("perplexity", "bits_per_byte", "word_perplexity")
    names = (
        "val_loss",
        *figures,
        *(f"pseudo_{name}" for name in figures),
        "raw_bits_per_byte",
        "updates",
        "tokens",
        "words",
        "seconds",
    )
    values = {name: result[name] for name in names if name in result}
    lines = [f"  {name:<24}{value:{',' if isinstance(value, int) else ',.4f'}}" for name, value in values.items()]
    lines += [f"  {'pairs ' + name:<24}{share:.1%}" for name, share in result.get("pairs", {}).items()]
    lines += [f"  {one_line(each['prompt'])} … {one_line(each['text'])}" for each in result["samples"]]
    return "\n".join(lines)


def record_failure(
    directory: Path, outcome: Outcome, config_hash: str, config: str = "", overrides: Sequence[str] = ()
) -> None:
    """result.json of a run that failed, unless another process has its directory; for `config` see write_request."""
    known = {key: value for key, value in asdict(outcome).items() if key in ("status", "cause", "exit_code")}
    known |= {"val_loss": outcome.val_loss} if outcome.status == "pruned" else {}
    traceback = {"traceback": outcome.traceback} if outcome.traceback else {}
    with contextlib.suppress(InUse, StorageError), lock_run(directory):  # the disk may be what failed
        if config and not (directory / "config.yaml").exists():  # it failed before it had begun
            write_request(directory, config, list(overrides))
        write_json(directory / "result.json", {**known, "config_hash": config_hash, **traceback})
