"""What looks at a run before it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from babylm_train.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from babylm_train.command import CommandLine


def compose_one(line: CommandLine) -> DictConfig:
    """The configuration of a command that looks at one run. Raises InputError: as for a run; or it is a sweep."""
    from babylm_train.config import check_command_line

    first, *others = check_command_line(line.overrides, line.config_name, line.config_dir)
    if others:
        raise InputError("this command looks at one configuration, not at a sweep")
    return first
