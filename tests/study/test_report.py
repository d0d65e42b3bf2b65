"""The report over synthetic studies: variants, differences, refusals, failures, and what the files show."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from babylm_train.config import essential
from babylm_train.errors import InputError
from babylm_train.study import report
from babylm_train.study.report import write_report

BASE = {
    "seed": 1,
    "study": "s",
    "data": {"words": 3000, "seed": 0},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001, "betas": [0.9, 0.999]},
    "curriculum": {"seed": "${seed}", "strategy": {"_target_": "babylm_train.curriculum.strategy.NoCurriculum"}},
    "trainer": {"max_steps": 20, "save_every": None},
}
SGD = {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.001, "momentum": 0.9}}
ADAM = {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001, "betas": [0.9, 0.999]}}
LONGER = {"trainer": {"max_steps": 40, "save_every": None}}


@pytest.fixture(autouse=True)
def _without_hydra(monkeypatch):
    monkeypatch.setattr(report, "compose_defaults", lambda: essential(BASE))


@pytest.fixture
def study(tmp_path):
    """`study(seed, loss, changes, **result)`: one run more; loss None: no result.json. Returns the study's folder."""
    folder = tmp_path / "study"

    def add(seed, loss, changes=None, config=True, **result):
        directory = folder / f"run-{len(list(folder.glob('run-*'))):03d}"
        directory.mkdir(parents=True)
        if config:
            (directory / "config.yaml").write_text(yaml.safe_dump({**BASE, "seed": seed, **(changes or {})}))
            lines = [{"step": 5 * i, "val/loss": 6 - i / 10, "learning_rate": 1e-3 / i} for i in (1, 2, 3)]
            (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 2')
            (directory / "timings.jsonl").write_text('{"tokens_per_second": 90}\n{"tokens_per_second": 110}\n')
        if loss is not None:
            values = {"status": "finished", "val_loss": loss, "perplexity": np.exp(loss), "bits_per_byte": loss / 4}
            values |= {"updates": 20, "tokens": 2560, "words": 1000, "seconds": 2.0, "parameters": 7, "device": "cpu"}
            values |= {"hashes": {"corpus": "c", "tokenizer": "t"}, "versions": {"torch": "2"}}
            values |= {"exposures": {"maximum": 3, "deciles": list(range(10))}}
            (directory / "result.json").write_text(json.dumps({**values, **result}))
        return folder

    return add


def two_variants(study, others, base=(5.0, 5.1, 5.3), changes=SGD, **result):
    for seed, (a, b) in enumerate(zip(base, others, strict=False)):
        study(seed, a)
        folder = study(seed, b, changes, **result)
    return folder


def text_of(folder, **arguments):
    return write_report(folder, **arguments).with_name("report.md").read_text(encoding="utf8").replace("\\", "")


def cells(text, title):
    """The table after a heading of report.md, as dictionaries by the first cell."""
    lines = [line for line in text.partition(f"## {title}")[2].partition("\n## ")[0].splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_differences_and_verdicts_are_scipys(study):
    losses = {"SGD": [5.5, 5.65, 5.72], "Adam": [5.05, 5.0, 5.4]}
    two_variants(study, losses["SGD"])
    for seed, loss in enumerate(losses["Adam"]):
        folder = study(seed, loss, ADAM)
    text = text_of(folder)
    said = cells(text, "Differences: validation loss")
    base = np.array([5.0, 5.1, 5.3])
    p = {name: stats.ttest_rel(values, base).pvalue for name, values in losses.items()}
    assert p["SGD"] < p["Adam"]
    for name, values in losses.items():
        row, test = said[f"optimizer={name}"], stats.ttest_rel(values, base)
        assert row["difference"] == f"{np.mean(values - base):+.4f}"
        assert row["95 % interval"] == " to ".join(f"{end:+.4f}" for end in test.confidence_interval(0.95))
        assert row["Holm-adjusted p"] == f"{p[name] * (2 if name == 'SGD' else 1):.4f}"
        effect = float(re.search(r"d_z (.*)\)", row["detectable"])[1])
        assert stats.nct.sf(stats.t.isf(0.0125, 2), 2, effect * 3**0.5) == pytest.approx(0.8, abs=0.01)
    assert "- **worse**: optimizer=SGD has a higher (worse) validation loss than optimizer=AdamW: +0.4900" in text
    assert "- **undecided**: 3 seeds cannot decide between optimizer=Adam and optimizer=AdamW" in text
    row = cells(text, "Variants")["optimizer=AdamW"]
    low, high = np.exp(stats.t.interval(0.95, 2, np.log(base).mean(), stats.sem(np.log(base))))
    assert row["validation loss (nats a token)"] == f"5.1333 ± 0.1528<br>{low:.4f} to {high:.4f}"
    assert (row["tokens/s"], row["seeds finished"], row["parameters"]) == ("100", "3 of 3", "7")


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
        ({"unknown_share": 0.02, "hashes": {"corpus": "c", "tokenizer": "u"}}, "unknown tokens"),
        ({"pseudo_perplexity": 50.0}, "objectives differ"),
        ({"changes": {"data": {"max_length": 512}}}, "lengths of the evaluation's windows differ: 512 against None"),
        ({"changes": {"objective": {"evaluation_passes": 5}}}, "passes of the evaluation differ: 5 against None"),
    ],
)
def test_refuses_to_rank(study, changed, said):
    text = text_of(two_variants(study, [4.0, 4.1, 4.3], **changed))
    assert re.search(f"is not ranked against [^:]*: {re.escape(said)}", text)
    assert "better)" not in text.partition("## How")[0]
    assert "## Differences" not in text


def test_groups_that_cannot_be_compared_have_a_baseline_each(study):
    two_variants(study, [5.5, 5.65, 5.72])
    for seed in range(3):
        study(seed, 4.0 + seed / 10, LONGER, updates=40)
        folder = study(seed, 4.2 + seed / 11, {**LONGER, **SGD}, updates=40)
    said = cells(text_of(folder), "Differences: validation loss")
    assert {name: row["baseline"] for name, row in said.items()} == {
        "optimizer=SGD, max_steps=20": "optimizer=AdamW, max_steps=20",
        "optimizer=SGD, max_steps=40": "optimizer=AdamW, max_steps=40",
    }


def test_the_baseline_stays_until_a_person_says_so(study):
    folder = two_variants(study, [5.5, 5.65, 5.72], changes={**ADAM, **LONGER})
    assert "baseline: optimizer=AdamW" in text_of(folder)
    before = cells(text_of(folder, baseline="Adam, "), "Differences: validation loss")
    assert {row["baseline"] for row in before.values()} == {"optimizer=Adam, max_steps=40"}
    for seed in range(3):
        study(seed, 5.4 + seed / 10, {})  # the defaults have further runs
        study(seed, 4.4 + seed / 10, SGD)  # and there is a newcomer
    after = cells(text_of(folder), "Differences: validation loss")
    assert {row["baseline"] for row in after.values()} == {"optimizer=Adam, max_steps=40"}
    with pytest.raises(InputError, match="no variant of that name"):
        write_report(folder, baseline="muon")
    with pytest.raises(InputError, match="several"):
        write_report(folder, baseline="adam")


def test_a_verdict_names_what_else_differs_and_how_it_was_tuned(study):
    faster = {"optimizer": {**SGD["optimizer"], "lr": 0.1}}
    for seed in range(3):
        study(seed, 4.0 + seed / 10, SGD)
    text = text_of(two_variants(study, [5.5, 5.65, 5.72], changes=faster))
    verdicts = [line for line in text.splitlines() if "Learning rates tried: 2 for it, 1 for the baseline" in line]
    assert len(verdicts) == 2
    assert ["a learning rate of its own (0.1 against 0.001)" in line for line in verdicts].count(True) == 1
    rows = cells(text, "Variants")
    assert [row["learning rates tried"] for row in rows.values()] == ["1", "2", "2"]
    changed = cells(text, "What each variant changed")["optimizer=SGD, lr=0.1"]
    assert "optimizer.lr=0.1" in changed["differs from its baseline in"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_allow_no_verdict(study, seeds):
    text = text_of(two_variants(study, [6.0, 6.1][:seeds], base=[5.0, 5.1001][:seeds]))
    assert f"- **no verdict**: {['One', 'Two'][seeds - 1]} seed" in text
    assert "(worse)" not in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([5.0, 5.1, 5.3], "have the same validation loss in each of 3 seeds"),
        ([5.5, 5.6, 5.8], "there is no spread to test against"),
        ([5.5, float("nan"), 5.8], "a validation loss is not finite"),
    ],
)
def test_degenerate_values(study, losses, said):
    assert said in text_of(two_variants(study, losses))


def test_intervals_of_speeds_do_not_go_below_nothing(study):
    for seed, speed in enumerate((100, 5000, 90)):
        folder = study(seed, 5.0)
        (folder / f"run-{seed:03d}/timings.jsonl").write_text(json.dumps({"tokens_per_second": speed}) + "\n")
    low = cells(text_of(folder), "Variants")["defaults"]["tokens/s"].partition("<br>")[2].partition(" to ")[0]
    assert float(low) > 0


def test_across_tokenizers_bits_per_byte_alone(study):
    other = {"hashes": {"corpus": "c", "tokenizer": "u"}, "words": 1031, "updates": 30}
    text = text_of(two_variants(study, [4.0, 4.1, 4.35], **other))
    assert "lower (better) bits per byte" in text
    assert re.findall("Differences: (.*)", text) == ["bits per byte"]
    assert "optimizer=SGD saw +3.1% words against optimizer=AdamW" in text


def test_failures_are_named_and_escaped_and_results_have_a_column_a_swept_key(study):
    two_variants(study, [5.5, 5.65, 5.72])
    evil = "<script>alert(1)</script> | **x** ![](http://e.x/y)\nloss nan"
    study(3, 0.0, SGD, status="diverged", cause=evil)
    study(4, None, SGD)
    folder = study(5, 0.0, config=False, status="bad_input", cause="optimizer.lr: -1 is < 0")
    page = write_report(folder).read_text(encoding="utf8")
    raw = (folder / "report.md").read_text(encoding="utf8")
    assert "<script" not in page + raw
    row = next(line for line in raw.splitlines() if "diverged" in line and line.startswith("|"))
    assert row.replace("\\|", "").count("|") == 6
    assert "!\\[\\]" in row
    text = raw.replace("\\", "")
    assert text.splitlines()[2].startswith("9 runs: 6 finished, 1 bad_input, 1 diverged, 1 unfinished. 3 variants")
    assert "was killed before it could write, or still runs; last recorded update 15" in text
    assert "optimizer=SGD: seeds 3, 4 did not finish" in text
    table = pd.read_csv(folder / "results.csv")
    assert table.loc[table["status"] == "diverged", "cause"].item() == evil
    losses = table[table["status"] == "finished"].pivot_table("val_loss", "seed", "optimizer")
    assert losses["SGD"].tolist() == [5.5, 5.65, 5.72]


DAMAGE = {
    "truncated": '{"status": "finished", "val_loss": 5.0',
    "a list": "[1, 2]",
    "another type": '{"status": "finished", "val_loss": "low"}',
    "a huge number": '{"status": "finished", "updates": 1' + "0" * 400 + "}",
    "more digits than Python reads": '{"status": "finished", "updates": 1' + "0" * 9999 + "}",
    "a lone surrogate": '{"status": "failed", "cause": "\\ud800"}',
    "nested without end": '{"status": ' + "[" * 99999,
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("file", ["result.json", "config.yaml", "overrides.yaml", "metrics.jsonl", "timings.jsonl"])
def test_a_damaged_run_is_left_out_and_named(study, file):
    two_variants(study, [5.5, 5.65, 5.72])
    for name, text in DAMAGE.items():
        folder = study(name, 5.0)
        text = text.encode() if isinstance(text, str) else text
        (folder / f"run-{len(list(folder.glob('run-*'))) - 1:03d}" / file).write_bytes(text + b"\n")
    said = text_of(folder)
    assert "has a higher (worse) validation loss" in said
    fits = 0 if file in ("result.json", "overrides.yaml") else 2  # a mapping with keys that nothing reads
    assert said.partition("## Runs without")[2].partition("\n## ")[0].count(f"/{file}") == len(DAMAGE) - fits
