"""The model card of a run, from its own files: nothing in it is typed by hand but the licence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SECTIONS = ("Data", "Words seen", "Recipe", "Results", "Revisions", "Use", "Licence")
WAYS = {
    "causal": "`AutoModelForCausalLM.from_pretrained(name)`; BabyLM evaluation backend `causal`",
    "mlm": "`AutoModelForMaskedLM.from_pretrained(name)`; backend `mlm`",
    "mntp": "`AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)`; backend `mntp`",
}


def model_card(
    name: str,
    license: str | None,
    config: Mapping[str, Any],
    result: Mapping[str, Any],
    corpus: Mapping[str, Any],
    milestones: Sequence[tuple[Path, Mapping[str, Any]]],
    backends: Sequence[str],
) -> str:
    """The card as Markdown with the hub's metadata.

    Args:
        config: composed. result: result.json. corpus: its report. milestones: revisions with their records.
    """
    bodies = {
        "Data": _data(config, corpus),
        "Words seen": [
            f"{result['words']:,} white-space words of training text, repetitions counted, in {result['updates']:,} "
            f"updates; track `{result['track']}`. Words are counted in the text, so the tokenizer does not matter.",
            "",
            f"The weights are those of update {result['exported_update']:,}, after {result['exported_words']:,} words.",
        ],
        "Recipe": _recipe(config, result),
        "Results": _results(result),
        "Revisions": [
            "| revision | words seen | update |\n|---|---|---|",
            *(f"| `{path.name}` | {record['words']:,} | {record['update']:,} |" for path, record in milestones),
        ]
        if milestones
        else ["Only this one."],
        "Use": [f"- {WAYS[backend]}" for backend in backends]
        + ["", "The tokenizer puts the end-of-text mark before every text, as in training."],
        "Licence": [license or "NOT STATED"],
    }
    head = ["---", *([f"license: {license}"] if license else []), "language: hi", "tags: [babylm]", "---", f"# {name}"]
    return "\n".join([*head, *(line for title in SECTIONS for line in ("", f"## {title}", *bodies[title]))]) + "\n"


def _data(config: Mapping[str, Any], corpus: Mapping[str, Any]) -> list[str]:
    source = {key: value for key, value in config["data"].items() if key not in ("_target_", "cache_dir")}
    lines = [
        f"`{config['data']['_target_'].rpartition('.')[2]}`: {', '.join(f'{k}={v}' for k, v in source.items())}",
        "",
    ]
    for split in ("train", "validation"):
        part = corpus[split]
        lines.append(
            f"- {split}: {part['documents']:,} documents, {part['words']:,} words, {part['bytes']:,} bytes of UTF-8, "
            f"{part['devanagari']:.1%} Devanagari"
        )
    return lines


def _recipe(config: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """Each part of the run: what it is, and its values."""
    lines = [f"{result['parameters']:,} parameters; seed {config['seed']}.", ""]
    for group in ("model", "objective", "tokenizer", "optimizer", "scheduler", "curriculum", "trainer"):
        lines.append(f"- {group}: {_values(config[group])}")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return [*lines, "", f"Commit {result['commit']}; {versions}; {result['device']}."]


def _values(node: Any) -> str:
    if not isinstance(node, dict):
        return str(node)
    name = str(node.get("_target_", "")).rpartition(".")[2]
    values = ", ".join(f"{k}={_values(v)}" for k, v in node.items() if not k.startswith("_"))
    return f"{name}({values})"


def _results(result: Mapping[str, Any]) -> list[str]:
    names = ("val_loss", "perplexity", "bits_per_byte", "pseudo_perplexity", "pseudo_bits_per_byte")
    lines = [f"- {name} (validation text): {result[name]:.4f}" for name in names if name in result]
    pairs = result.get("pairs", {})
    return lines + [f"- built-in minimal pairs, {name}: {share:.1%}" for name, share in pairs.items()]
