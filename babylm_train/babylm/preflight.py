"""Is a run fit to be handed in?

    python -m babylm_train.preflight RUN license=SPDX [language=hi] [name=NAME] [push_to=USER/NAME]

Checks that each revision loads afresh and gives the loss it was saved with, that words, milestones and track agree, and
that the BabyLM evaluation reads the same scores. Writes the model card. `push_to` then uploads model and revisions.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
from pydantic import Field

from babylm_train import build
from babylm_train.babylm.milestones import Revision, beginning, revisions
from babylm_train.babylm.track import Track, name_of
from babylm_train.command import CommandLine, start
from babylm_train.data.corpus import Corpus, describe
from babylm_train.data.network import need_hub
from babylm_train.data.packing import EvaluationRows
from babylm_train.data.tokenizer import tokenizer_fingerprint
from babylm_train.data.tokens import TokenizedSplit, tokenize
from babylm_train.errors import InputError, printable
from babylm_train.evaluation.command import ROWS, load_model
from babylm_train.evaluation.likelihood import token_log_probabilities
from babylm_train.evaluation.loss import evaluate
from babylm_train.files import file_digest, read, read_lines, write_text
from babylm_train.model import modeling_mntp
from babylm_train.model.export import BOTH_WAYS, TOKENIZER_CLASS, WEIGHTS, padding_side

SAME = 1e-4  # nats a token: rounding between processes and machines
POSITIONS = 512  # what the BabyLM evaluation may feed
SENTENCES, WORDS, FILLING = 4, 6, 3  # of so many words, padded by so many places, are read as the pipeline does
PARTS = ("data", "model", "objective", "tokenizer", "optimizer", "scheduler", "curriculum", "trainer")
USES = {
    "causal": "`AutoModelForCausalLM.from_pretrained(name)`; BabyLM evaluation backend `causal`",
    "mlm": "`AutoModelForMaskedLM.from_pretrained(name)`; backend `mlm`",
    "mntp": "`AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)`; backend `mntp`",
}

Finding = tuple[bool | None, str]  # is it as it should be, and what was looked at; None: a note, no failure


@dataclass(frozen=True)
class Options:
    license: Annotated[str, Field(pattern=r"^[A-Za-z0-9.+-]*$")] = ""
    language: Annotated[str, Field(pattern=r"^([a-z]{2,3})?$")] = ""  # ISO 639
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    push_to: str | None = None
    device: str = "auto"
    cache_dir: str = "multirun_outputs/.cache"


@dataclass(frozen=True)
class Line:  # as much of one as is read of metrics.jsonl
    step: int
    words: int


class Result(pydantic.BaseModel):  # as much as is read of result.json
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
    weights_sha256: str
    versions: dict[str, str]
    commit: str | None
    device: str
    pairs: dict[str, float] = {}


@dataclass(frozen=True)
class Saved:  # what a finished run left behind
    folder: Path  # of the model
    config: dict[str, Any]
    result: Result
    metrics: list[Line]
    milestones: list[tuple[Path, Revision]]
    source: Any
    objective: Any
    track: Track


def open_run(directory: Path, cache_dir: str) -> Saved:
    """The files of a finished run; its corpus is cached in `cache_dir`, wherever its configuration points."""
    path = directory / "config.yaml"
    try:
        (source, objective, track), config = build.reopen(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    result: Result = read(directory / "result.json", Result)
    metrics: list[Line] = read_lines(directory / "metrics.jsonl", Line)
    source, written = dataclasses.replace(source, cache_dir=cache_dir), revisions(directory / "milestones")
    return Saved(directory / "model", config, result, metrics, written, source, objective, track)


def check_ledger(run: Saved, training_words: int) -> Iterator[Finding]:
    """Words, milestones and track against each other; an adaptive curriculum may see more words than were planned."""
    result, track = run.result, run.track
    steps = {line.step: line.words for line in run.metrics}
    yield max(steps.values(), default=0) == result.words, f"the record ends at {result.words:,} words seen"
    update, words = result.exported_update, result.exported_words
    yield steps.get(update) == words, f"model/ holds the weights of update {update:,}, after {words:,} words"
    if track.epochs is not None:
        most = track.epochs * training_words
        text = f"{result.words:,} words seen, track {track.name} allows {most:,} ({track.epochs} epochs)"
        yield result.words <= most, text
    there = {path.name for path, _ in run.milestones}
    missing = [name_of(mark) for mark in track.milestones if mark <= result.words and name_of(mark) not in there]
    yield not missing, f"{len(there)} milestones are there" + (f", without {', '.join(missing)}" if missing else "")
    for path, revision in run.milestones:
        before = max((words for step, words in steps.items() if step < revision.update), default=0)
        fits = before < revision.mark <= revision.words == steps.get(revision.update, revision.words)
        yield fits, f"{path.name}: {revision.words:,} words, after update {revision.update:,}"


def check_revision(
    folder: Path, backend: str, expected: float, validation: TokenizedSplit, objective: Any, device: Any
) -> Finding:
    model, tokenizer, _ = load_model(folder, backend, device)
    loss = evaluate(model, objective, EvaluationRows(validation, tokenizer.model_max_length), ROWS).loss
    text = f"{folder.name}: loss {loss:.5f} of validation text, {expected:.5f} when saved"
    return abs(loss - expected) <= SAME * max(expected, 1.0), text


def check_tokenizer(folder: Path, tokenizer: Any, model: Any, text: str, backends: Sequence[str]) -> Iterator[Finding]:
    """What an evaluation takes for granted; `tokenizer` as it was saved."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids, covered = encoded["input_ids"], {i for span in encoded["offset_mapping"] for i in range(*span)}
    named: Any = read(folder / "tokenizer_config.json", dict[str, Any]).get("tokenizer_class")
    yield named == TOKENIZER_CLASS, f"tokenizer class {named}: transformers 4 and 5 know {TOKENIZER_CLASS}"
    yield all(i in covered or c.isspace() for i, c in enumerate(text)), "its offsets cover every letter"
    mark, positions = tokenizer.eos_token_id, model.config.max_position_embeddings
    same = mark == tokenizer.bos_token_id == model.config.bos_token_id == model.config.eos_token_id
    yield same, f"bos and eos are the mark {mark} of training, in the tokenizer and in the model"
    yield ids[0] == mark and mark not in ids[1:], "a text begins with that mark, once"
    padding = tokenizer.padding_side
    yield padding == padding_side(backends), f"padding with {tokenizer.pad_token}, on the {padding}"
    yield tokenizer.model_max_length == positions, f"model_max_length is the {positions} positions of the model"
    if positions < POSITIONS:
        yield None, f"{positions} positions: sentences longer than these are cut or fail"


def check_interface(folder: Path, backend: str, texts: Sequence[str], device: Any = "cpu") -> Finding:
    """The scores that the BabyLM evaluation computes through a backend against our own, in a padded batch."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoProcessor

    if not texts:
        return None, f"backend {backend}: not read, no sentence fits into the model's positions"
    model, tokenizer, _ = load_model(folder, backend, device)
    own = [float(t.sum()) for t in token_log_probabilities(model, tokenizer, texts, backend=backend, closing=False)]
    kind: Any = AutoModelForCausalLM if backend == "causal" else AutoModelForMaskedLM
    if backend == "mntp":  # the folder's code equals this, see load_model
        kind = getattr(modeling_mntp, BOTH_WAYS[type(model).__name__])
    processor = AutoProcessor.from_pretrained(folder, padding_side="right", trust_remote_code=False)
    theirs = kind.from_pretrained(folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32)
    scores = [_score_as_the_pipeline(theirs.eval().to(device), processor, text, backend) for text in texts]
    worst = max(abs(a - b) for a, b in zip(own, scores, strict=True))
    return worst <= 1e-2, f"backend {backend}: {len(texts)} sentences score as here, to {worst:.0e} nats"


@torch.no_grad()
def _score_as_the_pipeline(model: Any, processor: Any, text: str, backend: str) -> float:
    """A sentence's log-probability by the rules of the 2025 pipeline: of the tokens that have letters of the text."""
    encoded = processor(text=text, return_offsets_mapping=True)
    ids = torch.tensor(encoded["input_ids"])
    places = torch.tensor([i for i, (_, end) in enumerate(encoded["offset_mapping"]) if i and end > 0])
    pad = processor.eos_token_id if processor.pad_token_id is None else processor.pad_token_id
    rows = torch.cat([ids, torch.full((FILLING,), pad)]).repeat(len(places), 1)  # one for each token that is scored
    seen = torch.cat([torch.ones(len(ids)), torch.zeros(FILLING)]).repeat(len(places), 1)
    row = torch.arange(len(places))
    if backend != "causal":
        rows[row, places] = processor.mask_token_id
    logits = model(input_ids=rows.to(model.device), attention_mask=seen.to(model.device)).logits.cpu()
    picked = logits[row, places - int(backend != "mlm")].log_softmax(-1)
    return float(picked[row, ids[places]].sum())


def model_card(name: str, run: Saved, corpus: Corpus, options: Options) -> str:
    """The card as Markdown with the hub's metadata."""
    result = run.result
    head = {"license": options.license, "language": options.language, "tags": "[babylm]"}
    rows = [f"| `{path.name}` | {r.words:,} | {r.update:,} |" for path, r in run.milestones]
    versions = ", ".join(f"{package} {version}" for package, version in result.versions.items())
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in head.items() if value),
        "---",
        f"# {name}",
        "## Words seen",
        f"{result.words:,} white-space words of training text, repetitions counted, in {result.updates:,} updates; "
        f"track `{run.track.name}`. The tokenizer does not matter to this count. The weights are those of update "
        f"{result.exported_update:,}, after {result.exported_words:,} words.",
        "## Recipe",
        *(f"- {line}" for line in describe(corpus).splitlines()),
        *(f"- {group}: {_show(run.config.get(group))}" for group in PARTS),
        f"- {result.parameters:,} parameters; seed {run.config.get('seed')}",
        f"- commit {result.commit}; {versions}; {result.device}",
        "## Results",
        *(f"- {figure} (validation text): {value:.4f}" for figure, value in result if isinstance(value, float)),
        *(f"- built-in minimal pairs, {phenomenon}: {share:.1%}" for phenomenon, share in result.pairs.items()),
        "## Revisions",
        *(["| revision | words seen | update |", "|---|---|---|", *rows] if rows else ["Only this one."]),
        "## Use",
        *(f"- {USES[backend]}" for backend in run.objective.backends),
        "- The tokenizer puts the end-of-text mark before every text, as in training.",
    ]
    text = "\n".join(html.escape(printable(line), quote=False) for line in lines)
    return text.replace("\n## ", "\n\n## ") + "\n"


def _show(node: Any) -> str:
    if not isinstance(node, dict):
        return str(node)
    name, hidden = str(node.get("_target_", "")).rpartition(".")[2], ("_target_", "_partial_", "cache_dir")
    return f"{name}({', '.join(f'{k}={_show(v)}' for k, v in node.items() if k not in hidden)})"


def preflight(run: Saved, name: str, options: Options) -> Iterator[Finding]:
    """Every check, as it is made; writes the model card. Raises InputError: the corpus or the model cannot be read."""
    from transformers import AutoTokenizer

    device = build.find_device(options)
    model, tokenizer, backend = load_model(run.folder, None, device)
    corpus = run.source.load()
    same = corpus.validation.fingerprint == run.result.hashes.get("validation")
    yield same, "the validation text is the one of the run"
    same = tokenizer_fingerprint(tokenizer) == run.result.hashes.get("tokenizer")
    yield same, "the tokenizer is the one of the run"
    yield file_digest(run.folder / WEIGHTS) == run.result.weights_sha256, "the weights are those of the run"
    yield from check_ledger(run, corpus.report["train"]["words"])
    validation = tokenize(corpus.validation, tokenizer, cache_dir=run.source.cache_dir)
    objective, backends = run.objective.use_tokenizer(tokenizer), run.objective.backends
    yield check_revision(run.folder, backend, run.result.val_loss, validation, objective, device)
    for path, revision in run.milestones:
        yield check_revision(path, backend, revision.check_loss, beginning(validation), objective, device)
    texts = [" ".join(text.split()[:WORDS]) for text in corpus.validation[:SENTENCES]]
    saved = AutoTokenizer.from_pretrained(run.folder, local_files_only=True, trust_remote_code=False)
    yield from check_tokenizer(run.folder, saved, model, texts[0], backends)
    room = tokenizer.model_max_length - FILLING
    texts = [text for text in texts if len(tokenizer(text)["input_ids"]) <= room]
    for each in backends:
        yield check_interface(run.folder, each, texts, device)
    # A dot cuts the name short where results are filed, and breaks the import of code beside the weights.
    yield "." not in name, f"name {name}"
    write_text(run.folder / "README.md", model_card(name, run, corpus, options))
    yield bool(options.license), f"licence {options.license or 'is not stated: give license=cc-by-sa-4.0, say'}"


def push(run: Saved, repository: str) -> None:
    """Uploads the model, and each milestone as a branch of its name. Never tried against the hub itself."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    need_hub(f"push_to={repository}")
    hub = HfApi()
    try:
        hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=run.folder)
        for path, _ in run.milestones:
            hub.create_branch(repository, branch=path.name, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=path, revision=path.name)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(f"push_to={repository}: {error}") from error


def check_and_push(line: CommandLine) -> None:
    options: Options = line.options
    run, default = open_run(line.one_run(), options.cache_dir), line.one_run().resolve().name
    name = options.name or (options.push_to or default.replace(".", "_")).rpartition("/")[2]
    failed = 0
    for ok, text in preflight(run, name, options):
        print({True: "ok    ", False: "FAILED", None: "note  "}[ok], printable(text), flush=True)
        failed += ok is False
    if failed:
        raise InputError(f"{line.places[0]}: {failed} check{'s' * (failed > 1)} failed")
    if options.push_to:
        push(run, options.push_to)


def main() -> None:
    """Entry point of `python -m babylm_train.preflight`; exit code 2 if a check failed."""
    start(check_and_push, __doc__, Options)
