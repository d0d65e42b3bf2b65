"""Train language models on little data; every ablation is a composition of YAML fragments."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from babylm_train.config import compose_one as compose
    from babylm_train.options import TrainerOptions
    from babylm_train.runner import Result, run
    from babylm_train.state import Callback
    from babylm_train.trainer import Trainer

__all__ = ["Callback", "Result", "Trainer", "TrainerOptions", "compose", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports what is asked for, and no more: the command line starts at once."""
    if name not in __all__:
        raise AttributeError(f"module babylm_train has no attribute {name}")
    room = {"Callback": "state", "Trainer": "trainer", "TrainerOptions": "options", "compose": "config"}
    module = importlib.import_module(f"babylm_train.{room.get(name, 'runner')}")
    return getattr(module, "compose_one" if name == "compose" else name)
