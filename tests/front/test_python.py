"""Runs from Python: what the command line does, with callbacks and metrics of one's own."""

from __future__ import annotations

import os
import runpy
import signal
import sys

import pandas as pd
import pytest
from forked import TINY

from babylm_train import Callback, compose, run
from babylm_train.config import CONF
from babylm_train.errors import InputError, PreemptedError

SMALL = [*TINY, "data.words=3000", "data.max_length=16", "trainer.max_steps=4", "trainer.epochs=2", "logger=none"]


class Moments(Callback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def at_start(self, trainer):
        self.seen.append(f"start {trainer.state.updates}")

    def after_update(self, trainer):
        self.seen.append(f"update {trainer.state.updates}")

    def after_evaluation(self, trainer, values):
        self.seen.append(f"evaluation {values['val/half']}")

    def at_end(self, trainer):
        self.seen.append("end")


def test_a_run_from_python_is_that_of_the_command_line_and_tells_its_callbacks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moments, metrics = Moments(), {"half": lambda model, split: len(split.words) / 2}
    result = run([*SMALL, "seed=1"], callbacks=[moments], metrics=metrics)
    half = [line["val/half"] for line in result.metrics if "val/half" in line]
    assert half == [half[0]] * 2
    evaluation = f"evaluation {half[0]}"
    assert moments.seen == ["start 0", "update 1", "update 2", evaluation, "update 3", "update 4", evaluation, "end"]
    assert result.directory.parent.name == compose(SMALL).study
    again = run([*SMALL, "seed=1"], callbacks=[moments])  # a cell that is run again
    assert again == result
    assert len(moments.seen) == 8


class StopOnce(Callback):
    def after_update(self, trainer):
        if trainer.state.updates == 5:
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_recipe_is_stopped_and_ends_with_the_same_weights(tmp_path, monkeypatch, capsys):
    """experiment=best with a running mean: Muon's state, the decay of its horizon and the mean are all saved."""
    monkeypatch.chdir(tmp_path)
    sizes = "num_hidden_layers=1 hidden_size=16 num_attention_heads=2 num_key_value_heads=2 head_dim=8"
    best = ["experiment=best", "scale=nano", *(f"model.config.{size}" for size in sizes.split()), *SMALL[-5:]]
    best += ["model.config.intermediate_size=16", "trainer.average.half_life=0.5", "size.vocab_size=300"]
    best += ["trainer.max_steps=8", "trainer.batch_size=2"]
    whole = run([*best, "study=whole"])
    with pytest.raises(PreemptedError):
        run([*best, "study=stopped"], callbacks=[StopOnce()])
    stopped = run([*best, "study=stopped"])
    assert "resumed at update 5" in capsys.readouterr().out
    assert stopped["weights_sha256"] == whole["weights_sha256"]
    assert stopped["raw_bits_per_byte"] == whole["raw_bits_per_byte"]


@pytest.mark.parametrize("wrong", [["optimizer.lrr=1"], ["seed=1,2"], ["data.words=0"]])
def test_what_the_command_line_refuses_is_an_exception(tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=wrong[0].partition("=")[0]):
        run(wrong)
    assert not list(tmp_path.iterdir())


def test_the_example_goes_from_a_corpus_to_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ablation.py", *SMALL])
    runpy.run_path(str(CONF.parent / "examples" / "ablation.py"))
    study = tmp_path / "multirun_outputs/ablation"
    assert len(pd.read_csv(study / "results.csv")) == 6
    assert (study / "curves.png").exists()
