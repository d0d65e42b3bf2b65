"""The loops that are compared: ours, a bare one, HF Trainer, Lightning, and one line a row padded to 512.

Each arm trains the same model on the same text and reports the useful tokens (valid targets) that it gets through in
the time of its updates. Peers run with their defaults, on rows whose documents are not isolated; ours isolates them.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import FullSchedule
from babylm_train.curriculum.strategy import NoCurriculum
from babylm_train.data.packing import PackedRows
from babylm_train.data.tokens import TokenizedSplit
from babylm_train.logger import NoLogger
from babylm_train.model.build import causal_lm
from babylm_train.model.forward import Forward
from babylm_train.objective import CausalObjective
from babylm_train.optim import Precision, group_parameters, schedule
from babylm_train.options import TrainerOptions
from babylm_train.state import IGNORE, EpochSlice
from babylm_train.throughput import keep_pages, peak_memory
from babylm_train.trainer import Trainer


@dataclass(frozen=True)
class Setting:
    """What all arms share. model: a transformers configuration with its sizes; dropout on embeddings and residuals."""

    model: Callable[..., Any]
    vocabulary: int
    length: int
    rows: int
    updates: int
    warm: int = 2
    bf16: bool = False
    rounding: str = "medium"  # of our products in float32; `highest`: exact, what a CPU without bfloat16 runs
    dropout: float = 0.1
    attention_dropout: float = 0.1  # of the peers, whose default it is; ours has none
    compile: bool = False
    backend: str = "inductor"  # of HF Trainer's compiler
    device: str = "cpu"
    clock: Callable[[], float] = time.perf_counter

    @property
    def targets(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Measured:
    """tokens: useful ones a second. memory: peak in MiB."""

    tokens: float
    memory: float


class Vocabulary(SimpleNamespace):
    """As much of a tokenizer as building a model asks for."""

    bos_token_id, eos_token_id, pad_token_id, size = 0, 0, 1, 0

    def __len__(self) -> int:
        return self.size


def split_of(documents: Sequence[Sequence[int]]) -> TokenizedSplit:
    """Token ids as our loader stores them, mark 0 first."""
    lengths = np.array([len(d) + 1 for d in documents])
    ids = np.concatenate([np.array([0, *d]) for d in documents])
    return TokenizedSplit(
        ids=ids.astype(np.uint16),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        word_starts=(ids != 0).astype(np.uint8),
        bytes=lengths * 3,
        words=lengths.astype(np.int32),
        eos=0,
        fingerprint="",
        unknown=0,
    )


def rate(stamps: Sequence[tuple[float, int]], warm: int) -> float:
    """Tokens a second after the first `warm` updates; a stamp is the time at an update's end and its tokens."""
    return sum(tokens for _, tokens in stamps[warm:]) / (stamps[-1][0] - stamps[warm - 1][0])


def model_of(setting: Setting, plain: bool) -> Any:
    """The model; `plain`: as transformers builds it by default (gelu_new, attention dropout, its own attention)."""
    torch.manual_seed(0)
    names = Vocabulary(size=setting.vocabulary)
    if not plain:
        config = partial(setting.model, activation_function="gelu_pytorch_tanh")
        return causal_lm(config, names, setting.length, setting.dropout, 0.0).to(setting.device)  # type: ignore[arg-type]
    from transformers import AutoModelForCausalLM

    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop"), setting.dropout) | {"attn_pdrop": setting.attention_dropout}
    marks = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    config = setting.model(vocab_size=setting.vocabulary, n_positions=setting.length, **marks, **drops)
    return AutoModelForCausalLM.from_config(config).to(setting.device)


def ours(documents: Sequence[Sequence[int]], setting: Setting) -> Measured:
    """babylm_train: documents isolated, clipping, metrics, ledger, logging each 10 updates."""
    split = split_of(documents)
    model = model_of(setting, plain=False)
    total = setting.warm + setting.updates
    curriculum = CurriculumTrainingManager(NoCurriculum(), FullSchedule()).begin(
        np.zeros(len(documents)),
        split.words,
        np.diff(split.offsets),
        max_steps=total + 1,
        targets_per_update=setting.targets,
        max_length=setting.length,
    )
    optimizer = torch.optim.AdamW(group_parameters(model, 0.01), lr=3e-4, fused=True)
    precision = Precision("bfloat16", "highest") if setting.bf16 else Precision("float32", setting.rounding)
    stamps: list[tuple[float, int]] = []

    def stamp() -> bool:  # the update has waited for its loss: no other wait
        stamps.append((setting.clock(), setting.targets))
        return False

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            CausalObjective(),
            optimizer,
            schedule(optimizer, total + 1, "linear"),
            precision,
            curriculum,
            split,
            split_of(documents[:1]),
            setting.length,
            TrainerOptions(epochs=1, batch_size=setting.rows, max_steps=total + 1, compile=setting.compile),
            Path(folder),
            NoLogger(),
            should_stop=stamp,
        )
        with quiet():
            trainer.train()
    return Measured(rate(stamps[:-1], setting.warm), peak_memory(trainer.device))


def _wait(setting: Setting) -> None:
    if setting.device == "cuda":
        torch.cuda.synchronize()


def _autocast(setting: Setting) -> Any:
    return torch.autocast(setting.device, torch.bfloat16, enabled=setting.bf16)


def bare(documents: Sequence[Sequence[int]], setting: Setting, tuned: bool = False) -> Measured:
    """A loop of ten lines on packed rows; `tuned`: with our settings and isolation, else with library defaults.

    On a GPU AdamW is fused, and nothing waits for the device but the clock.
    """
    split = split_of(documents)
    order = np.random.default_rng(0).permutation(len(documents))
    rows = PackedRows(split, EpochSlice(0, 1.0, order, order, 0, int(split.offsets[-1]), 0), setting.length)
    model = model_of(setting, plain=not tuned).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=tuned or setting.device == "cuda" or None)
    if tuned:
        keep_pages(torch.device("cpu"))
        torch.set_float32_matmul_precision("highest" if setting.bf16 else setting.rounding)
    forward, objective = Forward(model), CausalObjective()

    def compute_loss(batch: Any) -> torch.Tensor:
        logits = model(batch.inputs, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())

    if setting.compile:
        compute_loss = torch.compile(compute_loss, dynamic=False)
    stamps = []
    for update in range(setting.warm + setting.updates):
        batch = rows.batch(update * setting.rows % (len(rows) - setting.rows), setting.rows).to(setting.device)
        with _autocast(setting):
            loss = objective(forward, batch) / batch.tokens if tuned else compute_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if update + 1 in (setting.warm, setting.warm + setting.updates):
            _wait(setting)
        stamps.append((setting.clock(), batch.tokens))
    return Measured(rate(stamps, setting.warm), peak_memory(torch.device(setting.device)))


def packed(documents: Sequence[Sequence[int]], setting: Setting) -> list[dict[str, list[int]]]:
    """The stream cut into rows, as the usual recipe does: documents see each other."""
    stream = np.concatenate([np.array([0, *d]) for d in documents])
    count = len(stream) // setting.length
    rows = stream[: count * setting.length].reshape(count, setting.length).tolist()
    return [{"input_ids": row, "labels": row} for row in rows]


def pad_rows(rows: list[list[int]], masked: bool) -> dict[str, torch.Tensor]:
    """Rows filled up to the longest, with labels and, if `masked`, an attention mask."""
    width = max(map(len, rows))
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for ids in rows:
        more = width - len(ids)
        columns["input_ids"].append(ids + [1] * more)
        columns["labels"].append(ids + [IGNORE] * more)
        columns["attention_mask"].append([1] * len(ids) + [0] * more)
    if not masked:
        del columns["attention_mask"]
    return {name: torch.tensor(values) for name, values in columns.items()}


def hf_trainer(
    documents: Sequence[Sequence[int]], setting: Setting, padded: bool = False, grouped: bool = False
) -> Measured:
    """transformers.Trainer with its defaults: packed rows, or a line a row padded to the longest, or `grouped`."""
    from transformers import Trainer as HFTrainer
    from transformers import TrainerCallback, TrainingArguments

    rows = packed(documents, setting)
    if padded:
        rows = [{"input_ids": [0, *d][: setting.length]} for d in documents]
        rows = [row | {"labels": row["input_ids"], "length": [len(row["input_ids"])]} for row in rows]
    size = 4 * setting.rows if grouped else setting.rows  # short lines: more of them make an update of like size
    useful: list[int] = []
    stamps: list[tuple[float, int]] = []

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        useful.append(sum(len(row["input_ids"]) for row in batch))
        return pad_rows([row["input_ids"] for row in batch], padded)

    class Stamp(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            _wait(setting)
            stamps.append((setting.clock(), useful[len(stamps)]))

    with tempfile.TemporaryDirectory() as folder, quiet():
        arguments = TrainingArguments(
            folder,
            max_steps=setting.warm + setting.updates,
            per_device_train_batch_size=size,
            bf16=setting.bf16,
            use_cpu=setting.device == "cpu",
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            train_sampling_strategy="group_by_length" if grouped else "random",
            remove_unused_columns=False,
            torch_compile_backend=setting.backend if setting.compile else None,
        )
        model = model_of(setting, plain=True)
        HFTrainer(
            model,
            arguments,
            train_dataset=[{**row, "length": len(row["input_ids"])} for row in rows],  # type: ignore[arg-type]
            data_collator=collate,
            callbacks=[Stamp()],
        ).train()
    return Measured(rate(stamps, setting.warm), peak_memory(torch.device(setting.device)))


def lightning(documents: Sequence[Sequence[int]], setting: Setting) -> Measured:
    """lightning.Trainer with its defaults and clipping, on packed rows."""
    import lightning as L

    stamps: list[tuple[float, int]] = []

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model_of(setting, plain=True)

        def training_step(self, batch: torch.Tensor, _index: int) -> torch.Tensor:
            loss = self.model(batch, labels=batch, use_cache=False).loss
            self.log("train/loss", loss)
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            stamps.append((setting.clock(), setting.targets))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=3e-4)

    rows = torch.tensor([row["input_ids"] for row in packed(documents, setting)])
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = L.Trainer(
            accelerator=setting.device,
            precision="bf16-mixed" if setting.bf16 else "32-true",
            max_steps=setting.warm + setting.updates,
            gradient_clip_val=1.0,
            log_every_n_steps=10,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(rows, batch_size=setting.rows, shuffle=True))  # type: ignore[arg-type]
    return Measured(rate(stamps, setting.warm), peak_memory(torch.device(setting.device)))


def padded_to_512(documents: Sequence[Sequence[int]], setting: Setting) -> Measured:
    """One line a row, every row padded to 512, as many theses have it: a plain loop over 16 rows."""
    model = model_of(Setting(setting.model, setting.vocabulary, 512, 16, 0), plain=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    stamps = []
    for update in range(3):
        lines = [torch.tensor([0, *d][:512]) for d in documents[update * 16 : update * 16 + 16]]
        inputs = torch.stack([torch.nn.functional.pad(line, (0, 512 - len(line)), value=1) for line in lines])
        seen = torch.stack([(torch.arange(512) < len(line)).long() for line in lines])
        with _autocast(setting):
            loss = model(inputs, attention_mask=seen, labels=inputs.masked_fill(seen == 0, IGNORE)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        stamps.append((setting.clock(), sum(map(len, lines))))
    return Measured(rate(stamps, 1), peak_memory(torch.device("cpu")))


@contextlib.contextmanager
def quiet() -> Any:
    """Progress bars and notices of the peers are not wanted."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield
