"""A tiny run, assembled from plain objects."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import GPT2Config

from babylm_train.config import CONF
from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import FullSchedule
from babylm_train.curriculum.strategy import NoCurriculum
from babylm_train.data.tokens import TokenizedSplit
from babylm_train.logger import NoLogger
from babylm_train.model.build import causal_lm
from babylm_train.objective import CausalObjective, HybridObjective, MaskedObjective
from babylm_train.optim import Precision, schedule
from babylm_train.options import TrainerOptions
from babylm_train.state import ALONE, IGNORE, Batch
from babylm_train.trainer import Trainer

VOCABULARY, LENGTH = 40, 8


class Tokenizer:
    """As much of one as models and objectives ask for: a vocabulary of `size`, of which 0, 1 and 2 are special."""

    eos_token_id, bos_token_id, pad_token_id, mask_token_id, all_special_ids = 0, 1, 2, 2, (0, 1, 2)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def random_split(documents: int, seed: int) -> TokenizedSplit:
    """Documents of 1 to 20 tokens, each token a word."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 21, documents)
    ids = np.concatenate([[0, *rng.integers(3, VOCABULARY, n)] for n in lengths]).astype(np.uint16)
    arrays = {"offsets": np.concatenate([[0], np.cumsum(lengths + 1)]), "word_starts": (ids != 0).astype(np.uint8)}
    arrays |= {"bytes": lengths * 3, "words": lengths.astype(np.int32)}
    return TokenizedSplit(ids=ids, **arrays, eos=0, fingerprint=f"random {seed}", unknown=0)


def tiny_model(dropout: float = 0.1) -> Any:
    config = partial(GPT2Config, n_layer=2, n_embd=16, n_head=2, activation_function="gelu_pytorch_tanh")
    return causal_lm(config, Tokenizer(VOCABULARY), LENGTH, dropout, dropout)


def model_of(name: str, size: int, max_length: int, **changes: float) -> Any:
    """The model that conf/model/NAME.yaml names, for a vocabulary of `size`."""
    build = instantiate(OmegaConf.load(CONF / "model" / f"{name}.yaml"), _convert_="all")
    return build(tokenizer=Tokenizer(size), max_length=max_length, **changes)


MASKING = {"start_rate": 0.3, "end_rate": 0.15, "mask_share": 0.8, "random_share": 0.1, "seed": 5}


def masked(**changes: Any) -> MaskedObjective:
    return MaskedObjective(**{**MASKING, "evaluation_passes": 7, **changes}).use_tokenizer(Tokenizer(VOCABULARY))


def hybrid(**changes: Any) -> HybridObjective:
    return HybridObjective(**{**MASKING, "masked_share": 0.25, **changes}).use_tokenizer(Tokenizer(VOCABULARY))


def packed(rows: int, length: int, seed: int) -> Batch:
    """Rows of several documents, the last row of one; some targets are none."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCABULARY, (rows, length + 1), generator=generator)
    positions = torch.arange(length).repeat(rows, 1)
    for row in range(rows - 1):
        for cut in sorted(torch.randint(1, length, (row,), generator=generator).tolist()):
            positions[row, cut:] = torch.arange(length - cut)
    targets = tokens[:, 1:].clone()
    targets[0, 2:5] = IGNORE
    return Batch(tokens[:, :-1], targets, positions, tokens=rows * length - 3, words=0)


def loss_and_gradients(
    call: Any, model: torch.nn.Module, batch: Batch, objective: Any = None
) -> tuple[float, list[torch.Tensor]]:
    """The loss of `batch`, causal if not said, when `call` stands in for `model`, and each parameter's gradient."""
    model.zero_grad()
    loss = (objective or CausalObjective())(call, batch)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


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
        "logger": NoLogger(),
        "identity": {},
        "objective": CausalObjective(),
        "device": "cpu",
        "processes": ALONE,
    }
    parts |= {name: changes.pop(name) for name in list(changes) if name in parts}
    plain = {"epochs": 3, "batch_size": 3, "gradient_accumulation_steps": 2, "log_every": 2}
    options = TrainerOptions(**plain | changes)
    train, validation = random_split(40, 1), random_split(10, 2)
    update = options.batch_size * options.gradient_accumulation_steps * LENGTH
    sizes = {"epochs": options.epochs, "max_steps": options.max_steps, "targets_per_update": update}
    manager = CurriculumTrainingManager(parts["strategy"], parts["schedule"], pacing=parts["pacing"])
    scores = train.words.astype(float)
    curriculum = manager.begin(scores, train.words, np.diff(train.offsets), max_length=LENGTH, **sizes)
    torch.manual_seed(0)
    model = tiny_model(parts["dropout"]).to(parts["device"])
    optimizer = parts["optimizer"](model.parameters())
    scheduler = parts["scheduler"](optimizer, curriculum.total_updates)
    made = (model, parts["objective"], optimizer, scheduler, parts["precision"], curriculum, train, validation, LENGTH)
    more = {name: parts[name] for name in ("logger", "identity", "processes")}
    return Trainer(*made, options, directory, **more)
