"""make torture-studies: 40 jobs, 4 of them broken, under each launcher; a controller killed half-way; two at once.

Ray takes part where it is installed (`make ray` does that).

Prints a table last and writes it to benchmarks/results/studies.txt. About a quarter of an hour on two free cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
BROKEN = {1: "failed", 2: "exited", 3: "killed", 4: "diverged"}  # what tests/faulty.py does to these jobs
GOOD = range(10, 46)
JOBS = "+objective.job=" + ",".join(map(str, [*BROKEN, *GOOD]))
COMMON = ["data.words=2000", "data.max_length=16", "trainer.batch_size=2", "trainer.epochs=1", "trainer.max_steps=4"]
COMMON += [
    "tokenizer.vocab_size=420",
    "data.cache_dir=cache",
    "++objective._target_=faulty.Faulty",
    "logger=none",
    JOBS,
]
PATHS = [str(ROOT / "tests"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "BABYLM_ALLOW_TARGETS": "faulty"}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"


def start(folder: Path, study: str, *arguments: str) -> subprocess.Popen[str]:
    """The sweep in the background; what it prints goes to a file."""
    command = [sys.executable, "-m", "babylm_train", "-m", *COMMON, f"study={study}", *arguments]
    with (folder / f"{study}.txt").open("a") as out:
        return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=out, stderr=out, text=True)


def results(folder: Path, study: str) -> dict[int, dict]:
    """result.json by the number of the job, with the hash of the exported weights."""
    found = {}
    for path in (folder / "multirun_outputs" / study).glob("*/result.json"):
        weights = path.parent / "model/model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else ""
        number = int(path.parent.name.split("job-")[1].split("_")[0].split("-")[0])
        found[number] = {**json.loads(path.read_text()), "weights": digest, "at": path.stat().st_mtime_ns}
    return found


def check(folder: Path, study: str, codes: list[int]) -> dict[int, dict]:
    """36 results and 4 causes, each named in the report, and no exit code 0."""
    found = results(folder, study)
    assert {n: r["status"] for n, r in found.items()} == {**BROKEN, **dict.fromkeys(GOOD, "finished")}, study
    report = (folder / "multirun_outputs" / study / "report.md").read_text()
    assert all(word in report for word in ("no such", "exit code 7", "SIGKILL", "loss nan"))
    assert 0 not in codes
    return found


def main() -> None:
    """Runs all and prints the table."""
    lines, folder = [], Path(tempfile.mkdtemp(prefix="studies-"))
    whole: dict[int, dict] = {}

    def tell(what: str, began: float) -> None:
        lines.append(f"{what:<44} 36 results, 4 named causes   {time.monotonic() - began:5.0f} s")
        print(lines[-1], flush=True)

    ways = {"one": [], "two_at_a_time": ["hydra.launcher.n_jobs=2"]}
    ways["submitit_local"] = ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2"]
    ways |= {"ray": ["hydra/launcher=ray"]} if find_spec("ray") else {}
    for study, arguments in ways.items():
        began = time.monotonic()
        found = check(folder, study, [start(folder, study, *arguments).wait()])
        whole = whole or found
        tell(study.replace("_", " "), began)
        assert all(found[n]["weights"] == whole[n]["weights"] for n in GOOD), f"{study}: other weights than one by one"
    began = time.monotonic()
    process = start(folder, "killed")
    while sum(r["status"] == "finished" for r in results(folder, "killed").values()) < 18:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {n: r for n, r in results(folder, "killed").items() if r["status"] == "finished"}
    found = check(folder, "killed", [start(folder, "killed").wait()])
    assert all(found[n]["at"] == r["at"] for n, r in before.items()), "finished jobs ran again"
    assert all(found[n]["weights"] == whole[n]["weights"] for n in GOOD)
    tell(f"controller killed after {len(before)}, repeated", began)
    began = time.monotonic()
    found = check(folder, "two", [p.wait() for p in [start(folder, "two"), start(folder, "two")]])
    assert all(found[n]["weights"] == whole[n]["weights"] for n in GOOD)
    logs = [path.read_text() for path in (folder / "multirun_outputs/two").glob("*/run.log")]
    done = [log for log in logs if "  val_loss" in log]  # one that failed before the second command began runs again
    assert len(done) == len(GOOD), "a job that finished has no record of its end"
    assert all(log.count("tokens in the vocabulary") == log.count("  val_loss") == 1 for log in done), "jobs ran twice"
    tell("two commands at once, each job once", began)
    head = f"# python benchmarks/studies.py; {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}\n"
    head += "# 40 jobs; all 36 weights equal those of the jobs run one by one; the machine was doing other work too\n"
    (ROOT / "benchmarks/results/studies.txt").write_text(head + "\n".join(lines) + "\n")
    shutil.rmtree(folder)
    print(head + "\n".join(lines))


if __name__ == "__main__":
    main()
