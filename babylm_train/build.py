"""Composed configuration -> built objects: each group first, which reads no data, then the run."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from omegaconf import DictConfig
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from babylm_train import config as checks
from babylm_train.errors import InputError, arguments, explain_invalid, memory_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PreTrainedTokenizerFast

    from babylm_train.babylm.milestones import Milestones
    from babylm_train.babylm.track import Track
    from babylm_train.curriculum.sampler import CurriculumTrainingManager
    from babylm_train.data.corpus import Corpus
    from babylm_train.data.tokens import TokenizedSplit
    from babylm_train.options import TrainerOptions
    from babylm_train.trainer import Trainer

log = logging.getLogger(__name__)

UNKNOWN_LENGTH = 10**9  # updates, where a run's length is not known before its corpus is read
REFUSALS = (TypeError, ValueError, LookupError, ZeroDivisionError, RuntimeError)  # of a library's for its arguments


@arguments()
class Parts:
    """A configuration as objects, as far as no data is needed. `_partial_` ones are called when the run is built."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    study: Annotated[str, Field(pattern=r"^[^./][^/]*$")]  # the name of a directory
    resume: str | None
    job_timeout: Annotated[float, Field(gt=0)] | None
    zip: list[str]
    decay_horizon: Annotated[float, Field(gt=0)] | None
    size: dict[Literal["vocab_size"], int]
    data: Any
    tokenizer: Any
    model: Any
    objective: Any
    optimizer: Any
    scheduler: Any
    precision: Any
    curriculum: Any
    trainer: Any
    track: Any
    logger: Any


GROUPS = list(Parts.__annotations__)[7:]


@dataclass
class Run:
    """A run, ready to train."""

    trainer: Trainer
    tokenizer: PreTrainedTokenizerFast
    corpus: Corpus
    config: dict[str, Any]
    config_hash: str
    name: str
    study: str
    seed: int
    track: Track
    outside: list[str]  # parts that were made from text outside the corpus, as `key=value`


def build_parts(config: DictConfig) -> Parts:
    """Instantiates every group, once.

    Raises:
        InputError: a `_target_` that is not allowed, an unknown key, a wrong type or range, a value that is not set;
            names the key.
    """
    values = checks.plain(config)
    checks.check_targets(values)
    for group in GROUPS:
        if group in values and not (isinstance(values[group], dict) and "_target_" in values[group]):
            raise InputError(f"{group}={values[group]}: it is a group, choose one of its options")
    horizon = values["optimizer"].pop("decay_horizon", None) if "optimizer" in values else None  # of no torch class
    values |= {"decay_horizon": horizon}
    parts: Parts = _call(Parts, {key: _instantiate(value, str(key)) for key, value in values.items()}, "", False)
    return parts


def _instantiate(node: Any, at: str) -> Any:
    """What a node of the configuration describes: values, or what its `_target_` makes of them."""
    if isinstance(node, list):
        return [_instantiate(value, f"{at}[{i}]") for i, value in enumerate(node)]
    if not isinstance(node, dict):
        if node == "???":
            raise InputError(f"{at} is not set: give {at}=...")
        return node
    given = {str(k): _instantiate(v, f"{at}.{k}") for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return given
    return _call(checks.find_target(node["_target_"], at), given, at, node.get("_partial_", False))


def _call(target: Any, given: dict[str, Any], at: str, is_partial: bool) -> Any:
    """`target(**given)`, or that call with arguments to come; every mistake names its key."""
    dot = at + "." * bool(at)
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in given.items():
        if key not in parameters and not takes_any:
            known = [dot + name for name in parameters]
            raise InputError(f"{dot}{key}: unknown key{checks.suggest(dot + key, known)}")
        if key in parameters and not hasattr(target, "__pydantic_validator__"):
            _check_type(value, parameters[key].annotation, dot + key)
    with name_errors(at):
        return partial(target, **given) if is_partial else target(**given)


def _check_type(value: Any, annotation: Any, key: str) -> None:
    """Holds a plain value against a parameter's declared type."""
    if annotation is inspect.Parameter.empty or not isinstance(value, int | float | str | list | None):
        return
    try:
        TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        raise InputError(f"{key}={value}: {error.errors()[0]['msg']}") from error


@contextlib.contextmanager
def name_errors(group: str, call: Any = None) -> Iterator[None]:
    """What a library refuses becomes one line that names the group, and what was bound to the partial `call`."""
    try:
        yield
    except ValidationError as error:
        raise InputError(explain_invalid(error, group)) from error
    except REFUSALS as error:
        bound = f" ({', '.join(_show_bound(call, group))})" if isinstance(call, partial) else ""
        raise InputError(f"{group}: {checks.first_line(error)}{bound}") from error


def _show_bound(call: partial[Any], at: str) -> Iterator[str]:
    for key, value in call.keywords.items():
        yield from _show_bound(value, f"{at}.{key}") if isinstance(value, partial) else (f"{at}.{key}={value}",)


def rehearse(parts: Parts) -> None:
    """Calls what is partial once before any data is read, on a model of eight words whose parameters hold no values.

    Raises:
        InputError: sizes that do not fit, an optimizer that does not take such parameters, a warmup longer than the
            run, a device that is not there, an objective that the model cannot learn, pairs that cannot be read.
    """
    import torch

    from babylm_train.model.build import is_encoder
    from babylm_train.optim import group_parameters

    if parts.trainer.device != "auto":  # which is left to the job, whose GPU may be another
        find_device(parts.trainer)
    with name_errors("model", parts.model), torch.device("meta"):
        model = parts.model(tokenizer=_AnyTokenizer(), max_length=4)
        seen = torch.ones(1, 1, 2, 2, dtype=torch.bool)  # a mask of its own: nothing is read from the values
        model(input_ids=torch.zeros(1, 2, dtype=torch.long), attention_mask=seen)
    objective, name = parts.objective, type(parts.objective).__name__
    if "mntp" in objective.backends:
        from babylm_train.model.export import BOTH_WAYS

        if type(model).__name__ not in BOTH_WAYS:
            raise InputError(f"objective: {name} works with {', '.join(BOTH_WAYS)}")
    if objective.encoder != is_encoder(model):
        needs, has = ("an encoder", "a decoder") if objective.encoder else ("a decoder", "an encoder")
        raise InputError(f"objective: {name} needs {needs}, model is {has}")
    with name_errors("optimizer", parts.optimizer):
        groups = group_parameters(model, 0.0, parts.trainer.no_decay)
        for group in groups:
            group["params"] = [torch.nn.Parameter(torch.zeros((2,) * p.dim())) for p in group["params"]]
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
        optimizer = parts.optimizer(groups)
        optimizer.step()
    with name_errors("scheduler", parts.scheduler):
        parts.scheduler(optimizer, parts.trainer.max_steps or UNKNOWN_LENGTH)
    if parts.trainer.eval_pairs not in (None, "corpus"):
        from babylm_train.evaluation.pairs import read_pairs

        read_pairs(parts.trainer.eval_pairs)


class _AnyTokenizer:
    """What a model is built for in a rehearsal."""

    bos_token_id, eos_token_id, pad_token_id = 0, 1, 2

    def __len__(self) -> int:
        return 8


def find_device(options: TrainerOptions) -> torch.device:
    """`auto`: CUDA if there is any, else the CPU.

    Raises:
        InputError: another kind of device, or one that this machine or this torch does not have.
    """
    import torch

    found = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(found if options.device == "auto" else options.device)
        if device.type not in ("cpu", "cuda"):  # losses are added up in float64, which MPS has not
            raise InputError(f"trainer.device={options.device}: only cpu and cuda are supported")
        (torch.ones(1, device=device) + 1).item()  # a card that this torch has no kernels for shows here
        if device.type == "cuda":
            torch.cuda.set_device(device)  # what says `cuda` alone means this one
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = checks.first_line(error)
        raise InputError(
            f"trainer.device={options.device}: not available ({why}); trainer.device=cpu always is"
        ) from error
    return device


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seeds Python, NumPy and torch; `deterministic` refuses operations that could differ from run to run."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what a user's code may draw from
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def build_run(config: DictConfig, directory: Path, parts: Parts, should_stop: Any) -> Run:
    """Reads the data and builds the run.

    Args:
        config: composed. directory: of the run; nothing is written to it here. parts: from `build_parts`.
        should_stop: asked after each update, see Trainer.

    Raises:
        InputError: the corpus, the tokenizer or a length does not fit. OutOfMemory: the model does not.
    """
    from babylm_train.data.tokenizer import tokenizer_fingerprint
    from babylm_train.model.build import count_parameters
    from babylm_train.trainer import Trainer

    corpus, tokenizer, train, validation = _read(parts)
    curriculum = _curriculum(parts, corpus, train)
    seed_everything(parts.seed, parts.trainer.deterministic)
    model = _fresh_model(parts, tokenizer)
    size, updates = count_parameters(model), curriculum.total_updates
    print(f"model: {size:,} parameters on {model.device}; {updates:,} updates", flush=True)
    optimizer, objective = _optimizer(parts, model, curriculum), parts.objective.use_tokenizer(tokenizer)
    values, hashes = checks.public(config), {"corpus": corpus.fingerprint, "validation": corpus.validation.fingerprint}
    hashes["tokenizer"] = tokenizer_fingerprint(tokenizer)
    trainer = Trainer(
        model=model,
        objective=objective,
        optimizer=optimizer,
        scheduler=parts.scheduler(optimizer, updates),
        precision=parts.precision,
        curriculum=curriculum,
        train_split=train,
        validation_split=validation,
        max_length=parts.data.max_length,
        options=parts.trainer,
        directory=directory,
        logger=parts.logger,
        identity={"hashes": hashes, "config": checks.essential(values), "resume": parts.resume},
        should_stop=should_stop,
        milestones=_milestones(parts, directory / "milestones", model, tokenizer, validation),
        pairs=_pairs(parts, corpus, model, tokenizer),
    )
    strategy = parts.curriculum.strategy
    made_of = (getattr(p, "outside_text", None) for p in (parts.tokenizer, strategy, getattr(strategy, "base", None)))
    outside = [text for text in made_of if text]  # a user's own part may not say
    config_hash, name = checks.config_hash(config), directory.name
    return Run(trainer, tokenizer, corpus, values, config_hash, name, parts.study, parts.seed, parts.track, outside)


def _read(parts: Parts) -> tuple[Corpus, PreTrainedTokenizerFast, TokenizedSplit, TokenizedSplit]:
    """Corpus, tokenizer, and the tokens of both splits; says what they are."""
    import transformers

    from babylm_train.data.corpus import describe
    from babylm_train.data.tokenizer import load_tokenizer
    from babylm_train.data.tokens import describe_tokens, tokenize

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    source = parts.data
    corpus = source.load()
    print(describe(corpus), flush=True)
    tokenizer = load_tokenizer(parts.tokenizer, corpus, source.cache_dir)
    tokenizer.model_max_length = source.max_length
    train, validation = (tokenize(s, tokenizer, cache_dir=source.cache_dir) for s in (corpus.train, corpus.validation))
    print(describe_tokens(tokenizer, train), flush=True)
    return corpus, tokenizer, train, validation


def _curriculum(parts: Parts, corpus: Corpus, train: TokenizedSplit) -> CurriculumTrainingManager:
    """The curriculum, with the documents' difficulty and the clock of this run."""
    from babylm_train.curriculum.strategy import score_documents

    options, source = parts.trainer, parts.data
    manager: CurriculumTrainingManager = parts.curriculum.begin(
        score_documents(parts.curriculum.strategy, corpus.train, source.cache_dir),
        train.words,
        np.diff(train.offsets),
        epochs=options.epochs,
        max_steps=options.max_steps,
        targets_per_update=options.batch_size * options.gradient_accumulation_steps * source.max_length,
        max_length=source.max_length,
    )
    return manager


def _fresh_model(parts: Parts, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The model with freshly drawn weights, on its device."""
    device = find_device(parts.trainer)
    with name_errors("model", parts.model), memory_errors("the model does not fit"):
        model = parts.model(tokenizer=tokenizer, max_length=parts.data.max_length)
    with memory_errors("the model does not fit"):
        model = model.to(device)
    if parts.trainer.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.2x on
        (enable or model.gradient_checkpointing_enable)()
    return model


def _optimizer(parts: Parts, model: Any, curriculum: CurriculumTrainingManager) -> Any:
    """The optimizer of the model's parameter groups; without a weight_decay of its own it has torch's default."""
    from babylm_train.optim import group_parameters, set_decay_horizon

    make, horizon = parts.optimizer, parts.decay_horizon
    declared = inspect.signature(make.func).parameters.get("weight_decay")
    decay = 1.0 if horizon else make.keywords.get("weight_decay", declared.default if declared else 0.0)
    with name_errors("optimizer", make):
        optimizer = make(group_parameters(model, decay, parts.trainer.no_decay))
    if horizon:
        set_decay_horizon(optimizer, horizon, curriculum.targets.sum() / curriculum.targets_per_update)
    return optimizer


def _milestones(
    parts: Parts, folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast, validation: TokenizedSplit
) -> Milestones | None:
    """Exports at the track's marks; None where it has none."""
    if not parts.track.milestones:
        return None
    from babylm_train.babylm.milestones import Milestones, beginning
    from babylm_train.data.packing import EvaluationRows
    from babylm_train.evaluation.loss import evaluate

    first, objective = EvaluationRows(beginning(validation), parts.data.max_length), parts.objective
    check = partial(evaluate, model, objective, first, parts.trainer.batch_size)
    return Milestones(folder, parts.track.milestones, model, tokenizer, objective.backends, check=check)


def _pairs(
    parts: Parts, corpus: Corpus, model: Any, tokenizer: PreTrainedTokenizerFast
) -> Callable[[], dict[str, float]]:
    """What scores the minimal pairs of trainer.eval_pairs; nothing where there are none."""
    options, backend = parts.trainer, parts.objective.backends[0]
    if options.eval_pairs is None:
        return dict
    from babylm_train.evaluation.pairs import by_phenomenon, read_pairs, score_pairs, texts_cut

    pairs = corpus.pairs if options.eval_pairs == "corpus" else read_pairs(options.eval_pairs)
    if not pairs:
        raise InputError("trainer.eval_pairs=corpus: no minimal pairs came with this corpus; give a file")
    allowed = ["val/loss", *(f"pairs/{name}" for name in by_phenomenon(pairs))]
    if options.metric not in allowed:
        raise InputError(f"trainer.metric must be one of {', '.join(allowed)}, got {options.metric}")
    if cut := texts_cut(tokenizer, pairs, backend):
        log.warning("trainer.eval_pairs: %d texts are longer than data.max_length and are cut", cut)
    return partial(score_pairs, model, tokenizer, pairs, backend=backend)


def reopen(path: Path) -> tuple[list[Any], dict[str, Any]]:
    """Corpus source, objective and track of a configuration that saved_config wrote, and all of it as may be shown.

    Raises:
        InputError: there is none, a part of it is not allowed or does not fit, or an environment variable is not set.
    """
    config = checks.load_config(path)
    values = checks.plain(config)
    checks.check_targets(values)
    parts = [_instantiate(values.get(group, "???"), group) for group in ("data", "objective", "track")]
    return parts, checks.public(config)
