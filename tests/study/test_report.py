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
TYPED = ("lr", "eval_every", "train")
SGD = {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.001, "momentum": 0.9}}
ADAM = {"optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001, "betas": [0.9, 0.999]}}
RESULT = {"status": "finished", "parameters": 7, "updates": 20, "tokens": 2560, "words": 1000, "seconds": 2.0}
RESULT |= {"device": "cpu", "hashes": {"corpus": "c", "tokenizer": "t"}, "versions": {"torch": "2"}}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """`study(losses, changes, first, **result)`: a run a seed, `first` and on; None: no result. Returns the folder."""
    monkeypatch.setattr(report, "compose_defaults", lambda: essential(BASE))
    folder = tmp_path / "study"

    def add(losses, changes=(), first=0, **result):
        changes = {"optimizer": BASE["optimizer"], **dict(changes)}
        words = [f"{g}={v['_target_'].rpartition('.')[2]}" for g, v in changes.items() if "_target_" in v]
        typed = [(f"{g}.{k}", v) for g, values in changes.items() for k, v in values.items() if k in TYPED]
        words += [f"{key}={value}" for key, value in typed if value != BASE["optimizer"]["lr"]]
        for seed, loss in enumerate(losses, first):
            directory = folder / f"run-{len(list(folder.glob('run-*'))):03d}"
            directory.mkdir(parents=True)
            (directory / "config.yaml").write_text(yaml.safe_dump({**BASE, "seed": seed, **changes}))
            (directory / "overrides.yaml").write_text(yaml.safe_dump([*words, f"seed={seed}"]))
            lines = [{"step": 5 * i, "val/loss": 6 - i / 10, "learning_rate": 1e-3 / i} for i in (1, 2, 3)]
            (directory / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 2')
            (directory / "timings.jsonl").write_text('{"tokens_per_second": 90}\n{"tokens_per_second": 110}\n')
            if loss is not None:
                values = {"val_loss": loss, "bits_per_byte": loss / 4, **RESULT, **result}
                (directory / "result.json").write_text(json.dumps(values))
        return folder

    return add


def two_variants(study, others, changes=SGD, **result):
    study([5.0, 5.1, 5.3][: len(others)])
    return study(others, changes, **result)


def text_of(folder, **arguments):
    return write_report(folder, **arguments).with_name("report.md").read_text(encoding="utf8").replace("\\", "")


def cells(text, title="Variants"):
    """The table after a heading of report.md, as dictionaries by the first cell."""
    lines = [line for line in text.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_differences_and_verdicts_are_scipys(study):
    losses = {"SGD": [5.5, 5.65, 5.72], "Adam": [5.05, 5.0, 5.4]}
    two_variants(study, losses["SGD"])
    folder = study(losses["Adam"], ADAM)
    text = text_of(folder)
    said, base = cells(text), np.array([5.0, 5.1, 5.3])
    for name, times in (("SGD", 2), ("Adam", 1)):  # Holm's: the smaller p counts twice
        row, test = said[f"optimizer={name}"], stats.ttest_rel(losses[name], base)
        assert row["difference"] == f"{np.mean(losses[name] - base):+.4f}"
        assert row["its 95 % interval"] == " to ".join(f"{end:+.4f}" for end in test.confidence_interval(0.95))
        assert row["Holm's p"] == f"{test.pvalue * times:.4f}"
    assert "- **worse**: optimizer=SGD against optimizer=AdamW: the validation loss differs by +0.4900" in text
    assert "- **undecided**: optimizer=Adam against optimizer=AdamW" in text
    row = said["optimizer=Adam"]  # detectable: 3.26404 standard deviations of the differences
    assert (row["difference in %"], row["detectable"]) == ("+0.30 % (-4.61 to +5.45)", "0.3397")
    assert "it and bits per byte by +9.6 % (+5.9 to +13.3), which is worse" in text
    row = said["optimizer=AdamW"]
    low, high = np.exp(stats.t.interval(0.95, 2, np.log(base).mean(), stats.sem(np.log(base))))
    assert row["validation loss (nats a token)"] == f"5.1333 ± 0.1528<br>{low:.4f} to {high:.4f}"
    assert (row["tokens/s"], row["seeds"], row["parameters"]) == ("100", "3 of 3", "7")
    assert (folder / "report.html").read_text(encoding="utf8").count("<img") == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"updates": 40}, "updates differ: 40 against 20 (seed 0)"),
        ({"words": 1100}, "words differ by more than 5%: 1,100 against 1,000"),
        ({"hashes": {"corpus": "c", "tokenizer": "t", "validation": "v"}}, "evaluation text differs: v against not"),
        ({"hashes": {}}, "corpus differs: not recorded against c"),
        ({"altered_share": 0.02, "hashes": {"corpus": "c", "tokenizer": "u"}}, "drops or changes signs"),
        ({"bits_per_byte": None, "hashes": {"corpus": "c", "tokenizer": "u"}}, "only bits per byte of next tokens"),
        ({"unknown_share": 0.02, "hashes": {"corpus": "c", "tokenizer": "u"}}, "unknown tokens"),
        ({"changes": {"objective": {"_target_": "a.Masked"}}}, "objective differs: Masked against not recorded"),
        ({"changes": {"objective": {"evaluation_passes": 5}}}, "evaluation passes differs: 5 against not recorded"),
    ],
)
def test_refuses_to_rank(study, changed, said):
    text = text_of(two_variants(study, [4.0, 4.1, 4.3], **changed))
    assert re.search(f"is not ranked against [^:]*: .*{re.escape(said)}", text)
    assert "**better" not in text
    assert "difference" not in next(iter(cells(text).values()))


def test_objectives_that_are_evaluated_alike_are_ranked(study):
    """R-Drop trains otherwise, but its validation loss is that of next tokens; a hidden token's is another thing."""
    study([5.0, 5.1, 5.3], likelihood="causal")
    folder = study([4.0, 4.2, 4.3], {"objective": {"_target_": "a.RDrop"}}, likelihood="causal")
    assert "- **better**: objective=RDrop against defaults" in text_of(folder)
    folder = study([4.0, 4.1, 4.3], {"objective": {"_target_": "a.Masked"}}, likelihood="pseudo")
    assert re.search("objective=Masked is not ranked .*objective differs: Masked against causal", text_of(folder))


def test_other_tokenizers_elsewhere_take_no_verdict_from_hidden_tokens(study):
    study([4.0, 4.1, 4.3], {"data": {**BASE["data"], "train": "other"}}, hashes={"corpus": "c", "tokenizer": "u"})
    masked = {"objective": {"_target_": "a.Masked"}}
    study([3.0, 3.1, 3.2], masked, bits_per_byte=None)
    text = text_of(two_variants(study, [2.0, 2.2, 2.1], {**masked, **SGD}, bits_per_byte=None))
    assert "data.train=other against optimizer=AdamW: the bits per byte differ by -0.25" in text
    assert (
        "**better**: optimizer=SGD, objective=Masked against optimizer=AdamW, objective=Masked: the validation" in text
    )


def test_groups_that_cannot_be_compared_have_a_baseline_each(study):
    two_variants(study, [5.5, 5.65, 5.72])
    longer = {"trainer": {"max_steps": 40, "train": 40}}
    study([4.0, 4.1, 4.2], {**longer, **SGD}, updates=40)
    folder = study([4.2, 4.29, 4.38], {**longer, **ADAM}, updates=40)
    sgd, adam, short = "optimizer=SGD, trainer.train=40", "optimizer=Adam, trainer.train=40", "optimizer=AdamW"
    found = {name: row["its baseline"] for name, row in cells(text_of(folder)).items()}
    assert found == {short: short, "optimizer=SGD": short, adam: adam, sgd: adam}
    text = text_of(folder, baseline=sgd)
    assert f"baseline: {sgd}. Baselines of groups that do not compare with it: {short}." in text
    assert list(json.loads((folder / "baseline.json").read_text()).values()) == [sgd, short]


def test_the_baseline_stays_until_a_person_says_so(study):
    folder = two_variants(study, [5.5, 5.65, 5.72], changes={**ADAM, "trainer": {"max_steps": 20, "eval_every": 5}})
    name = "optimizer=Adam, trainer.eval_every=5"
    assert "baseline: optimizer=AdamW" in text_of(folder)
    assert f"baseline: {name}" in text_of(folder, baseline="optimizer=Adam")  # which "optimizer=AdamW" holds too
    study([5.4, 5.5, 5.6])  # the defaults have further runs
    study([4.4, 4.5, 4.6], SGD)  # and there is a newcomer
    assert f"baseline: {name}" in text_of(folder)
    for wrong, why in (("muon", "no variant of that name"), ("adam", "several")):
        with pytest.raises(InputError, match=why):
            write_report(folder, baseline=wrong)


def test_a_verdict_names_what_else_differs_and_how_it_was_tuned(study):
    faster = {"optimizer": {**SGD["optimizer"], "lr": 0.1}}
    study([4.0, 4.1, 4.2], SGD)
    folder = two_variants(study, [5.5, 5.65, 5.72], changes=faster)
    text = text_of(folder)
    verdicts = [line for line in text.splitlines() if "Learning rates tried: 2 for it, 1 for the baseline" in line]
    assert len(verdicts) == 2
    assert ["its own optimizer.lr (0.1 against 0.001)" in line for line in verdicts].count(True) == 1
    tried = {name: row["learning rates tried"] for name, row in cells(text).items()}
    assert tried == {"optimizer=AdamW": "1", "optimizer=SGD": "2", "optimizer=SGD, optimizer.lr=0.1": "2"}
    assert sorted(pd.read_csv(folder / "results.csv")["optimizer.lr"]) == [0.001] * 6 + [0.1] * 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([6.0], "- **no verdict**: "),
        ([6.0, 6.11], "- **no verdict**: "),
        ([5.5, 5.6, 5.8], "there is no spread to test against"),
        ([5.0, 5.1, 5.3], "what differs changed nothing"),
        ([5.5, float("nan"), 5.8], "a validation loss is not finite"),
    ],
)
def test_too_few_seeds_no_spread_and_what_is_not_finite_allow_no_verdict(study, losses, said):
    text = text_of(two_variants(study, losses))
    assert said in text
    assert "worse" not in text.partition("## Variants")[0]


def test_across_tokenizers_bits_per_byte_alone(study):
    other = {"hashes": {"corpus": "c", "tokenizer": "u"}, "words": 1031, "updates": 30}
    study([5.0, 5.1, 5.3], {"tokenizer": {"_target_": "of.bpe"}})
    folder = study([4.0, 4.1, 4.35], {**SGD, "tokenizer": {"_target_": "of.byte"}}, **other)
    text = text_of(folder)
    assert sorted(set(pd.read_csv(folder / "results.csv")["tokenizer"])) == ["bpe", "byte"]
    assert "**better**: optimizer=SGD, tokenizer=byte against optimizer=AdamW, tokenizer=bpe: the bits per byte" in text


def test_failures_are_named_and_escaped_and_results_have_a_column_a_swept_key(study):
    two_variants(study, [5.5, 5.65, 5.72])
    evil = "<script>alert(1)</script> | **x** ![](http://e.x/y)\nloss nan"
    study([0.0], {**SGD, "data": {**BASE["data"], "train": "$\\frac{"}}, first=3, status="diverged", cause=evil)
    folder = study([None], SGD, first=4)
    page = write_report(folder).read_text(encoding="utf8")
    raw = (folder / "report.md").read_text(encoding="utf8")
    assert "<script" not in page + raw
    assert "!\\[\\]" in raw
    text = raw.replace("\\", "")
    assert text.splitlines()[2].startswith("8 runs: 6 finished, 1 unfinished, 1 diverged. 3 variants")
    assert "killed, or still running; last update 15" in text
    assert "optimizer=SGD: seeds without a result: 4;" in text
    table = pd.read_csv(folder / "results.csv")
    assert table.loc[table["status"] == "diverged", "cause"].item() == evil
    losses = table[table["status"] == "finished"].pivot_table("val_loss", "seed", "optimizer")
    assert losses["SGD"].tolist() == [5.5, 5.65, 5.72]


@pytest.mark.parametrize("file", ["result.json", "config.yaml", "metrics.jsonl", "timings.jsonl"])
def test_a_damaged_run_is_left_out_and_named(study, file):
    two_variants(study, [5.5, 5.65, 5.72])
    damages = [b'{"status": "finished", "val_loss": 5.0', b'{"status": "finished", "val_loss": "low"}', b"\xff\x00"]
    for text in damages:
        folder = study([5.0])
        (max(folder.glob("run-*")) / file).write_bytes(text + b"\n")
    said = text_of(folder)
    assert "**worse**" in said
    fits = file == "config.yaml"  # a mapping with keys that nothing reads
    assert said.partition("## Runs without")[2].partition("\n## ")[0].count(f"/{file}") == len(damages) - fits
