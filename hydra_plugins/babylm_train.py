"""Hydra takes launchers from the package `hydra_plugins` alone; ours are written in babylm_train/study/launcher.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.plugins.launcher import Launcher


class StudyLauncher(Launcher):
    """Hands over to ours of the same name, imported when a sweep begins: Hydra reads this file at every start."""

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters

    def setup(self, **given: Any) -> None:
        """Called by Hydra, once a sweep."""
        from babylm_train.study import launcher

        self.launcher = getattr(launcher, type(self).__name__)(**self.parameters)
        self.launcher.setup(**given)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Any:
        """Called by Hydra, once a batch."""
        return self.launcher.launch(job_overrides, initial_job_idx)


class LocalLauncher(StudyLauncher):
    """`hydra/launcher=local`."""


class SubmititLocalLauncher(StudyLauncher):
    """`hydra/launcher=submitit_local`."""


class SubmititSlurmLauncher(StudyLauncher):
    """`hydra/launcher=submitit_slurm`."""


class RayLauncher(StudyLauncher):
    """`hydra/launcher=ray`."""
