"""What a model costs, and how fast a run is: operations, memory, tokens a second, MFU; traces."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

# Dense peaks in TFLOP/s from the makers' data sheets: (float16 and bfloat16, TF32, float32); the first name that fits.
PEAKS = {
    "B200": (2250, 1125, 80),
    "H200": (989, 495, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 418, 60),
    "H100": (989, 495, 67),
    "L40S": (362, 183, 92),
    "L40": (181, 90.5, 90.5),
    "L4": (121, 60, 30),
    "A100": (312, 156, 19.5),
    "A10": (125, 62, 31),
    "A10G": (70, 35, 35),
    "RTX 4090": (165, 83, 83),
    "V100": (125, 15.7, 15.7),
    "T4": (65, 8.1, 8.1),
}
PROFILED, BEFORE = 10, 5  # updates in a trace, and before it
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype, rounding: str) -> float | None:
    """FLOP/s of matrix products: from the table for a GPU (None: not in it), measured for anything else.

    Args:
        dtype: inside autocast. rounding: of float32 products, as in torch.set_float32_matmul_precision.
    """
    if device.type != "cuda":
        return measured_flops(device, dtype)
    name = torch.cuda.get_device_name(device)
    column = 0 if dtype in (torch.bfloat16, torch.float16) else 1 if rounding != "highest" else 2
    return next((1e12 * peaks[column] for part, peaks in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def measured_flops(
    device: torch.device,
    dtype: torch.dtype,
    size: int = 1024,
    times: int = 4,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOP/s of the fastest of some products of `size` x `size`."""
    matrix = torch.full((size, size), 0.5, device=device, dtype=dtype)
    seconds = []
    for _ in range(times):
        begin = clock()
        (matrix @ matrix)[0, 0].item()
        seconds.append(clock() - begin)
    return 2.0 * size**3 / min(seconds)


def peak_memory(device: torch.device) -> float:
    """Most memory used so far, in MiB: on a GPU that of tensors, else that of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Meter:
    """Measures training between two log lines, evaluation and saving left out.

    Args:
        flops: a token. peak: of the device in FLOP/s, None if it is not known.
    """

    def __init__(self, flops: float, peak: float | None, device: torch.device) -> None:
        self.flops, self.peak, self.device = flops, peak, device
        self.start(0)

    def start(self, tokens: int) -> None:
        """A window begins; `tokens` were trained on before."""
        self.begin, self.tokens, self.waited, self.away = time.perf_counter(), tokens, 0.0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Time that the model waits for rows."""
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not training."""
        begin = time.perf_counter()
        yield
        self.away += time.perf_counter() - begin

    def read(self, tokens: int) -> dict[str, Any]:
        """The window's figures; the next begins. MFU against the peak, which is stated beside it."""
        seconds = max(time.perf_counter() - self.begin - self.away, 1e-9)
        rate, waited = (tokens - self.tokens) / seconds, self.waited
        self.start(tokens)
        return {
            "tokens_per_second": round(rate, 1),
            "mfu": self.peak and round(rate * self.flops / self.peak, 4),
            "peak_tflops": self.peak and round(self.peak / 1e12, 3),
            "peak_memory_mib": round(peak_memory(self.device)),
            "data_wait": round(waited / seconds, 4),
        }


def shown(speed: dict[str, Any]) -> dict[str, str]:
    """A reading for the progress bar."""
    mfu = {} if speed["mfu"] is None else {"mfu": f"{speed['mfu']:.0%}"}
    memory, wait = f"{speed['peak_memory_mib']:,} MiB", f"{speed['data_wait']:.1%}"
    return {"tokens_per_s": f"{speed['tokens_per_second']:,.0f}", **mfu, "memory": memory, "data_wait": wait}


@contextlib.contextmanager
def profiler(enabled: bool, path: Path) -> Iterator[Callable[[], None]]:
    """Yields what is called after each update; where enabled, writes a trace of ten updates to `path` (chrome://tracing)."""
    if not enabled:
        yield lambda: None
        return
    from torch.profiler import profile, schedule

    plan = schedule(wait=BEFORE - 1, warmup=1, active=PROFILED, repeat=1)
    with profile(schedule=plan, on_trace_ready=lambda p: p.export_chrome_trace(str(path))) as running:
        yield running.step


def keep_pages() -> None:
    """Makes glibc's malloc keep freed memory: each update allocates what the last one freed, and new pages are slow."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


# Korthikanti et al. 2022 count 17 (34 bytes at 16 bits). What autograd kept in models of 4 layers x 160: GPT-2 20 in
# float32 and 24 in bfloat16 (casts are kept too), Qwen3 30 and 41; with 24, logits included, all are within 20 %.
KEPT = 24


@dataclass(frozen=True)
class Size:
    """What a model costs.

    parameters: trainable, tied ones once. flops_per_token: forward and backward. rows: of a micro-batch, of `context`
    targets each. optimizer_bytes: of its state. activation_bytes: of a number inside autocast, 2 or 4.
    """

    parameters: int
    flops_per_token: int
    layers: int
    width: int
    vocabulary: int
    context: int
    rows: int
    optimizer_bytes: int
    activation_bytes: int
    checkpointing: bool = False

    def memory(self) -> dict[str, int]:
        """Bytes of a micro-batch's training step, an estimate: allocator, kernels and framework come on top.

        A layer keeps KEPT numbers for each token and unit of width until its backward pass; under checkpointing its
        input alone, and one layer at a time. The logits are there twice in float32 (their logarithms, and themselves or
        their gradient), and once in a 16-bit autocast type.
        """
        tokens, layer = self.rows * self.context, KEPT * self.width
        numbers = (self.layers * self.width + layer) if self.checkpointing else self.layers * layer
        logits = self.vocabulary * (8 if self.activation_bytes == 4 else 8 + self.activation_bytes)
        parts = {
            "weights": 4 * self.parameters,
            "gradients": 4 * self.parameters,
            "optimizer": self.optimizer_bytes,
            "activations": tokens * (numbers * self.activation_bytes + logits),
        }
        return {**parts, "total": sum(parts.values())}


def multiplied(model: Any) -> int:
    """Parameters that a token is multiplied with: all but embeddings that are only looked up, tied ones once."""
    head = model.get_output_embeddings()
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    looked_up = sum(w.numel() for w in embeddings if head is None or w is not head.weight)
    return sum(p.numel() for p in model.parameters()) - looked_up


def flops_per_token(model: Any, context: int) -> int:
    """Floating-point operations to train on one token in rows of `context`: 6 N + 12 layers * width * context.

    6 N: two for each weight forward, four backward (Kaplan et al. 2020, section 2.1); the attention term is that of
    PaLM (Chowdhery et al. 2022, appendix B). It counts full, not causal, attention over a whole row, so it is an upper
    bound for packed documents; recomputation under gradient checkpointing is left out.
    """
    config = model.config
    return 6 * multiplied(model) + 12 * config.num_hidden_layers * config.hidden_size * context


def size_of(
    model: Any, optimizer: Optimizer, *, context: int, rows: int, activation_bytes: int, checkpointing: bool = False
) -> Size:
    """The size of a transformers model that `optimizer` trains in micro-batches of rows x context targets."""
    config = model.config
    return Size(
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        flops_per_token=flops_per_token(model, context),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        context=context,
        rows=rows,
        optimizer_bytes=_state_bytes(optimizer),
        activation_bytes=activation_bytes,
        checkpointing=checkpointing,
    )


def _state_bytes(optimizer: Optimizer) -> int:
    """Bytes of the optimizer's state after a step: what it keeps for each number of a weight, times their count.

    A copy of the optimizer takes a step on stand-ins of four numbers a dimension.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    small = {id(p): torch.nn.Parameter(torch.ones([4] * p.dim())) for p in weights}
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
