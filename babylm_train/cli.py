"""The command line: checks first, then Hydra, then exit codes."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from babylm_train import config as checks
from babylm_train.errors import InputError, PreemptedError, RunError, StorageError, fail, one_line
from babylm_train.preemption import SIGNALS, preemptible

if TYPE_CHECKING:
    from babylm_train.run import Request


def main() -> None:
    """Entry point of `python -m babylm_train` and `babylm-train`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us as exceptions, and leave as one line
    # our launchers' fragments bear the names of the plugins' schemas on purpose: they are held against them
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")
    for number in SIGNALS:
        signal.signal(number, _stopped)
    checks.register_resolvers()
    sys.argv[1:] = [checks.quoted(argument) for argument in sys.argv[1:]]
    try:
        parser = get_args_parser()
        parser.error = _refuse  # type: ignore[method-assign]
        args = parser.parse_args()
        if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
            task()
            return
        configs = checks.check_command_line(args.overrides, args.config_name or "config", args.config_dir)
        _check_values(configs)
        if args.multirun or configs[0].hydra.mode == hydra.types.RunMode.MULTIRUN:
            _sweep(configs[0])
        else:
            task()
    except (HydraException, OmegaConfBaseException) as error:
        fail(InputError(checks.explain(error, sys.argv[1:])))
    except RunError as error:
        fail(error)
    except OSError as error:  # Hydra's own folders
        fail(StorageError(f"cannot write {error.filename or 'the output'}: {error.strerror}"))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def _sweep(config: DictConfig) -> None:
    """Runs the jobs of a study that are missing, then reports on all of it.

    Raises:
        SystemExit: a job failed; with the exit code of the first that did.
        PreemptedError: this process was asked to stop; the running jobs have saved their states.
    """
    from babylm_train.study.launcher import StudyLauncher

    directory = Path(config.hydra.sweep.dir)
    StudyLauncher.exit_codes.clear()
    if "n_trials" in config.hydra.sweeper:
        from babylm_train.study.search import continued

        with continued(directory, OmegaConf.to_container(config.hydra.sweeper, resolve=True)) as left:  # type: ignore[arg-type]
            sys.argv += left
            task()
    else:
        task()
    _report(directory)
    if StudyLauncher.exit_codes:
        sys.exit(StudyLauncher.exit_codes[0])


def _stopped(*_: object) -> NoReturn:
    raise PreemptedError("preempted before anything had begun; the same command starts again")


def _refuse(message: str) -> NoReturn:
    """What argparse would say in a page."""
    raise InputError(f"{message}: --multirun (-m) and other options stand before the first key=value")


def _report(directory: Path) -> None:
    """Writes the report of a sweep that ended, failed jobs or not; its own failure is said and hides nothing."""
    from babylm_train.study.report import write_report

    try:
        print(f"report: {write_report(directory)}")
    except RunError as error:
        print(f"warning: no report: {one_line(error)}", file=sys.stderr)


def _check_values(configs: list[DictConfig]) -> None:
    """Builds what is cheap of every configuration, so that a mistake is found before anything is written."""
    from babylm_train import build
    from babylm_train.checkpoint import find_checkpoint

    for config in configs:
        if config.resume is not None:
            find_checkpoint(config.resume)
        build.parts(config)


@hydra.main(config_path=str(checks.CONF), config_name="config", version_base="1.3")
def task(config: DictConfig) -> float:
    """One job: returns its best validation loss; in a sweep infinity if it failed."""
    directory = Path(HydraConfig.get().runtime.output_dir)
    from babylm_train.run import record_failure
    from babylm_train.study.jobs import Outcome

    request = _request(config)
    try:
        return _job(config, directory, request)
    except RunError as error:
        if not isinstance(error, InputError) and (directory / "config.yaml").exists():  # it had begun
            record_failure(directory, Outcome.of(error), request, checks.config_hash(config))
        fail(error)  # here: Hydra would say something of its own first


def run_job(config: DictConfig, directory: Path) -> float:
    """A job of a study, in its own process: its validation loss. Raises RunError as its kind says."""
    return _job(config, directory, _request(config))


def _job(config: DictConfig, directory: Path, request: Request) -> float:
    from babylm_train import build
    from babylm_train.run import claimed, execute, table

    with claimed(directory), preemptible() as preemption:
        _refuse_other(config, directory)
        done = finished(directory, checks.config_hash(config))
        if done is not None:
            print(f"{directory}: finished already (validation loss {done['val_loss']:.4f}); delete it to run again")
            return float(done["val_loss"])
        run = build.build(config, directory, build.parts(config), preemption)
        result = execute(run, directory, config.resume, request, preemption)
    print(f"{directory}\n{table(result)}", flush=True)
    return float(result["val_loss"])


def _request(config: DictConfig) -> Request:
    from babylm_train import build
    from babylm_train.run import Request

    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return Request(build.saved_config(config), [str(override) for override in typed])  # variables stay unread


def finished(directory: Path, config_hash: str) -> dict[str, Any] | None:
    """The result of a run that ended as planned with this very configuration."""
    path = directory / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf8"))
        return result if result["status"] == "finished" and result["config_hash"] == config_hash else None
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is no result of a run ({error}): delete it") from error


def _refuse_other(config: DictConfig, directory: Path) -> None:
    """A directory belongs to one configuration.

    Raises:
        InputError: it holds a run of another one; names what differs.
    """
    from babylm_train.checkpoint import refuse_other

    path = directory / "config.yaml"
    if not path.exists():
        return
    try:
        there = checks.plain(OmegaConf.load(path))  # type: ignore[arg-type]
    except (YAMLError, OmegaConfBaseException, OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no configuration of a run: {str(error).splitlines()[0]}") from error
    refuse_other(checks.essential(checks.plain(config)), checks.essential(there), str(directory))
