"""What a study's directory holds: runs, whatever became of them, and variants: runs that differ in their seed alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel
from typing_extensions import TypedDict

from babylm_train.config import essential
from babylm_train.errors import InputError, one_line
from babylm_train.files import check_record, digest, read, read_lines

METRICS = {
    "val_loss": "validation loss (nats a token)",
    "perplexity": "perplexity",
    "pseudo_perplexity": "pseudo-perplexity",
    "bits_per_byte": "bits per byte",
    "parameters": "parameters",
    "updates": "updates",
    "words": "words",
    "tokens_per_second": "tokens/s",
    "seconds": "seconds",
    "mfu": "MFU (%)",
    "peak_memory_mib": "peak memory (GiB)",
    "data_wait": "waiting for data (%)",
}
CURVES = {
    "val/loss": "Validation loss (nats a token)",
    "train/loss": "Training loss (nats a token)",
    "val/bits_per_byte": "Bits per byte of the validation text",
    "learning_rate": "Learning rate",
    "threshold": "Curriculum threshold",
}
TIMED = ("tokens_per_second", "mfu", "peak_memory_mib", "data_wait")  # medians of timings.jsonl
Line: Any = TypedDict("Line", {"step": float, **dict.fromkeys(CURVES, float | None)}, total=False)  # type: ignore[misc]
Timing: Any = TypedDict("Timing", dict.fromkeys(TIMED, float | None), total=False)  # type: ignore[misc]


class Exposures(BaseModel, frozen=True):
    """How often documents were begun, by tenth of their ranking; empty where a run ranked none."""

    deciles: tuple[float | None, ...] = ()


class Result(BaseModel, frozen=True):
    """result.json, its metrics aside."""

    status: str
    cause: str | None = None
    stopped_early: bool = False
    unknown_share: float = 0.0
    config_hash: str | None = None
    hashes: dict[str, str | None] | None = None
    exposures: Exposures = Exposures()
    samples: list[str] = []
    device: str | None = None
    commit: str | None = None
    versions: dict[str, str] | None = None


UNFINISHED = Result(status="unfinished")


@dataclass(frozen=True)
class RunRecord:
    """A run's directory: its configuration as `key.key: value`, without its seed, and its result or what it lacks.

    typed: its overrides, without seed and study. facts: what must be equal for a comparison. machine: device, commit,
    versions. curves: metrics.jsonl, a row a line.
    """

    name: str
    result: Result = UNFINISHED
    cause: str = ""
    leaves: dict[str, Any] = field(default_factory=dict)
    typed: tuple[str, ...] = ()
    seed: str | int | None = None
    metrics: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*METRICS, "tokens"), math.nan))
    facts: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seed alone. by_seed: the finished ones, the later in name where two have one seed."""

    name: str
    runs: list[RunRecord]
    leaves: dict[str, Any]
    by_seed: dict[Any, RunRecord]

    @property
    def identity(self) -> str:
        """Tells it from every other configuration, whatever the variants are named."""
        return digest(self.leaves)


def read_study(directory: Path) -> list[RunRecord]:
    """The runs of a study, by directory name; a damaged one has the status `unreadable`.

    Raises:
        InputError: there is no such directory, or no run in it.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory")
    marks = ("config.yaml", "result.json", "overrides.yaml")
    folders = [d for d in sorted(directory.iterdir()) if any((d / mark).exists() for mark in marks)]
    if not folders:
        inside = (directory / "config.yaml").exists()
        raise InputError(f"{directory} is a single run: give its study" if inside else f"{directory} holds no runs")
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except InputError as error:
            runs.append(RunRecord(folder.name, Result(status="unreadable"), one_line(error)))
    return runs


def read_run(directory: Path) -> RunRecord:
    """One run, whatever became of it. Raises InputError: a file of its directory is damaged."""
    config: dict[str, Any] = _read(directory / "config.yaml", dict[str, Any]) or {}
    typed: list[str] = _read(directory / "overrides.yaml", list[str]) or []
    told: dict[str, Any] = _read(directory / "result.json", dict[str, Any]) or UNFINISHED.model_dump()
    where = str(directory / "result.json")
    result: Result = check_record(told, Result, where)
    figures: dict[str, float | None] = {name: told.get(name) for name in (*METRICS, "tokens")}
    figures = check_record(figures, dict[str, float | None], where)
    metrics = {name: math.nan if value is None else value for name, value in figures.items()}
    medians = _table(directory / "timings.jsonl", Timing).reindex(columns=list(TIMED)).median().dropna()
    metrics |= {str(name): float(value) for name, value in medians.items()}
    curves = _table(directory / "metrics.jsonl", Line)
    cause = result.cause or ("" if result.status == "finished" else "no cause recorded")
    if result.status in ("unfinished", "running"):
        done = curves["step"].max() if "step" in curves else 0
        cause = f"did not start, was killed before it could write, or still runs; last recorded update {done:,.0f}"
    seed = config.get("seed")
    seed = seed if isinstance(seed, (int, str, type(None))) else json.dumps(seed, default=str)
    leaves = {key: value for key, value in essential(config).items() if key not in ("seed", "")}
    facts = {key: (result.hashes or {}).get(key) for key in ("corpus", "validation", "tokenizer")}
    objective = str(leaves.get("objective._target_", "not recorded")).rpartition(".")[2]
    facts["objective"] = objective + " (pseudo-perplexity)" * (figures["pseudo_perplexity"] is not None)
    facts["window"], facts["passes"] = leaves.get("data.max_length"), leaves.get("objective.evaluation_passes")
    machine = {"device": result.device or "not recorded", "commit": result.commit or "not recorded"}
    machine |= result.versions or {}
    words = tuple(word for word in typed if word.partition("=")[0].lstrip("+") not in ("seed", "study"))
    return RunRecord(directory.name, result, cause, leaves, words, seed, metrics, facts, machine, curves)


def _read(path: Path, kind: Any) -> Any:
    return read(path, kind) if path.exists() else None


def _table(path: Path, kind: Any) -> pd.DataFrame:
    return pd.DataFrame(read_lines(path, kind) if path.exists() else [], dtype=float)


def group_variants(runs: Sequence[RunRecord]) -> list[Variant]:
    """Runs by what they differ in besides the seed, by name."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(digest(run.leaves), []).append(run)
    parted = sorted(groups.values(), key=lambda members: not members[0].leaves)  # at most one has no configuration
    names = [*name_variants([m[0].leaves for m in parted if m[0].leaves]), "no configuration"]
    variants = []
    for name, members in zip(names, parted, strict=False):
        members.sort(key=lambda run: (len(str(run.seed)), str(run.seed), run.name))
        by_seed = {run.seed: run for run in members if run.result.status == "finished"}
        variants.append(Variant(name, members, members[0].leaves, by_seed))
    return sorted(variants, key=lambda variant: variant.name)


def differing_keys(configurations: Sequence[dict[str, Any]]) -> dict[str, pd.Series]:
    """The keys that tell configurations apart, each with the places of those it tells apart.

    A key counts where it differs among configurations that chose the same class for the groups above it:
    `optimizer=SGD` says it all, the keys that come with it are left out.
    """
    frame = pd.DataFrame([{k: json.dumps(v, default=str) for k, v in c.items()} for c in configurations]).fillna("")
    telling: dict[str, pd.Series] = {}
    for key in sorted(map(str, frame), key=lambda key: (not key.endswith("_target_"), key)):
        parts = key.removesuffix("._target_").split(".")
        above = [f"{'.'.join(parts[:depth])}._target_" for depth in range(1, len(parts))]
        context = frame.reindex(columns=above, fill_value="").agg("\n".join, axis=1)
        if (differs := frame.groupby(context)[key].transform("nunique") > 1).any():
            telling[key] = differs
    return telling


def name_variants(configurations: Sequence[dict[str, Any]]) -> list[str]:
    """What tells configurations apart, as short `key=value` lists; each name is unique."""
    telling = differing_keys(configurations)
    plain = {key: key.removesuffix("._target_").split(".") for key in telling}
    names = []
    for index, leaves in enumerate(configurations):
        shown = []
        for key in (key for key in telling if telling[key][index] and key in leaves):
            others = [other for k, other in plain.items() if k != key]
            depth = next((d for d in range(1, 9) if all(o[-d:] != plain[key][-d:] for o in others)), 9)
            shown.append(f"{'.'.join(plain[key][-depth:])}={show_value(leaves[key], key)}")
        names.append(", ".join(shown) or "defaults")
    return [name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def show_value(value: Any, key: str = "") -> str:
    """A setting's value in a name: a class by its last part, a long text by its end."""
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.rpartition(".")[2] if key.endswith("_target_") else text
    return text if len(text) <= 40 else f"…{text[-39:]}"


def list_changes(leaves: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    """What turns the configuration `baseline` into `leaves`, as `key=value`, and `~key` for what is gone."""
    absent = object()
    changed = {key: value for key, value in leaves.items() if baseline.get(key, absent) != value}
    shown = [f"{k}={v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for k, v in changed.items()]
    return sorted(shown) + sorted(f"~{key}" for key in baseline.keys() - leaves.keys())
