"""From a transformers configuration to a model with fresh weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from babylm_train.errors import InputError
from babylm_train.model.dropout import dropout as drop
from babylm_train.model.dropout import swap

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def causal_lm(
    config: Callable[..., PreTrainedConfig],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    dropout: float,
    attention_dropout: float,
) -> PreTrainedModel:
    """A decoder with freshly drawn weights (from torch's global generator).

    Args:
        config: a transformers configuration class with its sizes bound; vocabulary, context, dropout and special tokens
            are filled in here.
        tokenizer: gives vocabulary size and special token ids.
        max_length: positions the model is built for.
        dropout: on the embeddings and on each attention's and MLP's output, in [0, 1).
        attention_dropout: on the attention weights, in [0, 1).

    Raises:
        InputError: a dropout is out of range.
    """
    from transformers import AutoModelForCausalLM

    from babylm_train.model import attention

    _check_dropout(dropout, attention_dropout)
    known = inspect.signature(getattr(config, "func", config)).parameters
    own_dropout = "resid_pdrop" in known
    names = ("n_positions", "attn_pdrop") if own_dropout else ("max_position_embeddings", "attention_dropout")
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        **dict(zip(names, (max_length, attention_dropout), strict=True)),
    }
    if own_dropout:
        sizes |= {"resid_pdrop": dropout, "embd_pdrop": dropout}
    built = _filled(config, sizes, tokenizer)
    if plain := _attends_to_all(built):
        attention.register()
    model = AutoModelForCausalLM.from_config(built, attn_implementation=attention.NAME if plain else "sdpa")
    swap(model)
    if not own_dropout and dropout:
        add_residual_dropout(model, dropout)
    return model


def _attends_to_all(config: Any) -> bool:
    """Does every layer look at all earlier tokens, with no bias and no cap on its scores?"""
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    others = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size", "alibi")
    return layers == {"full_attention"} and not any(getattr(config, name, None) for name in others)


def masked_lm(
    config: Callable[..., PreTrainedConfig],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    dropout: float,
    attention_dropout: float,
    undeclared: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """An encoder with freshly drawn weights, for objective=masked; arguments and errors as causal_lm.

    Args:
        undeclared: values that the model reads from its configuration although the class does not declare them.
    """
    from transformers import AutoModelForMaskedLM

    _check_dropout(dropout, attention_dropout)
    known = inspect.signature(getattr(config, "func", config)).parameters
    names = ["hidden_dropout_prob"] if "hidden_dropout_prob" in known else ["embedding_dropout", "mlp_dropout"]
    attention = "attention_probs_dropout_prob" if "attention_probs_dropout_prob" in known else "attention_dropout"
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": max_length}
    sizes |= {attention: attention_dropout}
    sizes |= dict.fromkeys(names, dropout) | (undeclared or {})
    sizes |= {name: tokenizer.eos_token_id for name in ("cls_token_id", "sep_token_id") if name in known}
    return isolating(AutoModelForMaskedLM.from_config(_filled(config, sizes, tokenizer)))


def isolating(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, made to take a mask of shape (rows, 1, length, length), which isolates packed documents.

    DeBERTa multiplies its embeddings with the mask as well, which only a mask of shape (rows, length) fits; that step
    clears padding, and packed rows have none that is attended to.
    """

    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("mask")
        return args, kwargs | {"mask": None if mask is not None and mask.dim() == 4 else mask}

    for module in model.modules():
        if {"input_ids", "mask"} <= inspect.signature(module.forward).parameters.keys():
            module.register_forward_pre_hook(hook, with_kwargs=True)
    return model


def is_encoder(model: nn.Module) -> bool:
    """Is it one of transformers' masked language models, whose attention goes both ways?"""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return type(model).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()


def _filled(
    config: Callable[..., PreTrainedConfig], sizes: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig:
    if clash := sizes.keys() & getattr(config, "keywords", {}).keys():
        raise InputError(f"model.config.{min(clash)} is not free: model, data and tokenizer set it")
    tokens = {f"{t}_token_id": getattr(tokenizer, f"{t}_token_id") for t in ("bos", "eos", "pad")}
    return config(**sizes, **tokens)


def _check_dropout(dropout: float, attention_dropout: float) -> None:
    for name, value in (("dropout", dropout), ("attention_dropout", attention_dropout)):
        if not 0 <= value < 1:
            raise InputError(f"model.{name} must be in [0, 1), got {value}")


def add_residual_dropout(model: nn.Module, p: float) -> None:
    """Dropout in training after the embedding, each attention's `o_proj` and each MLP's `down_proj`.

    Hooks, not modules, so that names of weights and the exported model stay those of the plain architecture.
    """

    def hook(module: nn.Module, _inputs: Any, output: Any) -> Any:
        return drop(output, p, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(hook)


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
