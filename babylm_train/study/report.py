"""What studies found, and what they cannot say: `python -m babylm_train.report STUDY [STUDY ...] [baseline=VARIANT]`.

Writes report.html (one file), report.md and results.csv into the study's directory; of several studies into `A+B+C`
beside the first. Runs that differ only in their seed form a variant; variants are compared with a baseline, seed by
seed, and only where both had the same text, budget and kind of loss; those that differ in these form groups, each with
a baseline of its own. Baselines are recorded in baseline.json when first reported, and stay until `baseline=` names
another: a variant, or a part of a name that only it has. A search is reported by trials, unless `baseline=` is given.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from babylm_train.command import CommandLine, start
from babylm_train.errors import InputError, one_line, printable
from babylm_train.files import read, write_json, write_text
from babylm_train.study.results import METRICS, RunRecord, Variant, group_variants, read_study
from babylm_train.study.search import read_trials, repeat_trial
from babylm_train.study.statistics import ALPHA, Estimate, compare_pairs, compare_ratios, holm, summarise

WORDS_TOLERANCE = 0.05  # of the baseline's words: rankings spend equal tokens on longer or shorter words
ALTERED_TOLERANCE = 0.001  # of the characters: compatibility forms, such as ellipses, cost next to nothing
VERDICT_SEEDS = 3  # two differences and their mean leave one degree of freedom: any spread may be chance
RATE = "optimizer.lr"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#000000", "#7f3c8d", "#999999", "#a52a2a")
STYLES = ("solid", "dashed", "dotted")  # after each round of colours
NOTE = f"""Mean ± standard deviation over seeds; below it the 95 % interval of the geometric mean (Student's t of the
logarithms, so that it stays above 0). Seconds include evaluation; tokens/s and memory are medians while training.
Differences are variant minus baseline, seed by seed; below 0 the variant is better. Their intervals and p are of the
paired t test; Holm's p is adjusted for the number of variants and decides at {ALPHA}, from {VERDICT_SEEDS} seeds on.
Percentages are of the baseline, by the logarithms of the paired ratios; within one tokenizer loss and bits per byte
have the same. Detectable: the smallest difference that the test, before Holm, finds with 80 % power at the spread seen.
Learning rates tried: with all else equal; where tuning had an equal budget the numbers are equal.
Compared are variants with one kind of loss (of next tokens, whatever was trained; or of hidden ones) over the same
corpus and evaluation text with an equal budget: updates and tokens within one tokenizer, words within
{WORDS_TOLERANCE:.0%}; across tokenizers words alone, and then only bits per byte."""
NOTHING = Estimate(0, math.nan)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A variant against its baseline, by the runs of the seeds that both finished. refused: why they are not ranked.

    difference: in `metric`; ratio: the same as a share of the baseline; p: Holm's, NaN where nothing was tested. gist,
    text: the verdict, a word and a sentence.
    """

    variant: Variant
    baseline: Variant
    pairs: list[tuple[RunRecord, RunRecord]]
    refused: list[str]
    metric: str = ""
    difference: Estimate = NOTHING
    ratio: Estimate = NOTHING
    p: float = math.nan
    gist: str = ""
    text: str = ""


def compare(variant: Variant, baseline: Variant) -> Comparison:
    """Pairs the seeds of two variants, and finds what forbids to call one better."""
    theirs = baseline.by_seed
    pairs = [(run, theirs[seed]) for seed, run in variant.by_seed.items() if seed in theirs]
    refused: dict[str, str] = {}
    for a, b in pairs:
        for what, one, other in list_inequalities(a, b):
            refused.setdefault(what, f"{what}: {one} against {other} (seed {a.seed})")
    return Comparison(variant, baseline, pairs, list(refused.values()))


def list_inequalities(a: RunRecord, b: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Within one tokenizer a budget is updates and tokens, words within a tolerance; across tokenizers it is words."""
    for key in ("objective", "corpus", "evaluation_text", "evaluation_window", "evaluation_passes"):
        if a.facts[key] != b.facts[key] or (key == "corpus" and a.facts[key] is None):
            one, other = (str(run.facts[key] or "not recorded")[:20] for run in (a, b))
            yield f"{key.replace('_', ' ')} differs", one, other
    if a.facts["tokenizer"] == b.facts["tokenizer"]:
        for key in ("updates", "tokens"):
            if a.metrics[key] != b.metrics[key]:
                yield f"{key} differ", show(a.metrics[key]), show(b.metrics[key])
    else:
        if a.result.unknown_share or b.result.unknown_share:
            ours, theirs = a.result.unknown_share, b.result.unknown_share
            yield "unknown tokens, whose text no loss counts", f"{ours:.2%}", f"{theirs:.2%} of the tokens"
        ours, theirs = a.result.altered_share, b.result.altered_share
        if max(ours, theirs) >= ALTERED_TOLERANCE:
            yield "a tokenizer drops or changes signs, which no loss counts", f"{ours:.2%}", f"{theirs:.2%} of them"
        if math.isnan(a.metrics["bits_per_byte"] + b.metrics["bits_per_byte"]):
            yield "tokenizers differ, which only bits per byte of next tokens compare", "none", "none"
    words, others = a.metrics["words"], b.metrics["words"]
    if not abs(words - others) <= WORDS_TOLERANCE * others:
        alike = a.facts["tokenizer"] == b.facts["tokenizer"] and a.metrics["updates"] == b.metrics["updates"]
        helps = alike and "words" not in (run.leaves.get("curriculum.threshold_on") for run in (a, b))
        remedy = "; curriculum.threshold_on=words brings them nearer" * helps
        yield f"words differ by more than {WORDS_TOLERANCE:.0%}", show(words), show(others) + remedy


def compare_each(variants: Sequence[Variant], baselines: Sequence[Variant]) -> list[Comparison]:
    """Each variant with the baseline of its group; the baselines of other groups with the first, which is refused."""
    found = []
    for variant in variants:
        others = [compare(variant, other) for other in (baselines[:1] if variant in baselines else baselines)]
        found.append(min(others, key=lambda c: (bool(c.refused), not c.pairs)))
    return [c for c in found if c.variant is not c.baseline]


def choose_baselines(variants: Sequence[Variant], named: str | None, recorded: Sequence[str]) -> list[Variant]:
    """One for each group of variants that compare: `named`, else the recorded, else the nearest to the defaults.

    named: a variant's name, one of the keys it is of, or a part of the name that only it has. recorded: identities.

    Raises:
        InputError: no variant is named so, or several are; the message lists them.
    """
    chosen: list[Variant] = []
    if named is not None:
        chosen = [v for v in variants if v.name == named] or [v for v in variants if named in v.name.split(", ")]
        chosen = chosen or [v for v in variants if named.lower() in v.name.lower()]
        if len(chosen) != 1:
            which = "that fits several variants" if chosen else "no variant of that name"
            raise InputError(f"baseline={named}: {which} (there are {'; '.join(v.name for v in variants)})")
    defaults = compose_defaults()

    def place(v: Variant) -> tuple[Any, ...]:
        changes = sum(defaults.get(key) != value for key, value in v.leaves.items())
        known = recorded.index(v.identity) if v.identity in recorded else len(recorded)
        return known, not v.by_seed, not v.leaves, changes, v.name

    for v in sorted(variants, key=place):
        if v not in chosen and all(compare(v, other).refused for other in chosen):
            chosen.append(v)
    return chosen


def compose_defaults() -> dict[str, Any]:
    """The configuration of a run without any override."""
    from babylm_train.config import check_command_line, essential, saved_config

    return essential(yaml.safe_load(saved_config(check_command_line([])[0])))


def give_verdicts(variants: Sequence[Variant], baselines: Sequence[Variant]) -> list[Comparison]:
    """Those that are ranked, best first, in bits per byte if any tokenizers differ; then the others."""
    compared = compare_each(variants, baselines)
    ranked = [c for c in compared if c.pairs and not c.refused]
    one_tokenizer = all(a.facts["tokenizer"] == b.facts["tokenizer"] for c in ranked for a, b in c.pairs)
    bits = [math.fsum(run.metrics["bits_per_byte"] for pair in c.pairs for run in pair) for c in ranked]
    metrics = ["val_loss" if one_tokenizer or math.isnan(each) else "bits_per_byte" for each in bits]
    asked = zip(ranked, metrics, strict=True)
    values = [[[run.metrics[metric] for run in runs] for runs in zip(*c.pairs, strict=True)] for c, metric in asked]
    found = [compare_pairs(ours, theirs) for ours, theirs in values]
    adjusted = holm([f.p if f.n >= VERDICT_SEEDS else math.nan for f in found])
    verdicts = []
    for c, metric, (ours, theirs), difference, p in zip(ranked, metrics, values, found, adjusted, strict=True):
        c = replace(c, metric=metric, difference=difference, ratio=compare_ratios(ours, theirs), p=p)
        gist, text = judge(c)
        verdicts.append(replace(c, gist=gist, text=" ".join([text, *name_confounds(c.variant, c.baseline, variants)])))
    verdicts.sort(key=lambda c: (math.isnan(c.difference.mean), c.metric, c.difference.mean, c.variant.name))
    for c in compared:
        if c not in ranked:
            why = "; ".join(c.refused) or "they finished no seed in common"
            text = f"{c.variant.name} is not ranked against {c.baseline.name}: {why}."
            verdicts.append(replace(c, gist="not ranked", text=text))
    return verdicts


def judge(c: Comparison) -> tuple[str, str]:
    """A word and a sentence."""
    who, found = f"{c.variant.name} against {c.baseline.name}", c.difference
    unit = METRICS[c.metric].partition(" (")[0]
    if found.mean == found.sd == 0:
        return "undecided", f"{who}: the same {unit} in each seed, to the last digit: what differs changed nothing."
    if math.isnan(found.mean):
        return "no data", f"{who}: a {unit} is not finite."
    size = f"{who}: the {unit} differ{'s' * (c.metric != 'bits_per_byte')} by {show(found.mean, sign='+')}"
    if found.mean and math.isfinite(c.ratio.mean):
        also = c.metric == "val_loss" and math.isfinite(c.pairs[0][0].metrics["bits_per_byte"])
        size += f",{' it and bits per byte' * also} by {show_ratio(c.ratio)}"
    if found.n < VERDICT_SEEDS:
        return "no verdict", f"{size}, which may be chance: so few seeds ({found.n}) allow no verdict."
    if not found.sd:
        return "undecided", f"{size} in each of {found.n} seeds: there is no spread to test against."
    gist = "undecided" if c.p >= ALPHA else "better" if found.mean < 0 else "worse"
    facts = f"95 % interval {show_interval(found)}, Holm-adjusted p = {show(c.p)}, {found.n} seeds"
    if gist == "undecided":
        facts += f"; the smallest difference they find with 80 % power is {show(found.detectable)}"
    return gist, f"{size}, which is {gist} ({facts})."


def name_confounds(variant: Variant, baseline: Variant, variants: Sequence[Variant]) -> Iterator[str]:
    """Sentences for what else differs between a variant and its baseline: settings of its own, and how it was tuned."""
    ours, theirs = variant.leaves, baseline.leaves
    keys = sorted((k for k in ours if k in theirs and ours[k] != theirs[k]), key=lambda k: "_target_" not in k)
    own = [f"{key} ({ours[key]} against {theirs[key]})" for key in keys[1:]]
    if own:
        more = f" and {len(own) - 4} more" if len(own) > 4 else ""
        yield f"It has its own {', '.join(own[:4])}{more}: more than one thing that trains differs."
    tried, base = (count_rates(v, variants) for v in (variant, baseline))
    if tried != base:
        yield f"Learning rates tried: {tried} for it, {base} for the baseline, which is no equal tuning budget."


def count_rates(variant: Variant, variants: Sequence[Variant]) -> int:
    """How many learning rates were tried with what else makes the variant."""
    rest = {**variant.leaves, RATE: None}
    return len({str(v.leaves.get(RATE)) for v in variants if {**v.leaves, RATE: None} == rest})


def give_warnings(variants: Sequence[Variant], verdicts: Sequence[Comparison]) -> Iterator[str]:
    """What a reader must know before believing a number."""
    if any(len({run.facts["corpus"] for run in v.by_seed.values()}) > 1 for v in variants):
        yield "Corpus and evaluation text differ between seeds (data.seed fixes them): spreads include the text's."
    for v in variants:
        if v.by_seed and (lost := sorted({run.seed for run in v.runs} - v.by_seed.keys())):
            yield (
                f"{v.name}: seeds without a result: {', '.join(lost)}; its figures are of the others, which flatters a "
                "variant that fails where it does badly."
            )
        if len(v.runs) > len({run.seed for run in v.runs}):
            yield f"{v.name}: several runs have one seed; of those that finished the last by name counts."
    for c in verdicts:
        words = [(a.metrics["words"], b.metrics["words"]) for a, b in c.pairs if c.metric]
        ratios = [ours / theirs - 1 for ours, theirs in words if theirs]
        if abs(most := max(ratios, key=abs, default=0.0)) >= 0.0005:
            yield f"{c.variant.name} saw {most:+.1%} words against the baseline, within the tolerance."
    if len({json.dumps(run.machine) for v in variants for run in v.by_seed.values()}) > 1:
        yield "Devices, software or commits differ (results.csv): speeds do not compare, losses may differ for it too."


# Tables, of text; a line break parts the lines of a cell


def show(value: float, scale: float | None = None, sign: str = "") -> str:
    """A figure with as many digits as its size, or that of `scale`, deserves."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    if value == int(value) and scale is None:
        return f"{value:{sign},.0f}"
    if 0 < abs(value) < 0.001:
        return f"{value:{sign}.3g}"
    size = abs(value if scale is None else scale)
    return f"{value:{sign},.{4 if size < 20 else 2 if size < 1000 else 0}f}"


def show_interval(found: Estimate) -> str:
    return "–" if math.isnan(found.low) else f"{show(found.low, sign='+')} to {show(found.high, sign='+')}"


def show_ratio(found: Estimate) -> str:
    """A share as `-12.3 % (-13.0 to -11.5)`, with one digit more below one per cent."""
    if math.isnan(found.mean):
        return "–"
    digits = 1 if abs(found.mean) >= 0.01 else 2
    mean, low, high = (f"{100 * share:+.{digits}f}" for share in (found.mean, found.low, found.high))
    return f"{mean} %" + (f" ({low} to {high})" if found.sd > 0 else "")


def show_summary(values: Sequence[float]) -> str:
    """`mean ± sd` above its interval; the value alone where all seeds have it or there is one."""
    found = summarise(values)
    if math.isnan(found.mean):
        return "–" if all(map(math.isnan, values)) else "not finite"
    if not found.sd > 0:
        return show(found.mean)
    mean, sd, low, high = (show(value, found.mean) for value in (found.mean, found.sd, found.low, found.high))
    return f"{mean} ± {sd}" + (f"\n{low} to {high}" if math.isfinite(found.low) else "")


def tabulate_variants(
    variants: Sequence[Variant], baselines: Sequence[Variant], verdicts: Sequence[Comparison]
) -> pd.DataFrame:
    """Verdicts, differences to the baseline, and the metrics that a finished run has, over seeds."""
    judged = {c.variant.name: c for c in verdicts}
    judged |= {v.name: Comparison(v, v, [], [], gist="baseline") for v in baselines}
    rows = []
    for v in variants:
        c = judged[v.name]
        row = {"variant": v.name, "verdict": c.gist, "seeds": f"{len(v.by_seed)} of {len({r.seed for r in v.runs})}"}
        row |= {"its baseline": c.baseline.name if len(baselines) > 1 else "–"}
        row |= {"learning rates tried": str(count_rates(v, variants)), "difference in %": show_ratio(c.ratio)}
        row |= {"difference": show(c.difference.mean, sign="+"), "its 95 % interval": show_interval(c.difference)}
        row |= {"p": show(c.difference.p), "Holm's p": show(c.p), "detectable": show(c.difference.detectable)}
        rows.append(row | {t: show_summary([r.metrics[m] for r in v.by_seed.values()]) for m, t in METRICS.items()})
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "–").any()]


def tabulate_results(variants: Sequence[Variant]) -> pd.DataFrame:
    """results.csv: one row a run, a column for each swept key, with its default where a run has no override."""
    words = [dict(word.lstrip("+").split("=", 1) for word in v.words if "=" in word) for v in variants]
    keys, rows = dict.fromkeys(key for each in words for key in each), []
    for v, typed in zip(variants, words, strict=True):
        swept = {key: typed.get(key, v.leaves.get(key)) for key in keys}
        for run in v.runs:
            row = {"variant": v.name, "seed": run.seed, "status": run.result.status, **swept, **run.metrics}
            row |= {"config_hash": run.result.config_hash, **run.facts, **run.machine}
            rows.append(row | {"directory": run.name, "cause": run.result.cause} | swept)  # not the hash of `tokenizer`
    return pd.DataFrame(rows)


# Pictures


def draw_curves(variants: Sequence[Variant], metric: str) -> list[tuple[str, str]]:
    """The validation's curve of each variant: the mean over seeds at the updates that all have, and their range."""
    figure, axes = make_figure(8.6, 4.2)
    axes.set_prop_cycle(linestyle=[style for style in STYLES for _ in COLORS], color=COLORS * len(STYLES))
    key = f"val/{metric.removeprefix('val_')}"
    for variant in variants:
        curves = [run.curves for run in variant.by_seed.values() if {"step", key} <= set(run.curves)]
        if curves:
            seeds = [c.dropna(subset=[key]).drop_duplicates("step").set_index("step")[key] for c in curves]
            band = pd.concat(seeds, axis=1, join="inner").agg(["mean", "min", "max"], axis=1)
            (line,) = axes.plot(band.index, band["mean"], lw=1.4, marker=".", label=variant.name[:48])
            axes.fill_between(band.index, band["min"], band["max"], color=line.get_color(), alpha=0.15, lw=0)
    if not axes.lines:
        return []
    axes.set_xlabel("update")
    for text in figure.legend(loc="outside lower left", ncols=2).get_texts():
        text.set_parse_math(False)
    return [(f"{METRICS[metric]} over updates, with the lowest and the highest seed", to_source(figure))]


def draw_differences(verdicts: Sequence[Comparison]) -> list[tuple[str, str]]:
    """The answer in one picture: each seed's difference to the baseline as a dot, and the interval of their mean."""
    shown = [c for c in verdicts if math.isfinite(c.difference.mean)]
    if not shown:
        return []
    figure, axes = make_figure(8.6, 0.9 + 0.34 * len(shown))
    for row, c in enumerate(shown):
        color = {"better": "#009e73", "worse": "#d55e00"}.get(c.gist, "#555555")
        each = [a.metrics[c.metric] - b.metrics[c.metric] for a, b in c.pairs]
        axes.plot(each, [row] * len(each), "o", markersize=3, color=color, alpha=0.45)
        if len(each) >= VERDICT_SEEDS:
            axes.plot([c.difference.low, c.difference.high], [row, row], lw=2, color=color)
            axes.plot(c.difference.mean, row, "D", markersize=6, color=color)
    axes.axvline(0, color="#888888", lw=1)
    axes.set_yticks(range(len(shown)), [c.variant.name[:48] for c in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)  # the best on top
    figure.supxlabel(f"difference in {METRICS[shown[0].metric]}: better on the left, worse on the right", fontsize=10)
    title = "Differences to the baseline, seed by seed (dots), their mean (diamond) and its 95 % interval"
    return [(title, to_source(figure))]


def draw_trials(table: pd.DataFrame, best: Any) -> list[tuple[str, str]]:
    """The loss by trial and by each parameter; not optuna 2's pictures, most of which fail with today's matplotlib."""
    from matplotlib.figure import Figure

    shown, rows = table[table["value"] < 2 * best.value].sort_values("trial"), math.ceil((1 + len(best.params)) / 2)
    colors = [COLORS[n == best.number] if s == "finished" else "#aaaaaa" for n, s in shown[["trial", "state"]].values]
    figure = Figure(figsize=(8.6, 2.6 * rows), layout="constrained")
    for place, key in enumerate(["trial", *best.params], 1):
        scale = "log" if "Log" in repr(best.distributions.get(key)) else "linear"
        axes = figure.add_subplot(rows, 2, place, xlabel=key, ylabel="validation loss", xscale=scale)
        places = shown[key] if pd.api.types.is_numeric_dtype(shown[key]) else shown[key].map(str)
        axes.scatter(places, shown["value"], color=colors)
        axes.grid(alpha=0.25)
    figure.axes[0].step(shown["trial"], shown["value"].cummin(), where="post", color=COLORS[1], lw=1, zorder=0)
    return [("Loss by trial and parameter, to twice the best (red: the best; grey: not finished)", to_source(figure))]


def make_figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
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

    Prints the verdicts and returns the path of report.html. baseline: see choose_baselines.

    Raises:
        InputError: no such directory, no run in it, no such variant, bad trials.db. StorageError: it cannot be written.
    """
    variants = group_variants([run for directory in directories for run in read_study(Path(directory))])
    target = Path(directories[0])
    if len(directories) > 1:
        target = target.resolve().with_name("+".join(dict.fromkeys(Path(d).resolve().name for d in directories)))
    known = target / "baseline.json"
    recorded: dict[str, str] = read(known, dict[str, str]) if known.exists() else {}
    chosen, results = choose_baselines(variants, baseline, list(recorded)), tabulate_results(variants)
    counts = ", ".join(f"{count} {status}" for status, count in results["status"].value_counts().items())
    summary = f"{len(results)} runs: {counts}. {len(variants)} variants; baseline: {chosen[0].name}."
    if others := "; ".join(v.name for v in chosen[1:]):
        summary += f" Baselines of groups that do not compare with it: {others}."
    if gone := recorded.keys() - {v.identity for v in variants}:
        summary += f" The recorded baseline {recorded[min(gone)]} is not there any more."
    sections = write_sections([v for v in variants if v.leaves], chosen, results)
    if baseline is None and (target / "trials.db").is_file() and find_spec("optuna"):
        summary = f"{len(results)} runs: {counts}."
        kept = [section for section in sections if section[0] in ("Before you believe it", "Runs without a result")]
        sections = write_search(target, [run for v in variants for run in v.runs]) + kept
    target.mkdir(exist_ok=True)
    for file in ("report.html", "report.md"):
        write_text(target / file, render(file, name=target.resolve().name, summary=summary, sections=sections))
    write_text(target / "results.csv", results.to_csv(index=False))
    write_json(known, {v.identity: v.name for v in chosen if v.by_seed})
    for gist, text in sections[0][2][:20]:  # the best: a search has hundreds
        print(one_line(f"{gist}: {text}".removeprefix(": ")))
    return target / "report.html"


Sections = list[tuple[str, str, Any]]


def write_sections(variants: list[Variant], baselines: list[Variant], results: pd.DataFrame) -> Sections:
    """What both files show: titles (empty: goes on), kinds (note, says, code, pictures, figures, text), values."""
    verdicts = give_verdicts(variants, baselines)
    said = [(c.gist, c.text) for c in verdicts]
    failed = results.loc[results["status"] != "finished", ["variant", "seed", "status", "cause", "directory"]]
    measures = {(r.facts["tokenizer"], r.facts["objective"]) for v in variants for r in v.by_seed.values()}
    curves = draw_curves(variants, "val_loss" if len(measures) == 1 else "bits_per_byte")
    sections: Sections = [
        ("What it says", "says", said or [("", "One variant: there is nothing to compare.")]),
        ("", "pictures", [each for m in METRICS for each in draw_differences([c for c in verdicts if c.metric == m])]),
        ("Before you believe it", "says", [("", text) for text in give_warnings(variants, verdicts)]),
        ("Runs without a result", "text", failed),
        ("Variants", "figures", tabulate_variants(variants, baselines, verdicts)),
        ("", "note", NOTE),
        ("Curves", "pictures", curves),
    ]
    return [section for section in sections if len(section[2])]


def write_search(directory: Path, runs: list[RunRecord]) -> Sections:
    """What both files show first of a search: its best trial and how to repeat it, all trials."""
    table, best = read_trials(directory / "trials.db", runs)
    shown = table.map(lambda value: f"{value:.5g}" if isinstance(value, float) else str(value))
    if table["state"].iloc[0] != "finished":
        return [("Best trial", "says", [("", "No trial has finished yet.")])]
    at = ", ".join(f"{key}={shown[key].iloc[0]}" for key in best.params)
    return [
        ("Best trial", "says", [("best", f"trial {best.number}: validation loss {best.value:.5g} with {at}")]),
        ("Again, with three seeds", "code", repeat_trial(best, directory.resolve().name)),
        ("", "note", "The best of many trials with one seed each is also the luckiest."),
        ("", "pictures", draw_trials(table, best)),
        ("Trials, the best first", "figures", shown),
    ]


def render(file: str, **values: Any) -> str:
    """The template of `file`, filled in; the page stands alone, the other is the same without pictures."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    settings: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    environment = jinja2.Environment(loader=loader, autoescape=file.endswith(".html"), **settings)
    environment.filters["markdown"] = escape
    return environment.get_template(f"{file}.j2").render(**values)


def escape(text: object) -> str:
    """`text` as itself inside a Markdown table or paragraph: no mark-up, no tags, no new cell."""
    lines = html.escape(str(text), quote=False).splitlines()
    return "<br>".join(re.sub(r"([\\`*_\[\]|~#])", r"\\\1", line) for line in lines)


@dataclass
class Options:
    """Of the command."""

    baseline: str | None = None


def report(line: CommandLine) -> None:
    """Writes the report of the studies that were typed."""
    if not line.places:
        raise InputError("give the directory of a study, or of several")
    print(printable(write_report(*map(Path, line.places), baseline=line.options.baseline)))


def main() -> None:
    """Entry point of `python -m babylm_train.report`."""
    start(report, __doc__ or "", Options)
