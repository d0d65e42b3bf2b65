"""What studies found, and what they cannot say: `python -m babylm_train.report STUDY [STUDY ...] [baseline=VARIANT]`.

Writes report.html (one file), report.md and results.csv into the study's directory; of several studies into `A+B+C`
beside the first. Runs that differ only in their seed form a variant; variants are compared with a baseline, seed by
seed, and only where both had the same text, budget and objective. The baseline is recorded in baseline.json when a
study is first reported, and stays until `baseline=` names another: a variant, or a part of a name that only it has.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from babylm_train.command import CommandLine, start
from babylm_train.errors import InputError
from babylm_train.files import read, write_json, write_text
from babylm_train.study.results import (
    CURVES,
    METRICS,
    RunRecord,
    Variant,
    differing_keys,
    group_variants,
    list_changes,
    read_study,
    show_value,
)
from babylm_train.study.statistics import ALPHA, Difference, compare_pairs, detectable_effect, holm, summarise

BASELINES = "baseline.json"
WORDS_TOLERANCE = 0.05  # of the baseline's words: rankings spend equal tokens on longer or shorter words
VERDICT_SEEDS = 3  # two differences and their mean leave one degree of freedom: any spread may be chance
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#000000", "#7f3c8d", "#999999", "#a52a2a")
STYLES = ("solid", "dashed", "dotted")  # after each round of colours; names that both CSS and matplotlib know
POINTS = 200  # of a curve; twice as many are thinned
COMPARED = ("val_loss", "bits_per_byte")  # perplexity says what the loss says
SCALE = {"mfu": 100, "data_wait": 100, "peak_memory_mib": 2**-10}
RATE = "optimizer.lr"
VARIANTS_NOTE = """Mean ± standard deviation over seeds; below it the 95 % interval of the geometric mean (Student's t
of the logarithms, so that it stays above 0). Across tokenizers only bits per byte compare. Seconds include evaluation;
tokens/s, MFU, memory and waiting are medians while training."""
METHOD = f"""Differences are variant minus baseline, seed by seed; below 0 the variant is better. Intervals and p are
of the paired t test; Holm's p is adjusted for the number of variants and decides at {ALPHA}, from {VERDICT_SEEDS} seeds
on. Detectable: the smallest difference that this number of seeds finds with 80 % power at Holm's strictest step, if the
spread is the one seen. Compared are variants of one objective over the same corpus and evaluation text with an equal
budget: updates and tokens within one tokenizer, words within {WORDS_TOLERANCE:.0%}; across tokenizers words alone, and
then only bits per byte."""


@dataclass(frozen=True)
class Comparison:
    """A variant against its baseline over the seeds that both finished; `refused` says why they cannot be ranked."""

    variant: Variant
    baseline: Variant
    seeds: list[Any]
    refused: list[str]
    words: float  # of the variant over those of the baseline, the seed that differs most
    metrics: dict[str, Difference]
    same_tokenizer: bool


def compare(variant: Variant, baseline: Variant) -> Comparison:
    """Differences to the baseline over the seeds that both finished, and whether they may be called better or worse."""
    seeds = [seed for seed in variant.by_seed if seed in baseline.by_seed]
    pairs = [(variant.by_seed[seed], baseline.by_seed[seed]) for seed in seeds]
    found: dict[str, list[str]] = {}
    for a, b in pairs:
        for what, ours, theirs in _unequal(a, b):
            found.setdefault(what, []).append(f"{ours} against {theirs} (seed {a.seed})")
    refused = [f"{k}: {v[0]}" + (f" and {len(v) - 1} more" if len(v) > 1 else "") for k, v in found.items()]
    ratios = [a.metrics["words"] / b.metrics["words"] if b.metrics["words"] else math.nan for a, b in pairs]
    words = max(ratios, key=lambda ratio: abs(ratio - 1), default=math.nan)
    metrics = {m: compare_pairs([a.metrics[m] for a, _ in pairs], [b.metrics[m] for _, b in pairs]) for m in COMPARED}
    same_tokenizer = all(a.facts["tokenizer"] == b.facts["tokenizer"] for a, b in pairs)
    return Comparison(variant, baseline, seeds, refused, words, metrics, same_tokenizer)


def _unequal(a: RunRecord, b: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Within one tokenizer a budget is updates and tokens, words within a tolerance; across tokenizers it is words."""
    if a.facts["objective"] != b.facts["objective"]:
        yield "objectives differ", a.facts["objective"], b.facts["objective"]
    for key, what in (("corpus", "corpus or evaluation text differ"), ("validation", "evaluation text differs")):
        if a.facts[key] != b.facts[key] or (key == "corpus" and a.facts[key] is None):
            yield what, str(a.facts[key] or "not recorded")[:12], str(b.facts[key] or "not recorded")[:12]
    for key, what in (("window", "lengths of the evaluation's windows"), ("passes", "passes of the evaluation")):
        if a.facts[key] != b.facts[key]:
            yield f"{what} differ", str(a.facts[key]), str(b.facts[key])
    unknown = (a.result.unknown_share, b.result.unknown_share)
    if a.facts["tokenizer"] != b.facts["tokenizer"] and any(unknown):
        yield "unknown tokens, whose text no loss counts", f"{unknown[0]:.2%}", f"{unknown[1]:.2%} of the tokens"
    if a.facts["tokenizer"] == b.facts["tokenizer"]:
        early = " after early stopping" * (a.result.stopped_early or b.result.stopped_early)
        for key in ("updates", "tokens"):
            if a.metrics[key] != b.metrics[key]:
                yield f"{key} differ{early}", f"{a.metrics[key]:,.0f}", f"{b.metrics[key]:,.0f}"
    ours, theirs = a.metrics["words"], b.metrics["words"]
    if not abs(ours - theirs) <= WORDS_TOLERANCE * theirs:
        yield f"words differ by more than {WORDS_TOLERANCE:.0%}", f"{ours:,.0f}", f"{theirs:,.0f}"


def choose_baselines(
    variants: Sequence[Variant], named: str | None, recorded: Sequence[str], reference: dict[str, Any]
) -> list[Variant]:
    """A baseline for each group of variants that can be compared: named, else recorded, else nearest to the defaults.

    Args:
        named: a variant's name, or a part that only it has. recorded: identities, as baseline.json has them.
        reference: the configuration of a run without any override.

    Raises:
        InputError: no variant is `named` so, or several are; the message lists them.
    """
    chosen: list[Variant] = []
    if named is not None:
        found = [v for v in variants if v.name == named] or [v for v in variants if named.lower() in v.name.lower()]
        if len(found) != 1:
            which = "no variant of that name" if not found else "that fits several variants"
            raise InputError(f"baseline={named}: {which} (there are {'; '.join(v.name for v in variants)})")
        chosen = found

    def place(variant: Variant) -> tuple[Any, ...]:
        known = recorded.index(variant.identity) if variant.identity in recorded else len(recorded)
        return known, not variant.by_seed, len(list_changes(variant.leaves, reference)), variant.name

    for variant in sorted(variants, key=place):
        if variant not in chosen and all(compare(variant, other).refused for other in chosen):
            chosen.append(variant)
    return chosen


def compare_all(variants: Sequence[Variant], baselines: Sequence[Variant]) -> list[Comparison]:
    """Each variant with the baseline of its group; the baselines of other groups with the first, which is refused."""
    found = []
    for variant in variants:
        against = baselines[:1] if variant in baselines else baselines
        if others := [compare(variant, other) for other in against if other.by_seed and other is not variant]:
            found.append(min(others, key=lambda c: (bool(c.refused), not c.seeds)))
    return found


def select(comparisons: Sequence[Comparison], metric: str) -> list[Comparison]:
    """The variants that may be compared in `metric`, lowest first."""
    chosen = [c for c in comparisons if c.seeds and not c.refused and (c.same_tokenizer or metric == "bits_per_byte")]
    return sorted(chosen, key=lambda c: (math.isnan(c.metrics[metric].mean), c.metrics[metric].mean, c.variant.name))


def adjust(comparisons: Sequence[Comparison], metric: str) -> tuple[dict[str, float], float]:
    """Holm's p values by variant, over every one that is tested, and the level of his strictest step."""
    chosen = select(comparisons, metric)
    values = holm([c.metrics[metric].p if c.metrics[metric].n >= VERDICT_SEEDS else math.nan for c in chosen])
    level = ALPHA / max(1, sum(not math.isnan(value) for value in values))
    return {c.variant.name: value for c, value in zip(chosen, values, strict=True)}, level


def deciding_metric(comparisons: Sequence[Comparison]) -> str:
    """What verdicts are of: bits per byte where tokenizers differ."""
    return "val_loss" if all(c.same_tokenizer for c in comparisons) else "bits_per_byte"


def give_verdicts(comparisons: Sequence[Comparison], variants: Sequence[Variant]) -> list[tuple[str, str, str]]:
    """(Better, worse, undecided or not compared; the variant; a plain sentence why and what else differs)."""
    metric = deciding_metric(comparisons)
    p, level = adjust(comparisons, metric)
    said = []
    for c in select(comparisons, metric):
        gist, text = _judge(c, metric, p[c.variant.name], level)
        said.append((gist, c.variant.name, " ".join([text, *name_confounds(c, variants)])))
    for c in comparisons:
        name, other = c.variant.name, c.baseline.name
        if c.refused:
            said.append(("not ranked", name, f"{name} is not ranked against {other}: {'; '.join(c.refused)}."))
        elif not c.seeds:
            said.append(("no data", name, f"{name} is not compared with {other}: they finished no seed in common."))
    return said


def _judge(c: Comparison, metric: str, p: float, level: float) -> tuple[str, str]:
    found, unit = c.metrics[metric], METRICS[metric].partition(" (")[0]
    name, other, seeds = c.variant.name, c.baseline.name, f"{found.n} seeds"
    size = f"the {unit} differs by {show_signed(found.mean)}"
    if math.isnan(found.mean):
        return "no data", f"{name} and {other} are not compared: a {unit} is not finite."
    if found.n < VERDICT_SEEDS:
        few = "One seed allows" if found.n == 1 else "Two seeds allow"
        return "no verdict", f"{few} no verdict between {name} and {other}: {size}, which may be chance."
    if not found.sd and found.mean == 0:
        return "same", f"{name} and {other} have the same {unit} in each of {seeds}."
    if not found.sd:
        return "undecided", f"In each of {seeds} of {name} and {other} {size}: there is no spread to test against."
    facts = f"95 % interval {show_signed(found.low)} to {show_signed(found.high)}, Holm-adjusted {show_p(p)}"
    if p < ALPHA:
        gist, word = ("better", "lower (better)") if found.mean < 0 else ("worse", "higher (worse)")
        return gist, f"{name} has a {word} {unit} than {other}: {show_signed(found.mean)} ({facts}, {seeds})."
    effect = detectable_effect(found.n, level)
    return "undecided", (
        f"{seeds} cannot decide between {name} and {other}: {size} ({facts}). Only a difference of "
        f"{show(effect * found.sd)} or more (d_z {effect:.2f}) would have been detected with 80 % power."
    )


def name_confounds(c: Comparison, variants: Sequence[Variant]) -> Iterator[str]:
    """Sentences for what else differs between a variant and its baseline: settings of its own, and how it was tuned."""
    ours, theirs = c.variant.leaves, c.baseline.leaves
    keys = sorted((k for k in ours.keys() & theirs.keys() if ours[k] != theirs[k]), key=lambda k: "_target_" not in k)
    own = [
        f"{'a learning rate' if key == RATE else key} of its own "
        f"({show_value(ours[key], key)} against {show_value(theirs[key], key)})"
        for key in keys[1:]
    ]
    if own:
        more = f" and {len(own) - 4} more" if len(own) > 4 else ""
        yield f"It has {', '.join(own[:4])}{more}: more than one thing that trains differs."
    tried, base = (count_rates(v, variants) for v in (c.variant, c.baseline))
    if tried != base:
        yield f"Learning rates tried: {tried} for it, {base} for the baseline, which is no equal tuning budget."


def count_rates(variant: Variant, variants: Sequence[Variant]) -> int:
    """How many learning rates were tried with what else makes the variant."""
    rest = {key: value for key, value in variant.leaves.items() if key != RATE}
    same = [v for v in variants if {key: value for key, value in v.leaves.items() if key != RATE} == rest]
    return len({str(v.leaves.get(RATE)) for v in same})


def give_warnings(variants: Sequence[Variant], comparisons: Sequence[Comparison]) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    if any(len({run.facts["corpus"] for run in v.by_seed.values()}) > 1 for v in variants):
        found.append(
            "Corpus and evaluation text differ between seeds (data.seed fixes them): spreads include the text's."
        )
    if max((len(v.by_seed) for v in variants), default=0) == 1:
        found.append("Every variant has one finished seed: no intervals and no tests, any difference may be chance.")
    for v in variants:
        if v.by_seed and (lost := sorted({str(run.seed) for run in v.runs} - {str(seed) for seed in v.by_seed})):
            found.append(
                f"{v.name}: seed{'s' * (len(lost) > 1)} {', '.join(lost)} did not finish; its figures are of the "
                "others, which flatters a variant that fails where it does badly."
            )
        if len(v.runs) > len({run.seed for run in v.runs}):
            found.append(f"{v.name}: several runs have one seed; of those that finished the last by name counts.")
    for c in comparisons:
        if not c.refused and c.seeds and abs(c.words - 1) >= 0.0005:
            more = f"{c.words - 1:+.1%} words against {c.baseline.name}"
            found.append(f"{c.variant.name} saw {more}, within the tolerance.")
    if len({json.dumps(run.machine) for v in variants for run in v.by_seed.values()}) > 1:
        found.append(
            "Devices, software or commits differ (below): speeds do not compare, losses may differ for it too."
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


def show_signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{show(value)}"


def show_p(p: float) -> str:
    return "p –" if math.isnan(p) else "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}"


def show_summary(values: Sequence[float]) -> str:
    """`mean ± sd` above its interval; the value alone where all seeds have it or there is one."""
    found = summarise(values)
    if all(map(math.isnan, values)):
        return "–"
    if math.isnan(found.mean):
        return "not finite"
    if not found.sd > 0:
        return show(found.mean)
    mean, sd, low, high = (show(value, found.mean) for value in (found.mean, found.sd, found.low, found.high))
    return f"{mean} ± {sd}" + (f"\n{low} to {high}" if math.isfinite(found.low) else "")


def tabulate_variants(variants: Sequence[Variant], gists: dict[str, str]) -> pd.DataFrame:
    """The metrics that at least one finished run has, over seeds."""
    rows = []
    for v in variants:
        values = {m: [SCALE.get(m, 1) * run.metrics[m] for run in v.by_seed.values()] for m in METRICS}
        row = {"variant": v.name, "verdict": gists.get(v.name, "–")}
        row["seeds finished"] = f"{len(v.by_seed)} of {len({run.seed for run in v.runs})}"
        row["learning rates tried"] = str(count_rates(v, variants)) if RATE in v.leaves else "–"
        row |= {METRICS[metric]: show_summary(found) for metric, found in values.items()}
        tenths = pd.DataFrame([run.result.exposures.deciles for run in v.by_seed.values()], dtype=float).mean().dropna()
        row["documents begun, by tenth of the ranking"] = " ".join(f"{tenth:.1f}" for tenth in tenths) or "–"
        rows.append(row)
    return drop_silent(pd.DataFrame(rows))


def drop_silent(table: pd.DataFrame) -> pd.DataFrame:
    """Without the columns that say nothing."""
    return table.loc[:, (table != "–").any()]


def tabulate_differences(comparisons: Sequence[Comparison], metric: str) -> pd.DataFrame:
    """The variants that may be compared in `metric`, best first."""
    p, level = adjust(comparisons, metric)
    rows = []
    for c in select(comparisons, metric):
        d, effect = c.metrics[metric], detectable_effect(c.metrics[metric].n, level)
        tests = [show_p(value).removeprefix("p ").removeprefix("= ") for value in (d.p, p[c.variant.name])]
        row = {"variant": c.variant.name, "baseline": c.baseline.name, "shared seeds": str(d.n)}
        row["difference"] = "not finite" if math.isnan(d.mean) else show_signed(d.mean)
        row["95 % interval"] = "–" if math.isnan(d.low) else f"{show_signed(d.low)} to {show_signed(d.high)}"
        row["effect size d_z"] = "–" if math.isnan(d.effect) else f"{d.effect:+.2f}"
        row |= {"p": tests[0], "Holm-adjusted p": tests[1]}
        rows.append(row | {"detectable": f"{show(effect * d.sd)}\n(d_z {effect:.2f})" if d.sd > 0 else "–"})
    return drop_silent(pd.DataFrame(rows))


def tabulate_changes(variants: Sequence[Variant], comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """What was typed for each variant, and what differs from its baseline after all is composed."""
    differs = {c.variant.name: "\n".join(list_changes(c.variant.leaves, c.baseline.leaves)) for c in comparisons}
    rows = [(v.name, "\n".join(v.runs[0].typed) or "–", differs.get(v.name) or "–") for v in variants]
    return drop_silent(pd.DataFrame(rows, columns=["variant", "typed", "differs from its baseline in"]))


def tabulate_results(variants: Sequence[Variant]) -> pd.DataFrame:
    """results.csv: one row a run, a column for each key that tells variants apart."""
    swept = sorted(differing_keys([v.leaves for v in variants if v.leaves]))
    rows = [
        {"variant": v.name, "seed": "" if run.seed is None else str(run.seed), "status": run.result.status}
        | {key.removesuffix("._target_"): show_value(v.leaves[key], key) for key in swept if key in v.leaves}
        | {**run.metrics, "config_hash": run.result.config_hash}
        | {**run.facts, **run.machine, "directory": run.name, "cause": run.cause}
        | {"overrides": " ".join(run.typed)}
        for v in variants
        for run in v.runs
    ]
    return pd.DataFrame(rows)


# Pictures


def find_band(variant: Variant, key: str) -> pd.DataFrame:
    """Mean, minimum and maximum of `key` over finished seeds, by update; only updates that all of them have."""
    curves = [run.curves for run in variant.by_seed.values() if {"step", key} <= set(run.curves)]
    seeds = [c.dropna(subset=["step", key]).drop_duplicates("step").set_index("step")[key] for c in curves]
    return pd.concat(seeds, axis=1, join="inner").agg(["mean", "min", "max"], axis=1) if seeds else pd.DataFrame()


def style_of(index: int) -> dict[str, Any]:
    return {"color": COLORS[index % len(COLORS)], "linestyle": STYLES[index // len(COLORS) % len(STYLES)]}


def draw_curves(variants: Sequence[Variant], one_measure: bool) -> list[dict[str, str]]:
    """A picture a curve; those that no variant has, and a threshold that never moves, are left out.

    Names and colours are the page's legend. one_measure: losses of all variants compare.
    """
    from matplotlib.ticker import MaxNLocator

    left_out = {"val/bits_per_byte"} if one_measure else {"val/loss", "train/loss"}
    found = []
    for key in (key for key in CURVES if key not in left_out):
        bands = {i: table for i, variant in enumerate(variants) if len(table := find_band(variant, key))}
        if not bands or (key == "threshold" and all((table["mean"] == 1).all() for table in bands.values())):
            continue
        figure, axes = make_figure(5.4, 3.4)
        for index, whole in bands.items():
            table = whole.iloc[:: -max(1, len(whole) // POINTS)]  # backwards: the last is kept
            marker = "o" if len(table) <= 30 else ""
            axes.plot(table.index, table["mean"], lw=1.4, marker=marker, markersize=3, **style_of(index))
            axes.fill_between(table.index, table["min"], table["max"], color=style_of(index)["color"], alpha=0.15, lw=0)
        axes.set_xlabel("update")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        found.append({"title": CURVES[key], "source": to_source(figure)})
    return found


def draw_differences(comparisons: Sequence[Comparison], gists: dict[str, str]) -> list[dict[str, str]]:
    """The answer in one picture: each seed's difference to the baseline as a dot, and the interval of their mean."""
    metric = deciding_metric(comparisons)
    chosen = [c for c in select(comparisons, metric) if math.isfinite(c.metrics[metric].mean)]
    if not chosen:
        return []
    figure, axes = make_figure(8.6, 0.9 + 0.34 * len(chosen))
    for row, c in enumerate(reversed(chosen)):
        found = c.metrics[metric]
        color = {"better": "#009e73", "worse": "#d55e00"}.get(gists[c.variant.name], "#555555")
        each = [c.variant.by_seed[seed].metrics[metric] - c.baseline.by_seed[seed].metrics[metric] for seed in c.seeds]
        axes.plot(each, [row] * len(each), "o", markersize=3, color=color, alpha=0.45)
        if found.n >= VERDICT_SEEDS:
            axes.plot([found.low, found.high], [row, row], lw=2, color=color)
            axes.plot(found.mean, row, "D", markersize=6, color=color)
    axes.axvline(0, color="#888888", lw=1)
    names = [c.variant.name if len(c.variant.name) <= 48 else f"{c.variant.name[:47]}…" for c in reversed(chosen)]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylim(-0.6, len(names) - 0.4)
    figure.supxlabel(f"difference in {METRICS[metric]}: better on the left, worse on the right", fontsize=10)
    title = "Differences to the baseline, seed by seed (dots), their mean (diamond) and its 95 % interval"
    return [{"title": title, "source": to_source(figure)}]


def make_figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def to_source(figure: Any) -> str:
    """A figure as an SVG, so that it is sharp at any width, in a data: URI."""
    import matplotlib

    picture = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):  # the same study gives the same file
        figure.savefig(picture, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.getvalue()).decode()}"


# Writing


def write_report(*directories: Path, baseline: str | None = None) -> Path:
    """Writes report.html, report.md and results.csv into a study's directory, or of several into one beside the first.

    Args:
        directories: of the studies, each holding a directory a run. baseline: a variant's name, or a part that only it
            has; None: the one recorded here, else the one nearest to the defaults.

    Returns:
        The path of report.html.

    Raises:
        InputError: no such directory, no run in it, or no such variant. StorageError: it cannot be written.
    """
    variants = group_variants([run for directory in directories for run in read_study(Path(directory))])
    target = Path(directories[0])
    if len(directories) > 1:
        target = target.resolve().with_name("+".join(dict.fromkeys(Path(d).resolve().name for d in directories)))
    reference = compose_defaults()
    known = target / BASELINES
    recorded: dict[str, str] = read(known, dict[str, str]) if known.exists() else {}
    baselines = choose_baselines(variants, baseline, list(recorded), reference)
    results = tabulate_results(variants)
    sections = write_sections(variants, baselines, results)
    gone = [recorded[identity] for identity in recorded if identity not in {v.identity for v in variants}]
    summary = summarise_runs(results, variants, baselines, gone)
    target.mkdir(exist_ok=True)
    write_text(target / "report.html", to_html(target.resolve().name, summary, sections))
    write_text(target / "report.md", to_markdown(target.resolve().name, summary, sections))
    write_text(target / "results.csv", results.to_csv(index=False))
    write_json(known, {v.identity: v.name for v in baselines if v.by_seed})
    return target / "report.html"


def compose_defaults() -> dict[str, Any]:
    """The configuration of a run without any override."""
    from babylm_train.config import check_command_line, essential, saved_config

    return essential(yaml.safe_load(saved_config(check_command_line([])[0])))


def summarise_runs(
    results: pd.DataFrame, variants: Sequence[Variant], baselines: list[Variant], gone: list[str]
) -> str:
    """The first sentence of a report."""
    counts = [f"{count} {status}" for status, count in results["status"].value_counts().items()]
    groups = [v.name for v in baselines if v.by_seed] or [baselines[0].name]
    said = f"{len(results)} run{'s' * (len(results) != 1)}: {', '.join(counts)}. "
    said += f"{len(variants)} variant{'s' * (len(variants) != 1)}; baseline: {groups[0]}"
    if len(groups) > 1:
        said += f"; of groups that cannot be compared with it: {'; '.join(groups[1:])}"
    return said + (f". The recorded baseline {'; '.join(gone)} is not there any more." if gone else ".")


Sections = list[tuple[str, list[tuple[str, Any]]]]


def write_sections(variants: list[Variant], baselines: list[Variant], results: pd.DataFrame) -> Sections:
    """What both files show: titles, each with parts: a kind (note, says, pictures, legend, figures, text), a value."""
    comparisons = compare_all(variants, baselines)
    said = give_verdicts(comparisons, variants)
    gists = dict.fromkeys((v.name for v in baselines), "baseline") | {name: gist for gist, name, _ in said}
    nothing = "one variant" if len(variants) == 1 else "the baseline finished no run"
    answer = [(gist, text) for gist, _, text in said] or [("", f"There is nothing to compare: {nothing}.")]
    finished = results["status"] == "finished"
    measures = {(run.facts["tokenizer"], run.facts["objective"]) for v in variants for run in v.by_seed.values()}
    one_measure = len(measures) == 1 or all(c.same_tokenizer and c.seeds and not c.refused for c in comparisons)
    measured = [m for m in COMPARED if any(not math.isnan(r.metrics[m]) for v in baselines for r in v.by_seed.values())]
    tables = {m: tabulate_differences(comparisons, m) for m in measured}
    machine = list(dict.fromkeys(key for v in variants for run in v.by_seed.values() for key in run.machine))
    machines = results[finished].value_counts(machine, sort=False, dropna=False).rename("runs").reset_index()
    firsts = [(v.name, next(iter(v.by_seed.values())).result.samples) for v in variants if v.by_seed]
    samples = pd.DataFrame(
        [(n, "\n".join(s)) for n, s in firsts if s], columns=["variant", "samples of its first seed"]
    )
    failed = results.loc[~finished, ["variant", "seed", "status", "cause", "directory"]]
    legend = [(variant.name, style_of(index)) for index, variant in enumerate(variants)]
    curves = draw_curves(variants, one_measure)
    differences = [(f"Differences: {METRICS[m]}", [("figures", t)]) for m, t in tables.items() if "difference" in t]
    sections: Sections = [
        ("What it says", [("pictures", draw_differences(comparisons, gists)), ("says", answer)]),
        ("Before you believe it", [("says", [("", text) for text in give_warnings(variants, comparisons)])]),
        ("Runs without a result", [("text", failed)]),
        ("Variants", [("figures", tabulate_variants(variants, gists)), ("note", VARIANTS_NOTE)]),
        *differences,
        ("How they are compared", [("note", METHOD)] if differences else []),
        ("Curves", [("legend", legend), ("pictures", curves)] if curves else []),
        ("What each variant changed", [("text", tabulate_changes(variants, comparisons))]),
        ("What they write", [("text", samples)]),
        ("Software and devices", [("figures", machines.fillna("–"))]),
    ]
    return [
        (title, [part for part in parts if len(part[1])]) for title, parts in sections if any(len(v) for _, v in parts)
    ]


def to_html(name: str, summary: str, sections: Sections) -> str:
    """One page that stands alone."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    settings: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    template = jinja2.Environment(loader=loader, autoescape=True, **settings).get_template("report.html.j2")
    return template.render(name=name, summary=summary, sections=sections)


def to_markdown(name: str, summary: str, sections: Sections) -> str:
    """The same without pictures."""
    lines = [f"# Study {escape(name)}", "", escape(summary), "", "The pictures are in report.html."]
    for title, parts in sections:
        lines += ["", f"## {escape(title)}", ""]
        for kind, value in parts:
            if kind == "note":
                lines += ["", escape(value.replace("\n", " "))]
            elif kind == "says":
                lines += [f"- {f'**{gist}**: ' if gist else ''}{escape(text)}" for gist, text in value]
            elif kind in ("figures", "text"):
                rows = [list(value.columns), ["---"] * len(value.columns), *value.to_numpy().tolist()]
                lines += [f"| {' | '.join(c if c == '---' else escape(c) for c in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def escape(text: object) -> str:
    """`text` as itself inside a Markdown table or paragraph: no mark-up, no tags, no new cell."""
    special = {**{c: f"\\{c}" for c in "\\`*_[]|~#"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"}
    return "<br>".join("".join(special.get(c, c) for c in line) for line in str(text).splitlines())


@dataclass
class Options:
    """Of the command."""

    baseline: str | None = None


def report(line: CommandLine) -> None:
    """Writes the report of the studies that were typed."""
    if not line.places:
        raise InputError("give the directory of a study, or of several")
    print(write_report(*map(Path, line.places), baseline=line.options.baseline))


def main() -> None:
    """Entry point of `python -m babylm_train.report`."""
    start(report, __doc__ or "", Options)
