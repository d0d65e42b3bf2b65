"""Signals that ask a run to save its state and stop: a scheduler's, before it takes the machine away."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from babylm_train.errors import PreemptedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextlib.contextmanager
def handled(by: Callable[[int, Any], object] | signal.Handlers) -> Iterator[dict[int, Any]]:
    """SIGNALS are handled `by` it meanwhile; yields what handled them before. Outside the main thread: nothing."""
    main = threading.current_thread() is threading.main_thread()
    before: dict[int, Any] = {number: signal.signal(number, by) for number in SIGNALS if main}
    try:
        yield before
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Preemption:
    """Whether a run was asked to stop. In `training` it stops after the current update, elsewhere at once.

    Raises:
        PreemptedError: from the handler, where there is nothing to save.
    """

    def __init__(self) -> None:
        self.asked = self.training = False

    def ask(self, *_: object) -> None:
        """Handles a signal."""
        self.asked = True
        if not self.training:
            raise PreemptedError("preempted outside training: nothing to save; the same command continues")

    def __call__(self) -> bool:
        return self.asked


@contextlib.contextmanager
def preemptible() -> Iterator[Preemption]:
    """Yields whether SIGNALS have asked to stop since."""
    preemption = Preemption()
    with handled(preemption.ask):
        yield preemption
