"""What a study found, and what it cannot say: `python -m babylm_train.report multirun_outputs/NAME [baseline=ARM]`.

Writes report.html (one file), report.md and results.csv into the study's directory. Jobs that differ only in their seed
form an arm; arms are compared with the baseline, seed by seed, and only where both had the same text and budget.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from babylm_train.errors import InputError, RunError, StorageError, fail
from babylm_train.statistics import ALPHA, Difference, Summary, detectable_effect, holm, paired, summarise

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.axes import Axes

WORDS_TOLERANCE = 0.05  # of the baseline's words: rankings spend equal tokens on longer or shorter words
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#000000", "#7f3c8d", "#999999", "#a52a2a")
STYLES = ("solid", "dashed", "dotted")  # after each round of colours; names that both CSS and matplotlib know
METRICS = {
    "val_loss": "validation loss (nats a token)",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "updates": "updates",
    "words": "words",
    "tokens_per_second": "tokens/s",
    "seconds": "seconds",
}
COMPARED = ("val_loss", "perplexity", "bits_per_byte")
METHOD = (
    "Differences are arm minus baseline, seed by seed; below 0 the arm is better. Intervals and p are of the paired t "
    "test and not adjusted; Holm's p is adjusted for the number of arms and decides at 0.05. Detectable: the smallest "
    "difference that this number of seeds finds with 80 % power at the level of Holm's strictest step, if the spread "
    "is the one seen. Arms are compared only over the same corpus and evaluation text and an equal budget: updates and "
    f"tokens within one tokenizer, and words within {WORDS_TOLERANCE:.0%}; across tokenizers words alone, and there "
    "only bits per byte are compared."
)
ABSENT = object()


@dataclass(frozen=True)
class Job:
    """A run's directory: its configuration as `key.key: value`, without its seed, and its result or what it lacks.

    metrics: tokens_per_second is the median of timings.jsonl, without evaluation and start.
    """

    name: str
    directory: Path
    leaves: dict[str, Any]
    seed: Any
    status: str
    cause: str
    result: dict[str, Any]
    metrics: dict[str, float]

    @property
    def finished(self) -> bool:
        return self.status == "finished"


@dataclass
class Arm:
    """Jobs that differ in their seed alone. `by_seed` holds the finished ones."""

    name: str
    leaves: dict[str, Any]
    jobs: list[Job]
    by_seed: dict[Any, Job] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.by_seed = {job.seed: job for job in self.jobs if job.finished}

    def values(self, metric: str) -> list[float]:
        """One a finished seed."""
        return [job.metrics[metric] for job in self.by_seed.values()]


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline over the seeds that both finished; `refused` says why they cannot be ranked."""

    arm: Arm
    seeds: list[Any]
    refused: list[str]
    words: float  # of the arm over those of the baseline, the seed that differs most
    metrics: dict[str, Difference]
    same_tokenizer: bool


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; a line break parts the lines of a cell."""

    head: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Plot:
    title: str
    source: str  # a data: URI
    alt: str


# Reading


def read_jobs(directory: Path) -> list[Job]:
    """The jobs of a study, by directory name.

    Raises:
        InputError: there is no such directory, or no job in it.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory")
    folders = [d for d in sorted(directory.iterdir()) if (d / "config.yaml").exists() or (d / "result.json").exists()]
    if not folders:
        inside = (directory / "config.yaml").exists()
        raise InputError(f"{directory} is a single run: give its study" if inside else f"{directory} holds no runs")
    return [read_job(folder) for folder in folders]


def read_job(directory: Path) -> Job:
    """One job, whatever state its directory is in."""
    troubles: list[str] = []
    config = _read(directory / "config.yaml", _yaml, troubles)
    result = _read(directory / "result.json", json.loads, troubles)
    leaves, seed = essential_of(config), config.get("seed")
    if not result and not troubles:
        done = _steps(directory)
        cause = f"no result.json: killed, or still running; last recorded update {done}"
        status = "unfinished"
    else:
        status = "unreadable" if troubles else str(result.get("status", "unreadable"))
        cause = "; ".join([*troubles, *([str(result["cause"])] if "cause" in result else [])])
    metrics = {name: _number(result.get(name)) for name in (*METRICS, "tokens", "word_perplexity")}
    metrics["tokens_per_second"] = _rate(directory, result)
    return Job(directory.name, directory, leaves, _hashable(seed), status, cause, result, metrics)


def essential_of(config: dict[str, Any]) -> dict[str, Any]:
    """What determines a job's result besides its seed; interpolations as they are, so `${seed}` is equal for all."""
    from babylm_train.config import essential

    return {key: value for key, value in essential(config).items() if key not in ("seed", "")}


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _read(path: Path, parse: Callable[[str], Any], troubles: list[str]) -> dict[str, Any]:
    """A mapping; an empty one, and a line in `troubles`, where the file is damaged. A missing file is no trouble."""
    if not path.exists():
        return {}
    try:
        found = parse(path.read_text(encoding="utf8"))
        if isinstance(found, dict):
            return found
        troubles.append(f"{path.name} holds no mapping")
    except (OSError, ValueError) as error:
        troubles.append(f"{path.name} cannot be read: {' '.join(str(error).split())}")
    return {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a .jsonl file that can be read: a killed job leaves half a line."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                continue
            found += [value] if isinstance(value, dict) else []
    return found


def _steps(directory: Path) -> str:
    done = max((line.get("step", 0) for line in read_lines(directory / "metrics.jsonl")), default=0)
    planned = _read(directory / "plan.json", json.loads, []).get("updates")
    return f"{done:,}" + (f" of {planned:,}" if isinstance(planned, int) else "")


def _rate(directory: Path, result: dict[str, Any]) -> float:
    rates = [_number(line.get("tokens_per_second")) for line in read_lines(directory / "timings.jsonl")]
    if rates:
        return float(np.median(rates))
    seconds = _number(result.get("seconds"))
    return _number(result.get("tokens")) / seconds if seconds > 0 else math.nan


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, type(None))) else json.dumps(value, default=str)


# Arms


def group_arms(jobs: Sequence[Job]) -> list[Arm]:
    """Jobs by what they differ in besides the seed, in the order of their names.

    Of two jobs with one configuration and one seed the finished one counts, and of two finished the later in name.
    """

    def key(job: Job) -> str:
        return json.dumps(job.leaves, sort_keys=True, default=str)

    groups = [list(members) for _, members in groupby(sorted(jobs, key=key), key)]
    names = arm_names([members[0].leaves for members in groups])
    arms = []
    for name, members in zip(names, groups, strict=True):
        members.sort(key=lambda job: (isinstance(job.seed, str), job.seed is None, job.seed or 0, job.name))
        arms.append(Arm(name, members[0].leaves, members))
    return sorted(arms, key=lambda arm: arm.name)


def arm_names(arms: Sequence[dict[str, Any]]) -> list[str]:
    """What tells arms apart, as short `key=value` lists; each name is unique.

    A key counts where it differs among arms that chose the same class for the groups above it: `optimizer=SGD` says it
    all, the keys that come with it are left out.
    """
    keys = sorted({key for arm in arms for key in arm}, key=lambda key: (not key.endswith("_target_"), key))
    telling: dict[str, set[int]] = {}
    for key in keys:
        contexts: dict[str, list[int]] = {}
        for index, arm in enumerate(arms):
            contexts.setdefault(_context(arm, key), []).append(index)
        for members in contexts.values():
            if len({json.dumps(arms[i].get(key, "ABSENT"), default=str) for i in members}) > 1:
                telling.setdefault(key, set()).update(members)
    short = _short_keys(list(telling))
    names = []
    for index, arm in enumerate(arms):
        parts = [
            f"{short[k]}={show_value(arm[k], k)}" for k, members in telling.items() if index in members and k in arm
        ]
        names.append(", ".join(parts) or ("defaults" if arm else "no config.yaml"))
    return [name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})" for i, name in enumerate(names)]


def _context(arm: dict[str, Any], key: str) -> str:
    """The classes chosen for the groups that hold `key`."""
    parts = key.removesuffix("._target_").split(".")
    above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    return json.dumps([arm.get(f"{group}._target_") for group in above], default=str)


def _short_keys(keys: list[str]) -> dict[str, str]:
    """The last parts of each key, as few as tell the keys apart."""
    plain = {key: key.removesuffix("._target_").split(".") for key in keys}
    short = {}
    for key, parts in plain.items():
        others = [other for k, other in plain.items() if k != key]
        depth = next((d for d in range(1, len(parts)) if all(o[-d:] != parts[-d:] for o in others)), len(parts))
        short[key] = ".".join(parts[-depth:])
    return short


def show_value(value: Any, key: str = "") -> str:
    """A setting's value in a name: a class by its last part, a long text by its end."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)
    if key.endswith("_target_"):
        return text.rpartition(".")[2]
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

    return essential_of(_yaml(saved_config(check_command_line([])[0])))


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


# Comparing


def compare(arm: Arm, baseline: Arm) -> Comparison:
    """Differences to the baseline over the seeds that both finished, and whether they may be called better or worse."""
    seeds = [seed for seed in arm.by_seed if seed in baseline.by_seed]
    pairs = [(arm.by_seed[seed], baseline.by_seed[seed]) for seed in seeds]
    same_tokenizer = all(_hash(a, "tokenizer") == _hash(b, "tokenizer") for a, b in pairs)
    ratios = [a.metrics["words"] / b.metrics["words"] if b.metrics["words"] else math.nan for a, b in pairs]
    metrics = {
        name: paired([a.metrics[name] for a, _ in pairs], [b.metrics[name] for _, b in pairs]) for name in COMPARED
    }
    words = max(ratios, key=lambda ratio: abs(ratio - 1), default=math.nan)
    return Comparison(arm, seeds, _refusals(pairs), words, metrics, same_tokenizer)


def _refusals(pairs: Sequence[tuple[Job, Job]]) -> list[str]:
    """What differs between an arm and the baseline that makes a comparison unfair, one sentence a thing."""
    found: dict[str, list[str]] = {}
    for a, b in pairs:
        for what, ours, theirs in _unequal(a, b):
            found.setdefault(what, []).append(f"{ours} against {theirs} (seed {a.seed})")
    return [
        f"{what}: {cases[0]}" + (f" and {len(cases) - 1} more" if len(cases) > 1 else "")
        for what, cases in found.items()
    ]


def _unequal(a: Job, b: Job) -> Iterator[tuple[str, str, str]]:
    """Within one tokenizer a budget is updates and tokens, words within a tolerance; across tokenizers it is words."""
    for key, what in (("corpus", "corpus or evaluation text differ"), ("validation", "evaluation text differs")):
        ours, theirs = _hash(a, key), _hash(b, key)
        if ours != theirs or (key == "corpus" and ours is None):
            yield what, str(ours or "not recorded")[:12], str(theirs or "not recorded")[:12]
    if _hash(a, "tokenizer") == _hash(b, "tokenizer"):
        for key in ("updates", "tokens"):
            if a.metrics[key] != b.metrics[key]:
                early = (
                    " after early stopping"
                    if True in (a.result.get("stopped_early"), b.result.get("stopped_early"))
                    else ""
                )
                yield f"{key} differ{early}", f"{a.metrics[key]:,.0f}", f"{b.metrics[key]:,.0f}"
    ours, theirs = a.metrics["words"], b.metrics["words"]
    if not abs(ours - theirs) <= WORDS_TOLERANCE * theirs:
        yield f"words differ by more than {WORDS_TOLERANCE:.0%}", f"{ours:,.0f}", f"{theirs:,.0f}"


def _hash(job: Job, key: str) -> Any:
    hashes = job.result.get("hashes")
    return hashes.get(key) if isinstance(hashes, dict) else None


def primary_metric(comparisons: Sequence[Comparison]) -> str:
    """The loss within one tokenizer, bits per byte where there are several."""
    return "val_loss" if all(c.same_tokenizer for c in comparisons) else "bits_per_byte"


def adjusted(comparisons: Sequence[Comparison], metric: str) -> dict[str, float]:
    """Holm's p values by arm; the family is every arm that is compared."""
    allowed = _allowed(comparisons, metric)
    values = holm([c.metrics[metric].p for c in allowed])
    return {c.arm.name: value for c, value in zip(allowed, values, strict=True)}


def _allowed(comparisons: Sequence[Comparison], metric: str) -> list[Comparison]:
    """The arms that may be compared in `metric`, lowest first."""
    chosen = [c for c in comparisons if c.seeds and not c.refused and (c.same_tokenizer or metric == "bits_per_byte")]
    return sorted(chosen, key=lambda c: (math.isnan(c.metrics[metric].mean), c.metrics[metric].mean, c.arm.name))


def level(p: dict[str, float]) -> float:
    """The level of Holm's strictest step: what an effect must pass whatever the other arms show."""
    return ALPHA / max(1, sum(not math.isnan(value) for value in p.values()))


def verdicts(baseline: Arm, comparisons: Sequence[Comparison]) -> list[str]:
    """One plain sentence an arm: better, worse, undecided or not compared, and why."""
    metric = primary_metric(comparisons)
    p = adjusted(comparisons, metric)
    said = [_verdict(c, baseline, metric, p[c.arm.name], level(p)) for c in _allowed(comparisons, metric)]
    for c in comparisons:
        if c.refused:
            said.append(f"{c.arm.name} is not ranked against {baseline.name}: {'; '.join(c.refused)}.")
        elif not c.seeds:
            said.append(f"{c.arm.name} is not compared with {baseline.name}: they finished no seed in common.")
    return said


def _verdict(c: Comparison, baseline: Arm, metric: str, p: float, alpha: float) -> str:
    found, unit = c.metrics[metric], METRICS[metric].partition(" (")[0]
    arm, other = c.arm.name, baseline.name
    if math.isnan(found.mean):
        return f"{arm} and {other} are not compared: a {unit} is not finite."
    size = f"the {unit} differs by {signed(found.mean)}"
    if found.n == 1:
        return f"One seed cannot decide between {arm} and {other}: {size}, which may be chance."
    seeds = f"{found.n} seeds"
    if not found.sd and found.mean == 0:
        return f"{arm} and {other} have the same {unit} in each of {seeds}."
    if not found.sd:
        return f"In each of {seeds} of {arm} and {other} {size}: there is no spread to test against."
    facts = f"95 % interval {signed(found.low)} to {signed(found.high)}, Holm-adjusted {show_p(p)}"
    if p < ALPHA:
        word = "lower (better)" if found.mean < 0 else "higher (worse)"
        return f"{arm} has a {word} {unit} than {other}: {signed(found.mean)} ({facts}, {seeds})."
    effect = detectable_effect(found.n, alpha)
    return (
        f"{seeds} cannot decide between {arm} and {other}: {size} ({facts}). Only a difference of "
        f"{show(effect * found.sd)} or more (d_z {effect:.2f}) would have been detected with 80 % power."
    )


def warnings_of(arms: Sequence[Arm], baseline: Arm, comparisons: Sequence[Comparison]) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    if any(len({_hash(job, "corpus") for job in arm.by_seed.values()}) > 1 for arm in arms):
        found.append(
            "The corpus and its evaluation text differ between seeds (set data.seed to fix them): spreads "
            "over seeds include that of the text. Differences are within a seed, so over one text."
        )
    if max((len(arm.by_seed) for arm in arms), default=0) == 1:
        found.append("Every arm has one finished seed: no intervals and no tests, any difference may be chance.")
    for arm in arms:
        if arm.by_seed and (lost := sorted({str(j.seed) for j in arm.jobs} - {str(s) for s in arm.by_seed})):
            found.append(
                f"{arm.name}: seed{'s' * (len(lost) > 1)} {', '.join(lost)} did not finish; its figures are of the "
                "others, which flatters an arm that fails where it does badly."
            )
        if len(arm.jobs) > len({job.seed for job in arm.jobs}):
            found.append(f"{arm.name}: several jobs have one seed; of those that finished the last by name counts.")
    for c in comparisons:
        if not c.refused and c.seeds and abs(c.words - 1) >= 0.0005:
            found.append(f"{c.arm.name} saw {c.words - 1:+.1%} words against {baseline.name}; within the tolerance.")
    if len({json.dumps(_machine(job)) for arm in arms for job in arm.by_seed.values()}) > 1:
        found.append("The jobs ran on different devices, software or commits (below): their speeds do not compare.")
    return found


def _machine(job: Job) -> dict[str, str]:
    """Device, commit and versions of a finished job."""
    versions = job.result.get("versions")
    device, commit = (str(job.result.get(key, "not recorded")) for key in ("device", "commit"))
    return {"device": device, "commit": commit, **(versions if isinstance(versions, dict) else {})}


# Tables


def show(value: float, scale: float | None = None) -> str:
    """A figure with as many digits as its size, or that of `scale`, deserves."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    size = abs(value if scale is None else scale)
    if value == int(value) and scale is None:
        return f"{value:,.0f}"
    if 0 < abs(value) < 0.001:
        return f"{value:.3g}"
    return f"{value:,.{4 if size < 20 else 2 if size < 1000 else 0}f}"


def signed(value: float) -> str:
    """A difference, with its sign."""
    return f"{'+' if value > 0 else ''}{show(value)}"


def show_p(p: float) -> str:
    return "p –" if math.isnan(p) else "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def show_summary(found: Summary) -> str:
    """`mean ± sd` above its interval."""
    if found.n and math.isnan(found.mean):
        return "not finite"
    if not found.n or math.isnan(found.sd):
        return show(found.mean)
    if not found.sd:
        return f"{show(found.mean)}\nno spread"
    mean, sd, low, high = (show(value, found.mean) for value in (found.mean, found.sd, found.low, found.high))
    return f"{mean} ± {sd}\n{low} to {high}"


def arms_table(arms: Sequence[Arm]) -> Table:
    rows = [
        [arm.name, f"{len(arm.by_seed)} of {len({job.seed for job in arm.jobs})}"]
        + [show_summary(summarise(arm.values(metric))) for metric in METRICS]
        for arm in arms
    ]
    note = (
        "Mean ± standard deviation over seeds; below it the 95 % interval of the mean (Student's t). Losses and "
        "perplexities of different tokenizers do not compare; bits per byte do. tokens/s is the median while training; "
        "seconds include evaluation."
    )
    return Table(["arm", "seeds finished", *METRICS.values()], rows, note)


def differences_table(comparisons: Sequence[Comparison], metric: str) -> Table:
    """The arms that may be compared in `metric`, best first."""
    p = adjusted(comparisons, metric)
    alpha = level(p)
    rows = []
    for c in _allowed(comparisons, metric):
        d = c.metrics[metric]
        effect = detectable_effect(d.n, alpha)
        interval = "–" if math.isnan(d.low) else f"{signed(d.low)} to {signed(d.high)}"
        tests = [
            "–" if math.isnan(d.effect) else f"{d.effect:+.2f}",
            *(show_p(value).removeprefix("p ").removeprefix("= ") for value in (d.p, p[c.arm.name])),
        ]
        least = "–" if not d.sd or math.isnan(d.sd) else f"{show(effect * d.sd)}\n(d_z {effect:.2f})"
        mean = "not finite" if math.isnan(d.mean) else f"{signed(d.mean)}"
        rows.append([c.arm.name, str(d.n), mean, interval, *tests, least])
    head = ["arm", "shared seeds", "difference", "95 % interval", "effect size d_z", "p", "Holm-adjusted", "detectable"]
    return Table(head, rows)


def exposure_table(arms: Sequence[Arm]) -> Table:
    """How often documents were begun, means over seeds."""
    rows = []
    for arm in arms:
        found = [e for job in arm.by_seed.values() if isinstance(e := job.result.get("exposures"), dict)]
        if found:
            means = [np.mean([_number(e.get(key)) for e in found]) for key in ("maximum", "median", "minimum")]
            tenths = _deciles(found)
            rows.append(
                [arm.name, *(show(float(m)) for m in means), " ".join(f"{t:.1f}" for t in tenths) or "no ranking"]
            )
    note = "Times a document was begun. By tenth of the arm's own ranking, the first-ranked tenth first."
    return Table(["arm", "most", "median", "least", "by tenth"], rows, note)


def _deciles(exposures: Iterable[dict[str, Any]]) -> list[float]:
    found = [list(e.get("deciles") or ()) for e in exposures]
    usable = [[_number(value) for value in tenths] for tenths in found if len(tenths) == 10 and None not in tenths]
    return [float(value) for value in np.mean(usable, axis=0)] if usable else []


def changes_table(arms: Sequence[Arm], baseline: Arm) -> Table:
    rows = []
    for arm in arms:
        changed = changes(arm.leaves, baseline.leaves)
        sizes = {n for job in arm.by_seed.values() if isinstance(n := job.result.get("parameters"), int)}
        text = "\n".join(changed) or ("baseline" if arm is baseline else "nothing")
        rows.append([arm.name, ", ".join(f"{size:,}" for size in sorted(sizes)) or "–", text])
    return Table(["arm", "parameters", "against the baseline"], rows, "A ~ marks a key that the arm does not have.")


def failures_table(arms: Sequence[Arm]) -> Table:
    rows = [
        [arm.name, str(job.seed), job.status, job.cause or "no cause recorded", job.name]
        for arm in arms
        for job in arm.jobs
        if not job.finished
    ]
    return Table(["arm", "seed", "status", "cause", "directory"], rows)


def machines_table(jobs: Sequence[Job]) -> Table:
    machines: dict[str, list[Job]] = {}
    for job in jobs:
        if job.finished:
            machines.setdefault(json.dumps(_machine(job)), []).append(job)
    heads = list(dict.fromkeys(key for text in machines for key in json.loads(text)))
    rows = [[str(len(js)), *(str(json.loads(text).get(h, "–")) for h in heads)] for text, js in machines.items()]
    return Table(["jobs", *heads], rows)


def results_frame(arms: Sequence[Arm]) -> pd.DataFrame:
    """results.csv: one row a job."""
    rows = [
        {"arm": arm.name, "seed": job.seed, "status": job.status, **job.metrics}
        | {"parameters": job.result.get("parameters"), "config_hash": job.result.get("config_hash")}
        | {"corpus": _hash(job, "corpus"), "tokenizer": _hash(job, "tokenizer"), **_machine(job)}
        | {"directory": job.name, "cause": job.cause}
        for arm in arms
        for job in arm.jobs
    ]
    return pd.DataFrame(rows).drop(
        columns="commit" if not any("commit" in j.result for a in arms for j in a.jobs) else []
    )


# Plots


def band(arm: Arm, key: str) -> pd.DataFrame:
    """Mean, minimum and maximum of `key` over finished seeds, by update; only updates that all of them have."""
    frames = [
        pd.DataFrame([(line["step"], line[key]) for line in lines], columns=["step", "value"]).drop_duplicates("step")
        for job in arm.by_seed.values()
        if (lines := [x for x in read_lines(job.directory / "metrics.jsonl") if "step" in x and x.get(key) is not None])
    ]
    if not frames:
        return pd.DataFrame(columns=["mean", "min", "max", "count"])
    found = pd.concat(frames).groupby("step")["value"].agg(["mean", "min", "max", "count"])
    return found[found["count"] == len(frames)]


def style_of(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "linestyle": STYLES[index // len(COLORS) % len(STYLES)]}


def plots(arms: Sequence[Arm], one_tokenizer: bool) -> list[Plot]:
    """The curves, each as one picture; those that no arm has are left out. Names and colours are the page's legend."""
    loss = ("val/loss", "Validation loss (nats a token)") if one_tokenizer else ("val/bits_per_byte", "Bits per byte")
    curves = [loss, ("train/loss", "Training loss (nats a token)"), ("learning_rate", "Learning rate")]
    curves += [("threshold", "Curriculum threshold")]
    found = []
    for key, title in curves:
        bands = [(i, table) for i, arm in enumerate(arms) if len(table := band(arm, key))]

        def draw(axes: Axes, bands: list[tuple[int, pd.DataFrame]] = bands) -> None:
            for index, table in bands:
                marker = "o" if len(table) <= 30 else ""
                axes.plot(table.index, table["mean"], lw=1.4, marker=marker, markersize=3, **style_of(index))
                axes.fill_between(
                    table.index, table["min"], table["max"], color=style_of(index)["color"], alpha=0.15, lw=0
                )
            axes.set_xlabel("update")

        if bands:
            found.append(
                _plot(title, draw, "the mean over seeds as a line, the range from lowest to highest as a band")
            )
    return found + _exposure_plot(arms)


def _exposure_plot(arms: Sequence[Arm]) -> list[Plot]:
    tenths = {
        i: _deciles(job.result.get("exposures") or {} for job in arm.by_seed.values()) for i, arm in enumerate(arms)
    }

    def draw(axes: Axes) -> None:
        for index, values in tenths.items():
            if values:
                axes.plot(range(1, 11), values, marker="o", markersize=3, linewidth=1.4, **style_of(index))
        axes.set(xlabel="tenth of the ranking (1: ranked first)", xticks=range(1, 11), ylim=(0, None))

    title = "Exposures a document"
    return [_plot(title, draw, "means over seeds by tenth of the arm's ranking")] if any(tenths.values()) else []


def _plot(title: str, draw: Callable[[Axes], None], alt: str) -> Plot:
    """Draws on one pair of axes; SVG, so that it is sharp at any width."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):  # the same study gives the same file
        figure.savefig(picture, format="svg", metadata={"Date": None})
    data = base64.b64encode(picture.getvalue()).decode()
    return Plot(title, f"data:image/svg+xml;base64,{data}", f"{title}: {alt}")


# Writing


def write_report(directory: Path, baseline: str | None = None) -> Path:
    """Writes report.html, report.md and results.csv into a study's directory.

    Args:
        directory: of the study, holding a directory a job. baseline: an arm's name, or a part that only it has; None:
            the arm nearest to the defaults.

    Returns:
        The path of report.html.

    Raises:
        InputError: no such directory, no job in it, or no such arm. StorageError: it cannot be written.
    """
    arms = group_arms(read_jobs(Path(directory)))
    reference = defaults()
    base = choose_baseline(arms, baseline, reference)
    content = contents(Path(directory).resolve().name, arms, base, reference)
    environment = _environment()
    for name in ("report.md", "report.html"):
        _write(Path(directory) / name, environment.get_template(f"{name}.j2").render(content))
    _write(Path(directory) / "results.csv", results_frame(arms).to_csv(index=False))
    return Path(directory) / "report.html"


def contents(name: str, arms: list[Arm], baseline: Arm, reference: dict[str, Any]) -> dict[str, Any]:
    """What both templates show."""
    jobs = [job for arm in arms for job in arm.jobs]
    comparisons = [compare(arm, baseline) for arm in arms if arm is not baseline] if baseline.by_seed else []
    counts = {s: sum(job.status == s for job in jobs) for s in sorted({job.status for job in jobs}, key=str)}
    tokenizers = {_hash(job, "tokenizer") for job in jobs if job.finished}
    same = all(c.same_tokenizer for c in comparisons) or len(tokenizers) == 1
    shared = set(changes(arms[0].leaves, reference)).intersection(*(changes(a.leaves, reference) for a in arms))
    return {
        "name": name,
        "summary": f"{len(jobs)} job{'s' * (len(jobs) != 1)}: " + ", ".join(f"{n} {s}" for s, n in counts.items()),
        "arms": [(arm.name, style_of(i)) for i, arm in enumerate(arms)],
        "baseline": baseline.name,
        "verdicts": verdicts(baseline, comparisons),
        "warnings": warnings_of(arms, baseline, comparisons),
        "table": arms_table(arms),
        "differences": [(METRICS[m], t) for m in COMPARED if (t := differences_table(comparisons, m)).rows],
        "method": METHOD,
        "failures": failures_table(arms),
        "plots": plots(arms, same),
        "exposure": exposure_table(arms),
        "changes": changes_table(arms, baseline),
        "shared": sorted(shared),
        "machines": machines_table(jobs),
    }


def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = markdown
    return environment


def markdown(text: str) -> str:
    """`text` as itself inside a Markdown table or paragraph: no mark-up, no tags, no new cell."""
    special = {**{c: f"\\{c}" for c in "\\`*_[]|~#"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return "<br>".join("".join(special.get(c, c) for c in line) for line in str(text).splitlines())


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf8")
        os.replace(aside, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def main() -> None:
    """Entry point of `python -m babylm_train.report`."""
    try:
        options = [a.removeprefix("baseline=") for a in sys.argv[1:] if a.startswith("baseline=")]
        places = [a for a in sys.argv[1:] if not a.startswith("baseline=")]
        if len(places) != 1 or len(options) > 1 or places[0].startswith("-"):
            raise InputError("python -m babylm_train.report DIRECTORY [baseline=ARM], the directory of one study")
        print(write_report(Path(places[0]), options[0] if options else None))
    except RunError as error:
        fail(error)


if __name__ == "__main__":
    main()
