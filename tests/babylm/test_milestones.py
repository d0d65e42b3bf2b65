"""Milestones: where they fall, what is in them, that a resume neither repeats nor skips one; tracks."""

import contextlib
import os
from unittest.mock import Mock

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from babylm_train.babylm.milestones import Milestones, revisions
from babylm_train.babylm.track import Track, name_of
from babylm_train.data.tokenizer import Byte
from babylm_train.errors import InputError, PreemptedError
from babylm_train.runner import restore

MARKS = [5, 30, 31, 300, 900]


@pytest.fixture
def make(make_trainer, tmp_path):
    """`make(name)`: a tiny run with milestones, the last at its very last word and one beyond."""

    def build(name, **changes):
        trainer = make_trainer(name, save_every=3, keep_last=1, **changes)
        total = 3 * int(trainer.train_split.words.sum())
        folder, marks = tmp_path / name / "milestones", [*MARKS, total, total + 1]
        trainer.callbacks = [Milestones(folder, marks, trainer.model, Byte().build([]), ("causal",), trainer.evaluate)]
        return trainer

    return build


def test_the_first_boundary_at_or_past_each_mark_with_the_exact_count(make):
    trainer = make("run", log_every=1)
    state = trainer.train()
    ends = [line["words"] for line in trainer.record.lines() if "train/loss" in line]  # after each update
    found = {path.name: revision for path, revision in revisions(trainer.callbacks[0].directory)}
    for mark in [*MARKS, state.words]:
        revision = found.pop(name_of(mark))
        assert revision.words == next(end for end in ends if end >= mark) == ends[revision.update - 1]
    assert not found  # the mark beyond the last word is never reached
    last = trainer.callbacks[0].directory / name_of(state.words)
    model = AutoModelForCausalLM.from_pretrained(last)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    tokenizer = AutoTokenizer.from_pretrained(last)
    assert tokenizer("w")["input_ids"][0] == tokenizer.eos_token_id  # the mark first, as in training
    twins = (trainer.callbacks[0].directory / name_of(mark) / "model.safetensors" for mark in (30, 31))
    assert os.path.samefile(*twins)  # one update reached both: one file
    assert len(list(trainer.checkpoints.directory.glob("checkpoint_*.pt"))) < len(MARKS)  # pruned, revisions are not


def test_killed_and_resumed_repeats_none_and_skips_none(make, tmp_path):
    """Killed in each of many updates without saving: the same revisions, byte for byte, each written once."""
    make("whole").train()
    written, killed = {}, Mock(side_effect=KeyboardInterrupt)
    for stop in (1, 2, 8, 9, 15, None):
        part = make("part")
        if found := part.checkpoints.newest():
            part.load_checkpoint(found[1])
        part.should_stop = lambda run=part, stop=stop: run.state.updates == stop and killed()
        with pytest.raises(KeyboardInterrupt) if stop else contextlib.nullcontext():
            part.train()
        now = {path.name: path.stat().st_mtime_ns for path, _ in revisions(part.callbacks[0].directory)}
        assert written.items() <= now.items()  # nothing that was there is written again
        written = now
    one, other = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "part/milestones", tmp_path / "whole/milestones")
    )
    assert one == other


def test_a_run_that_goes_on_from_another_takes_its_milestones_along(make, tmp_path):
    first = make("first")
    first.should_stop = lambda: first.state.updates == 8
    with pytest.raises(PreemptedError):
        first.train()
    whole = make("second")
    restore(whole, *first.checkpoints.newest())
    whole.train()
    names = {path.name for path, _ in revisions(tmp_path / "second/milestones")}
    assert names == {name_of(mark) for mark in [*MARKS, whole.state.words]}
    twins = (tmp_path / name / "milestones/chck_5/model.safetensors" for name in ("first", "second"))
    assert os.path.samefile(*twins)


def strict(**changes) -> Track:
    return Track(**{"name": "t", "corpus_words": 100, "epochs": 10, "milestones": [], "outside_words": None, **changes})


@pytest.mark.parametrize(
    ("track", "given", "figures"),
    [
        (strict(), (101, 101, 50, []), ("100", "101", "data.max_words=100")),
        (strict(), (80, 1000, 50, []), ("10 epochs", "800", "1,000", "trainer.max_steps=40")),
        (strict(), (80, 80, 50, ["tokenizer.name=x"]), ("tokenizer.name=x", "track.outside_words")),
        (strict(outside_words=30), (80, 80, 50, ["tokenizer.name=x"]), ("100", "80", "30", "data.max_words=70")),
    ],
)
def test_what_breaks_a_track_is_refused_with_the_figures(track, given, figures):
    with pytest.raises(InputError) as refused:
        track.refuse(*given)
    assert all(figure in str(refused.value) for figure in figures)


def test_what_keeps_to_a_track_is_not():
    strict().refuse(100, 1000, 50, [])
    strict(outside_words=20).refuse(80, 800, 50, ["tokenizer.name=x"])
    strict(corpus_words=None, epochs=None).refuse(10**9, 10**12, 50, ["tokenizer.name=x"])
    assert len(strict(milestones=[50, 2000, 3000]).warnings(1000)) == 1
    assert strict(milestones=[50]).warnings(50) == ()
    assert [name_of(mark) for mark in (10**6, 10**8, 1500)] == ["chck_1M", "chck_100M", "chck_1500"]
