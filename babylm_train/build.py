"""Composed configuration -> built objects: each group first, which reads no data, then the run."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from hydra.utils import get_object
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from babylm_train import config as checks
from babylm_train.curriculum.strategy import score_documents
from babylm_train.data.corpus import Corpus, describe
from babylm_train.data.packing import EvaluationRows
from babylm_train.data.tokenizer import load_tokenizer, measure_alteration, tokenizer_fingerprint
from babylm_train.data.tokens import TokenizedSplit, describe_tokens, tokenize
from babylm_train.errors import InputError, arguments, explain_invalid, memory_errors, one_line
from babylm_train.evaluation.loss import evaluate
from babylm_train.files import read
from babylm_train.logger import NoLogger
from babylm_train.model.build import is_encoder
from babylm_train.model.forward import Forward
from babylm_train.optim import group_parameters, set_decay_horizon
from babylm_train.state import ALONE, Callback, OneProcess
from babylm_train.throughput import count_parameters
from babylm_train.trainer import Trainer

REFUSALS = (  # what libraries say to arguments that they do not take
    *(TypeError, ValueError, LookupError, ZeroDivisionError, RuntimeError),
    *(OmegaConfBaseException, StrictDataclassError),
)


@arguments()
class Parts:
    """A configuration as objects, as far as no data is needed. `_partial_` ones are called when the run is built."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    study: Annotated[str, Field(pattern=r"^[^./\x00-\x1f\x7f-\x9f][^/\x00-\x1f\x7f-\x9f]*$")]  # the name of a directory
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
    distributed: Any


@dataclass
class Run:
    """A run, ready to train. outside: parts that were made from text outside the corpus, as `key=value`."""

    trainer: Trainer
    tokenizer: Any
    corpus: Corpus
    parts: Parts
    config: dict[str, Any]
    config_hash: str
    outside: list[str]

    @property
    def altered_share(self) -> float:
        """See measure_alteration."""
        return measure_alteration(self.tokenizer, self.corpus.validation)


def build_parts(config: DictConfig) -> Parts:
    """Instantiates every group. Raises InputError, naming the key, for what is not allowed, unknown or does not fit."""
    values = checks.plain(config)
    checks.check_targets(values)
    for group in list(Parts.__annotations__)[7:]:
        if group in values and not (isinstance(values[group], dict) and "_target_" in values[group]):
            raise InputError(f"{group}={values[group]}: it is a group, choose one of its options")
    for part in ("strategy", "schedule"):
        if not isinstance(chosen := values.get("curriculum", {}).get(part, {}), dict):
            raise InputError(f"curriculum.{part}={chosen}: it is a group, with a slash: curriculum/{part}={chosen}")
    # of no torch class: see _build_optimizer
    values["decay_horizon"] = values.get("optimizer", {}).pop("decay_horizon", None)
    return _call(Parts, {key: _instantiate(value, str(key)) for key, value in values.items()}, "")


def _instantiate(node: Any, at: str) -> Any:
    if isinstance(node, list):
        return [_instantiate(value, f"{at}[{i}]") for i, value in enumerate(node)]
    if not isinstance(node, dict):
        return node
    given = {str(k): _instantiate(v, f"{at}.{k}") for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return given
    try:
        target = get_object(node["_target_"])
    except ImportError as error:
        raise InputError(f"{at}._target_={node['_target_']} does not exist: {one_line(error)[:300]}") from error
    return _call(target, given, at, node.get("_partial_", False))


def _call(target: Any, given: dict[str, Any], at: str, is_partial: bool = False) -> Any:
    dot = at + "." * bool(at)
    parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key, value in given.items():
        if key not in parameters and not takes_any:
            raise InputError(f"{dot}{key}: unknown key{checks.suggest(dot + key, [dot + name for name in parameters])}")
        wanted = parameters[key].annotation if key in parameters else inspect.Parameter.empty
        is_plain = isinstance(value, int | float | str | list | None) and wanted is not inspect.Parameter.empty
        if is_plain and not hasattr(target, "__pydantic_validator__"):
            try:
                fit = TypeAdapter(wanted, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
                given[key] = fit if isinstance(value, str) else value  # a number in quotes
            except ValidationError as error:
                raise InputError(f"{dot}{key}={value}: {error.errors()[0]['msg']}") from error
    with name_errors(at):
        return partial(target, **given) if is_partial else target(**given)


@contextlib.contextmanager
def name_errors(group: str) -> Iterator[None]:
    """What a library refuses becomes one line that names the group."""
    try:
        yield
    except ValidationError as error:
        raise InputError(explain_invalid(error, group)) from error
    except REFUSALS as error:
        raise InputError(f"{group}: {one_line(error)[:300]}") from error


def rehearse(parts: Parts) -> None:
    """Calls what is partial before data is read, on a model without values: so what does not fit is refused early."""
    parts.distributed.check()
    parts.curriculum.warn_of_full(parts.trainer.epochs, parts.trainer.max_steps)
    if parts.trainer.device != "auto":  # which is left to the job, whose GPU may be another
        find_device(parts.trainer)
    with name_errors("model"), torch.device("meta"):
        model = parts.model(tokenizer=_Tokenizer(range(8)), max_length=4)
    needs_encoder, kind = parts.objective.encoder, type(parts.objective).__name__
    if "mntp" in parts.objective.backends:
        from babylm_train.model.export import BOTH_WAYS

        if type(model).__name__ not in BOTH_WAYS:
            raise InputError(f"objective: {kind} works with {', '.join(BOTH_WAYS)}")
    if needs_encoder != is_encoder(model):
        raise InputError(f"objective: {kind} needs {'an encoder' if needs_encoder else 'a decoder'} as model")
    with name_errors("optimizer"):
        groups = group_parameters(model, 0.0, parts.trainer.no_decay)
        for group in groups:
            group["params"] = [torch.nn.Parameter(torch.zeros((2,) * p.dim())) for p in group["params"]]
        optimizer = parts.optimizer(groups)
        of_torch = type(optimizer).__module__.startswith("torch.")
        for group in optimizer.param_groups:
            coupled = of_torch and not group.get("decoupled_weight_decay")
            if parts.decay_horizon and (coupled or not group["lr"]):
                what = "an lr above 0 and decay apart from the gradient, as adamw and muon have it"
                raise InputError(f"optimizer.decay_horizon={parts.decay_horizon} needs {what}; null: none")
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        if of_torch and not optimizer.defaults.get("capturable"):  # others may be for GPUs alone
            optimizer.step()
    with name_errors("scheduler"):
        parts.scheduler(optimizer, parts.trainer.max_steps or 10**9)  # the corpus is not known yet
    if parts.trainer.eval_pairs not in (None, "corpus"):
        from babylm_train.evaluation.pairs import read_pairs

        read_pairs(parts.trainer.eval_pairs, "trainer.eval_pairs")


class _Tokenizer(list[int]):  # what a model is built for in a rehearsal
    bos_token_id, eos_token_id, pad_token_id = 0, 1, 2
    all_special_ids = range(3)

    def decode(self, ids: list[int]) -> str:
        return "ab"


def find_device(options: Any, local: int | None = None) -> torch.device:
    """That of `options.device`; `auto`: CUDA if there is any, else the CPU. Raises InputError: it is not there.

    local: the GPU that `cuda` means, of several processes on this machine.
    """
    name = "cuda" if options.device == "auto" and torch.cuda.is_available() else options.device
    try:
        device = torch.device({"auto": "cpu", "cuda": "cuda" if local is None else f"cuda:{local}"}.get(name, name))
        if device.type not in ("cpu", "cuda"):  # losses are added up in float64, which MPS has not
            raise InputError(f"trainer.device={options.device}: only cpu and cuda are supported")
        (torch.ones(1, device=device) + 1).item()  # a card that this torch has no kernels for shows here
        if device.index is not None:
            torch.cuda.set_device(device)  # what says `cuda` alone means this one
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"trainer.device={options.device}: not available ({one_line(error)[:300]})") from error
    return device


def build_run(config: DictConfig, directory: Path, parts: Parts, stop: Any, processes: OneProcess = ALONE) -> Run:
    """Reads the data and builds the run of a composed `config`; writes nothing to its `directory`."""
    with processes.first_on_machine():
        corpus, tokenizer, train, validation = _read(parts)
    options, source = parts.trainer, parts.data
    curriculum = parts.curriculum.begin(
        score_documents(parts.curriculum.strategy, corpus.train, source.cache_dir),
        train.words,
        np.diff(train.offsets),
        epochs=options.epochs,
        max_steps=options.max_steps,
        targets_per_update=options.batch_size * options.gradient_accumulation_steps * source.max_length,
        max_length=source.max_length,
    )
    random.seed(parts.seed)
    np.random.seed(parts.seed)  # noqa: NPY002 - what a user's code may draw from
    torch.manual_seed(parts.seed)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(options.deterministic)
    model = _build_model(parts, tokenizer, find_device(parts.trainer, processes.local))
    size, updates = count_parameters(model), curriculum.total_updates
    print(f"model: {size:,} parameters on {model.device}; {updates:,} updates", flush=True)
    optimizer, values = _build_optimizer(parts, model, curriculum), checks.public(config)
    hashes = {"corpus": corpus.fingerprint, "validation": corpus.validation.fingerprint}
    hashes["tokenizer"] = tokenizer_fingerprint(tokenizer)
    milestones = _build_milestones(parts, directory / "milestones", model, tokenizer, validation)
    trainer = Trainer(
        model=model,
        objective=parts.objective.use_tokenizer(tokenizer),
        optimizer=optimizer,
        scheduler=parts.scheduler(optimizer, updates),
        precision=parts.precision,
        curriculum=curriculum,
        train_split=train,
        validation_split=validation,
        max_length=source.max_length,
        options=options,
        directory=directory,
        logger=parts.logger if processes.is_main else NoLogger(),
        identity={"hashes": hashes, "config": checks.essential(values), "resume": parts.resume},
        should_stop=stop,
        callbacks=milestones if processes.is_main else (),
        measures=_build_pairs(parts, corpus, model, tokenizer),
        processes=processes,
    )
    strategy = parts.curriculum.strategy
    made_of = (getattr(p, "outside_text", None) for p in (parts.tokenizer, strategy, getattr(strategy, "base", None)))
    outside = [text for text in made_of if text]  # a user's own part may not say
    return Run(trainer, tokenizer, corpus, parts, values, checks.config_hash(config), outside)


def _read(parts: Parts) -> tuple[Corpus, Any, TokenizedSplit, TokenizedSplit]:
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


def _build_model(parts: Parts, tokenizer: Any, device: torch.device) -> Any:
    with name_errors("model"), memory_errors("the model does not fit"):
        model = parts.model(tokenizer=tokenizer, max_length=parts.data.max_length).to(device)
        tried = None if parts.objective.encoder else Forward(model)
    if parts.objective.draws > 1 and tried and not tried.linear_head:
        raise InputError("objective=rdrop needs a model whose logits are a product with its output embeddings")
    if parts.trainer.gradient_checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)  # its name from transformers 5.2x on
        (enable or model.gradient_checkpointing_enable)()
    return model


def _build_optimizer(parts: Parts, model: Any, curriculum: Any) -> Any:
    """The optimizer of the model's parameter groups; without a weight_decay of its own it has torch's default."""
    make, horizon = parts.optimizer, parts.decay_horizon
    declared = inspect.signature(make.func).parameters.get("weight_decay")
    decay = 1.0 if horizon else make.keywords.get("weight_decay", declared.default if declared else 0.0)
    with name_errors("optimizer"):
        optimizer = make(group_parameters(model, decay, parts.trainer.no_decay))
    if horizon:
        set_decay_horizon(optimizer, horizon, curriculum.targets.sum() / curriculum.targets_per_update)
    return optimizer


def _build_milestones(
    parts: Parts, folder: Path, model: Any, tokenizer: Any, validation: TokenizedSplit
) -> list[Callback]:
    if not parts.track.milestones:
        return []
    from babylm_train.babylm.milestones import Milestones, beginning

    first, objective = EvaluationRows(beginning(validation), parts.data.max_length), parts.objective
    check = partial(evaluate, model, objective, first, parts.trainer.batch_size)
    return [Milestones(folder, parts.track.milestones, model, tokenizer, objective.backends, check=check)]


def _build_pairs(parts: Parts, corpus: Corpus, model: Any, tokenizer: Any) -> Callable[[], dict[str, float]]:
    options, backend = parts.trainer, parts.objective.backends[0]
    if options.eval_pairs is None:
        return dict
    from babylm_train.evaluation.pairs import by_phenomenon, read_pairs, score_pairs, texts_cut

    pairs = corpus.pairs if options.eval_pairs == "corpus" else read_pairs(options.eval_pairs, "trainer.eval_pairs")
    if not pairs:
        raise InputError("trainer.eval_pairs=corpus: no minimal pairs came with this corpus; give a file")
    allowed = ["val/loss", *(f"pairs/{name}" for name in by_phenomenon(pairs))]
    if options.metric not in allowed:
        raise InputError(f"trainer.metric must be one of {', '.join(allowed)}, got {options.metric}")
    if cut := texts_cut(tokenizer, pairs, backend):
        logging.warning("trainer.eval_pairs: %d texts are longer than data.max_length and are cut", cut)
    score = partial(score_pairs, model, tokenizer, pairs, backend=backend)
    return lambda: {f"pairs/{name}": value for name, value in score().items()}


def reopen(path: Path) -> tuple[list[Any], dict[str, Any]]:
    """Corpus source, objective and track of what saved_config wrote, and all of it as may be shown."""
    config = DictConfig(read(path, dict[str, Any]))
    with name_errors(str(path)):
        values = checks.plain(config)
        checks.check_targets(values)
        parts = [_instantiate(values[group], group) for group in ("data", "objective", "track")]
        return parts, checks.public(config)
