"""The command line: composed and checked before anything is written, then trained; errors become exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from babylm_train import __version__
from babylm_train import config as checks
from babylm_train.command import MULTIRUN, read_command_line
from babylm_train.errors import InputError, Interrupted, RunError, StorageError, fail, one_line, watch_signals

PAGES = {"--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"}  # Hydra's own
ONLY_SWEEPS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper")


def main() -> None:
    """Entry point of `python -m babylm_train` and `babylm-train`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us as exceptions, and leave as one line
    # our launchers' fragments bear the names of the plugins' schemas on purpose: they are held against them
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
    arguments = sys.argv[1:]
    try:
        with watch_signals():
            if "--version" in arguments:
                print(f"babylm_train {__version__}")
            elif any(argument.partition("=")[0] in PAGES for argument in arguments):
                sys.argv[1:] = [argument for argument in arguments if argument not in MULTIRUN]  # Hydra's want no -m
                _show_page()
            else:
                _start(arguments)
    except RunError as error:
        fail(error)
    except (HydraException, OmegaConfBaseException) as error:
        fail(InputError(one_line(error)[:300]))
    except OSError as error:  # of a study's folder
        fail(StorageError(f"cannot write {error.filename or 'the output'}: {error.strerror}"))
    except KeyboardInterrupt:
        fail(Interrupted("interrupted at once: what was saved before is intact; the same command continues"))


@hydra.main(config_path=str(checks.CONF), config_name="config", version_base="1.3")
def _show_page(_: DictConfig) -> None:
    """Hydra's own pages: help, a composed configuration, shell completion."""


def _start(arguments: list[str]) -> None:
    """Composes what was typed, builds what needs no data, and runs it."""
    from babylm_train.build import build_parts, rehearse

    line = read_command_line(arguments, overrides=True)
    with checks.open_conf(line.config_name, line.config_dir):
        overrides = checks.read_overrides(line.overrides)
        configs = checks.compose_each(line.config_name, overrides, line.config_dir)
        is_sweep = not MULTIRUN.isdisjoint(arguments) or configs[0].hydra.mode == RunMode.MULTIRUN
        for override in () if is_sweep else overrides:
            if override.is_sweep_override() or override.key_or_group.startswith(ONLY_SWEEPS):
                raise InputError(f"{override.input_line}: for a sweep, add -m; a comma in a value: key=\"'a,b'\"")
        if is_sweep and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError("a sweep starts processes of its own: run it without torchrun")
        configure_log(configs[0].hydra.job_logging, configs[0].hydra.verbose)
        parts = [build_parts(config) for config in configs]
        for part in parts:
            rehearse(part)
        if is_sweep:
            words = [str(override.input_line) for override in overrides]
            running: Any = GlobalHydra.instance().hydra
            drawn = {str(override.key_or_group) for override in overrides if override.is_sweep_override()}
            _sweep(configs[0], drawn, lambda more: running.multirun(line.config_name, _run_task, words + more))
        else:
            HydraConfig.instance().set_config(configs[0])
            os.environ.update(configs[0].hydra.job.env_set)
            _run_task(configs[0], Path(configs[0].hydra.run.dir), parts[0])


def _sweep(config: DictConfig, swept: set[str], launch: Callable[[list[str]], object]) -> None:
    """Runs the jobs of a study that are missing, by `launch` with further overrides, and reports on all of it."""
    from babylm_train.study.launcher import StudyLauncher

    directory = Path(config.hydra.sweep.dir)
    StudyLauncher.exit_codes.clear()
    if "n_trials" in config.hydra.sweeper:
        from babylm_train.study.search import hold_search

        sweeper, pruner = config.hydra.sweeper, config.get("pruner")
        drawn = swept | {str(key).lstrip("+") for key in sweeper.get("params") or {}}
        with hold_search(directory, sweeper, pruner, drawn, checks.public(config)) as left:
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


def _run_task(config: DictConfig, directory: Path | None = None, parts: Any = None) -> float:
    """A run, or a job of one of Hydra's own launchers; ends the process if it fails."""
    from babylm_train.runner import record_failure, run_job

    directory = directory or Path(HydraConfig.get().runtime.output_dir)
    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)  # variables stay unread
    try:
        return run_job(config, directory, typed, parts)
    except RunError as error:
        from babylm_train.study.jobs import Outcome

        if not isinstance(error, InputError) and (directory / "config.yaml").exists():  # it had begun
            record_failure(directory, Outcome.of(error), checks.config_hash(config))
        fail(error)
