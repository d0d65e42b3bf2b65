"""Tokens a second, MFU and peak memory on one GPU: ours, HF Trainer and a plain loop, for three sizes.

    make gpu
    python benchmarks/gpu.py [--sizes 110m,40m,220m] [--rows 64] [--updates 20] [--seconds 400] [--tiny]

Random tokens in documents of about 300, vocabulary 32000, context 512, bf16, dropout 0.1. Ours is the real loop with
isolated documents and logging; the others' rows are packed and not isolated. HF Trainer has its defaults, so dropout of
attention too; the plain loop, nanoGPT's in ten lines, has none, a fused AdamW and the compiler around model and loss.
The compiler's time is not counted, but what is left of `--seconds` is: rows that no longer fit are said to be missing.
MFU: against a product of 4096 x 4096 measured here, and against what the maker states. `--tiny`: two small layers.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import Measured, Setting, bare, hf_trainer, model_of, ours
from transformers import GPT2Config

from babylm_train.errors import RunError
from babylm_train.throughput import flops_per_token, measure_flops

SIZES = {"tiny": (2, 32, 2), "40m": (8, 512, 8), "110m": (12, 768, 12), "220m": (15, 1024, 16)}
STATED = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s of dense bf16 products, by the maker's data sheets
RESULTS = Path(__file__).parent / "results"


def documents_of(vocabulary: int, tokens: int) -> list[list[int]]:
    """Random documents of 1 to 600 tokens."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 600, tokens // 300)
    return [generator.integers(2, vocabulary, n).tolist() for n in lengths]


def row(name: str, size: str, setting: Setting, arm: Callable[..., Measured]) -> str:
    """A line of the table; what failed says why."""
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch._dynamo.reset()
    documents = documents_of(setting.vocabulary, 2 * (setting.warm + setting.updates + 2) * setting.targets)
    try:
        found = arm(documents, setting)
    except (RunError, RuntimeError, ImportError) as error:
        return f"| {size} | {name} | {str(error).splitlines()[0][:90]} | | | |"
    flops = found.tokens * flops_per_token(model_of(setting, plain=False), setting.length)
    mfu = flops / measure_flops(torch.device(setting.device), torch.bfloat16, "highest")
    stated = [f"{flops / peak:.1%}" for name, peak in STATED.items() if name in device_name(setting.device)]
    return f"| {size} | {name} | {found.tokens:,.0f} | {mfu:.1%} | {''.join(stated)} | {found.memory:,.0f} |"


def device_name(device: str) -> str:
    """The card's, or CPU."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def main(arguments: list[str] | None = None) -> str:
    """Prints each line as it is measured, the table last; writes results/gpu.md where there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="110m,40m,220m")
    parser.add_argument("--rows", type=int, default=64, help="rows of 512 an update")
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=400)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    cuda = torch.cuda.is_available()
    if not cuda and not options.tiny:
        sys.exit("make gpu needs a GPU; --tiny shows that it runs")
    begin, lines = time.perf_counter(), ["| size | loop | tokens/s | MFU | of stated | peak MiB |", "|---" * 6 + "|"]
    for size in ["tiny"] if options.tiny else options.sizes.split(","):
        layers, width, heads = SIZES[size]
        config = partial(GPT2Config, n_layer=layers, n_embd=width, n_head=heads)
        setting = Setting(config, 32000, 512, options.rows, options.updates, warm=5, bf16=True)
        setting = replace(setting, device="cuda" if cuda else "cpu")
        if options.tiny:
            setting = replace(setting, vocabulary=64, length=32, rows=4, warm=2, backend="eager")
        arms: list[tuple[str, Callable[..., Measured], dict[str, Any]]] = [
            ("ours, eager", ours, {}),
            ("ours, compiled", ours, {"compile": True}),
            ("ours, compiled, no dropout", ours, {"compile": True, "dropout": 0.0}),
            ("plain loop, compiled", bare, {"compile": True, "attention_dropout": 0.0}),
            ("plain loop, compiled, no dropout", bare, {"compile": True, "attention_dropout": 0.0, "dropout": 0.0}),
            ("HF Trainer, eager", hf_trainer, {}),
            ("HF Trainer, compiled", hf_trainer, {"compile": True}),
        ]
        for name, arm, changes in arms:
            if time.perf_counter() - begin > options.seconds:
                lines.append(f"| {size} | {name} | not measured: {options.seconds:.0f} s were over | | | |")
            else:
                lines.append(row(name, size, replace(setting, **changes), arm))
            print(lines[-1], flush=True)
    device, peak = device_name(setting.device), measure_flops(torch.device(setting.device), torch.bfloat16, "highest")
    text = "\n".join(lines) + f"\n\n{device}, MFU against {peak / 1e12:.3g} TFLOP/s bf16, torch {torch.__version__}, "
    text += f"{datetime.date.today()}, `make gpu`\n"
    print(f"\n{text}")
    if cuda and not options.tiny:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "gpu.md").write_text(text, encoding="utf8")
    return text


if __name__ == "__main__":
    main()
