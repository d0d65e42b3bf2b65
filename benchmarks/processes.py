"""One run by 1, 2 and 4 processes, and one that goes on with another number of them: are the curves the same?

    make processes
    python benchmarks/processes.py [key=value ...]

The built-in stories, gpt2_nano, 120 updates of 12 x 64 tokens, AdamW at 3e-4, no dropout, gloo. `2-1-4` is stopped by
SIGTERM and started again with another number of processes, twice. Writes results/processes.md and processes.png.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
RUN = ["model=gpt2_nano", "data.words=40000", "data.max_length=64", "trainer.batch_size=12", "trainer.max_steps=120"]
RUN += ["trainer.epochs=4", "trainer.log_every=1", "model.dropout=0", "tokenizer.vocab_size=1000", "logger=none"]
STOPS = (40, 80)  # updates after which `2-1-4` is stopped


def start(folder: Path, name: str, processes: int) -> subprocess.Popen[bytes]:
    """The run `name`, by so many processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    own = [
        "-m",
        "babylm_train",
        *RUN,
        *sys.argv[1:],
        "distributed=ddp",
        f"hydra.run.dir={name}",
        "data.cache_dir=cache",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *torchrun, *own], cwd=folder, stdout=subprocess.DEVNULL, env=environment)


def read_losses(folder: Path, name: str) -> dict[tuple[str, int], float]:
    """Losses of a run, by kind and update."""
    path = folder / name / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(key, line["step"]): line[key] for line in lines for key in ("train/loss", "val/loss") if key in line}


def draw(found: dict[str, dict[tuple[str, int], float]], path: Path) -> None:
    """The curves above each other, and their distance from that of one process."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(9, 4), dpi=100, layout="constrained")
    curves, distances = figure.subplots(1, 2)
    for width, (name, losses) in zip((7, 5, 3, 1.2), found.items(), strict=True):
        points = [(step, loss) for (key, step), loss in losses.items() if key == "train/loss"]
        curves.plot(*zip(*points, strict=True), linewidth=width, label=name)
        apart = [(step, abs(loss - found["1"]["train/loss", step])) for step, loss in points]
        distances.plot(*zip(*apart, strict=True), ".", markersize=3, label=name)
    curves.set(xlabel="update", ylabel="training loss (nats a token)")
    distances.set_yscale("symlog", linthresh=1e-8)
    distances.set(xlabel="update", ylabel="distance from one process", ylim=(0, 1e-4))
    distances.axhline(1e-6, color="0.5", linestyle=":")
    curves.legend(title="processes")
    figure.savefig(path)


def main() -> None:
    """Prints the table last."""
    found, rows = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ("1", "2", "4", "2-1-4"):
            numbers, begin = [int(number) for number in name.split("-")], time.perf_counter()
            for number, stop in zip(numbers, [*STOPS[: len(numbers) - 1], None], strict=True):
                process = start(folder, name, number)
                while process.poll() is None and stop and ("train/loss", stop) not in read_losses(folder, name):
                    time.sleep(0.01)
                if stop:
                    process.send_signal(signal.SIGTERM)
                if process.wait() and not stop:
                    raise RuntimeError(f"{name}: exit code {process.returncode}")
            found[name] = read_losses(folder, name)
            apart = max(abs(loss - found["1"][key]) for key, loss in found[name].items())
            same = "the same" if found[name].keys() == found["1"].keys() else "OTHERS"
            rows.append(f"| {name} | {len(found[name])} | {same} | {apart:.1e} | {time.perf_counter() - begin:.0f} s |")
            print(rows[-1], flush=True)
    head = "| processes | losses | updates logged | largest distance from one process | took |\n|---|---|---|---|---|"
    text = "\n".join([head, *rows, f"\n`make processes`, {datetime.date.today()}, 2 cores shared with other work.\n"])
    (RESULTS / "processes.md").write_text(text)
    draw(found, RESULTS / "processes.png")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
