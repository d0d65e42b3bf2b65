"""Whole sweeps by the command line: failures, preemption, repeats, a search, a queue."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from babylm_train import cli
from babylm_train.study.launcher import take_together

TESTS = Path(__file__).parents[1]
SMALL = ["data.words=2000", "data.max_length=16", "trainer.batch_size=2", "trainer.epochs=1", "logger=none"]
SMALL += ["tokenizer.vocab_size=420", "data.cache_dir=cache", "++objective._target_=faulty.Faulty", "study=s"]


@pytest.fixture
def sweep(tmp_path, monkeypatch, capfd):
    """`sweep(*arguments)` -> (exit code, standard output, standard error), in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BABYLM_ALLOW_TARGETS", "faulty")
    monkeypatch.setenv("SLOW", str(tmp_path / "slow"))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["babylm-train", "-m", *SMALL, *arguments])
        with pytest.raises(SystemExit) as stop:
            sys.exit(cli.main())
        return int(stop.value.code or 0), *capfd.readouterr()

    return call


def command(*arguments, **variables):
    """What `subprocess` takes to start the command in a process of its own."""
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    call = [sys.executable, "-m", "babylm_train", "-m", *SMALL, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return {"args": call, "env": {**os.environ, "PYTHONPATH": paths, **variables}, **pipes}


def folder(job):
    """Of a job of the study, once it is there."""
    return next(Path("multirun_outputs/s").glob(f"job-{job}[-_]*"), Path("absent"))


def results():
    return {path.parent.name: path.stat().st_mtime_ns for path in Path("multirun_outputs/s").glob("*/result.json")}


def statuses(*jobs):
    return {job: json.loads((folder(job) / "result.json").read_text())["status"] for job in jobs}


def wait_until(condition):
    until = time.monotonic() + 200
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(0.02)


def test_failing_jobs_take_nobody_down_and_a_repeat_runs_what_is_missing(sweep):
    jobs = ["+objective.job=10,11,1,3,4", "trainer.max_steps=60", "hydra.launcher.n_jobs=2"]
    Path("slow").touch()  # neither of the last two ends before it is asked to

    def stop():
        wait_until(lambda: all((folder(job) / "metrics.jsonl").exists() for job in (10, 11)))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    code, _, err = sweep(*jobs)
    assert code == 75, err
    assert statuses(10, 11) == dict.fromkeys((10, 11), "preempted")
    assert all(list(folder(job).glob("checkpoints/checkpoint_*.pt")) for job in (10, 11))
    Path("slow").unlink()
    code, out, err = sweep(*jobs)
    assert code in (1, 3)
    assert statuses(1, 3, 4, 10, 11) == {1: "failed", 3: "killed", 4: "diverged", 10: "finished", 11: "finished"}
    named = [line.split(":")[1] for line in sorted(err.splitlines()) if line.startswith("error: ")]
    assert named == [f" +objective.job={job}" for job in (1, 3, 4)]
    assert "report: multirun_outputs/s/report.html" in out
    for job in (10, 11):
        log = (folder(job) / "run.log").read_text()
        assert (log.count("resumed at update"), log.count("  val_loss")) == (1, 1)
    before = results()
    assert sweep("+objective.job=10,11", "trainer.max_steps=60")[0] == 0
    assert results() == before


def test_a_search_goes_on_to_its_total(sweep):
    search = ["experiment=hpo", "scale=small", "+objective.job=0", "trainer.max_steps=2"]
    search += ["hydra.sweeper.params={optimizer.lr:'tag(log, interval(1e-4, 1e-2))'}"]
    code, _, err = sweep(*search, "hydra.sweeper.n_trials=2", "data.cache_dir=/dev/null/full")
    assert (code, "cannot" in err) == (4, True), err  # of the disk, it spends no trial
    for done, total in ((0, 2), (2, 3)):
        code, out, err = sweep(*search, f"hydra.sweeper.n_trials={total}")
        assert code == 0, err
        assert f"search: {done} of {total} trials done" in out
        assert len(results()) == total
    code, _, err = sweep(*search, "optimizer=sgd")
    assert (code, err.count("\n"), "optimizer._target_" in err) == (2, 1, True), err
    Path("multirun_outputs/s/trials.db").write_bytes(b"no database" * 99)
    code, _, err = sweep(*search)
    assert (code, err.count("\n"), "trials.db" in err) == (2, 1, True), err


def test_a_mistake_of_a_launcher_or_a_search_is_one_line(sweep):
    for words, named in {
        "hydra.launcher.n_jobs=0": "n_jobs",
        "seed=1,2,3 zip=[seed,objective.job]": "zip takes lists of one length",
        "experiment=hpo scale=small pruner=best": "pruner=best: median, or null",
        "experiment=hpo scale=small size.vocab_size=choice(300,400)": "size.vocab_size",
    }.items():
        code, _, err = sweep("+objective.job=10,11", *words.split())
        assert (code, err.count("\n"), named in err) == (2, 1, True), err


def test_lists_are_taken_together():
    words = ["optimizer=adamw,sgd,adam", "+optimizer.lr=1e-4,0.1,1e-4", "seed=1,2", "x=3"]
    typed = OverridesParser.create().parse_overrides(words)
    (jobs,) = BasicSweeper.split_arguments(typed, None)
    pairs = [("adamw", "0.0001"), ("sgd", "0.1"), ("adam", "0.0001")]
    kept = [" ".join(job) for job in take_together(jobs, typed, ["optimizer", "optimizer.lr"])]
    expected = [f"optimizer={name} +optimizer.lr={lr} seed={seed} x=3" for name, lr in pairs for seed in (1, 2)]
    assert kept == expected


def test_jobs_in_a_slurm_queue_put_themselves_back(sweep, tmp_path):
    """Against a stand-in for sbatch, srun, scontrol and sacct; SLURM itself was not at hand."""
    queue, path = tmp_path / "queue", f"{TESTS / 'slurm'}{os.pathsep}{os.environ['PATH']}"
    queue.mkdir()
    Path("slow").touch()
    jobs = ["hydra/launcher=submitit_slurm", "+objective.job=10,3", "trainer.max_steps=60", "seed=1"]
    process = subprocess.Popen(**command(*jobs, PATH=path, FAKE_QUEUE=str(queue)), start_new_session=True)
    wait_until(lambda: (folder(10) / "metrics.jsonl").exists())
    os.killpg(int((queue / "0.pid").read_text()), signal.SIGTERM)  # preemption: SLURM asks every process of the task
    wait_until(lambda: (queue / "requeued").exists())
    assert list(folder(10).glob("checkpoints/checkpoint_*.pt"))
    Path("slow").unlink()
    out, err = process.communicate(timeout=250)
    assert process.returncode == 1, out + err  # of the job that is killed
    assert statuses(10, 3) == {10: "finished", 3: "killed"}
    assert (queue / "requeued").read_text() == "requeue 77_0\n"
    assert (folder(10) / "run.log").read_text().count("resumed at update") == 1
    script = (queue / "script.sh").read_text()
    for line in ("--signal=USR2@120", "--requeue", "--open-mode=append", "--gpus-per-node=1", "--array=0-1%2"):
        assert f"#SBATCH {line}" in script


def test_jobs_of_a_ray_cluster_end_each_for_itself_and_a_repeat_skips_what_is_done(sweep):
    """On a cluster that the command starts on this machine; `make ray` installs it."""
    pytest.importorskip("ray", reason="the ray extra is not installed")
    jobs = ["hydra/launcher=ray", "trainer.max_steps=3"]
    first = subprocess.run(**command(*jobs, "+objective.job=10,11,1,3"), timeout=250)
    assert first.returncode == 1, first.stdout + first.stderr
    assert statuses(10, 11, 1, 3) == {10: "finished", 11: "finished", 1: "failed", 3: "killed"}
    assert Path("multirun_outputs/s/report.html").exists()
    before = results()
    assert subprocess.run(**command(*jobs, "+objective.job=10,11"), timeout=250).returncode == 0
    assert results() == before
