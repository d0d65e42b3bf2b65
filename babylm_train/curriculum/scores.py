"""Difficulty scores, computed once per corpus and strategy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from babylm_train.files import cached, digest

if TYPE_CHECKING:
    from babylm_train.curriculum.strategy import Curriculum
    from babylm_train.data.corpus import Split


def difficulty(strategy: Curriculum, split: Split, fingerprint: str, cache_dir: str | Path) -> np.ndarray:
    """One score a document, float64 of shape (N,); cached under (corpus, strategy)."""
    if not strategy.ranks:
        return np.zeros(len(split))

    def build(folder: Path) -> None:
        np.save(folder / "scores.npy", np.asarray(strategy.compute_difficulty(split), dtype=np.float64))

    folder = cached(Path(cache_dir), "scores", digest([fingerprint, strategy.identity()]), build)
    return np.load(folder / "scores.npy", allow_pickle=False)
