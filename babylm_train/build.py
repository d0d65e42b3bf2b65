"""Composed configuration -> built objects."""

from __future__ import annotations

import inspect
import logging
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from babylm_train import config as checks
from babylm_train.command import explain_invalid
from babylm_train.errors import InputError, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PreTrainedTokenizerFast

    from babylm_train.babylm.track import Track
    from babylm_train.curriculum.sampler import CurriculumTrainingManager
    from babylm_train.data.corpus import Corpus
    from babylm_train.data.tokens import TokenizedSplit
    from babylm_train.options import TrainerOptions
    from babylm_train.state import MinimalPair
    from babylm_train.trainer import Trainer

log = logging.getLogger(__name__)

UNKNOWN_LENGTH = 10**9  # updates, where a run's length is not known before its corpus is read


@dataclass
class Parts:
    """What can be built before any data is read: cheap, and enough to find most mistakes."""

    source: Any
    tokenizer: Any
    model: Any
    objective: Any
    optimizer: Any
    scheduler: Any
    precision: Any
    curriculum: Any
    options: TrainerOptions
    logger: Any
    track: Track


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
    track: Track
    outside: list[str]  # parts that were made from text outside the corpus, as `key=value`


def parts(config: DictConfig) -> Parts:
    """Instantiates every group and calls each partial once, on something small.

    Raises:
        InputError: naming the group or key.
    """
    checks.check_targets(checks.plain(config), checks.ALLOWED)
    if config.seed < 0:
        raise InputError(f"seed must not be negative, got {config.seed}")
    _check_rates(config)
    built = Parts(
        source=_instantiate(config, "data"),
        tokenizer=_instantiate(config, "tokenizer"),
        curriculum=_instantiate(config, "curriculum"),
        logger=_instantiate(config, "logger"),
        scheduler=_instantiate(config, "scheduler"),
        precision=_instantiate(config, "precision"),
        objective=_instantiate(config, "objective"),
        options=_instantiate(config, "trainer"),
        track=_instantiate(config, "track"),
        optimizer=_instantiate(config, "optimizer"),
        model=_instantiate(config, "model"),
    )
    _rehearse(built)
    return built


def _check_rates(config: DictConfig) -> None:
    """The commonest mistakes about learning rates, found before torch is imported."""
    from babylm_train.optim import resolve_warmup

    lr = config.get("optimizer", {}).get("lr")
    if lr is not None and lr < 0:
        raise InputError(f"optimizer.lr must not be negative, got {lr}")
    scheduler, total = config.get("scheduler", {}), config.get("trainer", {}).get("max_steps")
    resolve_warmup(total or UNKNOWN_LENGTH, scheduler.get("warmup_steps"), scheduler.get("warmup_ratio"))


def _instantiate(config: DictConfig, group: str) -> Any:
    if group not in config:
        raise InputError(f"{group}: the group is missing")
    for key, target in _targets(checks.plain(config)[group], group):
        checks.resolve(target, key)
    try:
        return instantiate(config[group], _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        cause = error.__cause__ or error
        if isinstance(cause, ValidationError):
            raise InputError(explain_invalid(cause, group)) from error
        if isinstance(cause, (TypeError, ValueError)):
            message = re.sub(r"^[\w.]+\(\) ", "", str(cause).splitlines()[0])  # without `Class.__init__() `
            raise InputError(f"{group}: {message}") from error
        raise


def _targets(node: Any, at: str) -> list[tuple[str, str]]:
    if isinstance(node, list):
        return [t for i, value in enumerate(node) for t in _targets(value, f"{at}[{i}]")]
    if not isinstance(node, dict):
        return []
    own = [(at, node["_target_"])] if "_target_" in node else []
    return own + [t for key, value in node.items() for t in _targets(value, f"{at}.{key}")]


def _rehearse(built: Parts) -> None:
    """Calls the optimizer's, scheduler's and model configuration's partials, whose mistakes show only when called."""
    import torch
    from huggingface_hub.errors import StrictDataclassError

    from babylm_train.model.build import is_encoder
    from babylm_train.model.export import BOTH_WAYS

    weight = torch.nn.Parameter(torch.zeros(2, 2))
    try:
        optimizer = built.optimizer([weight])
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"optimizer: {str(error).splitlines()[0]}") from error
    try:
        built.scheduler(optimizer, built.options.max_steps or UNKNOWN_LENGTH)
    except TypeError as error:
        raise InputError(f"scheduler: {error}") from error
    try:  # sizes that do not fit show when the model is built, or used
        with torch.device("meta"):
            model = built.model(tokenizer=_AnyTokenizer(), max_length=4)
            seen = torch.ones(1, 1, 2, 2, dtype=torch.bool)  # a mask of its own: nothing is read from the values
            model(input_ids=torch.zeros(1, 2, dtype=torch.long), attention_mask=seen)
            wanted, given = (("a decoder", "an encoder")[kind] for kind in (built.objective.encoder, is_encoder(model)))
    except (TypeError, ValueError, KeyError, ZeroDivisionError, RuntimeError, StrictDataclassError) as error:
        raise InputError(f"model: {' '.join(str(error).splitlines()[:2])}") from error
    if "mntp" in built.objective.backends and type(model).__name__ not in BOTH_WAYS:
        raise InputError(f"objective: {type(built.objective).__name__} works with {', '.join(BOTH_WAYS)}")
    if wanted != given:
        raise InputError(f"objective: {type(built.objective).__name__} needs {wanted}, model is {given}")


class _AnyTokenizer:
    """What a model is built for in a rehearsal."""

    bos_token_id, eos_token_id, pad_token_id = 0, 1, 2

    def __len__(self) -> int:
        return 8


def device_of(options: TrainerOptions) -> torch.device:
    """`auto`: CUDA if there is any, else the CPU.

    Raises:
        InputError: another kind of device, or one that this machine or this torch does not have.
    """
    import torch

    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(options.device)
        if device.type not in ("cpu", "cuda"):  # losses are added up in float64, which MPS has not
            raise InputError(f"trainer.device={options.device}: only cpu and cuda are supported")
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"trainer.device={options.device} is not available: {str(error).splitlines()[0]}") from error
    return device


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seeds Python, NumPy and torch; `deterministic` refuses operations that could differ from run to run."""
    import os

    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what a user's code may draw from
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def build(config: DictConfig, directory: Path, built: Parts, should_stop: Any) -> Run:
    """Reads the data and builds the run.

    Args:
        config: composed. directory: of the run; nothing is written to it here. built: from `parts`.
        should_stop: asked after each update, see Trainer.

    Raises:
        InputError: the corpus, the tokenizer or a length does not fit. OutOfMemory: the model does not.
    """
    from babylm_train.babylm.milestones import Milestones, beginning
    from babylm_train.data.packing import EvaluationRows
    from babylm_train.data.tokenizer import tokenizer_fingerprint
    from babylm_train.evaluation.loss import evaluate
    from babylm_train.evaluation.pairs import score_pairs
    from babylm_train.model.build import count_parameters
    from babylm_train.trainer import Trainer

    options, source = built.options, built.source
    corpus, tokenizer, train, validation = _read(built)
    curriculum = _curriculum(built, corpus, train)
    seed_everything(config.seed, options.deterministic)
    model = _fresh_model(built, tokenizer)
    size, updates = count_parameters(model), curriculum.total_updates
    print(f"model: {size:,} parameters on {model.device}; {updates:,} updates", flush=True)
    optimizer = _optimizer(built, model)
    objective, pairs = built.objective.use_tokenizer(tokenizer), _eval_pairs(built, corpus, tokenizer)
    first = EvaluationRows(beginning(validation), source.max_length)
    values, hashes = checks.public(config), {"corpus": corpus.fingerprint, "validation": corpus.validation.fingerprint}
    hashes["tokenizer"] = tokenizer_fingerprint(tokenizer)
    trainer = Trainer(
        model=model,
        objective=objective,
        optimizer=optimizer,
        scheduler=built.scheduler(optimizer, updates),
        precision=built.precision,
        curriculum=curriculum,
        train_split=train,
        validation_split=validation,
        max_length=source.max_length,
        options=options,
        directory=directory,
        logger=built.logger,
        identity={"hashes": hashes, "config": checks.essential(values), "resume": config.resume},
        should_stop=should_stop,
        milestones=Milestones(
            directory / "milestones",
            built.track.milestones,
            model,
            tokenizer,
            objective.backends,
            check=lambda: evaluate(model, objective, first, options.batch_size),
        ),
        pairs=lambda: score_pairs(model, tokenizer, pairs, backend=objective.backends[0]) if pairs else {},
    )
    outside = [part for part in (_outside(built.tokenizer), _outside(built.curriculum.strategy)) if part]
    config_hash, name = checks.config_hash(config), directory.name
    return Run(trainer, tokenizer, corpus, values, config_hash, name, config.study, built.track, outside)


def _read(built: Parts) -> tuple[Corpus, PreTrainedTokenizerFast, TokenizedSplit, TokenizedSplit]:
    """Corpus, tokenizer, and the tokens of both splits; says what they are."""
    import transformers

    from babylm_train.data.corpus import describe
    from babylm_train.data.tokenizer import load_tokenizer
    from babylm_train.data.tokens import describe_tokens, tokenize

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    source = built.source
    corpus = source.load()
    print(describe(corpus), flush=True)
    tokenizer = load_tokenizer(built.tokenizer, corpus, source.cache_dir)
    tokenizer.model_max_length = source.max_length
    train, validation = (tokenize(s, tokenizer, cache_dir=source.cache_dir) for s in (corpus.train, corpus.validation))
    print(describe_tokens(tokenizer, train, recipe=built.tokenizer), flush=True)
    return corpus, tokenizer, train, validation


def _curriculum(built: Parts, corpus: Corpus, train: TokenizedSplit) -> CurriculumTrainingManager:
    """The curriculum, with the documents' difficulty and the clock of this run."""
    from babylm_train.curriculum.strategy import score_documents

    options, source = built.options, built.source
    manager: CurriculumTrainingManager = built.curriculum.begin(
        score_documents(built.curriculum.strategy, corpus.train, corpus.train.fingerprint, source.cache_dir),
        train.words,
        np.diff(train.offsets),
        epochs=options.epochs,
        max_steps=options.max_steps,
        targets_per_update=options.batch_size * options.gradient_accumulation_steps * source.max_length,
        max_length=source.max_length,
    )
    return manager


def _fresh_model(built: Parts, tokenizer: PreTrainedTokenizerFast) -> Any:
    """The model with freshly drawn weights, on its device."""
    from babylm_train.errors import is_memory_error

    device = device_of(built.options)
    try:
        model = built.model(tokenizer=tokenizer, max_length=built.source.max_length).to(device)
    except (TypeError, ValueError) as error:
        raise InputError(f"model: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:
        if not is_memory_error(error):
            raise
        raise OutOfMemory(f"the model does not fit into memory ({str(error).splitlines()[0]})") from error
    if built.options.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.2x on
        (enable or model.gradient_checkpointing_enable)()
    return model


def _optimizer(built: Parts, model: Any) -> Any:
    """The optimizer of the model's parameter groups; without a weight_decay of its own it has torch's default.

    Raises:
        InputError: it does not take these parameters, as Muon, which takes matrices alone.
    """
    from babylm_train.optim import group_parameters

    partial = built.optimizer
    declared = inspect.signature(partial.func).parameters.get("weight_decay")
    decay = partial.keywords.get("weight_decay", declared.default if declared else 0.0)
    groups = group_parameters(model, decay, built.options.no_decay)
    try:
        return partial(groups)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer: {str(error).splitlines()[0]}") from error


def _outside(part: Any) -> str | None:
    """What of a tokenizer or a strategy was made from text outside the corpus; one of a user's own may not say."""
    return getattr(part, "outside_text", None)


def _eval_pairs(built: Parts, corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> Sequence[MinimalPair]:
    from babylm_train.evaluation.pairs import by_phenomenon, read_pairs, texts_cut

    options = built.options
    if options.eval_pairs is None:
        return ()
    pairs = corpus.pairs if options.eval_pairs == "corpus" else read_pairs(options.eval_pairs)
    if not pairs:
        raise InputError("trainer.eval_pairs=corpus: no minimal pairs came with this corpus; give a file")
    allowed = ["val/loss", *(f"pairs/{name}" for name in by_phenomenon(pairs))]
    if options.metric not in allowed:
        raise InputError(f"trainer.metric must be one of {', '.join(allowed)}, got {options.metric}")
    if cut := texts_cut(tokenizer, pairs, built.objective.backends[0]):
        log.warning("trainer.eval_pairs: %d texts are longer than data.max_length and are cut", cut)
    return pairs


def reopened(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The corpus's source and the objective of a configuration that saved_config wrote, and all of it as may be shown.

    Raises:
        InputError: there is none, a part of it is not allowed or does not fit, or an environment variable is not set.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing: this is no run's directory")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    try:
        checks.check_targets(checks.plain(config), checks.ALLOWED)
    except OmegaConfBaseException as error:
        raise InputError(f"{path}: {str(error).splitlines()[0]}") from error
    return _instantiate(config, "data"), _instantiate(config, "objective"), checks.public(config)


def saved_config(config: DictConfig) -> str:
    """The composed configuration as YAML; interpolations stay unresolved, so no environment value is written."""
    return OmegaConf.to_yaml(OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"]))
