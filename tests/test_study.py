"""Studies: jobs that break, controllers that die, two controllers at once, launchers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import faulty
import pytest

import babylm_train.study.jobs
from babylm_train.errors import PreemptedError
from babylm_train.run import placed

HERE = Path(__file__).parent
SMALL = ["data.words=2000", "data.max_length=16", "trainer.batch_size=2", "trainer.epochs=1", "logger=none"]
SMALL += ["tokenizer.vocab_size=420", "data.cache_dir=cache", "++objective._target_=faulty.Faulty", "study=s"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "BABYLM_ALLOW_TARGETS": "faulty"}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"


def start(folder: Path, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "babylm_train", "-m", *SMALL, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    return subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes | options)


def study(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def results(folder: Path) -> dict[int, dict]:
    """result.json by the number of the job."""
    return {
        int(path.parent.name.split("_job-")[1].split("-")[0].split("_")[0]): json.loads(path.read_text())
        for path in (folder / "multirun_outputs/s").glob("*/result.json")
    }


def test_jobs_that_break_take_nobody_down_and_each_cause_is_named(tmp_path):
    code, out, err = study(tmp_path, "+objective.job=0,1,2,3,4,5,6,7", "trainer.max_steps=2", "job_timeout=8")
    found = results(tmp_path)
    assert {job: (r["status"], r.get("cause", "")) for job, r in found.items() if job not in (4, 5)} == {
        0: ("finished", ""),
        1: ("failed", "KeyError: 'no such thing'"),
        2: ("exited", "ended with exit code 7 and no result"),
        3: ("killed", "killed by SIGKILL (so does the kernel where memory runs out)"),
        6: ("exited", "SystemExit: 9"),
        7: ("finished", ""),
    }
    assert found[4]["status"] == "diverged"
    assert "loss nan" in found[4]["cause"]
    assert (found[5]["status"], found[5]["cause"]) == ("timed_out", "took longer than job_timeout=8 s")
    assert "faulty.py" in found[1]["traceback"]
    assert code != 0
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 6
    assert "report: multirun_outputs/s/report.html" in out
    report = (tmp_path / "multirun_outputs/s/report.md").read_text()
    assert all(word in report for word in ("no such thing", "exit code 7", "SIGKILL", "loss nan", "longer than"))
    assert not (tmp_path / "multirun_outputs/s/.sweeps").exists()


def test_a_job_that_does_not_stop_is_killed(monkeypatch):
    monkeypatch.setattr(babylm_train.study.jobs, "GRACE", 1.0)
    outcome = babylm_train.study.jobs.isolated(faulty.deaf, (), 8.0)
    assert (outcome.status, outcome.cause, outcome.exit_code) == ("timed_out", "took longer than job_timeout=8 s", 1)


def test_a_job_that_was_killed_before_it_saved_is_not_said_to_have_saved(monkeypatch):
    monkeypatch.setattr(babylm_train.study.jobs, "GRACE", 0.5)
    threading.Timer(8.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(PreemptedError, match="killed before it had saved"):
        babylm_train.study.jobs.isolated(faulty.deaf, (), None)


def test_a_launcher_whose_worker_dies_is_tried_again(tmp_path):
    jobs = ["hydra/launcher=joblib", "+objective.job=10,11,12", "trainer.max_steps=30"]
    (tmp_path / "slow").touch()
    process = start(tmp_path, *jobs, env=ENVIRONMENT | {"SLOW": str(tmp_path / "slow")})
    until = time.monotonic() + 120
    running: list[dict] = []
    while time.monotonic() < until and len(list((tmp_path / "multirun_outputs/s").glob("*/metrics.jsonl"))) < 2:
        time.sleep(0.02)
    running = [json.loads(p.read_text()) for p in (tmp_path / "multirun_outputs/s/.sweeps").glob("*/*.json")]
    (tmp_path / "slow").unlink()
    os.kill(running[0]["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert "error: launcher: TerminatedWorkerError: " in err
    assert "Traceback" not in err
    assert {job: r["status"] for job, r in results(tmp_path).items()} == dict.fromkeys((10, 11, 12), "finished")
    assert "report: multirun_outputs/s/report.html" in out


def test_a_controller_that_dies_is_repeated_and_two_at_once_do_each_job_once(tmp_path):
    jobs = ["+objective.job=10,11,12", "trainer.max_steps=10", "trainer.save_every=5"]
    assert study(tmp_path, *jobs, "hydra.sweep.dir=whole")[0] == 0
    killed = start(tmp_path, *jobs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(results(tmp_path)) < 1 and time.monotonic() < until:
        time.sleep(0.02)
    killed.kill()  # the controller alone: its job notices, saves and ends
    assert killed.wait() == -signal.SIGKILL
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "multirun_outputs/s").glob("*/result.json")}
    two = [start(tmp_path, *jobs), start(tmp_path, *reversed(jobs))]
    outputs = [process.communicate(timeout=280) for process in two]
    assert [process.returncode for process in two] == [0, 0], outputs
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    found = results(tmp_path)
    assert {job: result["status"] for job, result in found.items()} == dict.fromkeys((10, 11, 12), "finished")
    exports = sum(out.count("  val_loss") for out, _ in outputs)
    assert exports == 3 - len(done), outputs  # each missing job ran to its end once
    for path in (tmp_path / "multirun_outputs/s").glob("*/metrics.jsonl"):
        (whole,) = (tmp_path / "whole").glob(f"*-{path.parent.name[-8:]}/metrics.jsonl")
        assert path.read_bytes() == whole.read_bytes()
        model = path.parent / "model/model.safetensors"
        assert model.read_bytes() == (whole.parent / "model/model.safetensors").read_bytes()


def test_a_job_that_two_commands_name_differently_has_one_directory(tmp_path):
    one, other, third = (tmp_path / f"{name}-0123abcd" for name in ("lr-1_seed-2", "seed-2_lr-1", "x"))
    one.mkdir()
    other.mkdir()
    assert placed(other, "0123abcd9876") == other
    assert placed(one, "0123abcd9876") == other
    assert placed(third, "0123abcd9876") == other
    assert placed(other, "0123abcd9876") == other
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [other.name]
    elsewhere = tmp_path / "0"  # hydra.sweep.subdir is the user's
    elsewhere.mkdir()
    assert placed(elsewhere, "0123abcd9876") == elsewhere


@pytest.mark.parametrize(("launcher", "side_by_side"), [("basic", 1), ("joblib", 2)])
def test_preemption_stops_a_sweep_and_the_same_command_goes_on(tmp_path, launcher, side_by_side):
    jobs = ["+objective.job=10,11", "trainer.max_steps=60", f"hydra/launcher={launcher}"]
    records = tmp_path / "multirun_outputs/s"
    (tmp_path / "slow").touch()  # neither job ends before it is asked to
    process = start(tmp_path, *jobs, env=ENVIRONMENT | {"SLOW": str(tmp_path / "slow")})
    until = time.monotonic() + 120
    while time.monotonic() < until and len(list(records.glob("*/metrics.jsonl"))) < side_by_side:
        time.sleep(0.02)
    asked = time.monotonic()
    process.terminate()
    process.communicate(timeout=100)
    assert process.returncode == 75
    assert time.monotonic() - asked < 30
    assert len({path.parent for path in records.glob("*/checkpoints/checkpoint_*.pt")}) == side_by_side
    assert {json.loads(p.read_text())["status"] for p in records.glob("*/result.json")} == {"preempted"}
    code, out, err = study(tmp_path, *jobs)
    assert code == 0, err
    assert out.count("resumed at update") == side_by_side


def test_a_job_that_ends_while_it_is_asked_to_stop_keeps_its_result(tmp_path):
    jobs = ["+objective.job=8,10", "trainer.max_steps=2"]
    process = start(tmp_path, *jobs)
    until = time.monotonic() + 120
    while time.monotonic() < until and not results(tmp_path):
        time.sleep(0.02)
    process.terminate()
    assert process.wait(40) == 75
    assert {job: result["status"] for job, result in results(tmp_path).items()} == {8: "finished"}
    code, out, err = study(tmp_path, *jobs)
    assert code == 0, err
    assert out.count("  val_loss") == 1  # of the other job
    assert {job: result["status"] for job, result in results(tmp_path).items()} == dict.fromkeys((8, 10), "finished")


def test_a_search_goes_on_to_its_total(tmp_path):
    search = ["experiment=hpo", "scale=small", "+objective.job=0", "trainer.max_steps=2"]
    search += ["hydra.sweeper.params={optimizer.lr:'tag(log, interval(1e-4, 1e-2))'}"]
    first = study(tmp_path, *search, "hydra.sweeper.n_trials=2")
    assert first[0] == 0, first[2]
    assert "search: 0 of 2 trials done" in first[1]
    again = study(tmp_path, *search, "hydra.sweeper.n_trials=3")
    assert again[0] == 0, again[2]
    assert "search: 2 of 3 trials done" in again[1]
    assert len(list((tmp_path / "multirun_outputs/s").glob("*/result.json"))) == 3


def test_jobs_in_a_slurm_queue_go_on_after_they_were_preempted(tmp_path):
    """Against a stand-in for sbatch, srun, scontrol and sacct; SLURM itself was not at hand."""
    (tmp_path / "queue").mkdir()
    environment = ENVIRONMENT | {"PATH": f"{HERE / 'slurm'}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"FAKE_QUEUE": str(tmp_path / "queue"), "SLOW": str(tmp_path / "slow")}
    (tmp_path / "slow").touch()
    jobs = ["hydra/launcher=submitit_slurm", "+objective.job=10,1", "trainer.max_steps=80", "seed=1"]
    process = start(tmp_path, *jobs, env=environment)
    until = time.monotonic() + 150
    job = tmp_path / "multirun_outputs/s"

    def wait_for(pattern: str, more: int = 1) -> None:
        while time.monotonic() < until and len(list(job.glob(pattern))) < more:
            time.sleep(0.02)

    wait_for("*job-10*/metrics.jsonl")
    group = int((tmp_path / "queue/0.pid").read_text())
    os.killpg(group, signal.SIGTERM)  # preemption: SLURM kills what still runs some time later, and puts it back
    wait_for("*job-10*/checkpoints/checkpoint_step_*.pt")
    time.sleep(1)
    os.killpg(group, signal.SIGKILL)  # fails if it has ended by itself
    metrics = next(job.glob("*job-10*/metrics.jsonl"))
    before = metrics.stat().st_mtime_ns
    submitted = environment | {"BABYLM_SWEEP": next((job / ".sweeps").iterdir()).name}  # SLURM keeps a job's variables
    subprocess.run(["scontrol", "requeue", "77_0"], cwd=tmp_path, env=submitted, check=True)
    while time.monotonic() < until and metrics.stat().st_mtime_ns == before:
        time.sleep(0.02)
    os.killpg(int((tmp_path / "queue/0.pid").read_text()), signal.SIGUSR2)  # every process of the step gets it
    while time.monotonic() < until and (tmp_path / "queue/requeued").read_text().count("\n") < 2:
        time.sleep(0.02)
    (tmp_path / "slow").unlink()
    out, err = process.communicate(timeout=250)
    assert process.returncode == 1, out + err  # of the job that raises
    assert {job: r["status"] for job, r in results(tmp_path).items()} == {10: "finished", 1: "failed"}
    assert (tmp_path / "queue/requeued").read_text() == "requeue 77_0\n" * 2
    logs = "".join(p.read_text() for p in (tmp_path / "multirun_outputs/s/.submitit").rglob("*.out"))
    logs += (tmp_path / "queue/77_0.log").read_text()
    assert "resumed at update" in logs
    script = (tmp_path / "queue/script.sh").read_text()
    for line in ("--signal=USR2@120", "--requeue", "--open-mode=append", "--gpus-per-node=1", "--array=0-1%2"):
        assert f"#SBATCH {line}" in script
