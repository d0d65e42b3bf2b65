"""Is a run fit to be handed in?

    python -m babylm_train.preflight RUN license=SPDX [language=hi] [name=NAME] [push_to=USER/NAME]

Checks what an evaluation needs and nobody looks at: that each revision loads in this (fresh) process and gives the loss
it was saved with, that words, milestones and track agree, that the tokenizer and the sizes fit the BabyLM evaluation,
read as its `causal`, `mlm` and `mntp` backends do. Fills in the model card. `push_to` then uploads the model, and each
revision as a branch, to a Hugging Face repository; it is refused while a check fails.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
from pydantic import Field

from babylm_train import build
from babylm_train.babylm.milestones import Revision, beginning, revisions
from babylm_train.babylm.track import name_of
from babylm_train.command import CommandLine, start
from babylm_train.data.packing import EvaluationRows
from babylm_train.data.tokens import TokenizedSplit, tokenize
from babylm_train.errors import InputError, StorageError, printable
from babylm_train.evaluation.command import ROWS, load_model
from babylm_train.evaluation.likelihood import token_log_probabilities
from babylm_train.evaluation.loss import evaluate
from babylm_train.files import check_record, read, read_lines, write_text
from babylm_train.model import modeling_mntp
from babylm_train.model.export import BOTH_WAYS, TOKENIZER_CLASS, padding_side

SAME = 1e-4  # nats a token: rounding between processes and machines
POSITIONS = 512  # what the BabyLM evaluation may feed
SENTENCES = 4  # read as the evaluation pipeline reads them
FILLING = 3  # places of padding after each
PARTS = ("model", "objective", "tokenizer", "optimizer", "scheduler", "curriculum", "trainer")
FIGURES = {"val_loss", "perplexity", "bits_per_byte", "pseudo_perplexity", "pseudo_bits_per_byte"}
USES = {
    "causal": "`AutoModelForCausalLM.from_pretrained(name)`; BabyLM evaluation backend `causal`",
    "mlm": "`AutoModelForMaskedLM.from_pretrained(name)`; backend `mlm`",
    "mntp": "`AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)`; backend `mntp`",
}


@dataclass(frozen=True)
class Options:
    """What is asked for; `license` and `language` (ISO 639) as the hub spells them."""

    license: Annotated[str, Field(pattern=r"^[A-Za-z0-9.+-]*$")] = ""
    language: Annotated[str, Field(pattern=r"^([a-z]{2,3})?$")] = ""
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    push_to: str | None = None
    device: str = "auto"
    cache_dir: str = "multirun_outputs/.cache"


@dataclass(frozen=True)
class Line:
    """What is read of a line of metrics.jsonl."""

    step: int
    words: int


class Limits(pydantic.BaseModel):
    """What is read of a run's track."""

    name: str
    epochs: int | None
    milestones: list[int]


class Config(pydantic.BaseModel, extra="allow"):
    """What is read of config.yaml beside what is built from it."""

    seed: int
    data: dict[str, Any]
    track: Limits


class Result(pydantic.BaseModel):
    """What is read of result.json."""

    status: Literal["finished"]
    words: int
    updates: int
    exported_update: int
    exported_words: int
    val_loss: float
    perplexity: float | None = None
    bits_per_byte: float | None = None
    pseudo_perplexity: float | None = None
    pseudo_bits_per_byte: float | None = None
    parameters: int
    hashes: dict[str, str]
    versions: dict[str, str]
    commit: str | None
    device: str
    pairs: dict[str, float] = {}


@dataclass(frozen=True)
class Finding:
    """One check. ok: True, False, or None for a statement that is no failure."""

    ok: bool | None
    text: str

    def __str__(self) -> str:
        return f"{ {True: 'ok    ', False: 'FAILED', None: 'note  '}[self.ok] } {printable(self.text)}"


@dataclass(frozen=True)
class Saved:
    """What a finished run left behind; `folder` is the model's."""

    folder: Path
    config: Config
    result: Result
    metrics: list[Line]
    milestones: list[tuple[Path, Revision]]
    source: Any
    objective: Any


def open_run(directory: Path, cache_dir: str) -> Saved:
    """The files of a finished run; its corpus is cached in `cache_dir`, wherever its configuration points.

    Raises:
        InputError: the run has not finished, or a file is missing or damaged.
    """
    path = directory / "config.yaml"
    try:
        source, objective, values = build.reopen(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return Saved(
        directory / "model",
        check_record(values, Config, str(path)),
        read(directory / "result.json", Result),
        read_lines(directory / "metrics.jsonl", Line),
        revisions(directory / "milestones"),
        dataclasses.replace(source, cache_dir=cache_dir),
        objective,
    )


def check_ledger(run: Saved, training_words: int) -> Iterator[Finding]:
    """Words, milestones and track against each other; an adaptive curriculum may see more words than were planned."""
    result, track = run.result, run.config.track
    steps = {line.step: line.words for line in run.metrics}
    yield Finding(max(steps.values(), default=0) == result.words, f"the record ends at {result.words:,} words seen")
    update, words = result.exported_update, result.exported_words
    yield Finding(steps.get(update) == words, f"model/ holds the weights of update {update:,}, after {words:,} words")
    if track.epochs is not None:
        most = track.epochs * training_words
        text = f"{result.words:,} words seen, track {track.name} allows {most:,} ({track.epochs} epochs)"
        yield Finding(result.words <= most, text)
    due = [name_of(mark) for mark in track.milestones if mark <= result.words]
    there = [path.name for path, _ in run.milestones]
    missing = ", ".join(name for name in due if name not in there)
    without = f": without {missing}" if missing else ""
    yield Finding(not missing, f"{len(due)} milestones are due, {len(there)} are there{without}")
    if late := [name_of(mark) for mark in track.milestones if mark > result.words]:
        yield Finding(None, f"{len(late)} milestones of the track, from {late[0]} on, lie beyond the words seen")
    for path, revision in run.milestones:
        before = max((words for step, words in steps.items() if step < revision.update), default=0)
        fits = before < revision.mark <= revision.words == steps.get(revision.update, revision.words)
        yield Finding(fits, f"{path.name}: {revision.words:,} words, after update {revision.update:,}")


def check_revision(
    folder: Path, backend: str, expected: float, validation: TokenizedSplit, objective: Any, device: Any
) -> Finding:
    """Does a revision give the loss it was saved with?"""
    model, tokenizer, _ = load_model(folder, backend, device)
    rows = EvaluationRows(validation, tokenizer.model_max_length)
    loss = evaluate(model, objective, rows, ROWS).loss
    return Finding(
        abs(loss - expected) <= SAME * max(expected, 1.0),
        f"{folder.name}: loss {loss:.5f} over {rows.tokens:,} tokens of validation text, {expected:.5f} when saved",
    )


def check_tokenizer(folder: Path, tokenizer: Any, model: Any, text: str, backends: Sequence[str]) -> Iterator[Finding]:
    """What an evaluation takes for granted; `tokenizer` as it was saved."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    covered = set().union(*(range(*span) for span in offsets))
    letters = {i for i, c in enumerate(text) if not c.isspace()}
    settings: dict[str, Any] = read(folder / "tokenizer_config.json", dict[str, Any])
    named = settings.get("tokenizer_class")
    yield Finding(named == TOKENIZER_CLASS, f"tokenizer class {named}: transformers 4 and 5 know {TOKENIZER_CLASS}")
    yield Finding(letters <= covered, "its offsets cover every letter")
    mark = tokenizer.eos_token_id
    same = mark == tokenizer.bos_token_id == model.config.bos_token_id == model.config.eos_token_id
    yield Finding(same, f"bos and eos are the mark {mark} of training, in the tokenizer and in the model")
    yield Finding(ids[0] == mark and mark not in ids[1:], "a text begins with that mark, once")
    pad, side = tokenizer.pad_token_id, tokenizer.padding_side
    what = f"the mark {mark}, for want of a padding token" if pad is None else pad
    yield Finding(side == padding_side(backends) and (pad is not None or None), f"padding with {what}, on the {side}")
    positions = model.config.max_position_embeddings
    same = tokenizer.model_max_length == positions
    yield Finding(same, f"model_max_length is the {positions} positions of the model")
    short = positions < POSITIONS
    yield Finding(None if short else True, f"{positions} positions{': longer sentences are cut or fail' * short}")


def check_interface(folder: Path, backend: str, texts: Sequence[str], device: Any = "cpu") -> Finding:
    """The scores that the BabyLM evaluation computes through a backend against our own, in a padded batch."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoProcessor

    if not texts:
        return Finding(None, f"backend {backend}: not read, no sentence fits into the model's positions")
    model, tokenizer, _ = load_model(folder, backend, device)
    own = [float(t.sum()) for t in token_log_probabilities(model, tokenizer, texts, backend=backend, closing=False)]
    kind: Any = AutoModelForCausalLM if backend == "causal" else AutoModelForMaskedLM
    if backend == "mntp":  # the folder's code equals this, see load_model
        kind = getattr(modeling_mntp, BOTH_WAYS[type(model).__name__])
    processor = AutoProcessor.from_pretrained(folder, padding_side="right", trust_remote_code=False)
    theirs = kind.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    scores = [_score_as_the_pipeline(theirs.eval().to(device), processor, text, backend) for text in texts]
    worst = max(abs(a - b) for a, b in zip(own, scores, strict=True))
    return Finding(worst <= 1e-2, f"backend {backend}: {len(texts)} sentences score as here, to {worst:.0e} nats")


def shorten(text: str, tokenizer: Any, room: int) -> str:
    """As much of the beginning of `text` as gives at most `room` tokens, the mark among them."""
    while text and len(tokenizer(text)["input_ids"]) > room:
        text = text[:-1].rstrip()
    return text


@torch.no_grad()
def _score_as_the_pipeline(model: Any, processor: Any, text: str, backend: str) -> float:
    """A sentence's log-probability by the rules of the 2025 pipeline: of the tokens that have letters of the text."""
    encoded = processor(text=text, return_offsets_mapping=True)
    ids = torch.tensor(encoded["input_ids"])
    places = torch.tensor([i for i, (_, end) in enumerate(encoded["offset_mapping"]) if i and end > 0])
    pad = processor.eos_token_id if processor.pad_token_id is None else processor.pad_token_id
    rows = torch.cat([ids, torch.full((FILLING,), pad)])[None]
    seen = torch.cat([torch.ones(len(ids)), torch.zeros(FILLING)])[None]
    at = places - int(backend != "mlm")
    if backend != "causal":
        rows, seen = rows.repeat(len(places), 1), seen.repeat(len(places), 1)
        rows[torch.arange(len(places)), places] = processor.mask_token_id
    logits = model(input_ids=rows.to(model.device), attention_mask=seen.to(model.device)).logits.cpu()
    picked = logits[0 if backend == "causal" else torch.arange(len(places)), at].log_softmax(-1)
    return float(picked[torch.arange(len(places)), ids[places]].sum())


def model_card(name: str, run: Saved, corpus: Mapping[str, Any], options: Options) -> str:
    """The card as Markdown with the hub's metadata; `corpus` is the corpus's report."""
    config, result, other = run.config, run.result, run.config.model_extra or {}
    head = {"license": options.license, "language": options.language, "tags": "[babylm]"}
    figures = result.model_dump(include=FIGURES, exclude_none=True)
    rows = [f"| `{path.name}` | {r.words:,} | {r.update:,} |" for path, r in run.milestones]
    versions = ", ".join(f"{package} {version}" for package, version in result.versions.items())
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in head.items() if value),
        "---",
        f"# {name}",
        "## Data",
        f"- {_show({key: value for key, value in config.data.items() if key != 'cache_dir'})}",
        *(
            f"- {split}: {part['documents']:,} documents, {part['words']:,} words, {part['bytes']:,} bytes of UTF-8, "
            f"{part['devanagari']:.1%} Devanagari"
            for split, part in ((split, corpus[split]) for split in ("train", "validation"))
        ),
        "## Words seen",
        f"{result.words:,} white-space words of training text, repetitions counted, in {result.updates:,} updates; "
        f"track `{config.track.name}`. The tokenizer does not matter to this count. The weights are those of update "
        f"{result.exported_update:,}, after {result.exported_words:,} words.",
        "## Recipe",
        f"{result.parameters:,} parameters; seed {config.seed}.",
        *(f"- {group}: {_show(other.get(group))}" for group in PARTS),
        f"- commit {result.commit}; {versions}; {result.device}",
        "## Results",
        *(f"- {figure} (validation text): {value:.4f}" for figure, value in figures.items()),
        *(f"- built-in minimal pairs, {phenomenon}: {share:.1%}" for phenomenon, share in result.pairs.items()),
        "## Revisions",
        *(["| revision | words seen | update |", "|---|---|---|", *rows] if rows else ["Only this one."]),
        "## Use",
        *(f"- {USES[backend]}" for backend in run.objective.backends),
        "- The tokenizer puts the end-of-text mark before every text, as in training.",
        "## Licence",
        options.license or "NOT STATED",
    ]
    text = "\n".join(html.escape(printable(line), quote=False) for line in lines)
    return text.replace("\n## ", "\n\n## ") + "\n"


def _show(node: Any) -> str:
    if not isinstance(node, dict):
        return str(node)
    name = str(node.get("_target_", "")).rpartition(".")[2]
    return f"{name}({', '.join(f'{k}={_show(v)}' for k, v in node.items() if not str(k).startswith('_'))})"


def preflight(run: Saved, name: str, options: Options) -> Iterator[Finding]:
    """Every check, as it is made; writes the model card.

    Raises:
        InputError: the corpus or the model cannot be read.
    """
    from transformers import AutoTokenizer

    device = build.find_device(options)  # type: ignore[arg-type]
    model, tokenizer, backend = load_model(run.folder, None, device)
    corpus = run.source.load()
    same = corpus.validation.fingerprint == run.result.hashes.get("validation")
    yield Finding(same, "the validation text is the one of the run")
    yield from check_ledger(run, corpus.report["train"]["words"])
    validation = tokenize(corpus.validation, tokenizer, cache_dir=run.source.cache_dir)
    objective, backends = run.objective.use_tokenizer(tokenizer), run.objective.backends
    yield check_revision(run.folder, backend, run.result.val_loss, validation, objective, device)
    for path, revision in run.milestones:
        yield check_revision(path, backend, revision.check_loss, beginning(validation), objective, device)
    texts = [" ".join(text.split()[:12]) for text in corpus.validation[:SENTENCES]]
    saved = AutoTokenizer.from_pretrained(run.folder, local_files_only=True, trust_remote_code=False)
    yield from check_tokenizer(run.folder, saved, model, texts[0], backends)
    cut = (shorten(text, tokenizer, tokenizer.model_max_length - FILLING) for text in texts)
    texts = [text for text in cut if text]
    for each in backends:
        yield check_interface(run.folder, each, texts, device)
    # A dot cuts the name short where results are filed, and breaks the import of code beside the weights.
    yield Finding("." not in name, f"name {name}")
    write_text(run.folder / "README.md", model_card(name, run, corpus.report, options))
    licence = options.license or "is not stated: give license=cc-by-sa-4.0, say"
    yield Finding(bool(options.license), f"licence {licence}")
    if not options.language:
        yield Finding(None, "the card states no language: give language=hi, say")


def push(run: Saved, repository: str) -> None:
    """Uploads the model, and each milestone as a branch of its name. Never tried against the hub itself.

    Raises:
        InputError: the hub does not answer or refuses. StorageError: an upload broke off.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

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
            print(f"pushed {printable(path.name)}", flush=True)
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(f"push_to={repository}: {error}") from error
    except OSError as error:
        raise StorageError(f"push_to={repository}: {error}") from error


def check_and_push(line: CommandLine) -> None:
    """Prints the findings, and uploads where that is asked for. Raises InputError: a check failed."""
    options: Options = line.options
    if len(line.places) != 1:
        raise InputError(f"give one run's directory, got {' '.join(line.places) or 'none'}")
    run, default = open_run(Path(line.places[0]), options.cache_dir), Path(line.places[0]).resolve().name
    name = options.name or (options.push_to or default.replace(".", "_")).rpartition("/")[2]
    failed = 0
    for finding in preflight(run, name, options):
        print(finding, flush=True)
        failed += finding.ok is False
    if failed:
        raise InputError(f"{line.places[0]}: {failed} check{'s' * (failed > 1)} failed")
    if options.push_to:
        push(run, options.push_to)


def main() -> None:
    """Entry point of `python -m babylm_train.preflight`; exit code 2 if a check failed."""
    start(check_and_push, __doc__, Options, places="RUN")
