"""`make torture`: 324 SIGKILLs and 50 preemptions of whole runs of the command line; ends with a table.

One process imports everything and forks each run, before any tensor exists, so that a run takes two seconds. A third of
the kills comes at a random moment, a third at a step of writing a checkpoint, a third on a run already resumed. Each
chain of kills ends with a run that is left alone: its weights, optimizer, metrics and result must be, to the bit, those
of a run that nobody touched.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas
import torch
from chains import KINDS, Run, chain
from forked import MEMORY_FOLDER, import_all, load_damaged

from babylm_train import cli
from babylm_train.checkpoint import load

import_all()
torch.set_num_threads(1)

SMALL = (
    "model.dropout=0.1 data.words=1500 data.max_length=16 tokenizer.vocab_size=300 trainer.batch_size=2 "
    "trainer.max_steps=24 trainer.epochs=3 trainer.save_every=4 trainer.eval_every=6 trainer.log_every=1 logger=none"
)
CURRICULA = {
    "none": "curriculum/strategy=none",
    "length, linear": "curriculum/strategy=length curriculum/schedule=linear",
    "dynamic, performance": "curriculum/strategy=dynamic curriculum/schedule=performance",
}
PRECISIONS = {name: f"precision={name}" for name in ("fp32", "bf16")}
UPDATES = {
    "1 micro-batch": "trainer.gradient_accumulation_steps=1",
    "2 micro-batches, recomputed": "trainer.gradient_accumulation_steps=2 trainer.gradient_checkpointing=true",
}
DECODER = "model=gpt2_nano model.config.n_layer=2 model.config.n_embd=32 model.config.n_head=2"
OBJECTIVES = {
    "causal": f"objective=causal {DECODER}",
    "masked": "objective=masked model=modernbert_nano model.config.num_hidden_layers=2 model.config.hidden_size=32 "
    "model.config.intermediate_size=64 model.config.num_attention_heads=2",
    "hybrid": f"objective=hybrid {DECODER}",
}
CONFIGURATIONS = {
    ", ".join(names): [*SMALL.split(), *" ".join(texts).split()]
    for number, choice in enumerate(itertools.product(CURRICULA.items(), PRECISIONS.items(), UPDATES.items()))
    for names, texts in [zip(list(OBJECTIVES.items())[(number + number // 4) % 3], *choice, strict=True)]
}
UNLIKE = {"state", "result", "config"}  # they hold the mirror's run id, and its options


class Command(Run):
    """The command line, with one of the configurations."""

    def __init__(self, root: Path, name: str, configuration: str) -> None:
        super().__init__(root / name)
        self.arguments = [*CONFIGURATIONS[configuration], f"hydra.run.dir={self.directory}", f"data.cache_dir={root}/c"]

    def work(self) -> dict[str, Any]:
        os.chdir(self.directory.parent)
        sys.argv = ["babylm-train", *self.arguments]
        cli.main()
        result = json.loads((self.directory / "result.json").read_text(encoding="utf8"))
        parts = load(self.directory / "checkpoints/checkpoint_epoch_3.pt") | {
            "result": {**result, "seconds": 0},
            "seconds": 0,
        }
        files = {"exported weights": "model/model.safetensors", "metrics": "metrics.jsonl"}
        return parts | {name: (self.directory / path).read_bytes() for name, path in files.items()}


def preempt(root: Path, number: int, name: str, rng: random.Random) -> tuple[int, float, int]:
    """A SIGTERM, SIGUSR1 or SIGINT while the run reads, trains or exports: exit code, seconds, updates done again."""
    run = Command(root, f"preempted-{number}", name)
    child = run.start()
    child.wait_until(lambda: "corpus: " in child.out)
    goal = rng.randint(0, 30)  # 0: before training; above the lines there are: as it exports
    child.wait_until(lambda: run.lines() >= goal)
    time.sleep(rng.uniform(0, 0.03))
    began = time.monotonic()
    child.send(rng.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)))
    code = child.wait()
    took = time.monotonic() - began
    done = [json.loads(line)["step"] for line in run.lines_file.open()] if run.lines() else []
    found = re.search(r"resumed at update (\d+)", run.finish().out)
    repeated = (max(done, default=0) - int(found.group(1) if found else 0)) if code in (75, 130) else 0
    shutil.rmtree(run.directory)
    return code, took, repeated


def mirrors(root: Path) -> list[str]:
    """Whole runs with a W&B that fails: exit code, seconds more than without, and whether the outcome is the same."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)  # takes connections and never answers
    hole = f"http://127.0.0.1:{server.getsockname()[1]}"
    lines: list[str] = []
    for fault, url in {"none": "", "refused": "http://127.0.0.1:9", "black hole": hole}.items():
        run = Command(root, f"mirror-{fault.replace(' ', '-')}", next(iter(CONFIGURATIONS)))
        if url:
            run.arguments += ["logger=wandb", "logger.mode=online"]
        os.environ.update(WANDB_BASE_URL=url or hole, WANDB_API_KEY="a" * 40)
        seconds = run.finish().seconds
        if not lines:
            control, without = run, seconds
        same = "DIFFER" if set(run.differs(control)) - UNLIKE else "the same"
        lines.append(f"W&B {fault}: exit 0, {seconds - without:+.1f} s, weights, optimizer and metrics {same}")
    server.close()
    return lines


def controls_of(root: Path) -> dict[str, Run]:
    """A run of each configuration that nobody touches; done twice, it must end the same."""
    controls = {}
    for name in CONFIGURATIONS:
        run = controls[name] = Command(root, f"control-{len(controls)}", name)
        run.finish()
        first, _ = run.outcome()
        shutil.rmtree(run.directory)
        run.finish()
        if run.outcome()[0] != first:
            raise SystemExit(f"{name}: two runs that nobody touched differ")
    return controls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"kills": 324, "preemptions": 50, "damages": 7000, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/torture.txt")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="torture-", dir=MEMORY_FOLDER))
    rng, began = random.Random(options.seed), time.monotonic()
    controls = controls_of(root)
    rows: dict[str, Counter[str]] = {name: Counter() for name in CONFIGURATIONS}
    for number in range(-(-options.kills // len(KINDS))):
        name = list(CONFIGURATIONS)[number % len(CONFIGURATIONS)]
        kills, differs = chain(Command(root, f"run-{number}", name), controls[name], rng)
        rows[name] += kills + Counter(chains=1, divergences=bool(differs))
        total = sum(rows[n][k] for n in rows for k in KINDS)
        print(f"{total} kills, {time.monotonic() - began:.0f} s: {name}: {differs or 'the same'}", flush=True)
    stopped = [preempt(root, n, list(CONFIGURATIONS)[n % len(CONFIGURATIONS)], rng) for n in range(options.preemptions)]
    lines = [*table(rows, stopped, time.monotonic() - began), *mirrors(root)]
    path = next(iter(controls.values())).directory / "checkpoints/checkpoint_epoch_3.pt"
    found = Counter(load_damaged(path, options.damages, rng))
    read = ", ".join(f"{found[how]} {how}" for how in ("refused", "intact", "silent"))
    lines.append(f"{options.damages} damages of a checkpoint: {read}")
    options.out.write_text("\n".join(lines) + "\n", encoding="utf8")
    print("\n".join(lines))
    bad = "DIFFER" in str(lines) or found["silent"] or {code for code, *_ in stopped} - {0, 75, 130}
    if any(row["divergences"] for row in rows.values()):
        sys.exit(1)  # what differs is left to be looked at
    shutil.rmtree(root)
    sys.exit(bool(bad))


def table(rows: dict[str, Counter[str]], stopped: list[tuple[int, float, int]], seconds: float) -> list[str]:
    """One row a configuration, then what was stopped by a signal."""
    columns = [*KINDS, "chains", "divergences"]
    frame = pandas.DataFrame([[row[key] for key in columns] for row in rows.values()], list(rows), columns)
    frame.loc["all"] = frame.sum()
    codes = Counter(code for code, *_ in stopped)
    ends = ", ".join(f"{count} exit {code}" for code, count in sorted(codes.items()))
    slowest, repeated = (max(column, default=0) for column in list(zip(*(stopped or [(0, 0.0, 0)]), strict=True))[1:])
    return [
        f"{frame.to_string()}\n",
        f"{frame.loc['all', list(KINDS)].sum()} SIGKILLs, {frame.loc['all', 'divergences']} divergences",
        f"{len(stopped)} SIGTERM, SIGUSR1 or SIGINT: {ends} (0: it had finished); gone within "
        f"{slowest:.2f} s; updates done again: {repeated} at most",
        f"{seconds:.0f} s; {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}",
    ]


if __name__ == "__main__":
    main()
