"""Exact evaluation, always in float32:

    python -m babylm_train.evaluate RUN [RUN ...] [pairs=FILE] [text=FILE] [revision=chck_1M] [backend=mlm] [out=FILE]
    python -m babylm_train.evaluate RUN milestones=true [pairs=FILE] [text=FILE] [out=FILE]

RUN is a run's directory or any exported model; several give one table, a row a model. `milestones`: a row a milestone,
and RUN/milestones.png, accuracy and bits per byte over the words seen. `pairs`: minimal pairs (jsonl or tsv, see
docs/BABYLM.md) by summed and per-token log-probability, with 95 % intervals; `closing=false` leaves out the mark
that ends a sentence. `text`: perplexity and bits per byte of text files, each and all (`text_field`: of a .jsonl or
.csv; `separator`: line or blank_line; both are those of the run unless they are given). A causal model is first checked
for a leak: a later token must not change an earlier loss. `device`: auto (a GPU where there is one), cpu or cuda.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import pydantic
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast, logging

from babylm_train.babylm.milestones import revisions
from babylm_train.build import find_device
from babylm_train.command import CommandLine, start
from babylm_train.data.corpus import Split, fold
from babylm_train.data.packing import EvaluationRows
from babylm_train.data.read import Separator, find_files, read_files
from babylm_train.data.tokenizer import open_tokenizer, tokenizer_fingerprint
from babylm_train.data.tokens import tokenize
from babylm_train.errors import InputError, load_errors, printable, show_table
from babylm_train.evaluation.loss import evaluate, summarise
from babylm_train.evaluation.pairs import ALL, by_phenomenon, intervals, judge, read_pairs, texts_cut
from babylm_train.files import check_record, file_digest, read, replaced, write_json
from babylm_train.model.build import take_square_masks
from babylm_train.model.export import BOTH_WAYS, REMOTE_CODE, WEIGHTS
from babylm_train.objective import CausalObjective, MaskedObjective, Objective
from babylm_train.state import Evaluation

Backend = Literal["causal", "mlm", "mntp"]
ROWS = 8  # of a batch of text
LEAK = 1e-4  # nats: more than rounding
SHARE = "{accuracy:.1%} [{low:.1%}, {high:.1%}]"
NEEDED = ("tokenizer.json", "tokenizer_config.json")  # only fast tokenizers are read
ELSEWHERE = {"auto_map", "attn_implementation", "_attn_implementation", "quantization_config"}
OWN_CODE = [{"AutoModelForMaskedLM": f"{REMOTE_CODE.stem}.{name}"} for name in BOTH_WAYS.values()]


@dataclass(frozen=True)
class Options:
    """What is asked for."""

    pairs: str | None = None
    text: str | None = None
    text_field: str | None = None
    separator: Separator | None = None
    revision: str | None = None
    milestones: bool = False
    backend: Backend | None = None
    closing: bool = True
    device: str = "auto"
    out: str | None = None


class Described(pydantic.BaseModel):
    """What is read of a model's config.json."""

    model_type: str
    backends: list[Backend] | None = None


class Index(pydantic.BaseModel, extra="allow"):
    """The file of each weight, where there are several files."""

    weight_map: dict[str, Annotated[str, pydantic.Field(pattern=r"^[\w.-]+\.safetensors$")]]


class Recorded(pydantic.BaseModel):
    """What is read of a run's result.json."""

    hashes: dict[str, str] = {}
    weights_sha256: str | None = None


def check_folder(folder: Path) -> Described:
    """Refuses a model's folder with damaged JSON, without a tokenizer, or with code that is not ours byte for byte."""
    described: Described = read(folder / "config.json", Described)
    for path in sorted({*folder.glob("*.json"), *(folder / name for name in NEEDED)}):
        values: Any = read(path, Index if path.name.endswith(".index.json") else dict[str, Any])
        for key in ELSEWHERE.intersection(dict(values)):
            if key != "auto_map" or values[key] not in OWN_CODE:
                raise InputError(f"{path}: {key} may name code from elsewhere, which is never run")
    if odd := [path for path in folder.iterdir() if not (path.is_file() or path.is_dir())]:
        raise InputError(f"{odd[0]} is no regular file")  # reading a pipe or a device need not end
    code = folder / REMOTE_CODE.name
    if code.is_file() and code.read_bytes() != REMOTE_CODE.read_bytes():
        raise InputError(f"{code} is not the file of that name in babylm_train/model: put ours there, or export again")
    return described


def load_model(
    folder: Path, backend: str | None = None, device: str | torch.device = "cpu"
) -> tuple[Any, PreTrainedTokenizerFast, str]:
    """An exported model in float32, its tokenizer, and the backend that reads it: the one asked for, or its first.

    No code of the folder is run. Raises InputError: its files are damaged, or do not fit each other or the backend.
    """
    logging.set_verbosity(logging.CRITICAL)  # type: ignore[attr-defined]
    logging.disable_progress_bar()
    backends: list[Any] = check_folder(folder).backends or [backend or "causal"]
    if backend is not None and backend not in backends:
        raise InputError(f"backend={backend}: {folder} was trained for {', '.join(backends)}")
    chosen = backend or backends[0]
    kind: Any = AutoModelForMaskedLM if chosen == "mlm" else AutoModelForCausalLM
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    whole = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    tokenizer = open_tokenizer(f"{folder}: tokenizer.json or tokenizer_config.json", folder, local_files_only=True)
    with load_errors(f"{folder}: config.json, generation_config.json or model.safetensors"):
        model, found = kind.from_pretrained(folder, dtype=torch.float32, **whole, **safe)
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long)).logits
    _check_weights(folder, model, found, logits)
    _check_tokenizer(folder, model, tokenizer, chosen)
    return take_square_masks(model.to(device)), tokenizer, chosen


def _check_weights(folder: Path, model: Any, found: Mapping[str, Any], logits: torch.Tensor) -> None:
    """Weights that the configuration has no place for, or lacks, would be left out or drawn at random."""
    extra = [name for name in found["unexpected_keys"] if name.startswith(f"{model.base_model_prefix}.")]
    if wrong := [*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"]), *extra]:
        raise InputError(f"{folder / 'config.json'} and model.safetensors do not fit, as in {min(wrong)}")
    if not (logits.isfinite().all() and all(value.isfinite().all() for value in model.parameters())):
        raise InputError(f"{folder}: numbers in model.safetensors or config.json are not finite")


def _check_tokenizer(folder: Path, model: Any, tokenizer: Any, backend: str) -> None:
    size, largest = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values(), default=-1)
    if largest >= size:
        raise InputError(f"{folder / 'tokenizer.json'} has ids up to {largest:,}, the model {size:,} embeddings")
    for token in ("eos_token", *(["mask_token"] if backend != "causal" else [])):
        if getattr(tokenizer, f"{token}_id") is None:
            raise InputError(f"{folder / 'tokenizer_config.json'} names no {token}, which backend={backend} needs")
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 10**9)]
    if not all(isinstance(limit, int) and limit > 1 for limit in limits):
        raise InputError(f"{folder / 'tokenizer_config.json'} or config.json: no length of a text is among {limits}")
    tokenizer.model_max_length = min(limits)


@torch.no_grad()
def future_leak(model: torch.nn.Module, vocabulary: int, length: int = 64) -> float:
    """The largest change of an earlier loss when later tokens are others, in nats: rounding, in a causal model."""
    rows, other = torch.randint(vocabulary, (2, 4, length), generator=torch.Generator().manual_seed(0))
    half, device = length // 2, next(model.parameters()).device
    other[:, :half] = rows[:, :half]
    both: Any = [model(input_ids=ids.to(device), use_cache=False).logits.cpu() for ids in (rows, other)]
    one, two = (logits[:, : half - 1].log_softmax(-1).gather(-1, rows[:, 1:half, None]) for logits in both)
    return float((one - two).abs().max())


def refuse_leak(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path) -> float:
    """The model's future_leak. Raises InputError: it is more than rounding."""
    leak = future_leak(model, len(tokenizer), min(64, tokenizer.model_max_length))
    if not leak <= LEAK:
        raise InputError(f"{folder} sees the future: a later token changes an earlier loss, by {leak:.1e} nats")
    return leak


class Texts(list[str]):
    """Texts as a split of a corpus, whose tokens are not kept."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__(texts)
        self.fingerprint = ""
        self.words = np.array([len(text.split()) for text in texts])
        self.bytes = np.array([len(text.encode()) for text in texts])


def evaluate_texts(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, by_file: Mapping[str, Sequence[str]], backend: str
) -> dict[str, Evaluation]:
    """Exact evaluation of each file's documents, and of `all`."""
    objective: Objective = CausalObjective()
    if backend == "mlm":
        objective = MaskedObjective(0.15, 0.15, 1.0, 0.0, seed=0, evaluation_passes=7).use_tokenizer(tokenizer)
    found: dict[str, Evaluation] = {}
    for name, texts in by_file.items():
        with tempfile.TemporaryDirectory() as cache:
            split = tokenize(cast(Split, Texts(texts)), tokenizer, cache_dir=cache)
            result = evaluate(model, objective, EvaluationRows(split, tokenizer.model_max_length), ROWS)
            found[name] = replace(result, unknown=split.unknown)
    counts = ([r.loss * r.tokens, r.tokens, r.words, r.bytes, r.unknown] for r in found.values())
    nats, tokens, words, size, unknown = map(sum, zip(*counts, strict=True))
    whole = replace(summarise(nats, tokens, words, size, backend == "mlm"), unknown=unknown)
    return {"all": whole, **(found if len(found) > 1 else {})}


def read_texts(run: Path, pattern: str, text_field: str | None, separator: Separator | None) -> dict[str, list[str]]:
    """The documents of each file that `pattern` names, cleaned as a corpus is, and read as the run read its own."""
    data: dict[str, Any] = {}
    if (run / "config.yaml").is_file():
        config: Any = read(run / "config.yaml", dict[str, Any])
        data = check_record(config.get("data"), dict[str, Any], f"{run / 'config.yaml'}: data")
    field = text_field or str(data.get("text_field") or "text")
    cut: Separator = separator or ("blank_line" if data.get("separator") == "blank_line" else "line")
    texts = {str(file): read_files([file], field, cut, "text_field") for file in find_files("text", pattern)}
    found = {name: [text for text in map(fold, each) if text] for name, each in texts.items()}
    if empty := [name for name, each in found.items() if not each]:
        raise InputError(f"text={empty[0]} holds no document")
    return found


def find_folder(run: Path, revision: str | None) -> Path:
    """Where a run's model or its milestone `revision` is; else RUN is a model itself. Raises InputError: no model."""
    folder = run / "model" if (run / "model").is_dir() else run
    if revision is not None:
        folder = run / "milestones" / revision
    if not (folder / "config.json").exists():
        raise InputError(f"no {folder / 'config.json'}: give the directory of a run that has ended, or an export")
    return folder


def refuse_other(run: Path, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises InputError: tokenizer or weights of a run's folder are not those that its result.json names."""
    own, record = tokenizer_fingerprint(tokenizer), run / "result.json"
    known: Recorded = read(record, Recorded) if record.is_file() else Recorded()
    hint = "it was changed; its folder alone, in place of RUN, is scored as it is"
    if known.hashes.get("tokenizer", own) != own:
        raise InputError(f"{folder / 'tokenizer.json'} is not the tokenizer that {record} names: {hint}")
    if folder == run / "model" and known.weights_sha256 not in (None, file_digest(folder / WEIGHTS)):
        raise InputError(f"{folder / WEIGHTS} is not the file that {record} names: {hint}")


def evaluate_run(run: Path, options: Options) -> dict[str, Any]:
    """What the command was asked for, of one model; plain types, for JSON."""
    if options.pairs is None and options.text is None:
        raise InputError("nothing to evaluate: give pairs=FILE or text=FILE")
    if options.out is not None and (not Path(options.out).parent.is_dir() or Path(options.out).is_dir()):
        raise InputError(f"out={options.out}: no such folder, or no file's name")
    device, texts = find_device(cast(Any, options)), None
    pairs = None if options.pairs is None else read_pairs(options.pairs)
    if options.text is not None:
        texts = read_texts(run, options.text, options.text_field, options.separator)
    folder = find_folder(run, options.revision)
    model, tokenizer, backend = load_model(folder, options.backend, device)
    refuse_other(run, folder, tokenizer)
    if texts is not None and backend == "mntp":
        raise InputError("backend=mntp: text= has the backends causal and mlm")
    found: dict[str, Any] = {"model": str(folder), "backend": backend}
    if backend == "causal":
        found["future_leak"] = refuse_leak(model, tokenizer, folder)
    if pairs is not None:
        found["texts_cut"] = texts_cut(tokenizer, pairs, backend, options.closing)
        if found["texts_cut"]:
            most = f"longer than the model's {tokenizer.model_max_length:,} positions and were cut"
            print(
                f"warning: {printable(folder)}: {found['texts_cut']:,} of {2 * len(pairs):,} texts are {most}",
                file=sys.stderr,
            )
        hits = judge(model, tokenizer, pairs, backend=backend, closing=options.closing)
        found["pairs"] = {variant: intervals(values, by_phenomenon(pairs)) for variant, values in hits.items()}
    if texts is not None:
        found["text"] = {}
        for name, result in evaluate_texts(model, tokenizer, texts, backend).items():
            shares = {"tokens": result.tokens, "words": result.words, "unknown_share": result.unknown / result.tokens}
            found["text"][name] = result.figures() | shares
    return found


def show_model(found: Mapping[str, Any]) -> str:
    """What evaluate_run found: a table of phenomena, and one of texts."""
    pairs, texts = found.get("pairs", {}), found.get("text", {})
    parts = [f"future leak: {found['future_leak']:.1e} nats"] if "future_leak" in found else []
    if pairs:
        rows = [{"pairs": name, "n": f"{by['n']:,}"} for name, by in pairs["summed"].items()]
        for variant, by in pairs.items():
            rows = [{**row, variant: SHARE.format(**by[row["pairs"]])} for row in rows]
        parts.append(show_table(rows))
    if texts:
        parts.append(show_table([{"text": name, **_show_text(result)} for name, result in texts.items()]))
    return "\n".join(parts)


def show_models(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What evaluate_run found of each model, a row each: all texts as one, and pairs by summed log-probability."""
    rows = []
    for name, each in found.items():
        rows.append({"model": name} | ({"words seen": f"{each['words_seen']:,}"} if "words_seen" in each else {}))
        rows[-1] |= _show_text(each["text"]["all"]) if "text" in each else {}
        for phenomenon, by in each.get("pairs", {}).get("summed", {}).items():
            rows[-1][f"pairs {phenomenon}"] = (SHARE if phenomenon == ALL else "{accuracy:.1%}").format(**by)
    columns = dict.fromkeys(key for row in rows for key in row)
    return show_table([{key: row.get(key, "") for key in columns} for row in rows])


def _show_text(result: Mapping[str, Any]) -> dict[str, str]:
    counts = {key: f"{result[key]:,}" for key in ("tokens", "words")}
    hidden = ("loss", "unknown_share", *counts)
    figures = {key.replace("_", " "): f"{value:,.4f}" for key, value in result.items() if key not in hidden}
    return {**counts, **figures, "unknown, not counted": f"{result['unknown_share']:.3%}"}


def draw_milestones(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A PNG of the accuracy on pairs, with the interval over all of them, and of bits per byte, over words seen."""
    from matplotlib.figure import Figure

    seen, panels = [each["words_seen"] for each in found], [key for key in ("pairs", "text") if key in found[0]]
    figure: Any = Figure(figsize=(6 * len(panels), 4), dpi=100, layout="constrained")
    for panel, axis in zip(panels, figure.subplots(1, len(panels), squeeze=False).flat, strict=True):
        axis.set(xlabel="words seen", ylabel="bits per byte" if panel == "text" else "accuracy, summed log-probability")
        axis.grid(alpha=0.3)
        if panel == "text":
            texts = [each["text"]["all"] for each in found]
            axis.plot(seen, [v for text in texts for k, v in text.items() if k.endswith("bits_per_byte")], ".-")
            continue
        for name in found[0]["pairs"]["summed"]:
            share, low, high = ([e["pairs"]["summed"][name][k] for e in found] for k in ("accuracy", "low", "high"))
            look = {"color": "black", "linewidth": 2, "zorder": 3} if name == ALL else {"linewidth": 1}
            axis.plot(seen, share, ".-", label=printable(name).replace("$", r"\$"), **look)
            if name == ALL:
                axis.fill_between(seen, low, high, color="black", alpha=0.15, linewidth=0)
        axis.legend()
    with replaced(path) as aside:
        figure.savefig(aside, format="png")


def evaluate_milestones(run: Path, options: Options) -> dict[str, dict[str, Any]]:
    """What evaluate_run finds of each milestone of a run, by words seen; draws it into the run's directory."""
    marks = revisions(run / "milestones")
    if not marks or options.revision is not None:
        which = "revision= names one of them" if marks else "there are none; track.milestones=[...] has a run make them"
        raise InputError(f"milestones=true asks for all milestones of {run}: {which}")
    found = {}
    for path, mark in marks:
        found[path.name] = {"words_seen": mark.words, **evaluate_run(run, replace(options, revision=path.name))}
    draw_milestones(list(found.values()), run / "milestones.png")
    return found


def evaluate_command(line: CommandLine) -> None:
    """Evaluates each RUN of a command line, or the milestones of one, and writes `out`."""
    options: Options = line.options
    if options.milestones:
        found: Any = evaluate_milestones(line.one_run(), options)
        print(show_models(found), line.one_run() / "milestones.png", sep="\n")
    elif len(line.places) > 1:
        found = {place: evaluate_run(Path(place), options) for place in line.places}
        print(show_models(found))
    else:
        found = evaluate_run(line.one_run(), options)
        print(show_model(found))
    if options.out is not None:
        write_json(Path(options.out), found)


def main() -> None:
    """Entry point of `python -m babylm_train.evaluate`."""
    start(evaluate_command, __doc__, Options)
