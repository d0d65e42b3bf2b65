"""How fast a run is: tokens a second, model FLOP utilisation (MFU), peak memory, waiting for data; traces."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

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


def keep_pages() -> bool:
    """Makes glibc's malloc keep freed memory: each update allocates what the last one freed, and new pages are slow.

    Returns:
        Whether this is glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    options = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20))
    return sum(mallopt(option, value) for option, value in options) == len(options)
