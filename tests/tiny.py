"""A tiny run, assembled from plain objects."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import FullSchedule
from babylm_train.curriculum.strategy import NoCurriculum
from babylm_train.data.tokens import TokenizedSplit
from babylm_train.logger import NoLogger
from babylm_train.objective import CausalObjective
from babylm_train.optim import Precision, schedule
from babylm_train.options import TrainerOptions
from babylm_train.trainer import Trainer

VOCABULARY, LENGTH = 40, 8
TOKENIZER = SimpleNamespace(eos_token_id=0, bos_token_id=1, pad_token_id=2)


def random_split(documents: int, seed: int) -> TokenizedSplit:
    """Documents of 1 to 20 tokens, each token a word."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 21, documents)
    ids = np.concatenate([[0, *rng.integers(3, VOCABULARY, n)] for n in lengths]).astype(np.uint16)
    return TokenizedSplit(
        ids=ids,
        offsets=np.concatenate([[0], np.cumsum(lengths + 1)]),
        word_starts=(ids != 0).astype(np.uint8),
        bytes=lengths * 3,
        words=lengths.astype(np.int32),
        eos=0,
        fingerprint=f"random {seed}",
        unknown=0,
    )


def tiny_model(dropout: float = 0.1) -> torch.nn.Module:
    from transformers import GPT2Config

    from babylm_train.model.build import causal_lm

    class Tokenizer(SimpleNamespace):
        def __len__(self) -> int:
            return VOCABULARY

    config = partial(GPT2Config, n_layer=2, n_embd=16, n_head=2, activation_function="gelu_pytorch_tanh")
    return causal_lm(config, Tokenizer(**vars(TOKENIZER)), LENGTH, dropout, dropout)


def tiny_trainer(directory: Path, **changes) -> Trainer:
    """A run of 3 epochs over 40 documents; `changes` go to the options, or replace a part of the same name."""
    parts = {
        "strategy": NoCurriculum(),
        "schedule": FullSchedule(),
        "pacing": "matched",
        "precision": Precision("float32", "highest", False),
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
        "scheduler": partial(schedule, name="linear"),
        "dropout": 0.1,
        "should_stop": lambda: False,
        "logger": NoLogger(),
        "identity": None,
        "scores": None,
        "objective": CausalObjective(),
        "device": "cpu",
    }
    parts |= {name: changes.pop(name) for name in list(changes) if name in parts}
    options = TrainerOptions(
        **{"epochs": 3, "batch_size": 3, "gradient_accumulation_steps": 2, "log_every": 2, **changes}
    )
    train, validation = random_split(40, 1), random_split(10, 2)
    curriculum = CurriculumTrainingManager(parts["strategy"], parts["schedule"], pacing=parts["pacing"]).begin(
        train.words.astype(float) if parts["scores"] is None else parts["scores"],
        train.words,
        np.diff(train.offsets),
        epochs=options.epochs,
        max_steps=options.max_steps,
        targets_per_update=options.batch_size * options.gradient_accumulation_steps * LENGTH,
        max_length=LENGTH,
    )
    torch.manual_seed(0)
    model = tiny_model(parts["dropout"]).to(parts["device"])
    optimizer = parts["optimizer"](model.parameters())
    return Trainer(
        model,
        parts["objective"],
        optimizer,
        parts["scheduler"](optimizer, curriculum.total_updates),
        parts["precision"],
        curriculum,
        train,
        validation,
        LENGTH,
        options,
        directory,
        parts["logger"],
        identity=parts["identity"] or {},
        should_stop=parts["should_stop"],
    )
