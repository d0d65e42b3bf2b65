"""What a study found, and what it cannot say: `python -m babylm_train.report DIRECTORY [baseline=ARM] [upload=true]`.

Writes report.html (one file), report.md and results.csv into the study's directory, and uploads them to W&B if asked
to. Jobs that differ only in their seed form an arm; arms are compared with the baseline, seed by seed, and only where
both had the same text, budget and objective.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from babylm_train.errors import InputError, RunError, StorageError, fail
from babylm_train.files import write_text
from babylm_train.study.arms import (
    METRICS,
    Arm,
    Job,
    changes,
    choose_baseline,
    defaults,
    group_arms,
    read_jobs,
    read_mapping,
)
from babylm_train.study.statistics import ALPHA, Difference, Summary, detectable_effect, holm, paired, summarise

if TYPE_CHECKING:
    from jinja2 import Environment

USAGE = "python -m babylm_train.report DIRECTORY [baseline=ARM] [upload=true], the directory of one study"
FILES = ("report.html", "report.md", "results.csv")
WORDS_TOLERANCE = 0.05  # of the baseline's words: rankings spend equal tokens on longer or shorter words
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#000000", "#7f3c8d", "#999999", "#a52a2a")
STYLES = ("solid", "dashed", "dotted")  # after each round of colours; names that both CSS and matplotlib know
POINTS = 200  # of a curve; twice as many are thinned
COMPARED = ("val_loss", "perplexity", "pseudo_perplexity", "bits_per_byte")
NOTES = {
    "arms_note": "Mean ± standard deviation over seeds; below it the 95 % interval of the mean (Student's t). Losses "
    "and perplexities of different tokenizers do not compare; bits per byte do. Seconds include evaluation; tokens/s, "
    "MFU, memory and waiting are medians while training.",
    "exposure_note": "Times a document was begun. By tenth of the arm's own ranking, the first-ranked tenth first.",
    "method": "Differences are arm minus baseline, seed by seed; below 0 the arm is better. Intervals and p are of the "
    "paired t test and not adjusted; Holm's p is adjusted for the number of arms and decides at 0.05. Detectable: the "
    "smallest difference that this number of seeds finds with 80 % power at the level of Holm's strictest step, if the "
    "spread is the one seen. Arms are compared only with one objective, over the same corpus and evaluation text and "
    "with an equal budget: updates and tokens within one tokenizer, and words within "
    f"{WORDS_TOLERANCE:.0%}; across tokenizers words alone, and there only bits per byte are compared.",
}
SCALE = {"mfu": 100, "data_wait": 100, "peak_memory_mib": 2**-10}


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline over the seeds that both finished; `refused` says why they cannot be ranked."""

    arm: Arm
    seeds: list[Any]
    refused: list[str]
    words: float  # of the arm over those of the baseline, the seed that differs most
    metrics: dict[str, Difference]
    same_tokenizer: bool


def compare(arm: Arm, baseline: Arm) -> Comparison:
    """Differences to the baseline over the seeds that both finished, and whether they may be called better or worse."""
    seeds = [seed for seed in arm.by_seed if seed in baseline.by_seed]
    pairs = [(arm.by_seed[seed], baseline.by_seed[seed]) for seed in seeds]
    found: dict[str, list[str]] = {}
    for a, b in pairs:
        for what, ours, theirs in _unequal(a, b):
            found.setdefault(what, []).append(f"{ours} against {theirs} (seed {a.seed})")
    refused = [f"{k}: {v[0]}" + (f" and {len(v) - 1} more" if len(v) > 1 else "") for k, v in found.items()]
    ratios = [a.metrics["words"] / b.metrics["words"] if b.metrics["words"] else math.nan for a, b in pairs]
    words = max(ratios, key=lambda ratio: abs(ratio - 1), default=math.nan)
    metrics = {m: paired([a.metrics[m] for a, _ in pairs], [b.metrics[m] for _, b in pairs]) for m in COMPARED}
    same_tokenizer = all(a.facts["tokenizer"] == b.facts["tokenizer"] for a, b in pairs)
    return Comparison(arm, seeds, refused, words, metrics, same_tokenizer)


def _unequal(a: Job, b: Job) -> Iterator[tuple[str, str, str]]:
    """Within one tokenizer a budget is updates and tokens, words within a tolerance; across tokenizers it is words."""
    if a.facts["objective"] != b.facts["objective"]:
        yield "objectives differ", a.facts["objective"], b.facts["objective"]
    for key, what in (("corpus", "corpus or evaluation text differ"), ("validation", "evaluation text differs")):
        if a.facts[key] != b.facts[key] or (key == "corpus" and a.facts[key] is None):
            yield what, str(a.facts[key] or "not recorded")[:12], str(b.facts[key] or "not recorded")[:12]
    for key, what in (("window", "lengths of the evaluation's windows"), ("passes", "passes of the evaluation")):
        if a.facts[key] != b.facts[key]:
            yield f"{what} differ", str(a.facts[key]), str(b.facts[key])
    unknown = (a.facts["unknown"], b.facts["unknown"])
    if a.facts["tokenizer"] != b.facts["tokenizer"] and any(unknown):
        yield "unknown tokens, whose text no loss counts", f"{unknown[0]:.2%}", f"{unknown[1]:.2%} of the tokens"
    if a.facts["tokenizer"] == b.facts["tokenizer"]:
        early = " after early stopping" * (True in (a.result.get("stopped_early"), b.result.get("stopped_early")))
        for key in ("updates", "tokens"):
            if a.metrics[key] != b.metrics[key]:
                yield f"{key} differ{early}", f"{a.metrics[key]:,.0f}", f"{b.metrics[key]:,.0f}"
    ours, theirs = a.metrics["words"], b.metrics["words"]
    if not abs(ours - theirs) <= WORDS_TOLERANCE * theirs:
        yield f"words differ by more than {WORDS_TOLERANCE:.0%}", f"{ours:,.0f}", f"{theirs:,.0f}"


def allowed(comparisons: Sequence[Comparison], metric: str) -> list[Comparison]:
    """The arms that may be compared in `metric`, lowest first."""
    chosen = [c for c in comparisons if c.seeds and not c.refused and (c.same_tokenizer or metric == "bits_per_byte")]
    return sorted(chosen, key=lambda c: (math.isnan(c.metrics[metric].mean), c.metrics[metric].mean, c.arm.name))


def adjusted(comparisons: Sequence[Comparison], metric: str) -> tuple[dict[str, float], float]:
    """Holm's p values by arm, over every arm that is compared, and the level of his strictest step."""
    chosen = allowed(comparisons, metric)
    values = holm([c.metrics[metric].p for c in chosen])
    level = ALPHA / max(1, sum(not math.isnan(value) for value in values))
    return {c.arm.name: value for c, value in zip(chosen, values, strict=True)}, level


def verdicts(baseline: Arm, comparisons: Sequence[Comparison]) -> list[tuple[str, list[str], str]]:
    """Better, worse, undecided or not compared, of which arms, and one plain sentence why. One seed decides nothing."""
    metric = "val_loss" if all(c.same_tokenizer for c in comparisons) else "bits_per_byte"
    p, level = adjusted(comparisons, metric)
    chosen, other = allowed(comparisons, metric), baseline.name
    single = [c for c in chosen if c.metrics[metric].n == 1 and not math.isnan(c.metrics[metric].mean)]
    said = []
    for c in chosen:
        if c not in single:
            gist, text = _verdict(c, other, metric, p[c.arm.name], level)
            said.append((gist, [c.arm.name], text))
    if single:
        sizes = list(dict.fromkeys(signed(c.metrics[metric].mean) for c in (single[0], single[-1])))
        names = [c.arm.name for c in single]
        text = f"One seed cannot decide between {'; '.join(names)} and {other}: the {_unit(metric)} differs by "
        said.append(("undecided", names, f"{text}{' to '.join(sizes)}, which may be chance."))
    for c in comparisons:
        name = c.arm.name
        if c.refused:
            said.append(("not ranked", [name], f"{name} is not ranked against {other}: {'; '.join(c.refused)}."))
        elif not c.seeds:
            text = f"{name} is not compared with {other}: they finished no seed in common."
            said.append(("no data", [name], text))
    return said


def _unit(metric: str) -> str:
    return METRICS[metric].partition(" (")[0]


def _verdict(c: Comparison, other: str, metric: str, p: float, level: float) -> tuple[str, str]:
    found, unit, arm = c.metrics[metric], _unit(metric), c.arm.name
    size, seeds = f"the {unit} differs by {signed(found.mean)}", f"{found.n} seeds"
    if math.isnan(found.mean):
        return "no data", f"{arm} and {other} are not compared: a {unit} is not finite."
    if not found.sd and found.mean == 0:
        return "same", f"{arm} and {other} have the same {unit} in each of {seeds}."
    if not found.sd:
        return "undecided", f"In each of {seeds} of {arm} and {other} {size}: there is no spread to test against."
    facts = f"95 % interval {signed(found.low)} to {signed(found.high)}, Holm-adjusted {show_p(p)}"
    if p < ALPHA:
        gist, word = ("better", "lower (better)") if found.mean < 0 else ("worse", "higher (worse)")
        return gist, f"{arm} has a {word} {unit} than {other}: {signed(found.mean)} ({facts}, {seeds})."
    effect = detectable_effect(found.n, level)
    return "undecided", (
        f"{seeds} cannot decide between {arm} and {other}: {size} ({facts}). Only a difference of "
        f"{show(effect * found.sd)} or more (d_z {effect:.2f}) would have been detected with 80 % power."
    )


def warnings_of(arms: Sequence[Arm], baseline: Arm, comparisons: Sequence[Comparison]) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    if any(len({job.facts["corpus"] for job in arm.by_seed.values()}) > 1 for arm in arms):
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
    if len({json.dumps(job.machine) for arm in arms for job in arm.by_seed.values()}) > 1:
        found.append(
            "The jobs ran on different devices, software or commits (below): their speeds do not compare, and their "
            "losses may differ for that reason too."
        )
    return found


# Tables, of text; a line break parts the lines of a cell


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
    return f"{'+' if value > 0 else ''}{show(value)}"


def show_p(p: float) -> str:
    return "p –" if math.isnan(p) else "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def show_summary(values: Sequence[float]) -> str:
    """`mean ± sd` above its interval; the value alone where all seeds have it or there is one."""
    found: Summary = summarise(values)
    if all(map(math.isnan, values)):
        return "–"
    if math.isnan(found.mean):
        return "not finite"
    if math.isnan(found.sd) or not found.sd:
        return show(found.mean)
    mean, sd, low, high = (show(value, found.mean) for value in (found.mean, found.sd, found.low, found.high))
    return f"{mean} ± {sd}\n{low} to {high}"


def arms_table(arms: Sequence[Arm], gists: dict[str, str]) -> pd.DataFrame:
    """The metrics that at least one finished job has, over seeds."""
    rows = []
    for arm in arms:
        values = {m: [SCALE.get(m, 1) * job.metrics[m] for job in arm.by_seed.values()] for m in METRICS}
        count = f"{len(arm.by_seed)} of {len({job.seed for job in arm.jobs})}"
        figures = {METRICS[metric]: show_summary(found) for metric, found in values.items()}
        rows.append({"arm": arm.name, "verdict": gists.get(arm.name, "–"), "seeds finished": count, **figures})
    return _told(pd.DataFrame(rows))


def _told(table: pd.DataFrame) -> pd.DataFrame:
    """Without the columns that say nothing."""
    return table.loc[:, (table != "–").any()]


def differences_table(comparisons: Sequence[Comparison], metric: str) -> pd.DataFrame:
    """The arms that may be compared in `metric`, best first."""
    p, level = adjusted(comparisons, metric)
    rows = []
    for c in allowed(comparisons, metric):
        d, effect = c.metrics[metric], detectable_effect(c.metrics[metric].n, level)
        tests = [show_p(value).removeprefix("p ").removeprefix("= ") for value in (d.p, p[c.arm.name])]
        rows.append(
            {
                "arm": c.arm.name,
                "shared seeds": str(d.n),
                "difference": "not finite" if math.isnan(d.mean) else signed(d.mean),
                "95 % interval": "–" if math.isnan(d.low) else f"{signed(d.low)} to {signed(d.high)}",
                "effect size d_z": "–" if math.isnan(d.effect) else f"{d.effect:+.2f}",
                "p": tests[0],
                "Holm-adjusted p": tests[1],
                "detectable": f"{show(effect * d.sd)}\n(d_z {effect:.2f})" if d.sd > 0 else "–",
            }
        )
    return _told(pd.DataFrame(rows))


def intervals(comparisons: Sequence[Comparison], metric: str) -> list[dict[str, float]]:
    """Each arm's interval, its mean and 0 as per cent of a common axis; empty where there are no intervals."""
    found = [c.metrics[metric] for c in allowed(comparisons, metric)]
    ends = [0.0, *(value for d in found for value in (d.low, d.mean, d.high) if math.isfinite(value))]
    if all(math.isnan(d.low) for d in found):
        return []
    start, span = min(ends), (max(ends) - min(ends)) or 1.0
    places = [{"zero": 0.0, "low": d.low, "mean": d.mean, "high": d.high} for d in found]
    return [{k: 100 * (v - start) / span for k, v in p.items() if math.isfinite(v)} for p in places]


def exposure_table(arms: Sequence[Arm]) -> pd.DataFrame:
    """How often documents were begun, means over seeds."""
    rows = []
    for arm in arms:
        found = [e for job in arm.by_seed.values() if isinstance(e := job.result.get("exposures"), dict)]
        tenths = pd.DataFrame([t for e in found if len(t := e.get("deciles") or ()) == 10 and None not in t]).mean()
        means = pd.DataFrame(found).reindex(columns=["maximum", "median", "minimum"]).mean()
        rows.append([arm.name, *map(show, means), " ".join(f"{t:.1f}" for t in tenths) or "–"])
    return _told(pd.DataFrame(rows, columns=["arm", "most", "median", "least", "by tenth of the ranking"]))


def changes_table(arms: Sequence[Arm], reference: dict[str, Any]) -> tuple[pd.DataFrame, list[str]]:
    """What each arm changed against the defaults, as typed, or derived where that is not recorded; and what all did."""
    typed = [list(changes(a.leaves, reference) if (o := a.jobs[0].overrides) is None else o) for a in arms]
    shared = [override for override in typed[0] if all(override in other for other in typed)]
    sizes = [{str(j.result["parameters"]) for j in a.by_seed.values() if "parameters" in j.result} for a in arms]
    table = {
        "arm": [arm.name for arm in arms],
        "parameters": [", ".join(f"{int(size):,}" for size in sorted(found)) or "–" for found in sizes],
        "overrides": ["\n".join(o for o in overrides if o not in shared) or "nothing" for overrides in typed],
    }
    return _told(pd.DataFrame(table)), shared


def samples_table(arms: Sequence[Arm]) -> pd.DataFrame:
    """What the first finished seed of each arm writes."""
    firsts = [(arm.name, next(iter(arm.by_seed.values()))) for arm in arms if arm.by_seed]
    rows = [(name, "\n".join(job.result["samples"])) for name, job in firsts if job.result.get("samples")]
    return pd.DataFrame(rows, columns=["arm", "samples of its first seed"])


def results_frame(arms: Sequence[Arm]) -> pd.DataFrame:
    """results.csv: one row a job."""
    rows = [
        {"arm": arm.name, "seed": "" if job.seed is None else str(job.seed), "status": job.status, **job.metrics}
        | {"parameters": job.result.get("parameters"), "config_hash": job.result.get("config_hash")}
        | {**job.facts, **job.machine, "directory": job.name, "cause": job.cause}
        | {"overrides": " ".join(job.overrides or ())}
        for arm in arms
        for job in arm.jobs
    ]
    return pd.DataFrame(rows)


# Plots


def band(arm: Arm, key: str) -> pd.DataFrame:
    """Mean, minimum and maximum of `key` over finished seeds, by update; only updates that all of them have."""
    curves = [job.curves for job in arm.by_seed.values() if {"step", key} <= set(job.curves)]
    seeds = [c.dropna(subset=["step", key]).drop_duplicates("step").set_index("step")[key] for c in curves]
    return pd.concat(seeds, axis=1, join="inner").agg(["mean", "min", "max"], axis=1) if seeds else pd.DataFrame()


def style_of(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "linestyle": STYLES[index // len(COLORS) % len(STYLES)]}


def plots(arms: Sequence[Arm], one_measure: bool) -> list[dict[str, str]]:
    """The curves, each as one picture; those that no arm has, and a threshold that never moves, are left out.

    Names and colours are the page's legend. one_measure: losses of all arms compare.
    """
    losses = {"val/loss": "Validation loss (nats a token)", "train/loss": "Training loss (nats a token)"}
    curves = losses if one_measure else {"val/bits_per_byte": "Bits per byte of the validation text"}
    found = []
    for key, title in {**curves, "learning_rate": "Learning rate", "threshold": "Curriculum threshold"}.items():
        bands = {i: table for i, arm in enumerate(arms) if len(table := band(arm, key))}
        if bands and not (key == "threshold" and all((table["mean"] == 1).all() for table in bands.values())):
            found.append(_plot(title, bands))
    return found


def _plot(title: str, bands: dict[int, pd.DataFrame]) -> dict[str, str]:
    """Lines with bands as an SVG, so that it is sharp at any width, in a data: URI."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for index, whole in bands.items():
        table = whole.iloc[:: -max(1, len(whole) // POINTS)]  # backwards: the last is kept
        marker = "o" if len(table) <= 30 else ""
        axes.plot(table.index, table["mean"], lw=1.4, marker=marker, markersize=3, **style_of(index))
        axes.fill_between(table.index, table["min"], table["max"], color=style_of(index)["color"], alpha=0.15, lw=0)
    axes.set_xlabel("update")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):  # the same study gives the same file
        figure.savefig(picture, format="svg", metadata={"Date": None})
    data = base64.b64encode(picture.getvalue()).decode()
    return {"title": title, "source": f"data:image/svg+xml;base64,{data}"}


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
    directory = Path(directory)
    arms = group_arms(read_jobs(directory))
    reference = defaults()
    base = choose_baseline(arms, baseline, reference)
    results = results_frame(arms)
    content = contents(directory.resolve().name, arms, base, reference, results)
    for name in ("report.md", "report.html"):
        write_text(directory / name, _environment().get_template(f"{name}.j2").render(content))
    write_text(directory / "results.csv", results.to_csv(index=False))
    return directory / "report.html"


def contents(
    name: str, arms: list[Arm], baseline: Arm, reference: dict[str, Any], results: pd.DataFrame
) -> dict[str, Any]:
    """What both templates show."""
    comparisons = [compare(arm, baseline) for arm in arms if arm is not baseline] if baseline.by_seed else []
    finished = results["status"] == "finished"
    counts = [f"{count} {status}" for status, count in results["status"].value_counts().items()]
    changed, shared = changes_table(arms, reference)
    machine = list(dict.fromkeys(key for arm in arms for job in arm.by_seed.values() for key in job.machine))
    machines = results[finished].value_counts(machine, sort=False, dropna=False).rename("jobs").reset_index()
    measures = results.loc[finished, ["tokenizer", "objective"]].drop_duplicates()
    one_measure = len(measures) == 1 or all(c.same_tokenizer and c.seeds and not c.refused for c in comparisons)
    measured = [m for m in COMPARED if not all(math.isnan(job.metrics[m]) for job in baseline.by_seed.values())]
    tables = {m: differences_table(comparisons, m) for m in measured}
    said = verdicts(baseline, comparisons)
    gists = {name: gist for gist, names, _ in said for name in names} | {baseline.name: "baseline"}
    return {
        "name": name,
        "summary": f"{len(results)} job{'s' * (len(results) != 1)}: {', '.join(counts)}",
        "arms": [(arm.name, style_of(i)) for i, arm in enumerate(arms)],
        "baseline": baseline.name,
        "verdicts": said,
        "warnings": warnings_of(arms, baseline, comparisons),
        "table": arms_table(arms, gists),
        "differences": [(METRICS[m], t, intervals(comparisons, m)) for m, t in tables.items() if "difference" in t],
        **NOTES,
        "failures": results.loc[~finished, ["arm", "seed", "status", "cause", "directory"]],
        "plots": plots(arms, one_measure),
        "exposure": exposure_table(arms),
        "changes": changed,
        "shared": shared,
        "samples": samples_table(arms),
        "machines": machines.fillna("–"),
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


def markdown(text: object) -> str:
    """`text` as itself inside a Markdown table or paragraph: no mark-up, no tags, no new cell."""
    special = {**{c: f"\\{c}" for c in "\\`*_[]|~#"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return "<br>".join("".join(special.get(c, c) for c in line) for line in str(text).splitlines())


def upload(directory: Path) -> str:
    """Uploads the report as an artifact of a run in the study's group, to the project of its jobs; returns its name.

    Raises:
        InputError: W&B is offline here. StorageError: its server did not take it; the report is on disk.
    """
    import wandb

    from babylm_train.logger import choose_mode

    if choose_mode("auto") != "online":
        raise InputError("upload=true: W&B is offline (no API key, or WANDB_MODE); the report is on disk only")
    study = directory.resolve().name
    configs = [read_mapping(path, []) for path in sorted(directory.glob("*/config.yaml"))]
    loggers = [config["logger"] for config in configs if "project" in (config.get("logger") or {})]
    place = {key: loggers[0].get(key) for key in ("project", "entity")} if loggers else {}
    artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9_.-]", "-", f"report-{study}")[:128], type="report")
    for name in FILES:
        artifact.add_file(str(directory / name))
    settings = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, init_timeout=30)
    try:
        with tempfile.TemporaryDirectory() as aside:
            run = wandb.init(**place, group=study[:128], job_type="report", dir=aside, mode="online", settings=settings)
            with run:
                run.log_artifact(artifact).wait(timeout=600)
    except (wandb.errors.Error, ValueError, OSError) as error:
        raise StorageError(f"W&B did not take the report: {error}") from error
    return f"{artifact.name}"


def main() -> None:
    """Entry point of `python -m babylm_train.report`."""
    try:
        options = dict(a.split("=", 1) for a in sys.argv[1:] if a.startswith(("baseline=", "upload=")))
        places = [a for a in sys.argv[1:] if not a.startswith(("baseline=", "upload="))]
        wanted = options.get("upload", "false")
        if len(places) != 1 or len(options) + 1 != len(sys.argv[1:]) or places[0].startswith("-"):
            raise InputError(USAGE)
        if wanted not in ("true", "false"):
            raise InputError(f"upload={wanted}: true or false")
        print(write_report(Path(places[0]), options.get("baseline")))
        if wanted == "true":
            print(f"uploaded {upload(Path(places[0]))}")
    except RunError as error:
        fail(error)


if __name__ == "__main__":
    main()
