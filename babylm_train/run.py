"""One run from start to result: claim the directory, restore, train, export, write down."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from babylm_train.checkpoint import Checkpoints, load
from babylm_train.errors import InputError, PreemptedError, RunError, StorageError, printable
from babylm_train.evaluate import PROMPTS, sample, score_pairs
from babylm_train.model import count_parameters
from babylm_train.plan import exposure_so_far, plan_of
from babylm_train.record import find_checkpoint, write_json, write_text

if TYPE_CHECKING:
    from babylm_train.build import Run
    from babylm_train.trainer import Trainer

LOCK = ".lock"


@contextlib.contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """Holds the run's directory; one that was empty is gone again if the run was refused.

    Raises:
        InputError: another process is running in it. StorageError: it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"{directory} is in use by another run") from error
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror}") from error
    try:
        yield
    except InputError:
        if os.listdir(directory) == [LOCK]:
            (directory / LOCK).unlink()
            directory.rmdir()
        raise
    finally:
        lock.release()  # the file stays: removing it could let two others in


class Preemption:
    """SIGTERM and SIGUSR1 while it is entered: `training` stops after the current update, anything else at once.

    Raises:
        PreemptedError: from the handler, where there is nothing to save.
    """

    def __init__(self) -> None:
        self.asked = self.training = False
        self.old: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self.old = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        self.asked = True
        if not self.training:
            raise PreemptedError("preempted outside training: nothing to save; the same command continues")

    def __call__(self) -> bool:
        return self.asked


def execute(run: Run, directory: Path, resume: str | None, config: str, preemption: Preemption) -> dict[str, Any]:
    """Trains `run` to its end in `directory` and writes its result.json; returns what that holds.

    Args:
        resume: as configured. config: what config.yaml is to hold. preemption: entered by the caller.

    Raises:
        InputError: `resume` names no checkpoint of this run; nothing was written.
        RunError: as its kind says; the checkpoints stay.
    """
    trainer, state = run.trainer, run.trainer.state
    start = find_start(trainer, directory, resume)
    trainer.checkpoints.check(12 * count_parameters(trainer.model), trainer.curriculum.total_updates)
    write_text(directory / "config.yaml", config)
    plan = plan_of(run)
    print(plan.table(), flush=True)
    write_json(directory / "plan.json", plan.as_dict())
    if start is not None:
        restore(trainer, *start)
        state = trainer.state
        print(f"resumed at update {state.update} of {trainer.curriculum.total_updates}", flush=True)
    state.run_id = trainer.logger.start(
        directory, name=run.name, group=run.study, config=run.config, run_id=state.run_id, step=state.update
    )
    try:
        preemption.training = True
        trainer.train()
        preemption.training = False
        result = {**summary(run), **finish(run, directory)}
        trainer.record.curves()
        trainer.record.result(result)
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
        _copy_record(path.parents[1] / "metrics.jsonl", trainer.record.metrics, content["metrics_bytes"])
        if state["best_update"] not in (0, state["update"]):
            own.adopt_best(Checkpoints(path.parent, 1).best(state["best_update"])[0])
    own.forget_after(state["update"])
    if state["best_update"] == state["update"] != 0:
        own.adopt_best(path)  # a kill may have come between the two names
    trainer.load_checkpoint(content)


def _copy_record(source: Path, target: Path, size: int) -> None:
    try:
        data = source.read_bytes()[:size]
    except OSError as error:
        raise InputError(f"resume: the checkpoint's record {source} cannot be read: {error.strerror}") from error
    if len(data) < size:
        raise InputError(f"resume: {source} has {len(data)} bytes, its checkpoint was taken at byte {size}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)


def finish(run: Run, directory: Path) -> dict[str, Any]:
    """Evaluates, exports and samples the weights that `trainer.export` decides; scores the built-in pairs."""
    trainer, model = run.trainer, run.trainer.model
    if trainer.options.export == "best" and trainer.state.best_update != trainer.state.update:
        model.load_state_dict(trainer.checkpoints.best(trainer.state.best_update)[1]["model"])
    final = trainer.evaluate()
    export(run, directory / "model")
    samples = sample(model, run.tokenizer, seed=run.config["seed"])
    pairs = score_pairs(model, run.tokenizer, run.corpus.pairs) if run.corpus.pairs else {}
    values: dict[str, Any] = {
        "val_loss": final.loss,
        "perplexity": final.perplexity,
        "bits_per_byte": final.bits_per_byte,
        "word_perplexity": final.word_perplexity,
    }
    if pairs:
        values["pairs"] = pairs
    return {**values, "seconds": round(trainer.seconds, 2), "samples": samples}


def export(run: Run, folder: Path) -> None:
    """Writes weights (safetensors) and tokenizer to `folder`, aside and renamed."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        run.trainer.model.save_pretrained(aside)
        run.tokenizer.save_pretrained(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def summary(run: Run) -> dict[str, Any]:
    """Status and budget of a run that ended, and the software it ran on."""
    import torch
    import transformers

    trainer, state = run.trainer, run.trainer.state
    device = trainer.device
    return {
        "status": "finished",
        "stopped_early": state.stopped,
        "updates": state.update,
        "planned_updates": trainer.curriculum.total_updates,
        "best_update": state.best_update,
        "tokens": state.tokens,
        "words": state.words,
        "skipped": state.skipped,
        "train_loss": state.train_loss,
        "parameters": count_parameters(trainer.model),
        "exposures": asdict(exposure_so_far(trainer.curriculum, state.update)),
        "config_hash": run.config_hash,
        "hashes": trainer.identity["hashes"],
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type} ({platform.machine()})",
        "commit": _commit(),
        "versions": {
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


def table(result: dict[str, Any]) -> str:
    """The result as it is printed."""
    names = ("val_loss", "perplexity", "bits_per_byte", "word_perplexity", "updates", "tokens", "words", "seconds")
    lines = [f"  {name:<18}{_show(result[name])}" for name in names]
    lines += [f"  {'pairs ' + name:<18}{share:.1%}" for name, share in result.get("pairs", {}).items()]
    texts = zip(PROMPTS, map(printable, result["samples"]), strict=True)
    return "\n".join([*lines, *(f"  {prompt} … {text.removeprefix(prompt).strip()}" for prompt, text in texts)])


def _show(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def record_failure(directory: Path, error: RunError, config_hash: str) -> None:
    """result.json of a run that failed after it had begun."""
    status = {3: "diverged", 4: "storage", 5: "out_of_memory", 75: "preempted"}.get(error.exit_code, "failed")
    with contextlib.suppress(StorageError):  # the disk may be what failed
        write_json(directory / "result.json", {"status": status, "cause": str(error), "config_hash": config_hash})
