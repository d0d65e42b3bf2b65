"""Models with freshly drawn weights, as conf/model names them: transformers' classes with our dropout and attention."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from babylm_train.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

LEVELS = 1 << 16  # of the draws of dropout on a CPU


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
        InputError: a dropout is out of range, or a key is set that is filled in here.
    """
    from transformers import AutoModelForCausalLM

    from babylm_train.model import attention

    known = inspect.signature(getattr(config, "func", config)).parameters
    if own_dropout := "resid_pdrop" in known:
        sizes = {"n_positions": max_length, "attn_pdrop": attention_dropout}
        sizes |= dict.fromkeys(("resid_pdrop", "embd_pdrop"), dropout)
    else:
        sizes = {"max_position_embeddings": max_length, "attention_dropout": attention_dropout}
    built = _fill(config, sizes, tokenizer, dropout, attention_dropout)
    if plain := _attends_to_all(built):
        attention.register()
    model = AutoModelForCausalLM.from_config(built, attn_implementation=attention.NAME if plain else "sdpa")
    use_fast_dropout(model)
    if dropout and not own_dropout:
        add_residual_dropout(model, dropout)
    return model


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

    known = inspect.signature(getattr(config, "func", config)).parameters
    names = ["hidden_dropout_prob"] if "hidden_dropout_prob" in known else ["embedding_dropout", "mlp_dropout"]
    attention = "attention_probs_dropout_prob" if "attention_probs_dropout_prob" in known else "attention_dropout"
    sizes: dict[str, Any] = {"max_position_embeddings": max_length, attention: attention_dropout}
    sizes |= dict.fromkeys(names, dropout) | (undeclared or {})
    sizes |= {name: tokenizer.eos_token_id for name in ("cls_token_id", "sep_token_id") if name in known}
    built = _fill(config, sizes, tokenizer, dropout, attention_dropout)
    return take_square_masks(AutoModelForMaskedLM.from_config(built))


def _fill(
    config: Callable[..., PreTrainedConfig], sizes: dict[str, Any], tokenizer: Any, dropout: float, attention: float
) -> PreTrainedConfig:
    for name, value in (("dropout", dropout), ("attention_dropout", attention)):
        if not 0 <= value < 1:
            raise InputError(f"model.{name} must be in [0, 1), got {value}")
    sizes = {"vocab_size": len(tokenizer), **sizes}
    if clash := sizes.keys() & getattr(config, "keywords", {}).keys():
        raise InputError(f"model.config.{min(clash)} is not free: model, data and tokenizer set it")
    return config(**sizes, **{f"{t}_token_id": getattr(tokenizer, f"{t}_token_id") for t in ("bos", "eos", "pad")})


def _attends_to_all(config: Any) -> bool:
    """Does every layer look at all earlier tokens, with no bias and no cap on its scores?"""
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    others = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size", "alibi")
    return layers == {"full_attention"} and not any(getattr(config, name, None) for name in others)


def take_square_masks(model: PreTrainedModel) -> PreTrainedModel:
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


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def add_residual_dropout(model: nn.Module, p: float) -> None:
    """Dropout in training after the embedding, each attention's `o_proj` and each MLP's `down_proj`.

    Hooks, not modules, so that names of weights and the exported model stay those of the plain architecture.
    """

    def hook(module: nn.Module, _inputs: Any, output: Any) -> Any:
        return drop(output, p, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(hook)


class _Dropout(torch.autograd.Function):
    """Draws two random bytes an element, which is three times faster on CPUs than torch's."""

    @staticmethod
    def forward(context: Any, x: Tensor, dropped: int) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()].view(x.shape)
        keep = draws >= dropped - LEVELS // 2
        context.save_for_backward(keep)
        context.scale = LEVELS / (LEVELS - dropped)
        return (x * keep).mul_(context.scale)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, None]:
        return (grad * context.saved_tensors[0]).mul_(context.scale), None


def drop(x: Tensor, p: float, training: bool) -> Tensor:
    """Each element is zero with probability `p`, on CPUs rounded to a multiple of 2^-16, else divided by 1 - p."""
    if not training or not p:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.nn.functional.dropout(x, p, training)
    return _Dropout.apply(x, min(round(p * LEVELS), LEVELS - 1))  # type: ignore[no-untyped-call]


class Dropout(nn.Dropout):
    """nn.Dropout, drawn by `drop`."""

    def forward(self, input: Tensor) -> Tensor:
        """Shape and dtype of `input`."""
        return drop(input, self.p, self.training)


def use_fast_dropout(model: nn.Module) -> None:
    """Makes every nn.Dropout inside `model` draw the fast way; no name changes."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
