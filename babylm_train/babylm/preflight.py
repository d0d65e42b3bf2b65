"""Is a run fit to be handed in? `python -m babylm_train.preflight RUN license=SPDX [name=NAME] [push_to=USER/NAME]`

Checks what an evaluation needs and nobody looks at: that each revision loads in this (fresh) process and gives the loss
it was saved with, that words, milestones and track agree, that the tokenizer and the sizes fit the BabyLM evaluation,
read as its `causal`, `mlm` and `mntp` backends do. Fills in the model card. `push_to` then uploads the model, and each
revision as a branch, to a Hugging Face repository; it is refused while a check fails.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from babylm_train import build
from babylm_train.babylm.card import SECTIONS, model_card
from babylm_train.babylm.milestones import beginning, name_of, revisions
from babylm_train.data.packing import EvaluationRows
from babylm_train.data.tokens import TokenizedSplit, tokenize
from babylm_train.errors import InputError, RunError, StorageError, fail
from babylm_train.evaluation.command import ROWS, load_model, options
from babylm_train.evaluation.likelihood import token_log_probabilities
from babylm_train.evaluation.loss import evaluate
from babylm_train.files import write_text

SAME = 1e-4  # nats a token: rounding between processes and machines
POSITIONS = 512  # what the BabyLM evaluation may feed
SENTENCES = 4  # read as the evaluation pipeline reads them
FILLING = 3  # places of padding after each


@dataclass(frozen=True)
class Finding:
    """One check. ok: True, False, or None for a statement that is no failure."""

    ok: bool | None
    text: str

    def __str__(self) -> str:
        return f"{ {True: 'ok    ', False: 'FAILED', None: 'note  '}[self.ok] } {self.text}"


@dataclass(frozen=True)
class Saved:
    """What a finished run left behind."""

    directory: Path
    config: dict[str, Any]
    result: dict[str, Any]
    metrics: list[dict[str, Any]]
    milestones: list[tuple[Path, dict[str, Any]]]
    source: Any
    objective: Any

    @property
    def folder(self) -> Path:
        """Of the model."""
        return self.directory / "model"


def open_run(run: str) -> Saved:
    """The files of a finished run.

    Raises:
        InputError: `run` is no directory of a finished run.
    """
    directory = Path(run)
    source, objective, config = build.reopened(directory / "config.yaml")
    path = directory / "result.json"
    result = json.loads(path.read_text(encoding="utf8")) if path.is_file() else {}
    if result.get("status") != "finished":
        raise InputError(f"{run} has not finished: {result.get('status', 'no result.json')}")
    if "exported_words" not in result:
        raise InputError(f"{path} does not say which update was exported: the run is of an earlier version")
    lines = (directory / "metrics.jsonl").read_text(encoding="utf8").splitlines()
    found = revisions(directory / "milestones")
    return Saved(directory, config, result, [json.loads(line) for line in lines], found, source, objective)


def check_ledger(run: Saved, training_words: int) -> Iterator[Finding]:
    """Words, milestones and track against each other; an adaptive curriculum may see more words than were planned."""
    result, track = run.result, run.config["track"]
    steps = {line["step"]: line["words"] for line in run.metrics}
    yield Finding(max(steps.values()) == result["words"], f"the record ends at {result['words']:,} words seen")
    update, words = result["exported_update"], result["exported_words"]
    yield Finding(steps.get(update) == words, f"model/ holds the weights of update {update:,}, after {words:,} words")
    if track["epochs"] is not None:
        most = track["epochs"] * training_words
        text = f"{result['words']:,} words seen, track {track['name']} allows {most:,} ({track['epochs']} epochs)"
        yield Finding(result["words"] <= most, text)
    due = [name_of(mark) for mark in track["milestones"] if mark <= result["words"]]
    there = [path.name for path, _ in run.milestones]
    missing = ", ".join(name for name in due if name not in there)
    yield Finding(
        not missing, f"{len(due)} milestones are due, {len(there)} are there{': without ' * bool(missing)}{missing}"
    )
    late = [name_of(mark) for mark in track["milestones"] if mark > result["words"]]
    if late:
        yield Finding(None, f"{len(late)} milestones of the track, from {late[0]} on, lie beyond the words seen")
    for path, record in run.milestones:
        before = max((words for step, words in steps.items() if step < record["update"]), default=0)
        fits = before < record["mark"] <= record["words"] == steps.get(record["update"], record["words"])
        yield Finding(fits, f"{path.name}: {record['words']:,} words, after update {record['update']:,}")


def check_revision(folder: Path, backend: str, expected: float, validation: TokenizedSplit, objective: Any) -> Finding:
    """Does a revision give the loss it was saved with?"""
    model, tokenizer, _ = load_model(folder, backend)
    rows = EvaluationRows(validation, tokenizer.model_max_length)
    loss = evaluate(model, objective, rows, ROWS).loss
    return Finding(
        abs(loss - expected) <= SAME * max(expected, 1.0),
        f"{folder.name}: loss {loss:.5f} over {rows.tokens:,} tokens of validation text, {expected:.5f} when saved",
    )


def check_tokenizer(tokenizer: Any, model: Any, text: str, backends: Sequence[str]) -> Iterator[Finding]:
    """What an evaluation takes for granted."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    covered = set().union(*(range(*span) for span in offsets))
    letters = {i for i, c in enumerate(text) if not c.isspace()}
    yield Finding(tokenizer.is_fast and letters <= covered, "fast tokenizer, its offsets cover every letter")
    mark = tokenizer.eos_token_id
    same = mark == tokenizer.bos_token_id == model.config.bos_token_id == model.config.eos_token_id
    yield Finding(same, f"bos and eos are the mark {mark} of training, in the tokenizer and in the model")
    yield Finding(ids[0] == mark and mark not in ids[1:], "a text begins with that mark, once")
    pad, right = tokenizer.pad_token_id, tokenizer.padding_side == "right"
    what = f"the mark {mark}, for want of a padding token" if pad is None else pad
    yield Finding(right and (pad is not None or None), f"padding with {what}, on the right")
    size, largest = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    yield Finding(largest < size, f"largest token id {largest:,}, {size:,} embeddings")
    positions = model.config.max_position_embeddings
    yield Finding(
        tokenizer.model_max_length == positions, f"model_max_length is the {positions} positions of the model"
    )
    short = positions < POSITIONS
    yield Finding(None if short else True, f"{positions} positions{': longer sentences are cut or fail' * short}")
    if set(backends) & {"mlm", "mntp"}:
        yield Finding(tokenizer.mask_token_id is not None, f"mask token {tokenizer.mask_token}")


def check_interface(folder: Path, backend: str, texts: Sequence[str]) -> Finding:
    """The scores that the BabyLM evaluation computes through a backend against our own, in a padded batch."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoProcessor

    if not texts:
        return Finding(None, f"backend {backend}: not read, no sentence fits into the model's positions")
    model, tokenizer, _ = load_model(folder, backend)
    own = [float(t.sum()) for t in token_log_probabilities(model, tokenizer, texts, backend=backend, closing=False)]
    processor = AutoProcessor.from_pretrained(folder, padding_side="right")
    kind = AutoModelForCausalLM if backend == "causal" else AutoModelForMaskedLM
    theirs = kind.from_pretrained(folder, trust_remote_code=backend == "mntp", dtype=torch.float32).eval()
    scores = [_as_the_pipeline(theirs, processor, text, backend) for text in texts]
    worst = max(abs(a - b) for a, b in zip(own, scores, strict=True))
    return Finding(worst <= 1e-2, f"backend {backend}: {len(texts)} sentences score as here, to {worst:.0e} nats")


def fitting(text: str, tokenizer: Any, room: int) -> str:
    """As much of the beginning of `text` as gives at most `room` tokens, the mark among them."""
    while text and len(tokenizer(text)["input_ids"]) > room:
        text = text[:-1].rstrip()
    return text


@torch.no_grad()
def _as_the_pipeline(model: Any, processor: Any, text: str, backend: str) -> float:
    """A sentence's log-probability by the rules of the 2025 pipeline: of the tokens that have letters of the text."""
    encoded = processor(text=text, return_offsets_mapping=True)
    ids = torch.tensor(encoded["input_ids"])
    places = [i for i, (_, end) in enumerate(encoded["offset_mapping"]) if end > 0]
    pad = processor.eos_token_id if processor.pad_token_id is None else processor.pad_token_id
    filling = torch.full((FILLING,), pad)
    if backend == "causal":
        rows = torch.cat([ids, filling])[None]
        seen = torch.cat([torch.ones(len(ids)), torch.zeros(FILLING)])[None]
        logits = model(input_ids=rows[:, :-1], attention_mask=seen[:, :-1]).logits[0]
        return sum(float(logits[i - 1].log_softmax(-1)[ids[i]]) for i in places if i)
    rows = torch.cat([ids, filling]).repeat(len(places), 1)
    rows[torch.arange(len(places)), places] = processor.mask_token_id
    seen = torch.cat([torch.ones(len(ids)), torch.zeros(FILLING)]).repeat(len(places), 1)
    logits = model(input_ids=rows, attention_mask=seen).logits
    at = torch.tensor(places) - int(backend == "mntp")
    picked = logits[torch.arange(len(places)), at].log_softmax(-1)
    return float(picked[torch.arange(len(places)), ids[places]].sum())


def check_name(name: str, folder: Path) -> Finding:
    """A dot in a name cuts it short where results are filed, and breaks the import of code beside the weights."""
    return Finding("." not in name, f"name {name}" + (f" (the folder is {folder})" if name != folder.name else ""))


def check_card(card: str, result: Mapping[str, Any], license: str | None) -> Iterator[Finding]:
    """Does the card say what it must, and what the run says?"""
    missing = [title for title in SECTIONS if f"\n## {title}\n" not in card]
    yield Finding(not missing and f"{result['words']:,}" in card and f"{result['val_loss']:.4f}" in card, "model card")
    yield Finding(bool(license), f"licence {license or 'is not stated: give license=cc-by-sa-4.0, say'}")


def preflight(run: Saved, name: str, license: str | None) -> Iterator[Finding]:
    """Every check, as it is made; writes the model card.

    Raises:
        InputError: the corpus or the model cannot be read.
    """
    from transformers import AutoTokenizer

    license = (license or "").strip() or None
    corpus = run.source.load()
    same = corpus.validation.fingerprint == run.result["hashes"]["validation"]
    yield Finding(same, "the validation text is the one of the run")
    yield from check_ledger(run, corpus.report["train"]["words"])
    model, tokenizer, backend = load_model(run.folder)
    validation = tokenize(corpus.validation, tokenizer, cache_dir=run.source.cache_dir)
    objective, backends = run.objective.use_tokenizer(tokenizer), run.objective.backends
    yield check_revision(run.folder, backend, run.result["val_loss"], validation, objective)
    for path, record in run.milestones:
        yield check_revision(path, backend, record["check_loss"], beginning(validation), objective)
    texts = [" ".join(text.split()[:12]) for text in corpus.validation[:SENTENCES]]
    as_it_is = AutoTokenizer.from_pretrained(run.folder, local_files_only=True)  # load_model corrects its length
    yield from check_tokenizer(as_it_is, model, texts[0], backends)
    cut = (fitting(text, tokenizer, tokenizer.model_max_length - FILLING) for text in texts)
    texts = [text for text in cut if text]
    for each in backends:
        yield check_interface(run.folder, each, texts)
    yield check_name(name, run.folder)
    card = model_card(name, license, run.config, run.result, corpus.report, run.milestones, backends)
    write_text(run.folder / "README.md", card)
    yield from check_card(card, run.result, license)


def push(run: Saved, repository: str) -> None:
    """Uploads the model, and each milestone as a branch of its name. Never tried against the hub itself.

    Raises:
        InputError: the hub does not answer or refuses. StorageError: an upload broke off.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    from babylm_train.data.network import need_hub, offline

    if offline():
        raise InputError(f"push_to={repository}: HF_HUB_OFFLINE is set")
    need_hub(f"push_to={repository}")
    hub = HfApi()
    try:
        hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=run.folder)
        for path, _ in run.milestones:
            hub.create_branch(repository, branch=path.name, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=path, revision=path.name)
            print(f"pushed {path.name}", flush=True)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        raise InputError(f"push_to={repository}: {error}") from error
    except OSError as error:
        raise StorageError(f"push_to={repository}: {error}") from error


def main() -> None:
    """Prints the findings; exit code 2 if a check failed."""
    try:
        where, asked = options(sys.argv[1:], {"license": None, "name": None, "push_to": None})
        run = open_run(where)
        default = run.directory.resolve().name.replace(".", "_")
        name = asked["name"] or (asked["push_to"] or default).rpartition("/")[2]
        failed = 0
        for finding in preflight(run, name, asked["license"]):
            print(finding, flush=True)
            failed += finding.ok is False
        if failed:
            raise InputError(f"{where}: {failed} check{'s' * (failed > 1)} failed")
        if asked["push_to"]:
            push(run, asked["push_to"])
    except RunError as error:
        fail(error)


if __name__ == "__main__":
    main()
