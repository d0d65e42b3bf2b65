"""Jobs as processes: how each way to end is told, stopping, other commands at the same jobs, places and GPUs."""

import json
import multiprocessing
import os
import signal
import threading
from functools import partial

import faulty
import pytest
from filelock import FileLock

from babylm_train.errors import Interrupted, PreemptedError
from babylm_train.files import write_json
from babylm_train.runner import record_failure
from babylm_train.study.jobs import LOCK, Job, JobRunner, Outcome, time_on_disk
from babylm_train.study.launcher import share_gpus


@pytest.fixture
def make(tmp_path):
    """`make(name, work, timeout)`: a job in a folder of that name; `work` gets the folder where it takes one."""

    def call(name, work, timeout=float("inf"), **arguments):
        directory = tmp_path / name
        directory.mkdir()
        given = [directory] if work.__code__.co_varnames[:1] == ("directory",) else []
        record = partial(record_failure, config_hash="h")
        return Job(name, 0, directory, "h", partial(work, *given, **arguments), record, timeout)

    return call


def run(jobs, places=2, grace=30.0, since=None):
    """Outcomes by name, in the order they were told."""
    told = {}
    since = time_on_disk(jobs[0].directory.parent) if since is None else since
    JobRunner([{}] * places, lambda job, outcome: told.setdefault(job.name, outcome), since, grace).run(jobs)
    return told


def result_of(job):
    return json.loads((job.directory / "result.json").read_text())


def test_every_way_to_end_has_its_status_and_cause(make):
    ways = [faulty.finishes, faulty.raises, faulty.leaves, faulty.dies, faulty.exits, faulty.diverges]
    jobs = [make(way.__name__, way) for way in ways]
    told = run([*jobs, make("hangs", faulty.hangs, timeout=0.5), make("deaf", faulty.is_deaf, timeout=2.0)], grace=1.0)
    assert {name: (o.status, o.cause, o.exit_code) for name, o in told.items()} == {
        "finishes": ("finished", "", 0),
        "raises": ("failed", r"KeyError: 'no such\x1b[2J thing'", 1),
        "leaves": ("exited", "ended with exit code 7 and no result", 7),
        "dies": ("killed", "killed by SIGKILL (so does the kernel where memory runs out)", 1),
        "exits": ("exited", "ended with exit code 9 and no result", 9),
        "diverges": ("diverged", "loss nan at update 3", 3),
        "hangs": ("timed_out", "took longer than job_timeout=0.5 s", 1),
        "deaf": ("timed_out", "took longer than job_timeout=2 s", 1),
    }
    assert told["finishes"].val_loss == 1.5
    assert "faulty.py" in told["raises"].traceback
    for job in jobs[1:]:
        written, said = result_of(job), told[job.name]
        assert (written["status"], written["cause"]) == (said.status, said.cause)
        assert written.get("traceback", "") == said.traceback


def test_the_next_job_starts_as_soon_as_a_place_is_free(make):
    last, refused = make("last", faulty.finishes), make("another process was in its directory", faulty.is_refused)
    first = make("first", faulty.waits, other=last.directory / "result.json")
    assert [outcome.status for outcome in run([first, refused, last]).values()] == ["finished"] * 3


def test_a_place_has_its_gpu(make, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (share_gpus("auto"), share_gpus(2)) == ([{}], [{}, {}])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    alone, two = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("3", "5")]
    assert (share_gpus("auto"), share_gpus(3), share_gpus(1)) == ([alone, two], [alone, two, alone], [alone])
    other = make("other", faulty.finishes)
    one = make("one", faulty.waits, other=other.directory / "result.json")  # both at a time
    JobRunner(share_gpus("auto"), lambda *_: None, 0).run([one, other])
    assert [result_of(job)["gpus"] for job in (one, other)] == ["3", "5"]


def when(path, action):
    """Does `action()` as soon as there is such a file."""
    threading.Thread(target=lambda: (faulty.wait_for(path), action()), daemon=True).start()


@pytest.mark.parametrize(
    ("work", "grace", "status"),
    [(faulty.saves, 30, "preempted"), (faulty.is_deaf, 0.1, "preempted"), (faulty.lives_on, 0.1, "finished")],
)
def test_asked_to_stop_a_job_saves_or_is_killed_a_result_stands_and_no_other_starts(make, work, grace, status):
    job, other = make("job", work), make("other", faulty.finishes)
    when(job.directory / "began", partial(os.kill, os.getpid(), signal.SIGTERM))
    with pytest.raises(PreemptedError, match="asked to stop"):
        run([job, other], places=1, grace=grace)
    assert result_of(job)["status"] == status
    assert (job.directory / "saved").exists() == (work is faulty.saves)
    assert not (other.directory / "result.json").exists()
    job.work = partial(faulty.finishes, job.directory)  # the same command again
    assert {outcome.status for outcome in run([job, other]).values()} == {"finished"}


def test_ctrl_c_saves_and_a_second_one_kills(make):
    saves, deaf = make("saves", faulty.saves), make("deaf", faulty.is_deaf)
    interrupt = partial(os.kill, os.getpid(), signal.SIGINT)
    when(saves.directory / "began", lambda: when(deaf.directory / "began", interrupt))
    when(saves.directory / "saved", interrupt)
    with pytest.raises(Interrupted):
        run([saves, deaf], grace=faulty.FOREVER)
    assert (saves.directory / "saved").exists()


def test_a_job_saves_when_the_command_that_watches_over_it_dies(make):
    job = make("saves", faulty.saves)
    watcher = multiprocessing.get_context("spawn").Process(target=faulty.watch, args=(job.directory,))
    watcher.start()
    faulty.wait_for(job.directory / "began")
    watcher.kill()
    faulty.wait_for(job.directory / "saved")
    watcher.join()
    assert (watcher.exitcode, (job.directory / "saved").exists()) == (-signal.SIGKILL, True)


def test_what_is_done_is_not_run_again_and_what_failed_is(make):
    done, failed, other = (make(name, faulty.finishes) for name in ("done", "failed", "other"))
    faulty.finishes(done.directory, loss=9.0)
    failed.record(failed.directory, Outcome("failed", "a cause", 1))
    since = time_on_disk(done.directory)
    os.utime(failed.directory / "result.json", ns=(since - 1, since - 1))
    (other.directory / "result.json").write_text('{"status": "finished", "config_hash": "of another configuration"}')
    told = run([done, failed, other], since=since)
    assert {name: outcome.val_loss for name, outcome in told.items()} == {"done": 9.0, "failed": 1.5, "other": 1.5}


def test_jobs_that_another_command_is_at_are_left_to_it(make):
    theirs, ours = make("theirs", faulty.raises), make("ours", faulty.finishes)
    lock = FileLock(theirs.directory / LOCK, thread_local=False)
    write = partial(write_json, theirs.directory / "result.json", {"status": "diverged", "exit_code": 3})
    lock.acquire()
    when(ours.directory / "result.json", lambda: (write(), lock.release()))
    told = run([theirs, ours], places=1)
    assert {name: outcome.status for name, outcome in told.items()} == {"ours": "finished", "theirs": "diverged"}


def test_a_damaged_result_is_named_and_not_overwritten(make):
    job, text = make("damaged", faulty.finishes), '{"status": 3}'
    path = job.directory / "result.json"
    path.write_text(text)
    (outcome,) = run([job]).values()
    assert (outcome.status, str(path) in outcome.cause, path.read_text()) == ("bad_input", True, text)
