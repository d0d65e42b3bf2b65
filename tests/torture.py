"""`make torture`: 300 SIGKILLs and 50 preemptions of whole runs of the command line; ends with a table.

One process imports everything and forks each run, before any tensor exists, so that a run takes two seconds. A third of
the kills comes at a random moment, a third at a step of writing a checkpoint, a third on a run already resumed. Each
chain of kills ends with a run that is left alone: its weights, optimizer, metrics and result must be, to the bit, those
of a run that nobody touched.
"""

from __future__ import annotations

import argparse
import hashlib
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
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas
import torch
from failpoints import KILL, Failpoints
from forked import Child, import_all, load_damaged, plain

from babylm_train import cli
from babylm_train.checkpoint import load

import_all()
torch.set_num_threads(1)

SMALL = (
    "model.dropout=0.1 data.words=1500 data.max_length=16 tokenizer.vocab_size=300 trainer.batch_size=2 trainer.max_steps=24 "
    "trainer.epochs=3 trainer.save_every=4 trainer.eval_every=6 trainer.log_every=1 logger=none"
)
CURRICULA = {
    "none": "curriculum/strategy=none",
    "length, linear": "curriculum/strategy=length curriculum/schedule=linear",
    "dynamic, performance": "curriculum/strategy=dynamic curriculum/schedule=performance",
}
PRECISIONS = {"fp32": "precision=fp32", "bf16": "precision=bf16"}
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
UNLIKE = ("state", "result", "config")  # they hold the mirror's run id, and its options
KINDS = ("moment", "failpoint", "resumed")


class Run:
    """One directory, in which the same command is started again and again."""

    def __init__(self, root: Path, name: str, configuration: str) -> None:
        self.directory, self.said = root / name, root / f"{name} said"
        self.arguments = [*CONFIGURATIONS[configuration], f"hydra.run.dir={self.directory}", f"data.cache_dir={root}/c"]

    def start(self, failpoint: int | None = None) -> Child:
        def job() -> None:
            os.chdir(self.directory.parent)
            sys.argv = ["babylm-train", *self.arguments]
            with Failpoints(self.directory / "checkpoints", failpoint, KILL) as points:
                cli.main()
            (self.directory / "steps").write_text(str(len(points.steps)))
            (self.directory / "outcome").write_text(json.dumps(outcome(self.directory)))

        return Child(job, self.said)

    def lines(self) -> int:
        path = self.directory / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def over(self) -> bool:
        return (self.directory / "outcome").exists()

    def outcome(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.directory / "outcome").read_text())
        return found


def outcome(directory: Path) -> dict[str, str]:
    """Hashes of what must not depend on kills."""
    content = load(directory / "checkpoints/checkpoint_epoch_3.pt")
    result = json.loads((directory / "result.json").read_text(encoding="utf8"))
    parts: dict[str, bytes] = {
        "exported weights": (directory / "model/model.safetensors").read_bytes(),
        "metrics": (directory / "metrics.jsonl").read_bytes(),
        "result": json.dumps({k: v for k, v in result.items() if k != "seconds"}, sort_keys=True).encode(),
    }
    for key in sorted(content.keys() - {"seconds"}):
        parts[key] = repr(plain(content[key])).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}


def wait_until(child: Child, reached: Callable[[], bool]) -> None:
    while child.poll() is None and not reached():
        time.sleep(0.001)


def kill(run: Run, kind: str, rng: random.Random, steps: int, seconds: float) -> bool:
    """One SIGKILL; False where the run was over before it came."""
    if kind == "failpoint":
        return run.start(rng.randrange(steps)).wait() == -signal.SIGKILL
    child = run.start()
    if kind == "moment":  # any: the corpus, the tokenizer, an update, a checkpoint, the export
        time.sleep(rng.uniform(0, seconds))
    else:  # within training
        goal = run.lines() + rng.randint(1, 8)
        wait_until(child, lambda: run.lines() >= goal)
        time.sleep(rng.uniform(0, 0.01))
    return child.kill() == -signal.SIGKILL


def chain(root: Path, number: int, name: str, control: Run, rng: random.Random) -> tuple[Counter[str], list[str]]:
    """Three kills of one run, one of each kind, and the run that goes to the end; (kills by kind, what differs)."""
    kills: Counter[str] = Counter()
    steps, seconds = int((control.directory / "steps").read_text()), 1.6
    run = Run(root, f"run-{number}", name)
    for kind in KINDS:
        while not kills[kind]:
            kills[kind] += kill(run, kind, rng, steps, seconds)
            if not kills[kind]:  # it had ended: it must be right, and the kill hits another one
                if differs := compare(run, control):
                    return kills, differs
                shutil.rmtree(run.directory)
    last = run.start()
    code = last.wait(120)
    differs = [f"exit {code}: {last.err[-500:]}"] if code else compare(run, control)
    if not differs:
        shutil.rmtree(run.directory)
    return kills, differs


def compare(run: Run, control: Run) -> list[str]:
    if not run.over():
        return ["no result"]
    mine, theirs = run.outcome(), control.outcome()
    return [name for name in theirs if mine.get(name) != theirs[name]]


def preempt(root: Path, number: int, name: str, rng: random.Random) -> tuple[int, float, int]:
    """One SIGTERM, SIGUSR1 or SIGINT while the run reads, trains or exports: exit code, seconds to it, updates done again."""
    run = Run(root, f"preempted-{number}", name)
    child = run.start()
    wait_until(child, lambda: "corpus: " in child.out)
    goal = rng.randint(0, 30)  # 0: before training; above the lines there are: as it exports
    wait_until(child, lambda: run.lines() >= goal)
    time.sleep(rng.uniform(0, 0.03))
    began = time.monotonic()
    child.send(rng.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)))
    code = child.wait()
    took = time.monotonic() - began
    metrics = run.directory / "metrics.jsonl"
    done = [json.loads(line)["step"] for line in metrics.open()] if metrics.exists() else []
    again = run.start()
    if again.wait(120):
        raise SystemExit(f"after a preemption: {again.err}")
    found = re.search(r"resumed at update (\d+)", again.out)
    repeated = (max(done, default=0) - int(found.group(1) if found else 0)) if code in (75, 130) else 0
    shutil.rmtree(run.directory)
    return code, took, repeated


def mirrors(root: Path) -> list[str]:
    """Whole runs with a W&B that fails: exit code, seconds more than without, and whether the outcome is the same."""
    name = next(iter(CONFIGURATIONS))
    server = socket.create_server(("127.0.0.1", 0), backlog=64)  # takes connections and never answers
    hole = f"http://127.0.0.1:{server.getsockname()[1]}"
    lines, plain = [], None
    for fault, url in {"none": "", "refused": "http://127.0.0.1:9", "black hole": hole}.items():
        run = Run(root, f"mirror-{fault.replace(' ', '-')}", name)
        if url:
            run.arguments += ["logger=wandb", "logger.mode=online"]
        os.environ.update(WANDB_BASE_URL=url or hole, WANDB_API_KEY="a" * 40)
        child = run.start()
        code = child.wait(120)
        figures = {k: v for k, v in run.outcome().items() if k not in UNLIKE}
        plain = plain or (figures, child.seconds)
        same = "the same" if figures == plain[0] else "DIFFER"
        lines.append(
            f"W&B {fault}: exit {code}, {child.seconds - plain[1]:+.1f} s, weights, optimizer and metrics {same}"
        )
    server.close()
    return lines


def damages(control: Run, times: int, rng: random.Random) -> str:
    """Flipped bits and truncations of a checkpoint, and how it was read."""
    path = control.directory / "checkpoints/checkpoint_epoch_3.pt"
    found = Counter(load_damaged(path, times, rng))
    return f"{times} damages of a checkpoint: {', '.join(f'{found[k]} {k}' for k in ('refused', 'intact', 'silent'))}"


def controls_of(root: Path) -> dict[str, Run]:
    """A run of each configuration that nobody touches; done twice, it must end the same."""
    controls = {}
    for name in CONFIGURATIONS:
        run = controls[name] = Run(root, f"control-{len(controls)}", name)
        outcomes = []
        for _ in range(2):
            if run.directory.exists():
                shutil.rmtree(run.directory)
            child = run.start()
            if child.wait(120):
                raise SystemExit(f"{name}: {child.err}")
            outcomes.append(run.outcome())
        if outcomes[0] != outcomes[1]:
            raise SystemExit(f"{name}: two runs that nobody touched differ")
    return controls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=324)
    parser.add_argument("--preemptions", type=int, default=50)
    parser.add_argument("--damages", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "benchmarks/results/torture.txt")
    options = parser.parse_args()
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="torture-", dir=memory if os.access(memory, os.W_OK) else None))
    rng, began = random.Random(options.seed), time.monotonic()
    controls = controls_of(root)
    rows: dict[str, Counter[str]] = {name: Counter() for name in CONFIGURATIONS}
    for number in range(-(-options.kills // len(KINDS))):
        name = list(CONFIGURATIONS)[number % len(CONFIGURATIONS)]
        kills, differs = chain(root, number, name, controls[name], rng)
        rows[name] += kills + Counter(chains=1, divergences=bool(differs))
        total = sum(rows[n][k] for n in rows for k in KINDS)
        print(f"{total} kills, {time.monotonic() - began:.0f} s: {name}: {differs or 'the same'}", flush=True)
    stopped = [preempt(root, n, list(CONFIGURATIONS)[n % len(CONFIGURATIONS)], rng) for n in range(options.preemptions)]
    lines = [*table(rows, stopped, time.monotonic() - began), *mirrors(root)]
    lines += [damages(next(iter(controls.values())), options.damages, rng)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf8")
    print("\n".join(lines))
    bad = "DIFFER" in str(lines) or "0 silent" not in lines[-1] or {code for code, *_ in stopped} - {0, 75, 130}
    if any(row["divergences"] for row in rows.values()):
        sys.exit(1)  # what differs is left to be looked at
    shutil.rmtree(root)
    sys.exit(bool(bad))


def table(rows: dict[str, Counter[str]], stopped: list[tuple[int, float, int]], seconds: float) -> list[str]:
    """One row a configuration, then what was stopped by a signal."""
    frame = (
        pandas.DataFrame.from_dict(rows, orient="index", columns=[*KINDS, "chains", "divergences"])
        .fillna(0)
        .astype(int)
    )
    frame.loc["all"] = frame.sum()
    codes = Counter(code for code, *_ in stopped)
    ends = ", ".join(f"{count} exit {code}" for code, count in sorted(codes.items()))
    return [
        *frame.to_string().splitlines(),
        "",
        f"{frame.loc['all', list(KINDS)].sum()} SIGKILLs, {frame.loc['all', 'divergences']} divergences",
        f"{len(stopped)} SIGTERM, SIGUSR1 or SIGINT: {ends} (0: it had finished); gone within "
        f"{max((took for _, took, _ in stopped), default=0):.2f} s; updates done again: "
        f"{max((again for *_, again in stopped), default=0)} at most",
        f"{seconds:.0f} s; {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}",
    ]


if __name__ == "__main__":
    main()
