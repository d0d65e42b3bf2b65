"""The report over synthetic studies: arms, differences, refusals, failures, and what the files show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from babylm_train import report
from babylm_train.errors import InputError
from babylm_train.report import arm_names, write_report

BASE = {
    "seed": 1,
    "study": "s",
    "data": {"words": 3000, "seed": 0},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001, "betas": [0.9, 0.999]},
    "curriculum": {"seed": "${seed}", "strategy": {"_target_": "babylm_train.curriculum.strategy.NoCurriculum"}},
    "trainer": {"max_steps": 20, "save_every": None},
    "logger": {"_target_": "babylm_train.logger.NoLogger"},
}
SGD = {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01, "momentum": 0.9}}
ADAM = {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001, "betas": [0.9, 0.999]}}


@pytest.fixture(autouse=True)
def _without_hydra(monkeypatch):
    monkeypatch.setattr(report, "defaults", lambda: report.essential_of(BASE))


@pytest.fixture
def study(tmp_path):
    """`study(seed, loss, changes, **result)`: one job more; loss None: no result.json."""
    folder = tmp_path / "study"

    def add(seed, loss, changes=None, lines=True, **result):
        directory = folder / f"job-{len(list(folder.glob('*'))):03d}"
        directory.mkdir(parents=True)
        (directory / "config.yaml").write_text(
            yaml.safe_dump({**BASE, "seed": seed, **(changes or {})}, allow_unicode=True)
        )
        if lines:
            steps = [
                {"step": 5 * i, "val/loss": 6 - i / 10, "learning_rate": 1e-3, "threshold": 1.0} for i in (1, 2, 3)
            ]
            (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, steps)) + '\n{"step": 2')
            (directory / "timings.jsonl").write_text('{"tokens_per_second": 90}\n{"tokens_per_second": 110}\n')
        if loss is not None:
            values = {"status": "finished", "val_loss": loss, "perplexity": np.exp(loss), "bits_per_byte": loss / 4}
            values |= {"updates": 20, "tokens": 2560, "words": 1000, "seconds": 2.0, "parameters": 7}
            values |= {"hashes": {"corpus": "c", "tokenizer": "t"}, "device": "cpu", "versions": {"torch": "2"}}
            values |= {"exposures": {"maximum": 3, "median": 1.0, "minimum": 0, "deciles": list(range(10))}}
            (directory / "result.json").write_text(json.dumps({**values, **result}))
        return folder

    return add


def two_arms(study, others, base=(5.0, 5.1, 5.3), **result):
    for seed, (a, b) in enumerate(zip(base, others, strict=True)):
        study(seed, a)
        folder = study(seed, b, SGD, **result)
    return folder


def text_of(folder, **arguments):
    html = write_report(folder, **arguments)
    return (html.parent / "report.md").read_text(encoding="utf8").replace("\\", "")


def test_the_difference_is_scipys(study):
    folder = two_arms(study, [5.5, 5.65, 5.72])
    arms = report.group_arms(report.read_jobs(folder))
    assert [arm.name for arm in arms] == ["optimizer=AdamW", "optimizer=SGD"]
    found = report.compare(arms[1], arms[0]).metrics["val_loss"]
    test = stats.ttest_rel([5.5, 5.65, 5.72], [5.0, 5.1, 5.3])
    assert found.p == pytest.approx(test.pvalue)
    text = text_of(folder)
    assert "optimizer=SGD has a higher (worse) validation loss than optimizer=AdamW: +0.4900" in text
    assert f"Holm-adjusted p = {test.pvalue:.4f}, 3 seeds" in text
    low, high = test.confidence_interval(0.95)
    assert f"+{low:.4f} to +{high:.4f}" in text
    assert "5.1333 ± 0.1528" in text
    assert "optimizer.momentum=0.9<br>~optimizer.betas" in text


def test_the_seeds_cannot_decide(study):
    folder = two_arms(study, [5.1, 5.0, 5.4])
    text = text_of(folder)
    assert "3 seeds cannot decide between optimizer=SGD and optimizer=AdamW" in text
    sd = np.std([0.1, -0.1, 0.1], ddof=1)
    assert (
        f"Only a difference of {3.2640436 * sd:.4f} or more (d_z 3.26) would have been detected with 80 % power" in text
    )


def test_holm_counts_the_compared_arms_and_orders_them(study):
    two_arms(study, [5.5, 5.65, 5.72])
    for seed, loss in enumerate([4.6, 4.65, 4.92]):
        study(seed, loss, ADAM)
    for seed in range(3):
        folder = study(seed, 1.0, {"trainer": {"max_steps": 40}}, updates=40)
    arms = report.group_arms(report.read_jobs(folder))
    base = report.choose_baseline(arms, "AdamW, max_steps=20", {})
    comparisons = [report.compare(arm, base) for arm in arms if arm is not base]
    p = report.adjusted(comparisons, "val_loss")
    assert list(p) == ["optimizer=Adam, max_steps=20", "optimizer=SGD, max_steps=20"]
    raw = {c.arm.name: c.metrics["val_loss"].p for c in comparisons}
    assert min(p.values()) == pytest.approx(2 * min(raw[name] for name in p))
    assert report.level(p) == 0.025


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"updates": 40}, "updates differ: 40 against 20 (seed 0) and 2 more"),
        ({"updates": 15, "stopped_early": True}, "updates differ after early stopping: 15 against 20"),
        ({"tokens": 99}, "tokens differ: 99 against 2,560"),
        ({"words": 1100}, "words differ by more than 5%: 1,100 against 1,000"),
        ({"hashes": {"corpus": "d", "tokenizer": "t"}}, "corpus or evaluation text differ: d against c"),
        (
            {"hashes": {"corpus": "c", "tokenizer": "t", "validation": "v"}},
            "evaluation text differs: v against not rec",
        ),
        ({"hashes": None}, "corpus or evaluation text differ: not recorded against c"),
        ({"words": 1100, "hashes": {"corpus": "c", "tokenizer": "u"}}, "words differ by more than 5%"),
    ],
)
def test_refuses_to_rank(study, changed, said):
    text = text_of(two_arms(study, [4.0, 4.1, 4.3], **changed))
    assert f"optimizer=SGD is not ranked against optimizer=AdamW: {said}" in text
    assert "better" not in text
    assert "Difference to the baseline" not in text


def test_words_within_the_tolerance_are_reported(study):
    text = text_of(two_arms(study, [4.0, 4.1, 4.35], words=1031))
    assert "lower (better)" in text
    assert "optimizer=SGD saw +3.1% words against optimizer=AdamW" in text


def test_across_tokenizers_bits_per_byte_alone(study):
    text = text_of(two_arms(study, [4.0, 4.1, 4.35], updates=30, tokens=4000, hashes={"corpus": "c", "tokenizer": "u"}))
    assert "lower (better) bits per byte" in text
    assert re.findall("Difference to the baseline: (.*)", text) == ["bits per byte"]


def test_a_corpus_of_each_seed_is_named_and_still_fair(study):
    for seed in (1, 2):
        hashes = {"corpus": f"c{seed}", "tokenizer": f"t{seed}"}
        study(seed, 5 + seed / 10, hashes=hashes)
        folder = study(seed, 5.2 + seed / 3, SGD, hashes=hashes)
    text = text_of(folder)
    assert "The corpus and its evaluation text differ between seeds" in text
    assert "2 seeds cannot decide" in text


def test_failures_are_named_and_escaped(study):
    two_arms(study, [5.5, 5.65, 5.72])
    evil = "<script>alert(1)</script> | **x** ![](http://e.x/y)\nloss nan"
    study(3, 0.0, SGD, status="diverged", cause=evil)
    study(4, None, SGD)
    folder = study(5, None, SGD)
    (folder / "job-008" / "result.json").write_text('{"status": ')
    page = write_report(folder).read_text(encoding="utf8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    raw = (folder / "report.md").read_text(encoding="utf8")
    row = next(line for line in raw.splitlines() if "diverged" in line and line.startswith("|"))
    assert "<script" not in raw
    assert row.replace("\\|", "").count("|") == 6
    assert "&lt;script&gt;" in row
    assert "!\\[\\]" in row
    text = raw.replace("\\", "")
    assert "9 jobs: 1 diverged, 6 finished, 1 unfinished, 1 unreadable" in text
    assert "killed, or still running; last recorded update 15" in text
    assert "result.json cannot be read" in text
    assert "optimizer=SGD: seeds 3, 4, 5 did not finish" in text
    table = pd.read_csv(folder / "results.csv")
    assert list(table["status"]).count("finished") == 6
    assert table.loc[table["status"] == "diverged", "cause"].item() == evil


class Page(HTMLParser):
    """Tags and attributes of a page; `depth` must end at 0."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.depth = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.depth += tag not in ("meta", "link", "img")

    def handle_endtag(self, tag):
        self.depth -= 1


def test_the_page_stands_alone(study):
    changes = {"data": {"words": 3000, "seed": 0, "train": "/texts/हिन्दी<b>.txt"}}
    for seed in range(2):
        study(seed, 5 + seed / 10)
        folder = study(seed, 5.1 + seed / 11, changes)
    text = write_report(folder).read_text(encoding="utf8")
    page = Page(text)
    assert page.depth == 0
    assert ("html", {"lang": "en"}) in page.tags
    assert ("meta", {"charset": "utf-8"}) in page.tags
    assert any(attrs.get("name") == "viewport" for _, attrs in page.tags)
    links = [attrs.get("src") or attrs.get("href") for _, attrs in page.tags if "src" in attrs or "href" in attrs]
    assert all(link.startswith("data:") for link in links)
    assert sum(tag == "img" and attrs["alt"] != "" for tag, attrs in page.tags) == 4  # loss, LR, threshold, exposure
    tags = [tag for tag, _ in page.tags]
    assert tags.count("table") == [attrs.get("class") for _, attrs in page.tags].count("box")
    assert "हिन्दी&lt;b&gt;.txt" in text
    again = text
    assert write_report(folder).read_text(encoding="utf8") == again


def test_one_seed_one_arm_and_nothing(study, tmp_path):
    folder = study(1, 5.0)
    text = text_of(folder)
    assert "There is nothing to compare: one arm." in text
    assert "no intervals and no tests" in text
    study(1, 4.0, SGD)
    assert "One seed cannot decide between optimizer=SGD and optimizer=AdamW" in text_of(folder)
    study(9, 4.0, ADAM)
    assert "optimizer=Adam is not compared with optimizer=AdamW: they finished no seed in common" in text_of(folder)
    with pytest.raises(InputError, match="no directory"):
        write_report(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no runs"):
        write_report(tmp_path / "empty")
    with pytest.raises(InputError, match="single run"):
        write_report(folder / "job-000")


def test_all_failed(study):
    study(1, 0.0, status="diverged", cause="loss nan")
    text = text_of(study(1, None, SGD, lines=False))
    assert "the baseline finished no job" in text
    assert "last recorded update 0" in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([5.0, 5.1, 5.3], "have the same validation loss in each of 3 seeds"),
        ([5.5, 5.6, 5.8], "there is no spread to test against"),
        ([5.5, float("nan"), 5.8], "a validation loss is not finite"),
        ([5.5, float("inf"), 5.8], "a validation loss is not finite"),
    ],
)
def test_degenerate_values(study, losses, said):
    assert said in text_of(two_arms(study, losses))


def test_baseline_by_name(study):
    folder = two_arms(study, [5.5, 5.65, 5.72])
    assert "than optimizer=SGD: -0.4900" in text_of(folder, baseline="sgd")
    with pytest.raises(InputError, match=r"several arms \(there are optimizer=AdamW; optimizer=SGD"):
        write_report(folder, "optimizer")
    with pytest.raises(InputError, match="no arm of that name"):
        write_report(folder, "muon")


def test_the_finished_and_then_the_later_of_two_jobs_counts(study):
    study(1, 5.0)
    study(1, 4.0)
    folder = study(1, 0.0, status="out_of_memory", cause="8 GiB")
    (arm,) = report.group_arms(report.read_jobs(folder))
    assert arm.values("val_loss") == [4.0]
    assert "several jobs have one seed" in text_of(folder)


def test_band_is_the_range_of_updates_that_all_seeds_have(study):
    study(1, 5.0)
    folder = study(2, 5.0)
    (folder / "job-001" / "metrics.jsonl").write_text('{"step": 5, "val/loss": 5.5}\n{"step": 7, "val/loss": 1}\n')
    (arm,) = report.group_arms(report.read_jobs(folder))
    table = report.band(arm, "val/loss")
    assert table[["mean", "min", "max"]].to_dict("index") == {5: {"mean": 5.7, "min": 5.5, "max": 5.9}}


def named(*changes):
    return arm_names([report.essential_of({**BASE, **change}) for change in changes])


def test_arms_are_named_by_what_differs():
    assert named({}) == ["defaults"]
    assert named({}, SGD) == ["optimizer=AdamW", "optimizer=SGD"]
    faster = {"optimizer": {**SGD["optimizer"], "lr": 0.1}}
    assert named({}, SGD, faster) == ["optimizer=AdamW", "optimizer=SGD, lr=0.01", "optimizer=SGD, lr=0.1"]
    assert named({}, {"data": {"words": 3000, "seed": 7}}) == ["seed=0", "seed=7"]
    assert named({}, {"trainer": {"max_steps": 20, "note": "x"}}) == ["defaults", "note=x"]
    assert named({}, {"seed": 5}, {"study": "other"}, {"trainer": {"max_steps": 20, "save_every": 3}}) == [
        "defaults (1)",
        "defaults (2)",
        "defaults (3)",
        "defaults (4)",
    ]


def test_names_tell_keys_of_one_name_apart():
    one = {"trainer": {"max_steps": 20, "words": 1}}
    names = named(one, {**one, "data": {"words": 9, "seed": 0}}, {"trainer": {"max_steps": 20, "words": 2}})
    assert names == [
        "data.words=3000, trainer.words=1",
        "data.words=9, trainer.words=1",
        "data.words=3000, trainer.words=2",
    ]


def test_the_command(study):
    folder = two_arms(study, [5.5, 5.65, 5.72])
    command = [sys.executable, "-m", "babylm_train.report"]
    done = subprocess.run([*command, folder, "baseline=optimizer=SGD"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(folder / "report.html")), done.stderr
    assert "baseline: optimizer=SGD" in (folder / "report.md").read_text().replace("\\", "")
    shutil.rmtree(folder)
    failed = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr) == (2, f"error: {folder} is no directory\n")


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"], ["a", "baseline=b", "baseline=c"]])
def test_a_wrong_command_is_one_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    with pytest.raises(SystemExit) as end:
        report.main()
    assert end.value.code == 2
    assert re.fullmatch(r"error: python -m babylm_train\.report DIRECTORY .*\n", capsys.readouterr().err)
