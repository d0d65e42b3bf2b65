"""What a study's directory holds: jobs, whatever became of them, and arms, the jobs that differ in their seed alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from babylm_train.errors import InputError

METRICS = {
    "val_loss": "validation loss (nats a token)",
    "perplexity": "perplexity",
    "pseudo_perplexity": "pseudo-perplexity",
    "bits_per_byte": "bits per byte",
    "updates": "updates",
    "words": "words",
    "tokens_per_second": "tokens/s",
    "seconds": "seconds",
    "mfu": "MFU (%)",
    "peak_memory_mib": "peak memory (GiB)",
    "data_wait": "waiting for data (%)",
}
TIMED = ("tokens_per_second", "mfu", "peak_memory_mib", "data_wait")  # medians of timings.jsonl
ABSENT = object()


@dataclass(frozen=True)
class Job:
    """A run's directory: its configuration as `key.key: value`, without its seed, and its result or what it lacks.

    overrides: as typed, without seed and study; None where none are recorded. facts: what must be equal for a
    comparison. machine: device, commit, versions.
    """

    name: str
    directory: Path
    leaves: dict[str, Any]
    overrides: tuple[str, ...] | None
    seed: Any
    status: str
    cause: str
    result: dict[str, Any]
    metrics: dict[str, float]
    facts: dict[str, Any]
    machine: dict[str, str]

    @cached_property
    def curves(self) -> pd.DataFrame:
        """metrics.jsonl, a row a line."""
        return pd.DataFrame(read_lines(self.directory / "metrics.jsonl"))


@dataclass(frozen=True)
class Arm:
    """Jobs that differ in their seed alone. by_seed: the finished ones, the later in name where two have one seed."""

    name: str
    jobs: list[Job]
    leaves: dict[str, Any]
    by_seed: dict[Any, Job]


def read_jobs(directory: Path) -> list[Job]:
    """The jobs of a study, by directory name.

    Raises:
        InputError: there is no such directory, or no job in it.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory")
    marks = ("config.yaml", "result.json", "overrides.yaml")
    folders = [d for d in sorted(directory.iterdir()) if any((d / mark).exists() for mark in marks)]
    if not folders:
        inside = (directory / "config.yaml").exists()
        raise InputError(f"{directory} is a single run: give its study" if inside else f"{directory} holds no runs")
    jobs = [read_job(folder) for folder in folders]
    typed = [job for job in jobs if job.leaves and job.overrides is not None]
    known: dict[Any, dict[str, Any]] = {job.overrides: job.leaves for job in typed}
    return [job if job.leaves else replace(job, leaves=known.get(job.overrides, {})) for job in jobs]


def read_job(directory: Path) -> Job:
    """One job, whatever state its directory is in."""
    troubles: list[str] = []
    config = read_mapping(directory / "config.yaml", troubles)
    result = read_mapping(directory / "result.json", troubles)
    typed = _read(directory / "overrides.yaml", troubles)
    status = "unreadable" if troubles else str(result.get("status", "unfinished"))
    if status in ("unfinished", "running"):
        troubles = [f"did not start, was killed before it could write, or still runs; {_progress(directory)}"]
    if "cause" in result or status not in ("finished", "unfinished", "running"):
        troubles.append(str(result.get("cause", "no cause recorded")))
    overrides, seed = None, config.get("seed")
    if isinstance(typed, list):
        keys = {str(override).partition("=")[0].lstrip("+"): str(override) for override in typed}
        overrides = tuple(override for key, override in keys.items() if key not in ("seed", "study"))
        text = keys.get("seed", "").partition("=")[2]
        seed = config.get("seed", int(text) if text.isdecimal() else text or None)
    timed = pd.DataFrame(read_lines(directory / "timings.jsonl")).reindex(columns=TIMED)
    metrics = {name: _number(result.get(name)) for name in (*METRICS, "tokens", "word_perplexity")}
    metrics |= timed.apply(pd.to_numeric, errors="coerce").median().dropna().to_dict()
    leaves = essential_of(config)
    hashes, versions = (found if isinstance(found := result.get(k), dict) else {} for k in ("hashes", "versions"))
    objective = str(leaves.get("objective._target_", "not recorded")).rpartition(".")[2]
    facts = {key: hashes.get(key) for key in ("corpus", "validation", "tokenizer")}
    facts["objective"] = objective + " (pseudo-perplexity)" * ("pseudo_perplexity" in result)
    facts["window"], facts["passes"] = leaves.get("data.max_length"), leaves.get("objective.evaluation_passes")
    facts["unknown"] = _number(result.get("unknown_share", 0.0))
    machine = {k: str(result.get(k) or "not recorded") for k in ("device", "commit")} | versions
    seed = seed if isinstance(seed, (int, str, type(None))) else json.dumps(seed, default=str)
    return Job(
        directory.name, directory, leaves, overrides, seed, status, "; ".join(troubles), result, metrics, facts, machine
    )


def essential_of(config: dict[str, Any]) -> dict[str, Any]:
    """What determines a job's result besides its seed; interpolations as they are, so `${seed}` is equal for all."""
    from babylm_train.config import essential

    return {key: value for key, value in essential(config).items() if key not in ("seed", "")}


def read_mapping(path: Path, troubles: list[str]) -> dict[str, Any]:
    """What a YAML or JSON file holds; nothing where there is no file or, with a line in `troubles`, it is damaged."""
    found = _read(path, troubles)
    if found is not None and not isinstance(found, dict):
        troubles.append(f"{path.name} holds no mapping")
    return found if isinstance(found, dict) else {}


def _read(path: Path, troubles: list[str]) -> Any:
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        troubles.append(f"{path.name} cannot be read: {' '.join(str(error).split())}")
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file that can be read: a killed job leaves half a line."""
    found = []
    for line in path.read_text(encoding="utf8", errors="replace").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in found if isinstance(line, dict)]


def _progress(directory: Path) -> str:
    done = max((line.get("step", 0) for line in read_lines(directory / "metrics.jsonl")), default=0)
    planned = read_mapping(directory / "plan.json", []).get("updates")
    return f"last recorded update {done:,}" + (f" of {planned:,}" if isinstance(planned, int) else "")


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def group_arms(jobs: Sequence[Job]) -> list[Arm]:
    """Jobs by what they differ in besides the seed, by name. Without a configuration, by the overrides typed."""

    def key(job: Job) -> str:
        return json.dumps(job.leaves or list(job.overrides or ()), sort_keys=True, default=str)

    groups = [list(members) for _, members in groupby(sorted(jobs, key=key), key)]
    named = iter(arm_names([members[0].leaves for members in groups if members[0].leaves]))
    arms = []
    for members in groups:
        leaves = members[0].leaves
        name = next(named) if leaves else ", ".join(members[0].overrides or ["no config.yaml"])
        members.sort(key=lambda job: (len(str(job.seed)), str(job.seed), job.name))
        arms.append(Arm(name, members, leaves, {job.seed: job for job in members if job.status == "finished"}))
    return sorted(arms, key=lambda arm: arm.name)


def arm_names(arms: Sequence[dict[str, Any]]) -> list[str]:
    """What tells arms apart, as short `key=value` lists; each name is unique.

    A key counts where it differs among arms that chose the same class for the groups above it: `optimizer=SGD` says it
    all, the keys that come with it are left out.
    """
    frame = pd.DataFrame([{k: json.dumps(v, default=str) for k, v in arm.items()} for arm in arms]).fillna("")
    telling: dict[str, pd.Series] = {}
    for key in sorted(map(str, frame), key=lambda key: (not key.endswith("_target_"), key)):
        parts = key.removesuffix("._target_").split(".")
        above = [f"{'.'.join(parts[:depth])}._target_" for depth in range(1, len(parts))]
        context = frame.reindex(columns=above, fill_value="").agg("\n".join, axis=1)
        if (differs := frame.groupby(context)[key].transform("nunique") > 1).any():
            telling[key] = differs
    plain = {key: key.removesuffix("._target_").split(".") for key in telling}
    names = []
    for index, arm in enumerate(arms):
        shown = []
        for key in (key for key in telling if telling[key][index] and key in arm):
            others = [other for k, other in plain.items() if k != key]
            depth = next((d for d in range(1, 9) if all(o[-d:] != plain[key][-d:] for o in others)), 9)
            shown.append(f"{'.'.join(plain[key][-depth:])}={show_value(arm[key], key)}")
        names.append(", ".join(shown) or "defaults")
    return [name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def show_value(value: Any, key: str = "") -> str:
    """A setting's value in a name: a class by its last part, a long text by its end."""
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.rpartition(".")[2] if key.endswith("_target_") else text
    return text if len(text) <= 40 else f"…{text[-39:]}"


def changes(leaves: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    """What turns the configuration `baseline` into `leaves`, as `key=value`, and `~key` for what is gone."""
    changed = {key: value for key, value in leaves.items() if baseline.get(key, ABSENT) != value}
    shown = [f"{k}={v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for k, v in changed.items()]
    return sorted(shown) + sorted(f"~{key}" for key in baseline.keys() - leaves.keys())


def defaults() -> dict[str, Any]:
    """The configuration of a run without any override."""
    from babylm_train.build import saved_config
    from babylm_train.config import check_command_line

    return essential_of(yaml.safe_load(saved_config(check_command_line([])[0])))


def choose_baseline(arms: Sequence[Arm], name: str | None, reference: dict[str, Any]) -> Arm:
    """The arm of that name, or the only one whose name holds it; None: the nearest to the defaults that has results.

    Raises:
        InputError: no arm, or several; the message lists them.
    """
    if name is None:
        return min(arms, key=lambda arm: (not arm.by_seed, len(changes(arm.leaves, reference)), arm.name))
    found = [arm for arm in arms if arm.name == name] or [a for a in arms if name.lower() in a.name.lower()]
    if len(found) != 1:
        which = "no arm of that name" if not found else "that fits several arms"
        raise InputError(f"baseline={name}: {which} (there are {'; '.join(arm.name for arm in arms)})")
    return found[0]
