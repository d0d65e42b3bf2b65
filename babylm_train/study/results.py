"""What a study's directory holds: runs, whatever became of them, and variants: runs that differ in their seed alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel

from babylm_train.config import FREE, essential
from babylm_train.errors import InputError, one_line
from babylm_train.files import check_record, digest, read, read_lines

METRICS = {
    "val_loss": "validation loss (nats a token)",
    "perplexity": "perplexity",
    "pseudo_perplexity": "pseudo-perplexity",
    "bits_per_byte": "bits per byte",
    "parameters": "parameters",
    "updates": "updates",
    "tokens": "tokens",
    "words": "words",
    "tokens_per_second": "tokens/s",
    "seconds": "seconds",
    "peak_memory_mib": "peak memory (MiB)",
}
TIMED = ("tokens_per_second", "peak_memory_mib")  # medians of timings.jsonl


class Result(BaseModel, frozen=True):
    """result.json, its metrics aside."""

    status: str
    cause: str = ""
    unknown_share: float = 0.0
    altered_share: float = 0.0
    config_hash: str = ""
    hashes: dict[str, str | None] = {}
    device: str = ""
    commit: str | None = None
    versions: dict[str, str] = {}


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run's directory: its configuration as `key.key: value`, without its seed, and its result or what it lacks.

    words: overrides as typed, without seed, study and zip. facts: what must be equal for a comparison. machine: device,
    commit, versions. curves: metrics.jsonl, a row a line.
    """

    name: str
    result: Result
    leaves: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    seed: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, str | None] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True, eq=False)
class Variant:
    """Runs that differ in their seed alone. by_seed: the finished ones, the later in name where two have one seed.

    identity: tells its configuration from every other one. words: overrides as typed that not all runs have.
    """

    name: str
    runs: list[RunRecord]
    identity: str
    words: list[str]
    leaves: dict[str, Any]
    by_seed: dict[str, RunRecord]


def read_study(directory: Path) -> list[RunRecord]:
    """The runs of a study, by directory name. Raises InputError: there is none."""
    marks = (*directory.glob("*/config.yaml"), *directory.glob("*/result.json"))
    runs = []
    for folder in sorted({mark.parent for mark in marks}):
        try:
            runs.append(read_run(folder))
        except InputError as error:
            runs.append(RunRecord(folder.name, Result(status="unreadable", cause=one_line(error))))
    if not runs:
        raise InputError(f"{directory} is no directory that holds runs: give that of a study")
    return runs


def read_run(directory: Path) -> RunRecord:
    """One run, whatever became of it. Raises InputError: a file of its directory is missing or damaged."""
    config: dict[str, Any] = read(directory / "config.yaml", dict[str, Any])
    timings, curves = (_read_table(directory / name) for name in ("timings.jsonl", "metrics.jsonl"))
    done, path = curves["step"].max() if "step" in curves else 0, directory / "result.json"
    told: dict[str, Any] = {"status": "unfinished", "cause": f"killed, or still running; last update {done:,.0f}"}
    told = read(path, dict[str, Any]) if path.exists() else told
    result: Result = check_record(told, Result, str(path))
    figures: dict[str, float | None] = {name: told.get(name) for name in METRICS}
    figures = check_record(figures, dict[str, float | None], str(path))
    figures |= {name: float(timings[name].median()) for name in TIMED if name in timings}
    leaves = {key: value for key, value in essential(config).items() if key not in ("seed", "")}
    kind, causal = str(leaves.get("objective._target_", "")).rpartition(".")[2], told.get("likelihood") == "causal"
    facts = {
        "objective": "causal" if causal else kind,  # whatever training predicts, a causal evaluation is of next tokens
        "corpus": result.hashes.get("corpus"),
        "tokenizer": result.hashes.get("tokenizer"),
        "evaluation_text": result.hashes.get("validation"),
        "evaluation_window": leaves.get("data.max_length"),
        "evaluation_passes": leaves.get("objective.evaluation_passes"),
    }
    path = directory / "overrides.yaml"
    typed: list[str] = read(path, list[str]) if path.exists() else []
    words = tuple(word for word in typed if re.split("[.=]", word.lstrip("+~"))[0] not in ("seed", *FREE))
    metrics = {name: math.nan if value is None else float(value) for name, value in figures.items()}
    machine = {"device": result.device, "commit": result.commit, **result.versions}
    return RunRecord(directory.name, result, leaves, words, str(config.get("seed")), metrics, facts, machine, curves)


def _read_table(path: Path) -> pd.DataFrame:
    return pd.DataFrame(read_lines(path, dict[str, float | None]) if path.exists() else [], dtype=float)


def group_variants(runs: Sequence[RunRecord]) -> list[Variant]:
    """Runs by what they differ in besides the seed, by name; those whose configuration cannot be read last."""
    groups: dict[str, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: (len(run.seed), run.seed, run.name)):
        groups.setdefault(digest(run.leaves), []).append(run)
    readable = [run for run in runs if run.leaves]
    variants: list[Variant] = []
    for identity, members in groups.items():
        words = [word for word in members[0].words if not all(word in run.words for run in readable)]
        name = (", ".join(words) or "defaults") if members[0].leaves else "unreadable"
        if name in {variant.name for variant in variants}:
            name += f" ({identity[:6]})"
        by_seed = {run.seed: run for run in members if run.result.status == "finished"}
        variants.append(Variant(name, members, identity, words, members[0].leaves, by_seed))
    return sorted(variants, key=lambda variant: (not variant.leaves, variant.name))
