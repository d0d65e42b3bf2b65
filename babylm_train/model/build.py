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
# what transformers' configuration classes call the length of a row, and the two dropouts
POSITIONS = ("n_positions", "max_position_embeddings")
ATTENTION = ("attn_pdrop", "attention_probs_dropout_prob", "attention_dropout")
RESIDUAL = ["resid_pdrop", "embd_pdrop", "hidden_dropout_prob", "embedding_dropout", "mlp_dropout"]
RESIDUAL += ["dropout", "hidden_dropout", "residual_dropout"]
# what they call the embeddings, and the last product of attention and of an MLP, where they have no dropout
OUTPUTS = ("embed_tokens", "o_proj", "out_proj", "down_proj", "fc2", "w2")


def causal_lm(
    config: Callable[..., PreTrainedConfig],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    dropout: float,
    attention_dropout: float,
    character_ngrams: int = 0,
) -> PreTrainedModel:
    """A decoder with freshly drawn weights (from torch's global generator).

    `config` is a transformers configuration class with its sizes bound; vocabulary, positions, dropout (on the
    embeddings and on each attention's and MLP's output) and special tokens are filled in here. `character_ngrams`: most
    characters of the n-grams that token embeddings share (see `characters`); 0: none.

    Raises:
        InputError: a dropout is not in [0, 1), or above 0 where the model has no place for it, character_ngrams is
            negative, or a key is set that is filled in here.
    """
    from transformers import AttentionInterface, AutoModelForCausalLM
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    from babylm_train.model import attention

    if character_ngrams < 0:
        raise InputError(f"model.character_ngrams must not be negative, got {character_ngrams}")
    AttentionInterface.register(attention.NAME, attention.attend)
    AttentionMaskInterface.register(attention.NAME, sdpa_mask)
    built = _fill(config, tokenizer, max_length, dropout, attention_dropout, {})
    kind = attention.NAME if _attends_to_all(built) else "sdpa"
    model = AutoModelForCausalLM.from_config(built, attn_implementation=kind)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
    if dropout and not any(hasattr(built, name) for name in RESIDUAL):
        places = [module for name, module in model.named_modules() if name.endswith(OUTPUTS)]
        if len(places) < 1 + 2 * built.num_hidden_layers:
            raise InputError(f"model.dropout={dropout}: where {type(model).__name__} takes it is not known, only 0.0")
        for module in places:  # hooks leave the names of weights as they are
            module.register_forward_hook(lambda module, _, output: drop(output, dropout, module.training))
    if character_ngrams:
        from babylm_train.model.characters import share_ngrams

        share_ngrams(model, tokenizer, character_ngrams)
    return model


def masked_lm(
    config: Callable[..., PreTrainedConfig],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    dropout: float,
    attention_dropout: float,
    undeclared: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """An encoder, as causal_lm; `undeclared`: values that it reads although its configuration class has no such key."""
    from transformers import AutoModelForMaskedLM

    known = inspect.signature(getattr(config, "func", config)).parameters
    marks = {name: tokenizer.eos_token_id for name in ("cls_token_id", "sep_token_id") if name in known}
    built = _fill(config, tokenizer, max_length, dropout, attention_dropout, marks | (undeclared or {}))
    return take_square_masks(AutoModelForMaskedLM.from_config(built))


def _fill(
    config: Callable[..., Any], tokenizer: Any, max_length: int, dropout: float, attention_dropout: float, more: Any
) -> Any:
    for name, value in (("dropout", dropout), ("attention_dropout", attention_dropout)):
        if not 0 <= value < 1:
            raise InputError(f"model.{name} must be in [0, 1), got {value}")
    known = inspect.signature(getattr(config, "func", config)).parameters
    sizes = {"vocab_size": len(tokenizer), **more}
    for names, size in ((POSITIONS, max_length), (ATTENTION, attention_dropout)):
        sizes[next((name for name in names if name in known), names[-1])] = size
    sizes |= {name: dropout for name in RESIDUAL if name in known}
    if clash := (sizes.keys() | {"dtype"}) & getattr(config, "keywords", {}).keys():
        raise InputError(f"model.config.{min(clash)} is not free: model, data and tokenizer set it")
    built = config(**sizes, **{f"{t}_token_id": getattr(tokenizer, f"{t}_token_id") for t in ("bos", "eos", "pad")})
    heads, shared = (getattr(built, f"num_{kind}_heads", None) or 1 for kind in ("attention", "key_value"))
    if heads % shared:
        raise InputError(f"model.config.num_attention_heads={heads} is no multiple of num_key_value_heads={shared}")
    return built


def _attends_to_all(config: Any) -> bool:
    """Does every layer look at all earlier tokens, with no bias and no cap on its scores?"""
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    others = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size", "alibi")
    return layers == {"full_attention"} and not any(getattr(config, name, None) for name in others)


def take_square_masks(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, made to take a mask of shape (rows, 1, length, length), which isolates packed documents.

    DeBERTa multiplies its embeddings with the mask as well, which this one does not fit; that step only clears padding.
    """

    def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("mask")
        return args, kwargs | {"mask": None if mask is not None and mask.dim() == 4 else mask}

    for module in model.modules():
        if {"input_ids", "mask"} <= inspect.signature(module.forward).parameters.keys():
            module.register_forward_pre_hook(hook, with_kwargs=True)
    return model


def is_encoder(model: nn.Module) -> bool:
    """Is it one of transformers' masked language models?"""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return type(model).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()


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
        """As nn.Dropout's."""
        return drop(input, self.p, self.training)
