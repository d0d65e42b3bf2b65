"""Searches: the report of one made by hand, pruning against optuna's own rule, a database damaged or missing."""

import json
import shlex
import sys
from functools import partial

import faulty
import numpy as np
import pytest
import yaml

from babylm_train.config import check_command_line, essential, plain
from babylm_train.runner import record_failure
from babylm_train.study import report
from babylm_train.study.jobs import Job, JobRunner, time_on_disk
from babylm_train.study.report import write_report
from babylm_train.study.search import STARTUP, WARMUP, judge_trial

optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install 'babylm-train[sweep]'")
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
GIVEN = {"experiment": "hpo", "scale": "small", "data.words": "3000", "study": "s"}
# by number: learning rate, status, validation loss; the pruned one stopped where its loss was low
TRIALS = [(0.003, "finished", 3.25), (0.1, "diverged", float("inf")), (0.001, "pruned", 3.0), (2e-4, "finished", 4.5)]


@pytest.fixture
def search(tmp_path, monkeypatch):
    """The folder of a search of TRIALS: its database, and what its runs left."""
    monkeypatch.setattr(report, "compose_defaults", dict)
    folder = tmp_path / "found"
    folder.mkdir()
    study = optuna.create_study(study_name="s", storage=f"sqlite:///{folder / 'trials.db'}")
    for number, (rate, status, loss) in enumerate(TRIALS):
        ranges = {"optimizer.lr": optuna.distributions.LogUniformDistribution(1e-5, 1)}
        values = {"params": {"optimizer.lr": rate}, "distributions": ranges, "user_attrs": GIVEN, "value": loss}
        study.add_trial(optuna.trial.create_trial(**values))
        write_run(folder / f"run-{number}", status, {10: 5.0, 20: loss}, rate=rate)
    return folder


def write_run(directory, status, losses, rate=0.1):
    directory.mkdir()
    words = [f"optimizer.lr={rate}", *(f"{key}={value}" for key, value in GIVEN.items())]
    (directory / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "optimizer": {"lr": rate}}))
    (directory / "overrides.yaml").write_text(yaml.safe_dump(words))
    (directory / "plan.json").write_text('{"updates": 100}')
    lines = [{"step": step, "val/loss": loss} for step, loss in losses.items()]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status:
        values = {"status": status, "config_hash": "h", "cause": "a cause", "val_loss": [*losses.values()][-1]}
        (directory / "result.json").write_text(json.dumps(values))


def test_the_best_trial_is_the_best_that_finished_and_its_command_trains_the_same(search, capsys):
    text = write_report(search).with_name("report.md").read_text(encoding="utf8").replace("\\", "")
    assert "trial 0: validation loss 3.25 with optimizer.lr=0.003" in capsys.readouterr().out
    trials = text.partition("## Trials")[2].partition("##")[0].splitlines()
    states = [line.split(" | ")[1] for line in trials if "run-" in line]
    assert states == ["finished", "finished", "pruned", "diverged"]
    (line,) = (line for line in text.splitlines() if line.startswith("    python"))
    python, _, package, flag, *words = shlex.split(line)
    assert (python, package, flag) == ("python", "babylm_train", "-m")
    assert "study=found_best" in words
    configs = check_command_line(words)
    assert [config.seed for config in configs] == [1, 2, 3]
    (searched,) = check_command_line([f"{key}={value}" for key, value in GIVEN.items()])
    searched.optimizer.lr, searched.seed = 0.003, 1
    assert essential(plain(configs[0])) == essential(plain(searched))


def test_with_a_baseline_or_without_optuna_or_a_database_the_report_is_the_ordinary_one(search, monkeypatch):
    assert "Again, with" in write_report(search).read_text(encoding="utf8")
    assert "Again, with" not in write_report(search, baseline="lr=0.003").read_text(encoding="utf8")
    with monkeypatch.context() as patch:
        patch.setattr(report, "find_spec", lambda _: None)
        assert "Again, with" not in write_report(search).read_text(encoding="utf8")
    (search / "trials.db").unlink()
    assert "Again, with" not in write_report(search).read_text(encoding="utf8")


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"no database", lambda raw: raw[: len(raw) // 2]])
def test_a_damaged_database_is_one_line(search, damage, monkeypatch, capsys):
    path = search / "trials.db"
    path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setattr(sys, "argv", ["report", str(search)])
    with pytest.raises(SystemExit, match="2"):
        report.main()
    err = capsys.readouterr().err
    assert (err.count("\n"), str(path) in err) == (1, True)


def test_pruning_is_that_of_optuna_s_median_pruner(tmp_path):
    rng, said = np.random.default_rng(0), []
    for case in range(60):
        folder = tmp_path / str(case)
        folder.mkdir()
        study = optuna.create_study()
        for number in range(rng.integers(STARTUP - 2, STARTUP + 3)):
            losses = dict(zip(range(10, 100, 10), rng.normal(3, 1, 9).tolist(), strict=True))
            write_run(folder / f"run-{number}", "finished", losses)
            study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values=losses))
        write_run(folder / "pruned", "pruned", dict.fromkeys(losses, 0.0))  # says nothing of those that finish
        losses = dict(zip(range(10, 10 * rng.integers(2, 8), 10), rng.normal(4, 1, 9).tolist(), strict=False))
        write_run(folder / "running", "", losses)
        running = optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, intermediate_values=losses)
        pruner = optuna.pruners.MedianPruner(STARTUP, int(100 * WARMUP), n_min_trials=STARTUP)
        outcome = judge_trial({}, folder / "running")
        assert (outcome is not None) == pruner.prune(study, running)
        assert outcome is None or outcome.val_loss == [*losses.values()][-1]
        said.append(outcome is not None)
    assert 10 < sum(said) < 50


def test_a_pruned_job_ends_and_is_not_run_again_by_a_search(tmp_path):
    for number in range(STARTUP):
        write_run(tmp_path / f"run-{number}", "finished", {50: 3.0})
    write_run(tmp_path / "job", "", {50: 4.0})
    told, work, record = [], partial(faulty.saves, tmp_path / "job"), partial(record_failure, config_hash="h")
    job = Job("job", 0, tmp_path / "job", "h", work, record, judge=faulty.judges)
    runner = JobRunner([{}], lambda _, outcome: told.append(outcome), time_on_disk(tmp_path))
    runner.run([job])
    runner.run([job])
    assert [(outcome.status, outcome.val_loss, outcome.exit_code) for outcome in told] == [("pruned", 4.0, 0)] * 2
    assert (tmp_path / "job" / "saved").exists()
    job.judge = None  # an ordinary sweep runs it to its end
    assert job.outcome(time_on_disk(tmp_path) + 1) is None
