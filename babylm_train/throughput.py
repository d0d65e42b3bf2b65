"""What a model costs, and how fast a run is: operations, memory, tokens a second, MFU."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

T = TypeVar("T")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h

# Numbers that a layer keeps for each token and unit of width: 17 in Korthikanti et al. 2022. On an H200 GPT-2 kept 20,
# and compiled 19, as did Qwen3 (bfloat16); on CPUs GPT-2 of 4 layers x 160 keeps 20 (float32) to 24, Qwen3 30 to 41.
KEPT = 24


@functools.cache
def measure_flops(device: torch.device, dtype: torch.dtype, rounding: str) -> float:
    """FLOP/s of the fastest of some products of square matrices; `rounding`: of float32, only tells results apart."""
    size = 4096 if device.type == "cuda" else 1024
    matrix = torch.full((size, size), 0.5, device=device, dtype=dtype)
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        seconds.append(time.perf_counter() - begin)
    return 2.0 * size**3 / min(seconds)


def peak_memory(device: torch.device) -> float:
    """Most memory used so far, in MiB: on a GPU that of tensors, else that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Meter:
    """Measures training between two log lines, of `model` in rows of `context`, products in `dtype`, on `devices`.

    draws: of dropout, how often an update runs its rows through the model.
    """

    def __init__(
        self, model: Any, context: int, dtype: torch.dtype, device: torch.device, devices: int = 1, draws: int = 1
    ) -> None:
        self.flops, self.device = flops_per_token(model, context) * draws, device
        self.peak = measure_flops(device, dtype, torch.get_float32_matmul_precision()) * devices  # FLOP/s
        self.start(0)

    def start(self, tokens: int) -> None:
        """A window begins; `tokens` were trained on before."""
        self.begin, self.tokens, self.spent = time.perf_counter(), tokens, {"data": 0.0, "aside": 0.0}

    @contextlib.contextmanager
    def spend(self, on: str) -> Iterator[None]:
        """Time inside is spent on `data`, which the model waits for, or `aside`, which is no training."""
        begin = time.perf_counter()
        yield
        self.spent[on] += time.perf_counter() - begin

    def wait_for(self, batches: Iterator[T]) -> Iterator[T]:
        """What `batches` gives, to its end; the time until it comes is spent on `data`."""
        while True:
            with self.spend("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def read(self, tokens: int) -> dict[str, Any]:
        """The window's figures; the next begins. MFU against the peak, which is stated beside it."""
        seconds = max(time.perf_counter() - self.begin - self.spent["aside"], 1e-9)
        rate, waited = (tokens - self.tokens) / seconds, self.spent["data"]
        self.start(tokens)
        return {
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self.flops / self.peak, 4),
            "peak_tflops": round(self.peak / 1e12, 3),
            "peak_memory_mib": round(peak_memory(self.device)),
            "data_wait": round(waited / seconds, 4),
        }


def keep_pages(device: torch.device) -> None:
    """Makes glibc's malloc keep freed memory: each update allocates what the last one freed, and new pages are slow."""
    if device.type == "cpu" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


@dataclass(frozen=True)
class Size:
    """Trainable parameters, as exported, tied ones once; operations a token, forward and backward; bytes of a step."""

    parameters: int
    flops_per_token: int
    memory: dict[str, int]


def size_of(
    model: Any,
    optimizer: Optimizer,
    *,
    context: int,
    rows: int,
    activation_bytes: int,
    checkpointing: bool = False,
    logits: int | None = None,
    draws: int = 1,
) -> Size:
    """What a transformers model costs that `optimizer` trains in micro-batches of rows x context targets.

    Memory is an estimate: allocator, kernels and framework come on top. A layer keeps KEPT numbers until its backward
    pass; under checkpointing its input alone, and one layer at a time. Logits are there twice in float32 (their
    logarithms, and themselves or their gradient), and once in a 16-bit autocast type; `logits`: so many at once, None:
    all. `activation_bytes`: of a number inside autocast, 2 or 4. `draws`: how often an update runs its rows through.
    """
    config, layer = model.config, KEPT * model.config.hidden_size
    numbers = config.num_hidden_layers * (config.hidden_size if checkpointing else layer) + layer * checkpointing
    rows *= draws
    at_once = min(rows * context * config.vocab_size, logits or sys.maxsize)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    memory = {
        "weights": 4 * trained,
        "gradients": 4 * trained,
        "optimizer": _state_bytes(optimizer),
        "activations": rows * context * numbers * activation_bytes
        + at_once * (8 if activation_bytes == 4 else 8 + activation_bytes),
    }
    return Size(
        count_parameters(model),
        flops_per_token(model, context) * draws,
        {**memory, "total": sum(memory.values())},
    )


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters, tied ones once; without n-grams, which an export folds into its embeddings."""
    ngrams = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.EmbeddingBag))
    return sum(p.numel() for p in model.parameters() if p.requires_grad) - ngrams


def flops_per_token(model: Any, context: int) -> int:
    """Floating-point operations to train on one token in rows of `context`: 6 N + 12 layers * width * context.

    6 N: two for each weight forward, four backward (Kaplan et al. 2020, section 2.1), embeddings that are only looked
    up left out; the attention term is that of PaLM (Chowdhery et al. 2022, appendix B). It counts full, not causal,
    attention over a whole row, so it is an upper bound for packed documents; recomputation is left out.
    """
    config, head = model.config, model.get_output_embeddings()
    embeddings = [_stored(module) for module in model.modules() if isinstance(module, nn.Embedding)]
    looked_up = sum(weight.numel() for weight in embeddings if head is None or weight is not _stored(head))
    multiplied = count_parameters(model) - looked_up
    return int(6 * multiplied + 12 * config.num_hidden_layers * config.hidden_size * context)


def _stored(module: Any) -> torch.Tensor:
    return module.parametrizations.weight.original if is_parametrized(module) else module.weight


def _state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state after a step, found by a copy of it that steps on stand-ins of the weights."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    small = {id(p): nn.Parameter(torch.ones([4] * p.dim())) for p in weights}
    clone = copy.deepcopy(optimizer, dict(small))
    clone.state.clear()
    for stand_in in small.values():
        stand_in.grad = torch.zeros_like(stand_in)
    clone.step()
    return sum(
        p.numel() * value.element_size()
        for p in weights
        for value in clone.state[small[id(p)]].values()
        if isinstance(value, torch.Tensor) and value.shape == small[id(p)].shape
    )


@functools.cache
def has_bf16() -> bool:
    """Does this CPU multiply bfloat16 in hardware? Without /proc/cpuinfo the answer is no."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    return "avx512_bf16" in text or "amx_bf16" in text or " bf16" in text
