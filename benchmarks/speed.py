"""Useful training tokens a second beside HF Trainer, Lightning and bare loops, on this machine's CPU.

    make bench [TEXT=FILE]
    python benchmarks/speed.py [FILE] [--repeats 3] [--updates 8]

FILE: .txt (a document a line), .jsonl or .jsonl.gz (key `text`); without it the built-in stories. GPT-2 6 x 256,
vocabulary 8192, context 256, dropout 0.1, 4096 useful tokens an update. Each arm runs in a process of its own, arms
take turns, and a ratio is the median of the repeats' ratios. Peers' fp32 is exact, which is their default; ours is
`precision=tf32`, sums of bfloat16 products on CPUs. `lines` are the sentences of `documents`.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import importlib.metadata
import json
import multiprocessing
import platform
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from arms import Measured, Setting, bare, hf_trainer, lightning, ours, padded_to_512
from tokenizers import Tokenizer
from transformers import GPT2Config

from babylm_train.throughput import flops_per_token, keep_pages

WORDS = 500_000
RESULTS = Path(__file__).parent / "results"
SIZE = partial(GPT2Config, n_layer=6, n_embd=256, n_head=8)
Ids = list[list[int]]


def texts(file: Path | None) -> list[str]:
    """Some documents, WORDS words in all."""
    if file is None:
        sys.path.append(str(Path(__file__).parents[1] / "corpora"))
        from hindi_stories.stories import generate

        return generate(WORDS, 0)
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    lines = [line for line in data.decode("utf-8").split("\n") if line.strip()]
    found, words = [], 0
    for line in lines if file.suffix == ".txt" else (json.loads(line)["text"] for line in lines):
        found.append(line)
        words += len(line.split())
        if words > WORDS:
            break
    return found


def arms() -> dict[str, tuple[str, Callable[[Ids, Setting], Measured]]]:
    """Name -> (text, function)."""
    return {
        "babylm_train": ("documents", ours),
        "bare loop, our settings": ("documents", partial(bare, tuned=True)),
        "bare loop, defaults": ("documents", bare),
        "HF Trainer, packed": ("documents", hf_trainer),
        "Lightning, packed": ("documents", lightning),
        "babylm_train, lines": ("lines", ours),
        "HF Trainer, padded to the longest": ("lines", partial(hf_trainer, padded=True)),
        "HF Trainer, grouped by length": ("lines", partial(hf_trainer, padded=True, grouped=True)),
        "one line a row, padded to 512": ("lines", padded_to_512),
    }


def child(pipe: Any, name: str, documents: Ids, setting: Setting) -> None:
    """One arm, in a process of its own."""
    warnings.filterwarnings("ignore")
    if setting.clock is time.process_time:
        torch.set_num_threads(1)
    pipe.send(arms()[name][1](documents, setting))


def peak_of(pipe: Any, bf16: bool, rounding: str, clock: Callable[[], float]) -> None:
    """The best of ten products of 2048 x 2048, in FLOP/s, as this precision rounds them."""
    if clock is time.process_time:
        torch.set_num_threads(1)
    torch.set_float32_matmul_precision(rounding)
    keep_pages(torch.device("cpu"))
    matrix, seconds = torch.full((2048, 2048), 0.5, dtype=torch.bfloat16 if bf16 else torch.float32), []
    for _ in range(10):
        begin = clock()
        (matrix @ matrix)[0, 0].item()
        seconds.append(clock() - begin)
    pipe.send(2.0 * 2048**3 / min(seconds))


def alone(function: Callable[..., None], *arguments: Any) -> Any:
    """What `function` sends from a process of its own, whose memory and threads are its own too."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join()


def measure(corpora: dict[str, Ids], setting: Setting, names: Sequence[str], repeats: int) -> dict[str, list[Measured]]:
    """Every arm `repeats` times, in turn, another one first each time: what ran before leaves its mark on a machine."""
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for repeat in range(repeats):
        first = repeat * len(names) // repeats
        for name in [*names[first:], *names[:first]]:
            found[name].append(alone(child, name, corpora[arms()[name][0]], setting))
            print(f"  {name:36}{found[name][-1].tokens:9,.0f} tokens/s", flush=True)
    return found


def table(results: dict[str, dict[str, list[Measured]]], flops: float, peaks: dict[str, float]) -> str:
    """The comparison in Markdown; a ratio says how many times as fast ours is on the same text."""
    head = "| useful tokens/s | " + " | ".join(f"{p} | ours is x | peak MiB" for p in results) + " |"
    lines = [head, "|---" * (1 + 3 * len(results)) + "|"]
    for name, (text, _) in arms().items():
        cells = [name]
        for found in results.values():
            mine = found["babylm_train" if text == "documents" else "babylm_train, lines"]
            ratios = [a.tokens / b.tokens for a, b in zip(mine, found[name], strict=True)]
            cells += [
                f"{statistics.median(m.tokens for m in found[name]):,.0f}",
                "" if mine is found[name] else f"{statistics.median(ratios):.2f}",
                f"{statistics.median(m.memory for m in found[name]):,.0f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    for precision, found in results.items():
        speed, peak = flops * statistics.median(m.tokens for m in found["babylm_train"]), peaks[precision]
        lines.append(
            f"\n{precision}: {flops / 1e6:.1f} MFLOP a token, {speed / 1e9:.0f} GFLOP/s of {peak / 1e9:.0f} that "
            f"products of 2048 x 2048 reach: MFU {speed / peak:.0%}"
        )
    return "\n".join(lines)


def machine() -> str:
    """What the figures were measured on."""
    model = (
        re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if Path("/proc/cpuinfo").exists() else None
    )
    names = ("torch", "transformers", "accelerate", "lightning")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    name = model[1] if model else platform.machine()
    return f"{datetime.date.today()}, {name}, {torch.get_num_threads()} threads, {versions}"


def main() -> None:
    """Prints the table last and writes it to results/speed.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=8, help="timed updates of an arm")
    parser.add_argument("--precisions", default="tf32,bf16", help="also fp32, exact: of CPUs without bfloat16")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds of one thread: on a machine that others use")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.md")
    arguments = parser.parse_args()
    documents = texts(arguments.file)
    corpora = dict(zip(("documents", "lines"), alone(encode, documents), strict=True))
    results, peaks = {}, {}
    for precision in arguments.precisions.split(","):
        bf16, rounding = precision == "bf16", "highest" if precision == "fp32" else "medium"
        print(precision, flush=True)
        clock = time.process_time if arguments.cpu else time.perf_counter
        setting = Setting(SIZE, 8192, 256, 16, arguments.updates, bf16=bf16, rounding=rounding, clock=clock)
        results[precision] = measure(corpora, setting, list(arms()), arguments.repeats)
        peaks[precision] = alone(peak_of, bf16, rounding, clock)
    source = arguments.file.name if arguments.file else "built-in stories"
    text = report(results, peaks, corpora, source, "make bench" + " (CPU seconds of one thread)" * arguments.cpu)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf8")
    print(f"\n{text}\nwritten to {arguments.out}")


def report(
    results: dict[str, dict[str, list[Measured]]],
    peaks: dict[str, float],
    corpora: dict[str, Ids],
    source: str,
    how: str,
) -> str:
    """The table, and what it was measured on."""
    from transformers import GPT2LMHeadModel

    with torch.device("meta"):
        flops = flops_per_token(GPT2LMHeadModel(SIZE(vocab_size=8192, n_positions=256)), 256)
    lengths = {name: sum(map(len, ids)) / len(ids) for name, ids in corpora.items()}
    repeats = len(next(iter(results.values()))["babylm_train"])
    return (
        f"{table(results, flops, peaks)}\n\n{source}: {lengths['documents']:.0f} tokens a document, "
        f"{lengths['lines']:.0f} a line. {machine()}.\n`{how}`, {repeats} repeats, arms in turn.\n"
    )


def encode(pipe: Any, documents: list[str]) -> None:
    """Token ids of the documents, and of their sentences."""
    from babylm_train.data.tokenizer import BPE

    backend: Tokenizer = BPE(vocab_size=8192, min_frequency=2).build(documents).backend_tokenizer
    lines = [part.strip() for text in documents for part in re.split(r"(?<=[।?!\n])", text) if part.strip()]
    pipe.send(tuple([e.ids for e in backend.encode_batch(t, add_special_tokens=False)] for t in (documents, lines)))


if __name__ == "__main__":
    main()
