"""One run from start to result: lock the directory, restore, train, export, write down."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout

from babylm_train import __version__
from babylm_train.checkpoint import BEST, Checkpoints, find_checkpoint, load, refuse_misfits
from babylm_train.errors import InputError, InUse, Preemption, RunError, StorageError, memory_errors, printable
from babylm_train.files import storage_errors, write_bytes, write_json, write_text
from babylm_train.metrics import draw_curves

if TYPE_CHECKING:
    from babylm_train.build import Run
    from babylm_train.study.jobs import Outcome
    from babylm_train.trainer import Trainer

LOCK = ".lock"
HALVE = "; halve trainer.batch_size and double trainer.gradient_accumulation_steps for the same updates"


@contextlib.contextmanager
def lock_run(directory: Path) -> Iterator[None]:
    """Holds the run's directory; one that was empty is gone again if the run was refused.

    Raises:
        InUse: another process is running in it. StorageError: it cannot be written.
    """
    try:
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
        if directory.exists() and os.listdir(directory) == [LOCK]:
            (directory / LOCK).unlink()
            directory.rmdir()
        raise
    finally:
        lock.release()  # the file stays: removing it could let two others in


def find_run_directory(directory: Path, config_hash: str) -> Path:
    """The directory of the job with this configuration, which a command in other words may have begun meanwhile.

    Args:
        directory: named for the job just now, ending with the first digits of its `config_hash`; else it is left alone.
    """
    digits = directory.name.rpartition("-")[2]
    if len(digits) < 8 or not config_hash.startswith(digits):
        return directory
    with FileLock(directory.parent / LOCK):
        for there in directory.parent.glob(f"*-{digits}"):
            if there != directory and (there / LOCK).exists():
                with contextlib.suppress(OSError):
                    directory.rmdir()  # as Hydra made it, empty
                return there
        (directory / LOCK).touch()
    return directory


@dataclass(frozen=True)
class Request:
    """How a run was asked for: the composed configuration as YAML, and the overrides that were typed."""

    config: str
    overrides: list[str]

    @property
    def arm(self) -> str:
        """The overrides that are the same for every seed."""
        return " ".join(o for o in self.overrides if not o.lstrip("+").startswith(("seed=", "study=", "resume=")))

    def write(self, directory: Path) -> None:
        """config.yaml and overrides.yaml. Raises StorageError."""
        write_text(directory / "config.yaml", self.config)
        write_text(directory / "overrides.yaml", yaml.safe_dump(self.overrides, allow_unicode=True))


def train_to_end(
    run: Run, directory: Path, resume: str | None, request: Request, preemption: Preemption
) -> dict[str, Any]:
    """Trains `run` to its end in `directory` and writes its result.json; returns what that holds.

    Args:
        resume: as configured. preemption: asked after each update.

    Raises:
        InputError: `resume` names no checkpoint of this run; nothing was written.
        RunError: as its kind says; the checkpoints stay.
    """
    from babylm_train.model.build import count_parameters
    from babylm_train.tools.plan import plan_run

    trainer, state = run.trainer, run.trainer.state
    start = find_start(trainer, directory, resume)
    plan = plan_run(run)
    trainer.checkpoints.check(12 * count_parameters(trainer.model), trainer.curriculum.total_updates)
    request.write(directory)
    with storage_errors(directory):
        (directory / "result.json").unlink(missing_ok=True)  # of an attempt that failed
    print(plan.table(), flush=True)
    write_json(directory / "plan.json", plan.as_dict())
    if start is not None:
        restore(trainer, *start)
        state = trainer.state
        print(f"resumed at update {state.updates} of {trainer.curriculum.total_updates}", flush=True)
    state.run_id = trainer.logger.start(
        directory,
        name=run.name,
        group=run.study,
        config=run.config,
        run_id=state.run_id,
        variant=request.arm,
    )
    try:
        rows = f"micro-batches of {trainer.options.batch_size} rows x {trainer.max_length} tokens do not fit"
        with memory_errors(rows, HALVE):
            preemption.training = True
            trainer.train()
            preemption.training = False
            result = {**summarise_run(run), **finish(run, directory)}
        draw_curves(trainer.record.lines(), directory / "curves.png")
        write_json(directory / "result.json", result)
    except RunError as error:
        trainer.logger.finish({"status": type(error).__name__}, exit_code=error.exit_code)
        raise
    trainer.logger.finish({k: v for k, v in result.items() if isinstance(v, (int, float, str))})
    return result


def find_start(trainer: Trainer, directory: Path, resume: str | None) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, and its content; None for a fresh start. Writes nothing.

    It is the newest here that verifies, or the one that `resume` names: from another run only until this one has
    checkpoints of its own, from this run only until the command that took it back has saved again.

    Raises:
        InputError: `resume` names no checkpoint, or one of another run.
    """
    own = trainer.checkpoints.newest()
    chosen = own
    if resume is not None and (own is None or own[1].get("resume") != resume):
        path = find_checkpoint(resume)
        named = (path, load(path)) if path.is_file() else Checkpoints(path, 1).newest()
        if named is None:
            raise InputError(f"resume={resume}: no checkpoint there verifies")
        if own is None or path.resolve().is_relative_to(directory.resolve()):
            chosen = named
    if chosen is not None:
        trainer.check_compatible(chosen[1])
    return chosen


def restore(trainer: Trainer, path: Path, content: dict[str, Any]) -> None:
    """Loads the checkpoint `path`, with the record and the best checkpoint it refers to where it is another run's."""
    own, state = trainer.checkpoints, content["state"]
    if path.parent.resolve() != own.directory.resolve():
        theirs = path.resolve().parent.parent
        _copy_record(theirs / "metrics.jsonl", trainer.record.metrics, content["metrics_bytes"])
        if trainer.milestones is not None:
            trainer.milestones.adopt(theirs / "milestones", state["words"])
        if state["best_update"] not in (0, state["updates"]):
            own.link_as(BEST, Checkpoints(path.parent, 1).best(state["best_update"])[0])
    own.forget_after(state["updates"])
    if state["best_update"] == state["updates"] != 0:
        own.link_as(BEST, path)  # a kill may have come between the two names
    trainer.load_checkpoint(content)


def _copy_record(source: Path, target: Path, size: int) -> None:
    try:
        data = source.read_bytes()[:size]
    except OSError as error:
        raise InputError(f"resume: the checkpoint's record {source} cannot be read: {error.strerror}") from error
    if len(data) < size:
        raise InputError(f"resume: {source} has {len(data)} bytes, its checkpoint was taken at byte {size}")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, data)


def finish(run: Run, directory: Path) -> dict[str, Any]:
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
        values = export(run, directory)
    values |= {"exported_update": exported["updates"], "exported_words": exported["words"]}
    if trainer.average.count:
        values["raw_bits_per_byte"] = trainer.state.raw_bits_per_byte
    return {**values, "seconds": round(trainer.seconds, 2)}


def export(run: Run, directory: Path) -> dict[str, Any]:
    """Writes the weights that the model has into model/; their figures, samples and pairs."""
    from babylm_train.babylm.milestones import revisions
    from babylm_train.evaluation.loss import sample
    from babylm_train.evaluation.pairs import score_pairs, texts_cut
    from babylm_train.model.export import write_model

    model, objective, final = run.trainer.model, run.trainer.objective, run.trainer.evaluate()
    like = [path for path, _ in revisions(directory / "milestones")]
    write_model(model, run.tokenizer, directory / "model", objective.backends, like=like)
    samples = [] if objective.encoder else sample(model, run.tokenizer, seed=run.seed)
    values: dict[str, Any] = {"val_loss" if k == "loss" else k: v for k, v in final.figures().items()}
    values |= {"likelihood": objective.likelihood, "samples": samples}
    if run.corpus.pairs:
        backend = objective.backends[0]
        values["pairs"] = score_pairs(model, run.tokenizer, run.corpus.pairs, backend=backend)
        values["texts_cut"] = texts_cut(run.tokenizer, run.corpus.pairs, backend)
    return values


def summarise_run(run: Run) -> dict[str, Any]:
    """Status and budget of a run that ended, and the software it ran on."""
    import torch
    import transformers

    from babylm_train.babylm.milestones import revisions
    from babylm_train.model.build import count_parameters
    from babylm_train.tools.plan import count_exposures

    trainer, state = run.trainer, run.trainer.state
    device = trainer.device
    return {
        "status": "finished",
        "stopped_early": state.stopped,
        "updates": state.updates,
        "planned_updates": trainer.curriculum.total_updates,
        "best_update": state.best_update,
        "best_by": trainer.options.metric,
        "tokens": state.tokens,
        "words": state.words,
        "skipped": state.skipped,
        "train_loss": state.train_loss,
        "parameters": count_parameters(trainer.model),
        "track": run.config["track"]["name"],
        "milestones": {path.name: r.words for path, r in revisions(trainer.directory / "milestones")},
        "exposures": asdict(count_exposures(trainer.curriculum, state.updates)),
        "config_hash": run.config_hash,
        "hashes": trainer.identity["hashes"],
        "unknown_share": trainer.validation.split.unknown / trainer.validation.tokens,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "commit": _commit(),
        "versions": {
            "babylm_train": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _commit() -> str | None:
    """The commit this package is run from, `-dirty` with local changes; None outside a git checkout of its own."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    call = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(call, capture_output=True, text=True, check=False).stdout.strip() or None


def show_result(result: dict[str, Any]) -> str:
    """The result as it is printed."""
    from babylm_train.evaluation.loss import PROMPTS

    figures = ("perplexity", "bits_per_byte", "word_perplexity")
    names = ("val_loss", *figures, *(f"pseudo_{name}" for name in figures), "updates", "tokens", "words", "seconds")
    values = {name: result[name] for name in names if name in result}
    lines = [f"  {name:<24}{value:{',' if isinstance(value, int) else ',.4f'}}" for name, value in values.items()]
    lines += [f"  {'pairs ' + name:<24}{share:.1%}" for name, share in result.get("pairs", {}).items()]
    if cut := result.get("texts_cut"):
        lines.append(f"  {'cut':<24}{cut:,} texts of pairs, longer than data.max_length")
    texts = zip(PROMPTS, map(printable, result["samples"]), strict=False)  # an encoder writes none
    return "\n".join([*lines, *(f"  {prompt} … {text.removeprefix(prompt).strip()}" for prompt, text in texts)])


def record_failure(directory: Path, outcome: Outcome, request: Request, config_hash: str) -> None:
    """result.json of a run that failed, unless another process has taken its directory over."""
    values = {
        "status": outcome.status,
        "cause": outcome.cause,
        "exit_code": outcome.exit_code,
        "config_hash": config_hash,
    }
    values |= {"traceback": outcome.traceback} if outcome.traceback else {}
    with contextlib.suppress(InUse, StorageError), lock_run(directory):  # the disk may be what failed
        if not (directory / "config.yaml").exists():  # it failed before it had begun
            request.write(directory)
        write_json(directory / "result.json", values)
