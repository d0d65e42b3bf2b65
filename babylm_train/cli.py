"""The command line: checks first, then Hydra, then exit codes."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from babylm_train import config as checks
from babylm_train.errors import InputError, PreemptedError, RunError, StorageError, fail, one_line

failures: list[RunError] = []  # of this process's jobs: a sweep goes on, and ends with an exit code that is not 0
studies: set[Path] = set()  # directories that this process's sweep wrote to


def main() -> None:
    """Entry point of `python -m babylm_train` and `babylm-train`."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us as exceptions, and leave as one line
    checks.register_resolvers()
    sys.argv[1:] = [checks.quoted(argument) for argument in sys.argv[1:]]
    try:
        parser = get_args_parser()
        parser.error = _refuse  # type: ignore[method-assign]
        args = parser.parse_args()
        if not (args.help or args.hydra_help or args.cfg or args.info or args.shell_completion):
            configs = checks.check_command_line(args.overrides, args.config_name or "config", args.config_dir)
            _check_values(configs)
        task()
        for directory in studies:
            _report(directory)
    except (HydraException, OmegaConfBaseException) as error:
        fail(InputError(checks.explain(error, sys.argv[1:])))
    except RunError as error:
        fail(error)
    except OSError as error:  # Hydra's own folders
        fail(StorageError(f"cannot write {error.filename or 'the output'}: {error.strerror}"))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    if failures:
        sys.exit(failures[0].exit_code)


def _refuse(message: str) -> NoReturn:
    """What argparse would say in a page."""
    raise InputError(f"{message}: --multirun (-m) and other options stand before the first key=value")


def _report(directory: Path) -> None:
    """Writes the report of a sweep that ended, failed jobs or not; its own failure is said and hides nothing."""
    from babylm_train.report import write_report

    try:
        print(f"report: {write_report(directory)}")
    except RunError as error:
        print(f"warning: no report: {one_line(error)}", file=sys.stderr)


def _check_values(configs: list[DictConfig]) -> None:
    """Builds what is cheap of every configuration, so that a mistake is found before anything is written."""
    from babylm_train import build
    from babylm_train.record import find_checkpoint

    for config in configs:
        if config.resume is not None:
            find_checkpoint(config.resume)
        build.parts(config)


@hydra.main(config_path=str(checks.CONF), config_name="config", version_base="1.3")
def task(config: DictConfig) -> float:
    """One job: returns its best validation loss, infinity if it failed."""
    directory = Path(HydraConfig.get().runtime.output_dir)
    multirun = HydraConfig.get().mode == hydra.types.RunMode.MULTIRUN
    config_hash = checks.config_hash(config)
    if multirun:
        studies.add(Path(HydraConfig.get().sweep.dir))
    try:
        return _job(config, directory, config_hash)["val_loss"]
    except RunError as error:
        print(f"error: {f'{directory.name}: ' if multirun else ''}{one_line(error)}", file=sys.stderr)
        if isinstance(error, PreemptedError):
            sys.exit(error.exit_code)  # the rest of a sweep as well
        failures.append(error)
        return math.inf


def _job(config: DictConfig, directory: Path, config_hash: str) -> dict[str, Any]:
    from babylm_train import build
    from babylm_train.run import Preemption, claimed, execute, record_failure, table

    with claimed(directory), Preemption() as preemption:
        _refuse_other(config, directory)
        done = finished(directory, config_hash)
        if done is not None:
            print(f"{directory}: finished already (validation loss {done['val_loss']:.4f}); delete it to run again")
            return done
        run = build.build(config, directory, build.parts(config), preemption)
        try:
            result = execute(run, directory, config.resume, build.saved_config(config), preemption)
        except RunError as error:
            if not isinstance(error, InputError):
                record_failure(directory, error, config_hash)
            raise
    print(f"{directory}\n{table(result)}", flush=True)
    return result


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
