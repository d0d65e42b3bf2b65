"""Folders of models as write_model exports them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import model_of

from babylm_train.data.tokenizer import WordPiece
from babylm_train.model.export import write_model

LENGTH = 16
KINDS = {"gpt2": ("causal", "mntp"), "modern": ("causal", "mntp"), "modernbert": ("mlm",), "deberta": ("mlm",)}


def nano(name: str, size: int, max_length: int = LENGTH) -> Any:
    """The architecture `name` at its smallest, untrained, for a vocabulary of `size`."""
    torch.manual_seed(0)
    return model_of(f"{name}_nano", size, max_length)


def export(folder: Path, name: str = "gpt2") -> Path:
    """A folder of an untrained model and a tokenizer of Devanagari letters, whose own length is not the model's."""
    tokenizer = WordPiece(700, 1).build(["अ आ इ ई उ ऊ ए ओ"])
    tokenizer.model_max_length = 10**6
    write_model(nano(name, len(tokenizer)), tokenizer, folder, KINDS[name])
    return folder
