"""Is training as fast, and in as little memory, as in another checkout of this repository? Both in turn.

    git worktree add ../before COMMIT
    make versus BEFORE=../before
    python benchmarks/versus.py ../before [--repeats 5] [--updates 6] [--wall]

GPT-2 6 x 256, vocabulary 8192, context 256, 4096 useful tokens an update, of documents (median 150 tokens) and of lines
(median 16). Every measurement is a process of its own, of CPU seconds of one thread (`--wall`: of seconds, of all).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).parents[1]
TEXTS = {"documents": (5.0, 1.0, 1200), "lines": (2.8, 0.6, 8000)}  # log-normal lengths: mean, deviation, how many


def measure(text: str, precision: str, updates: int, wall: bool) -> None:
    """Prints useful tokens a second and peak MiB; the process of one measurement, in the checkout on its path."""
    import numpy as np
    import torch
    from arms import Setting, ours
    from transformers import GPT2Config

    if not wall:
        torch.set_num_threads(1)
    (mean, deviation, count), rng = TEXTS[text], np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(mean, deviation, count).astype(int), 5, 2000)
    documents = [rng.integers(3, 8192, length).tolist() for length in lengths]
    size = partial(GPT2Config, n_layer=6, n_embd=256, n_head=8)
    clock = time.perf_counter if wall else time.process_time
    found = ours(documents, Setting(size, 8192, 256, 16, updates, bf16=precision == "bf16", clock=clock))
    print(json.dumps([found.tokens, found.memory]))


def main() -> None:
    """Prints a table of ratios, after by before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--wall", action="store_true")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, options.updates, options.wall)
        return
    print("| text | precision | speed, after by before | memory |\n|---|---|---|---|", flush=True)
    for text in TEXTS:
        for precision in ("tf32", "bf16"):
            speeds, memories = [], []
            for repeat in range(options.repeats):
                found = {}
                for root in (options.before, HERE)[:: 1 if repeat % 2 else -1]:
                    paths = os.pathsep.join([str(root.resolve()), str(root.resolve() / "benchmarks")])
                    call = [sys.executable, "-P", __file__, *sys.argv[1:], "--measure", text, precision]
                    done = subprocess.run(
                        call, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, check=True
                    )
                    found[root] = json.loads(done.stdout.splitlines()[-1])
                (mine, room), (theirs, taken) = found[HERE], found[options.before]
                speeds.append(mine / theirs)
                memories.append(room / taken)
            spread = f"{statistics.median(speeds):.3f} ({min(speeds):.3f} to {max(speeds):.3f})"
            print(f"| {text} | {precision} | {spread} | {statistics.median(memories):.3f} |", flush=True)


if __name__ == "__main__":
    main()
