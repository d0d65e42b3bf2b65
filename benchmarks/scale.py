"""CPU seconds and memory of preparing larger and larger corpora: is time linear, and memory bounded?

    make scale [SIZES="10 100 1000"]
    python benchmarks/scale.py [--millions 1 10 100]

Generated text of so many million tokens: 100,000 word forms, Zipf's law, 500 words a document, in files of 500 MB. Each
size is prepared in a process of its own: read, cleaned, deduplicated and split, a tokenizer trained, encoded, ranked by
length, and an epoch ordered and packed. Seconds are those of all threads, so that other work on the machine does not
count; the wall clock's stand below. Memory is what of the process is resident without pages of mapped files
(RssAnon), looked at every 50 ms; the system may drop those at any time. Writes results/scale.md and scale.png.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import FullSchedule
from babylm_train.curriculum.strategy import LengthBasedCurriculum
from babylm_train.data.packing import PackedRows
from babylm_train.data.read import TextFiles
from babylm_train.data.tokenizer import BPE
from babylm_train.data.tokens import tokenize

FORMS, DOCUMENT, FILE_BYTES = 100_000, 500, 500 << 20
WORDS_A_TOKEN = 0.62  # with 8,192 entries, of this text
RESULTS = Path(__file__).parent / "results"
STEPS = ("read and clean", "train the tokenizer", "encode", "rank", "pack an epoch")


def write_text(folder: Path, words: int) -> None:
    """Documents of DOCUMENT words each, a line each."""
    rng = np.random.default_rng(0)
    letters = [chr(c) for c in range(0x0915, 0x0939)] + ["ा", "ि", "ी", "ु", "े", "ो"]
    forms = np.array(["".join(rng.choice(letters, n)) for n in rng.integers(2, 9, FORMS)])
    weights = 1 / np.arange(1, FORMS + 1)
    edges, number, file = np.cumsum(weights / weights.sum()), 0, None
    for _ in range(0, words, DOCUMENT):
        if file is None or file.tell() > FILE_BYTES:
            file, number = (folder / f"{number}.txt").open("w", encoding="utf8"), number + 1
        file.write(" ".join(forms[np.minimum(np.searchsorted(edges, rng.random(DOCUMENT)), FORMS - 1)]) + "\n")


class Memory:
    """The most anonymous memory of this process since `reset`, in MB."""

    def __init__(self) -> None:
        self.most = 0.0
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.most = max(self.most, self.now())
            time.sleep(0.05)

    def now(self) -> float:
        """At the moment."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1e3


def prepare(folder: Path) -> None:
    """Prints what each step took, as JSON; the process of one size."""
    memory, found = Memory(), dict[str, Any]()

    def timed(name: str, function: Callable[[], Any]) -> Any:
        memory.most, begin, wall = 0.0, time.process_time(), time.perf_counter()
        value = function()
        seconds = time.process_time() - begin
        found[name] = (seconds, max(memory.most, memory.now()), time.perf_counter() - wall)
        print(f"  {name}: {found[name]}", file=sys.stderr, flush=True)
        return value

    cache, length = str(folder / "cache"), 256
    rest = {"validation": None, "text_field": "text", "max_words": None, "validation_share": 0.01, "seed": 0}
    source = TextFiles(train=str(folder / "*.txt"), separator="line", max_length=length, cache_dir=cache, **rest)  # type: ignore[arg-type]
    corpus = timed(STEPS[0], source.load)
    tokenizer = timed(STEPS[1], lambda: BPE(vocab_size=8192, min_frequency=2).build(corpus.train))
    split = timed(STEPS[2], lambda: tokenize(corpus.train, tokenizer, cache_dir=cache))
    strategy = LengthBasedCurriculum()
    scores = timed(STEPS[3], lambda: strategy.compute_difficulty(corpus.train))

    def pack() -> None:
        curriculum = CurriculumTrainingManager(strategy, FullSchedule()).begin(
            scores, split.words, np.diff(split.offsets), epochs=5, targets_per_update=16 * length, max_length=length
        )
        rows = PackedRows(split, curriculum.prepare_epoch(0), length)
        for first in range(0, len(rows), 64):
            rows.batch(first, 64)

    timed(STEPS[4], pack)
    print(json.dumps({"tokens": int(split.offsets[-1]), "steps": found}))


def report(results: list[dict[str, Any]]) -> str:
    """A table, a row a step and a column a size."""
    heads = [f"{each['tokens'] / 1e6:,.1f} M tokens" for each in results]
    lines = ["| CPU seconds, MB | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for step in STEPS:
        cells = ("{:,.1f} s, {:,.0f} MB".format(*each["steps"][step][:2]) for each in results)
        lines.append(f"| {step} | " + " | ".join(cells) + " |")
    for name, place in (("all, a million tokens", 0), ("the same, wall clock", 2)):
        rates = (sum(step[place] for step in each["steps"].values()) / each["tokens"] * 1e6 for each in results)
        lines.append(f"| {name} | " + " | ".join(f"{rate:.2f} s" for rate in rates) + " |")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory over tokens, by step."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    tokens = [each["tokens"] for each in results]
    for place, (axis, label) in enumerate(zip(figure.subplots(1, 2), ("CPU seconds", "memory (MB)"), strict=True)):
        for step in STEPS:
            axis.plot(tokens, [each["steps"][step][place] for each in results], ".-", label=step)
        axis.set(xlabel="tokens", ylabel=label, xscale="log", yscale="log" if place == 0 else "linear")
        axis.grid(alpha=0.3)
    axis.axhline(1000, color="0.5", linestyle=":", label="1 GB")
    axis.set_ylim(bottom=0)
    axis.legend()
    figure.savefig(path)


def main() -> None:
    """Prints the table last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10, 100])
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(options.prepare)
        return
    results = []
    for millions in options.millions:
        with tempfile.TemporaryDirectory() as folder:
            write_text(Path(folder), int(millions * 1e6 * WORDS_A_TOKEN))
            command = [sys.executable, __file__, "--prepare", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{millions:g}: {results[-1]}", flush=True)
    sizes = " ".join(f"{millions:g}" for millions in options.millions)
    cores = f"{len(os.sched_getaffinity(0))} cores"
    text = f'{report(results)}\n\n`make scale SIZES="{sizes}"`: {datetime.date.today()}, {cores}.\n'
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scale.md").write_text(text, encoding="utf8")
    draw(results, RESULTS / "scale.png")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
