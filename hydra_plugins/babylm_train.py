"""Hydra takes launchers from the package `hydra_plugins` alone; ours are written in babylm_train/study/launcher.py."""

from babylm_train.study import launcher


class LocalLauncher(launcher.LocalLauncher):
    """`hydra/launcher=local`."""


class SubmititLocalLauncher(launcher.SubmititLauncher):
    """`hydra/launcher=submitit_local`."""

    cluster = "local"


class SubmititSlurmLauncher(launcher.SubmititLauncher):
    """`hydra/launcher=submitit_slurm`."""

    cluster = "slurm"
