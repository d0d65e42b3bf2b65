"""From a corpus to an answer, in Python (a notebook takes it cell by cell): python examples/ablation.py [key=value ...]

Does a higher learning rate help? Two rates, three seeds each, on the built-in stories; a metric and a callback of our
own; the study's report with its verdict, and a plot. A second start finds finished runs, and goes on with others.
"""

import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from babylm_train import Callback, Trainer, run
from babylm_train.data.tokens import TokenizedSplit
from babylm_train.study.report import write_report

OURS = sys.argv[1:] or ["scale=small", "data.words=20000"]
STUDY = Path("multirun_outputs/ablation")


def weight_norm(model: Any, split: TokenizedSplit) -> float:
    """A metric: the norm of all weights, logged as val/weight_norm at each validation."""
    return sum(float(p.square().sum()) for p in model.parameters()) ** 0.5


class Watch(Callback):
    """A callback: says how the validation loss moves."""

    def after_evaluation(self, trainer: Trainer, values: dict[str, float]) -> None:
        print(f"  update {trainer.state.updates}: {values['val/loss']:.3f} nats, |w| {values['val/weight_norm']:.1f}")


figure = Figure(figsize=(7, 4), layout="constrained")
axis = figure.subplots()
for color, lr in enumerate(["optimizer.lr=3e-4", "optimizer.lr=3e-3"]):
    for seed in (1, 2, 3):
        overrides = ["study=ablation", "data.seed=0", "logger=none", *OURS, lr, f"seed={seed}"]
        result = run(overrides, callbacks=[Watch()], metrics={"weight_norm": weight_norm})
        points = [(line["step"], line["val/loss"]) for line in result.metrics if "val/loss" in line]
        axis.plot(*zip(*points, strict=True), color=f"C{color}", marker=".", label=lr if seed == 1 else None)
        print(f"{result.directory.name}: {result['bits_per_byte']:.4f} bits per byte")
axis.set(xlabel="update", ylabel="validation loss (nats a token)")
axis.legend()
figure.savefig(STUDY / "curves.png")
print(write_report(STUDY, baseline="lr=3e-4"))
