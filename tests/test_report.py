"""The report over synthetic studies: arms, differences, refusals, failures, and what the files show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from unittest.mock import create_autospec

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from babylm_train.errors import InputError
from babylm_train.study import arms, report
from babylm_train.study.arms import arm_names
from babylm_train.study.report import write_report

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
    monkeypatch.setattr(report, "defaults", lambda: arms.essential_of(BASE))


@pytest.fixture
def study(tmp_path):
    """`study(seed, loss, changes, **result)`: one job more; loss None: no result.json."""
    folder = tmp_path / "study"

    def add(seed, loss, changes=None, lines=True, typed=None, config=True, **result):
        directory = folder / f"job-{len(list(folder.glob('*'))):03d}"
        directory.mkdir(parents=True)
        if config:
            values = {**BASE, "seed": seed, **(changes or {})}
            (directory / "config.yaml").write_text(yaml.safe_dump(values, allow_unicode=True))
        if typed is not None:
            (directory / "overrides.yaml").write_text(yaml.safe_dump([*typed, f"seed={seed}"]))
        if lines:
            steps = [
                {
                    "step": 5 * i,
                    "val/loss": 6 - i * (loss or 5) / 50,
                    "val/bits_per_byte": 1.5,
                    "learning_rate": 1e-3 / i,
                    "threshold": i / 3,
                }
                for i in (1, 2, 3)
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
    p, level = report.adjusted(comparisons, "val_loss")
    assert list(p) == ["optimizer=Adam, max_steps=20", "optimizer=SGD, max_steps=20"]
    raw = {c.arm.name: c.metrics["val_loss"].p for c in comparisons}
    assert min(p.values()) == pytest.approx(2 * min(raw[name] for name in p))
    assert level == 0.025


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
        (
            {"unknown_share": 0.02, "hashes": {"corpus": "c", "tokenizer": "u"}},
            "unknown tokens, whose text no loss counts: 2.00% against 0.00% of the tokens",
        ),
    ],
)
def test_refuses_to_rank(study, changed, said):
    text = text_of(two_arms(study, [4.0, 4.1, 4.3], **changed))
    assert f"optimizer=SGD is not ranked against optimizer=AdamW: {said}" in text
    assert "better" not in text
    assert "Difference to the baseline" not in text


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"data": {"max_length": 512}}, "lengths of the evaluation's windows differ: 512 against None"),
        ({"objective": {"evaluation_passes": 5}}, "passes of the evaluation differ: 5 against None"),
    ],
)
def test_refuses_to_rank_what_was_evaluated_in_another_way(study, group, said):
    for seed in range(3):
        study(seed, 5.0 + seed / 10)
        folder = study(seed, 4.0 + seed / 10, group)
    text = text_of(folder)
    assert said in text
    assert "better" not in text


def test_words_within_the_tolerance_are_reported(study):
    text = text_of(two_arms(study, [4.0, 4.1, 4.35], words=1031))
    assert "lower (better)" in text
    assert "optimizer=SGD saw +3.1% words against optimizer=AdamW" in text


def test_across_tokenizers_bits_per_byte_alone(study):
    text = text_of(two_arms(study, [4.0, 4.1, 4.35], updates=30, tokens=4000, hashes={"corpus": "c", "tokenizer": "u"}))
    assert "lower (better) bits per byte" in text
    assert re.findall("Difference to the baseline: (.*)", text) == ["bits per byte"]
    captions = re.findall("<figcaption>(.*?)</figcaption>", (study(9, None) / "report.html").read_text())
    assert captions == ["Bits per byte of the validation text", "Learning rate", "Curriculum threshold"]


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
    assert "9 jobs: 6 finished, 1 diverged, 1 unfinished, 1 unreadable" in text
    assert "was killed before it could write, or still runs; last recorded update 15" in text
    assert "result.json cannot be read" in text
    assert "optimizer=SGD: seeds 3, 4, 5 did not finish" in text
    table = pd.read_csv(folder / "results.csv")
    assert list(table["status"]).count("finished") == 6
    assert table.loc[table["status"] == "diverged", "cause"].item() == evil


def test_jobs_that_ended_before_their_configuration_was_written(study):
    study(1, 5.0, typed=[])
    study(1, 5.0, SGD, typed=["optimizer=sgd"])
    study(2, None, lines=False, typed=[], config=False)
    folder = study(1, 0.0, typed=["optimizer.lr=-1"], config=False, status="bad_input", cause="optimizer.lr: -1 is < 0")
    found = {
        arm.name: [(job.seed, job.status) for job in arm.jobs] for arm in report.group_arms(report.read_jobs(folder))
    }
    assert found == {
        "optimizer=AdamW": [(1, "finished"), (2, "unfinished")],
        "optimizer=SGD": [(1, "finished")],
        "optimizer.lr=-1": [(1, "bad_input")],
    }
    text = text_of(folder)
    assert "optimizer.lr=-1 is not compared with optimizer=AdamW: they finished no seed in common" in text
    assert cells(text, "Arms")["optimizer.lr=-1"]["verdict"] == "no data"


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
    assert sum(tag == "img" and attrs["alt"] != "" for tag, attrs in page.tags) == 3  # loss, LR, threshold
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
    assert "effect size" not in text_of(folder)  # no column that says nothing
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
    assert [job.metrics["val_loss"] for job in arm.by_seed.values()] == [4.0]
    assert "several jobs have one seed" in text_of(folder)


def test_band_is_the_range_of_updates_that_all_seeds_have(study):
    study(1, 5.0)
    folder = study(2, 5.0)
    (folder / "job-001" / "metrics.jsonl").write_text('{"step": 5, "val/loss": 5.5}\n{"step": 7, "val/loss": 1}\n')
    (arm,) = report.group_arms(report.read_jobs(folder))
    table = report.band(arm, "val/loss")
    assert table[["mean", "min", "max"]].to_dict("index") == {5: {"mean": 5.7, "min": 5.5, "max": 5.9}}


def test_intervals_lie_on_one_axis_and_long_curves_keep_their_end(study, monkeypatch):
    two_arms(study, [5.5, 5.65, 5.72])
    for seed, loss in enumerate([4.6, 4.65, 4.92]):
        folder = study(seed, loss, ADAM)
    arms = report.group_arms(report.read_jobs(folder))
    comparisons = [report.compare(arm, arms[1]) for arm in (arms[0], arms[2])]
    (better, worse), zero = report.intervals(comparisons, "val_loss"), pytest.approx
    d, e = (c.metrics["val_loss"] for c in comparisons)
    assert d.mean < 0 < e.mean
    axis = {"zero": 0.0, **{k: getattr(x, k) for k in ("low", "mean", "high") for x in (d,)}}
    assert better == {k: zero(100 * (v - d.low) / (e.high - d.low)) for k, v in axis.items()}
    assert (better["low"], worse["high"]) == (0, zero(100))
    assert better["zero"] == worse["zero"]
    long = pd.DataFrame({k: range(1000) for k in ("mean", "min", "max")}, index=range(1, 1001))
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.plot", lambda self, x, *_, **__: drawn.extend(x))
    report._plot("a title", {0: long})
    assert (len(drawn), drawn[0]) == (200, 1000)


def named(*changes):
    return arm_names([arms.essential_of({**BASE, **change}) for change in changes])


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


LOSSES = {
    "adamw": ({}, [5.00, 5.10, 5.30, 5.15]),
    "sgd": (SGD, [5.52, 5.65, 5.77, 5.71]),
    "adam": (ADAM, [5.03, 5.02, 5.35, 5.10]),
}
CAUSES = {
    "diverged": "the loss of update 12 is nan",
    "out_of_memory": "32 rows of 512 tokens do not fit",
    "timed_out": "no result after job_timeout=60 s",
    "killed": "killed by SIGKILL",
}


@pytest.fixture
def large_study(study):
    """3 arms over 4 seeds, one job of each cause of failure, and an arm that was given twice the updates."""
    samples = ["एक दिन राजा हँसा।", "राम ने फल खाया।"]
    for name, (changes, losses) in LOSSES.items():
        for seed, loss in enumerate(losses):
            study(seed, loss, changes, typed=[f"optimizer={name}", "logger=none"], samples=samples)
    typed = ["optimizer=sgd", "logger=none"]
    for seed, (status, cause) in enumerate(CAUSES.items(), start=4):
        folder = study(seed, 0.0, SGD, typed=typed, config=status != "killed", status=status, cause=cause)
    study(8, None, SGD, lines=False, typed=typed, config=False)
    for seed in range(4):
        longer = {"trainer": {"max_steps": 40, "save_every": None}}
        study(seed, 4.0 + seed / 10, longer, typed=["trainer.max_steps=40", "logger=none"], updates=40, tokens=5120)
    return folder


def cells(text, title):
    """The first table after a heading of report.md, as dictionaries by the first cell."""
    lines = text.partition(f"## {title}\n")[2].strip().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[: lines.index("")]]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_a_large_study_in_figures(large_study):
    text = text_of(large_study, baseline="AdamW, max_steps=20")
    base, others = np.array(LOSSES["adamw"][1]), {"SGD": LOSSES["sgd"][1], "Adam": LOSSES["adam"][1]}
    arms_said = cells(text, "Arms")
    low, high = stats.t.interval(0.95, 3, base.mean(), stats.sem(base))
    assert arms_said["optimizer=AdamW, max_steps=20"]["validation loss (nats a token)"] == (
        f"{base.mean():.4f} ± {base.std(ddof=1):.4f}<br>{low:.4f} to {high:.4f}"
    )
    assert arms_said["optimizer=SGD, max_steps=20"]["seeds finished"] == "4 of 9"
    assert arms_said["optimizer=SGD, max_steps=20"]["tokens/s"] == "100"
    said = cells(text, "Difference to the baseline: validation loss (nats a token)")
    p = {name: stats.ttest_rel(losses, base).pvalue for name, losses in others.items()}
    assert p["SGD"] < p["Adam"]
    for name, losses in others.items():
        row = said[f"optimizer={name}, max_steps=20"]
        test, difference = stats.ttest_rel(losses, base), np.array(losses) - base
        assert row["difference"] == f"{difference.mean():+.4f}"
        assert row["95 % interval"] == " to ".join(f"{end:+.4f}" for end in test.confidence_interval(0.95))
        assert row["effect size d_z"] == f"{difference.mean() / difference.std(ddof=1):+.2f}"
        assert row["p"] == f"{p[name]:.4f}"
        assert row["Holm-adjusted p"] == f"{p[name] * (2 if name == 'SGD' else 1):.4f}"
        effect = float(re.search(r"d_z (.*)\)", row["detectable"])[1])
        assert stats.nct.sf(stats.t.isf(0.0125, 3), 3, effect * 2) == pytest.approx(0.8, abs=0.01)
    assert "optimizer=SGD, max_steps=20 has a higher (worse) validation loss" in text
    assert "4 seeds cannot decide between optimizer=Adam, max_steps=20 and" in text
    assert len(said) == 2


def test_a_large_study_names_failures_budgets_and_overrides(large_study):
    text = text_of(large_study, baseline="AdamW, max_steps=20")
    assert "21 jobs: 16 finished, 1 diverged, 1 out_of_memory, 1 timed_out, 1 killed, 1 unfinished" in text
    failed = text.partition("## Jobs without a result")[2].partition("##")[0]
    for status, cause in CAUSES.items():
        assert re.search(rf"optimizer=SGD, max_steps=20 \| \d \| {status} \| {cause} \|", failed)
    assert "| 8 | unfinished | did not start, was killed before it could write, or still runs;" in failed
    longer = "optimizer=AdamW, max_steps=40"
    assert f"{longer} is not ranked against optimizer=AdamW, max_steps=20: updates differ: 40 against 20" in text
    assert longer not in text.partition("## Difference")[2].partition("## Exposure")[0]
    changed = cells(text, "What each arm changed")
    assert changed[longer]["overrides"] == "trainer.max_steps=40"
    assert changed["optimizer=Adam, max_steps=20"]["overrides"] == "optimizer=adam"
    assert "All arms: logger=none" in text
    assert "राजा हँसा" in text


def test_objectives_are_not_compared(study):
    masked = {"objective": {"_target_": "babylm_train.objective.MaskedObjective"}}
    for seed in range(2):
        study(seed, 5.0 + seed)
        folder = study(seed, 4.0 + seed / 2, masked, perplexity=None, pseudo_perplexity=50.0 + seed)
    text = text_of(folder, baseline="defaults")
    assert "objectives differ: MaskedObjective (pseudo-perplexity) against not recorded" in text
    assert "Difference to the baseline" not in text
    said = cells(text, "Arms")["objective=MaskedObjective"]
    assert (said["perplexity"], said["pseudo-perplexity"]) == ("–", "50.50 ± 0.71<br>44.15 to 56.85")


def test_optional_timings_are_medians(study):
    folder = study(1, 5.0)
    rows = [(0.2, 2**10, 0.01), (0.3, 1.5 * 2**10, 0.02), (0.9, 2**14, 0.5)]
    lines = [dict(zip(("mfu", "peak_memory_mib", "data_wait"), row, strict=True)) for row in rows]
    (folder / "job-000" / "timings.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (said,) = cells(text_of(folder), "Arms").values()
    assert (said["MFU (%)"], said["peak memory (GiB)"], said["waiting for data (%)"]) == ("30", "1.5000", "2")


# Looking at it

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr"
PROBE = """<script>addEventListener("load", () => {
  const pixels = text => {
    const canvas = document.createElement("canvas"), pen = canvas.getContext("2d")
    pen.font = "30px " + getComputedStyle(document.body).fontFamily
    pen.fillText(text, 5, 40)
    return canvas.toDataURL()
  }
  const sizes = [...document.querySelectorAll("td, th, p, li, code")].map(e => parseFloat(getComputedStyle(e).fontSize))
  parent.postMessage({
    width: innerWidth, content: document.documentElement.scrollWidth, font: Math.min(...sizes),
    plots: [...document.images].map(i => i.complete && i.naturalWidth > 0 ? i.getBoundingClientRect().width : 0),
    rows: document.querySelectorAll("table tbody tr").length,
    letters: new Set([..."कखगमर"].map(pixels)).size, boxes: new Set(["\\u0378", "\\u0379"].map(pixels)).size,
  }, "*")
})</script>"""


def browse(page, width, *flags):
    """Runs Chromium on a file: its output, and what it said on the console."""
    call = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},2000"]
    done = subprocess.run([*call, *flags, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def look(page, width):
    """What PROBE measures in a frame of that width (a window of its own has 500 pixels at least), and the console."""
    frame = page.with_name("frame.html")
    frame.write_text(
        "<script>onmessage = said => document.title = JSON.stringify(said.data)</script>"
        f'<iframe src="{page.name}" style="width: {width}px; height: 2000px; border: 0"></iframe>'
    )
    out, console = browse(frame, 1400, "--dump-dom", "--virtual-time-budget=5000")
    return json.loads(unescape(re.search("<title>(.*?)</title>", out, re.S)[1])), console


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_in_a_browser(large_study, tmp_path):
    text = write_report(large_study).read_text(encoding="utf8")
    (tmp_path / "probed.html").write_text(text + PROBE, encoding="utf8")
    hindi = subprocess.run(["fc-list", ":lang=hi"], capture_output=True, text=True, check=False).stdout
    for width in (1280, 400):
        seen, console = look(tmp_path / "probed.html", width)
        assert console == []
        assert seen["width"] == width
        assert seen["content"] <= width
        assert seen["font"] >= 11
        assert len(seen["plots"]) == 3
        assert min(seen["plots"]) > 340
        assert seen["rows"] == 5 + 4 + 3 * 2 + 4 + 4 + 3 + 1  # of failures, arms, differences and what follows
        assert not hindi or (seen["letters"], seen["boxes"]) == (5, 1)
    # the probe itself: it sees an error, a missing picture and a page that is too wide
    wrong = '<img src="absent.png"><p style="width: 900px; font-size: 8px">wide</p><script>console.error("x")</script>'
    (tmp_path / "wrong.html").write_text(text + wrong + PROBE, encoding="utf8")
    seen, console = look(tmp_path / "wrong.html", 400)
    assert len(console) >= 1
    assert (seen["content"] > 900, seen["font"], seen["plots"][-1]) == (True, 8, 0)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_screenshot(large_study, tmp_path):
    from matplotlib.image import imread

    page = write_report(large_study)
    browse(page, 1280, f"--screenshot={tmp_path / 'shot.png'}", "--window-size=1280,3200")
    picture = (imread(tmp_path / "shot.png")[..., :3] * 255).round().astype(int)
    assert picture.shape == (3200, 1280, 3)
    for color in report.COLORS[:4]:  # a line of each arm, in the legend and in the plots
        drawn = (picture == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2)
        assert drawn.any(axis=1).sum() > 40, color  # rows of pixels; the legend alone has 3


# W&B


@pytest.fixture
def wandb_run(monkeypatch, tmp_path):
    """wandb.init as a stand-in of the same signature that keeps what it is given."""
    import wandb

    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_MODE", "online")
    init = create_autospec(wandb.init)
    run = init.return_value = create_autospec(wandb.Run, instance=True)
    run.__enter__.return_value = run
    monkeypatch.setattr(wandb, "init", init)
    return init


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    report.main()


def test_upload(study, wandb_run, monkeypatch, capsys):
    logger = {"_target_": "babylm_train.logger.WandbLogger", "project": "hindi", "entity": "we"}
    folder = study(1, 5.0, {"logger": logger})
    command(monkeypatch, folder, "upload=true")
    given = wandb_run.call_args.kwargs
    assert {k: given[k] for k in ("project", "entity", "group", "job_type", "mode")} == {
        "project": "hindi", "entity": "we", "group": "study", "job_type": "report", "mode": "online",
    }  # fmt: skip
    (artifact,) = wandb_run.return_value.log_artifact.call_args.args
    assert sorted(artifact.manifest.entries) == ["report.html", "report.md", "results.csv"]
    assert (artifact.name, artifact.type) == ("report-study", "report")
    wandb_run.return_value.log_artifact.return_value.wait.assert_called_once()
    assert capsys.readouterr().out.splitlines() == [str(folder / "report.html"), "uploaded report-study"]


def test_no_upload_unless_asked_online_and_taken(study, wandb_run, monkeypatch, capsys):
    import wandb

    folder = study(1, 5.0)
    command(monkeypatch, folder)
    assert not wandb_run.called
    for mode, code, said in (("online", 4, "W&B did not take the report: no"), ("offline", 2, "W&B is offline")):
        monkeypatch.setenv("WANDB_MODE", mode)
        wandb_run.side_effect = wandb.errors.CommError("no\nway")
        with pytest.raises(SystemExit) as end:
            command(monkeypatch, folder, "upload=true")
        captured = capsys.readouterr()
        assert end.value.code == code
        assert said in captured.err
        assert captured.err.count("\n") == 1
        assert str(folder / "report.html") in captured.out
    with pytest.raises(SystemExit):
        command(monkeypatch, folder, "upload=yes")
    assert capsys.readouterr().err == "error: upload=yes: true or false\n"
