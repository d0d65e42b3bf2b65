"""The command line: composed and checked before anything is written, then trained; errors become exit codes."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from babylm_train import __version__
from babylm_train import config as checks
from babylm_train.command import read_command_line
from babylm_train.errors import (
    SIGNALS,
    InputError,
    Interrupted,
    PreemptedError,
    RunError,
    StorageError,
    fail,
    handle_signals,
    one_line,
    watch_signals,
)
from babylm_train.files import read

if TYPE_CHECKING:
    from babylm_train.build import Parts
    from babylm_train.run import Request

MULTIRUN = ("--multirun", "-m")
PAGES = (
    "--help",
    "-h",
    "--hydra-help",
    "--cfg",
    "-c",
    "--info",
    "-i",
    "--shell-completion",
    "-sc",
)  # Hydra prints them


def main() -> None:
    """Entry point of `python -m babylm_train` and `babylm-train`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us as exceptions, and leave as one line
    # our launchers' fragments bear the names of the plugins' schemas on purpose: they are held against them
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
    arguments = sys.argv[1:]
    try:
        with handle_signals(_stop_early, (*SIGNALS, signal.SIGINT)):
            if "--version" in arguments:
                print(f"babylm_train {__version__}")
            elif any(argument.partition("=")[0] in PAGES for argument in arguments):
                _show_page()
            else:
                _start(arguments)
    except RunError as error:
        fail(error)
    except (HydraException, OmegaConfBaseException) as error:
        fail(InputError(checks.first_line(error)))
    except OSError as error:  # Hydra's own folders
        fail(StorageError(f"cannot write {error.filename or 'the output'}: {error.strerror}"))
    except KeyboardInterrupt:
        fail(Interrupted("interrupted at once: what was saved before is intact; the same command continues"))


def _stop_early(number: int, _frame: object) -> NoReturn:
    kind = Interrupted if number == signal.SIGINT else PreemptedError
    raise kind("stopped before anything had begun; the same command starts again")


@hydra.main(config_path=str(checks.CONF), config_name="config", version_base="1.3")
def _show_page(_: DictConfig) -> None:
    """Hydra's own pages: help, a composed configuration, shell completion."""


def _start(arguments: list[str]) -> None:
    """Composes what was typed, builds what needs no data, and runs it."""
    from babylm_train.build import build_parts, name_errors, rehearse
    from babylm_train.checkpoint import find_checkpoint

    line = read_command_line([a for a in arguments if a not in MULTIRUN], overrides=True)
    with checks.Composer(line.config_name, line.config_dir) as composer:
        overrides = composer.read_overrides(line.overrides)
        configs = composer.compose_each(overrides)
        is_sweep = not set(MULTIRUN).isdisjoint(arguments) or configs[0].hydra.mode == RunMode.MULTIRUN
        _check_mode(overrides, is_sweep)
        with name_errors("hydra.job_logging"):
            configure_log(configs[0].hydra.job_logging, configs[0].hydra.verbose)
        parts = [build_parts(config) for config in configs]
        for part in parts:
            if part.resume is not None:
                find_checkpoint(part.resume)
            rehearse(part)
        words = [str(override.input_line) for override in overrides]
        run_it = GlobalHydra.instance().hydra
        assert run_it is not None
        if is_sweep:
            _sweep(configs[0], lambda more: run_it.multirun(composer.name, _run_task, words + more))
            return
        directory = Path(configs[0].hydra.run.dir)
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        try:
            run_it.run(composer.name, partial(_run_task, parts=parts[0]), words)
        finally:  # of a refused run nothing is left: Hydra makes its directory before
            for path in missing:
                with contextlib.suppress(OSError):
                    path.rmdir()


def _check_mode(overrides: list[Override], is_sweep: bool) -> None:
    """Raises InputError for several values, or a launcher, without --multirun."""
    for override in overrides if not is_sweep else ():
        line, key = str(override.input_line), override.key_or_group
        if override.is_sweep_override():
            name, _, value = line.partition("=")
            quoted = value.replace("'", "")
            raise InputError(f"{line}: several values are a sweep, add -m; one with a comma is {name}=\"'{quoted}'\"")
        if key.startswith(("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper")):
            raise InputError(f"{line}: only a sweep has a launcher and a sweeper: add -m")


def _sweep(config: DictConfig, launch: Callable[[list[str]], object]) -> None:
    """Runs the jobs of a study that are missing, then reports on all of it.

    Args:
        launch: runs the sweep with these further overrides.

    Raises:
        SystemExit: a job failed; with the exit code of the first that did.
        PreemptedError: this process was asked to stop; the running jobs have saved their states.
    """
    from babylm_train.study.launcher import StudyLauncher

    directory = Path(config.hydra.sweep.dir)
    StudyLauncher.exit_codes.clear()
    if "n_trials" in config.hydra.sweeper:
        from babylm_train.study.search import hold_search

        with hold_search(directory, OmegaConf.to_container(config.hydra.sweeper, resolve=True)) as left:  # type: ignore[arg-type]
            launch(left)
    else:
        launch([])
    from babylm_train.study.report import write_report

    try:
        print(f"report: {write_report(directory)}")
    except RunError as error:  # it hides nothing
        print(f"warning: no report: {one_line(error)}", file=sys.stderr)
    if StudyLauncher.exit_codes:
        sys.exit(StudyLauncher.exit_codes[0])


def _run_task(config: DictConfig, parts: Parts | None = None) -> float:
    """The task that Hydra runs; ends the process if the run fails, or Hydra would say something of its own first."""
    directory = Path(HydraConfig.get().runtime.output_dir)
    try:
        return run_job(config, directory, parts)
    except RunError as error:
        from babylm_train.run import record_failure
        from babylm_train.study.jobs import Outcome

        if not isinstance(error, InputError) and (directory / "config.yaml").exists():  # it had begun
            record_failure(directory, Outcome.of(error), _request(config), checks.config_hash(config))
        fail(error)


def run_job(config: DictConfig, directory: Path, parts: Parts | None = None) -> float:
    """Trains what `config` describes in `directory`, or goes on with it; returns the validation loss.

    Args:
        config: a composed job; it was checked. parts: built from it already, or None.

    Raises:
        RunError: as its kind says. A finished run of this configuration is not run again.
    """
    from babylm_train import build
    from babylm_train.run import lock_run, show_result, train_to_end

    with lock_run(directory), watch_signals() as preemption:
        done = finished(config, directory)
        if done is not None:
            print(f"{directory}: finished already (validation loss {done:.4f}); delete it to run again")
            return done
        run = build.build_run(config, directory, parts or build.build_parts(config), preemption)
        result = train_to_end(run, directory, config.resume, _request(config), preemption)
    print(f"{directory}\n{show_result(result)}", flush=True)
    return float(result["val_loss"])


def _request(config: DictConfig) -> Request:
    from babylm_train.run import Request

    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return Request(checks.saved_config(config), [str(override) for override in typed])  # variables stay unread


def finished(config: DictConfig, directory: Path) -> float | None:
    """The validation loss of a run of `config` that ended as planned in `directory`; None: it is to run, or to go on.

    Raises:
        InputError: the directory holds a run of another configuration, or a damaged record; names what differs.
    """
    from babylm_train.checkpoint import refuse_other

    if (path := directory / "config.yaml").exists():
        there = checks.plain(checks.load_config(path))
        refuse_other(checks.essential(checks.plain(config)), checks.essential(there), str(directory))
    if not (path := directory / "result.json").exists():
        return None
    from babylm_train.study.jobs import Outcome

    outcome: Outcome = read(path, Outcome)
    if (outcome.status, outcome.config_hash) != ("finished", checks.config_hash(config)):
        return None
    if not math.isfinite(outcome.val_loss):
        raise InputError(f"{path} is damaged: val_loss is {outcome.val_loss}")
    return outcome.val_loss
