"""Exact evaluation, always in float32, and its command:

    python -m babylm_train.evaluate RUN [pairs=FILE] [text=FILE] [revision=chck_1M] [backend=mlm] [out=FILE]

RUN is a run's directory or any exported model. `pairs`: minimal pairs (jsonl or tsv, see minimal_pairs.py) by summed
and per-token log-probability, with bootstrap intervals; `closing=false` leaves out the mark that ends a sentence.
`text`: perplexity and bits per byte of text files, by `source` where they name one (`text_field`: of a .jsonl;
`separator`: line or blank_line, as the run cut its own if it was one of data=text). A causal model is first checked for
a leak: a later token must not change an earlier loss.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from babylm_train.data.packing import EvaluationRows
from babylm_train.errors import InputError, RunError, fail
from babylm_train.evaluation.loss import evaluate, summarise
from babylm_train.model.build import take_square_masks
from babylm_train.state import Evaluation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from babylm_train.data.corpus import Split
    from babylm_train.evaluation.pairs import Accuracy
    from babylm_train.objective import Objective

ROWS = 8  # of a batch of text
LEAK = 1e-4  # nats: more than rounding


def load_model(folder: Path, backend: str | None = None) -> tuple[Any, PreTrainedTokenizerFast, str]:
    """An exported model in float32, its tokenizer, and the backend that reads it: the one asked for, or its first.

    The tokenizer's model_max_length is at most the model's positions.

    Raises:
        InputError: there is no model, its tokenizer is slow or has no end-of-text mark, or it was not trained for the
            backend.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no exported model there")
    backends = getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "backends", None) or ["causal"]
    if backend is not None and backend not in backends:
        raise InputError(f"backend={backend}: {folder} was trained for {', '.join(backends)}")
    chosen = backend or backends[0]
    kind = AutoModelForMaskedLM if chosen == "mlm" else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: the tokenizer is not a fast one")
    if tokenizer.eos_token_id is None:
        raise InputError(f"{folder}: the tokenizer has no end-of-sequence token, which every text begins with")
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return take_square_masks(model), tokenizer, chosen


def model_folder(run: str, revision: str | None = None) -> Path:
    """Where the model of a run's directory is: `model`, or a milestone's name; `run` may be the model itself."""
    path = Path(run)
    if revision is not None:
        return path / "milestones" / revision
    return path / "model" if (path / "model").is_dir() else path


@torch.no_grad()
def future_leak(model: torch.nn.Module, vocabulary: int, length: int = 64, seed: int = 0) -> float:
    """The largest change of an earlier loss when later tokens are others, in nats: rounding, in a causal model.

    Random tokens, 4 rows of `length`; every second half is drawn again.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(vocabulary, (4, length), generator=generator)
    other = rows.clone()
    other[:, length // 2 :] = torch.randint(vocabulary, (4, length - length // 2), generator=generator)

    def losses(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids.to(next(model.parameters()).device), use_cache=False).logits
        return logits[:, : length // 2 - 1].log_softmax(-1).cpu().gather(-1, ids[:, 1 : length // 2, None])

    return float((losses(rows) - losses(other)).abs().max())


class Texts(list[str]):
    """Texts as a split of a corpus: with their words and bytes."""

    def __init__(self, texts: Sequence[str]) -> None:
        from babylm_train.files import digest

        super().__init__(texts)
        self.words = np.array([len(text.split()) for text in texts], np.int32)
        self.bytes = np.array([len(text.encode()) for text in texts], np.int64)
        self.fingerprint = digest(list(texts))


def evaluate_texts(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, by_source: Mapping[str, Sequence[str]], backend: str
) -> dict[str, Evaluation]:
    """Exact evaluation of each source's documents, and of `all`."""
    from babylm_train.data.tokens import tokenize
    from babylm_train.objective import CausalObjective, MaskedObjective

    objective: Objective = CausalObjective()
    if backend == "mlm":
        objective = MaskedObjective(0.15, 0.15, 1.0, 0.0, seed=0, evaluation_passes=7).use_tokenizer(tokenizer)
    found: dict[str, Evaluation] = {}
    for source, texts in by_source.items():
        with tempfile.TemporaryDirectory() as cache:
            split = tokenize(cast("Split", Texts(texts)), tokenizer, cache_dir=cache)
            result = evaluate(model, objective, EvaluationRows(split, tokenizer.model_max_length), ROWS)
            found[source] = replace(result, unknown=split.unknown)
    nats = sum(result.loss * result.tokens for result in found.values())
    tokens, words, size = (sum(getattr(r, name) for r in found.values()) for name in ("tokens", "words", "bytes"))
    whole = summarise(nats, tokens, words, size, backend == "mlm")
    whole = replace(whole, unknown=sum(result.unknown for result in found.values()))
    return {"all": whole, **(found if len(found) > 1 else {})}


def read_texts(pattern: str, text_field: str, separator: str) -> dict[str, list[str]]:
    """The documents of files or globs, cleaned as a corpus is, by their source; arguments as TextFiles has them.

    Raises:
        InputError: naming the file.
    """
    from babylm_train.data.corpus import fold
    from babylm_train.data.text import find_files, read_files

    by_source: dict[str, list[str]] = {}
    if separator not in ("line", "blank_line"):
        raise InputError(f"separator must be line or blank_line, got {separator}")
    for document in read_files(find_files("text", pattern), text_field, cast(Any, separator), key="text_field"):
        if text := fold(document.text):
            by_source.setdefault(document.source, []).append(text)
    if not by_source:
        raise InputError(f"text={pattern} holds no document")
    return by_source


def separator_of(run: str) -> str:
    """How the text files of a run were cut into documents; `line` for a model that is no run's, or of other data."""
    import yaml

    path = Path(run) / "config.yaml"
    data = yaml.safe_load(path.read_text(encoding="utf8"))["data"] if path.is_file() else {}
    return str(data["separator"]) if data.get("_target_") == "babylm_train.data.text.TextFiles" else "line"


def options(arguments: Sequence[str], defaults: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """RUN and `key=value` arguments, over their defaults.

    Raises:
        InputError: RUN is missing, or a key is unknown.
    """
    values, runs = dict(defaults), []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            runs.append(argument)
        elif key not in values:
            raise InputError(f"{key}: no such option (there are {', '.join(values)})")
        else:
            values[key] = value
    if len(runs) != 1:
        raise InputError(f"give one run's directory, got {' '.join(runs) or 'none'}")
    return runs[0], values


def report(run: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the command was asked for, printed as it comes; plain types, for JSON.

    Raises:
        InputError: nothing is asked for, no such model or file, or a causal model that sees the future.
    """
    if asked["pairs"] is None and asked["text"] is None:
        raise InputError("nothing to evaluate: give pairs=FILE or text=FILE")
    folder = model_folder(run, asked["revision"])
    model, tokenizer, backend = load_model(folder, asked["backend"])
    if asked["text"] is not None and backend == "mntp":
        raise InputError("backend=mntp: text= has the backends causal and mlm")
    found: dict[str, Any] = {"model": str(folder), "backend": backend}
    if backend == "causal":
        found["future_leak"] = future_leak(model, len(tokenizer), min(64, tokenizer.model_max_length))
        print(f"future leak: {found['future_leak']:.1e} nats")
        if found["future_leak"] > LEAK:
            raise InputError(f"{folder} sees the future: a later token changes an earlier loss")
    if asked["pairs"] is not None:
        found |= _report_pairs(model, tokenizer, backend, asked["pairs"], asked["closing"])
    if asked["text"] is not None:
        texts = read_texts(asked["text"], asked["text_field"], asked["separator"] or separator_of(run))
        results = evaluate_texts(model, tokenizer, texts, backend)
        found["text"] = {s: {**r.figures(), "tokens": r.tokens, "words": r.words} for s, r in results.items()}
        print(_text_table(results))
        for source, share in {s: r.unknown / r.tokens for s, r in results.items() if r.unknown}.items():
            found["text"][source]["unknown_share"] = share
            print(f"{source}: {share:.3%} of the tokens are unknown: the figures do not count their text")
    return found


def _report_pairs(model: Any, tokenizer: Any, backend: str, pattern: str, closing: str) -> dict[str, Any]:
    from babylm_train.evaluation.pairs import by_phenomenon, intervals, judge, read_pairs, texts_cut

    if closing not in ("true", "false"):
        raise InputError(f"closing must be true or false, got {closing}")
    pairs, closes = read_pairs(pattern), closing == "true"
    if cut := texts_cut(tokenizer, pairs, backend, closes):
        what = (
            f"{cut:,} of {2 * len(pairs):,} texts are longer than the model's {tokenizer.model_max_length:,} positions"
        )
        print(f"warning: {what} and were cut", file=sys.stderr)
    hits = judge(model, tokenizer, pairs, backend=backend, closing=closes)
    scores = {name: intervals(values, by_phenomenon(pairs)) for name, values in hits.items()}
    print(_pairs_table(scores))
    figures = {name: {p: asdict(one) for p, one in by.items()} for name, by in scores.items()}
    return {"pairs": figures, "texts_cut": cut}


def _pairs_table(scores: Mapping[str, Mapping[str, Accuracy]]) -> str:
    lines = [f"{'pairs':<24}{'n':>8}" + "".join(f"{name:>26}" for name in scores)]
    for phenomenon, first in scores["summed"].items():
        cells = (by[phenomenon] for by in scores.values())
        texts = (f"{100 * c.accuracy:.1f} % [{100 * c.low:.1f}, {100 * c.high:.1f}]" for c in cells)
        lines.append(f"{phenomenon[:23]:<24}{first.n:>8,}" + "".join(f"{text:>26}" for text in texts))
    return "\n".join(lines)


def _text_table(results: Mapping[str, Evaluation]) -> str:
    pseudo = "pseudo-" * results["all"].pseudo
    lines = [f"{'text':<24}{'words':>12}{'tokens':>12}{pseudo + 'perplexity':>20}{pseudo + 'bits a byte':>20}"]
    for source, r in results.items():
        lines.append(f"{source[:23]:<24}{r.words:>12,}{r.tokens:>12,}{r.perplexity:>20,.2f}{r.bits_per_byte:>20.4f}")
    return "\n".join(lines)


def main() -> None:
    """Entry point of `python -m babylm_train.evaluate`."""
    from babylm_train.files import write_json

    keys = {"revision": None, "pairs": None, "text": None, "text_field": "text", "separator": None, "backend": None}
    try:
        run, asked = options(sys.argv[1:], {**keys, "closing": "true", "out": None})
        found = report(run, asked)
        if asked["out"] is not None:
            write_json(Path(asked["out"]), found)
    except RunError as error:
        fail(error)


if __name__ == "__main__":
    main()
