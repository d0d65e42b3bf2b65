"""How the loop calls a model: documents isolated the cheap way, compiled with static shapes, no logits in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from torch.utils.hooks import RemovableHandle

from babylm_train.model import attention
from babylm_train.state import IGNORE

LOGITS = {"cpu": 1 << 22, "other": 1 << 26}  # float32 values a chunk: a CPU's cache, 256 MiB on a GPU


class Forward:
    """Stands in for a transformers model wherever an objective calls one.

    A model built with `attn_implementation=attention.NAME` gets its documents from the restarts of position_ids; any
    other model is called as it is. `rows`: of every compiled call, fewer are filled up.
    """

    def __init__(self, model: Any, compile: bool = False, rows: int = 0) -> None:
        self.model, self.compile, self.rows = model, compile, rows
        self.call = torch.compile(model, dynamic=False) if compile else model
        self.body = torch.compile(model.base_model, dynamic=False) if compile else model.base_model
        self.chunk = torch.compile(chunk_loss, dynamic=False) if compile else chunk_loss
        self.twice = torch.compile(agreeing_loss, dynamic=False) if compile else agreeing_loss
        self.linear_head = has_linear_head(model)
        self.isolates = model.config._attn_implementation == attention.NAME and hands_on_documents(model)

    def __call__(self, input_ids: Tensor, **options: Any) -> Any:
        """The model's own output."""
        return self.call(input_ids=input_ids, **self._isolate(options))

    def get_output_embeddings(self) -> Any:
        """The model's head."""
        return self.model.get_output_embeddings()

    def logits_at_once(self) -> int | None:
        """How many of them are in memory together; None: all of a micro-batch."""
        return LOGITS.get(self.model.device.type, LOGITS["other"]) if self.linear_head else None

    def sum_loss(self, input_ids: Tensor, targets: Tensor, agreement: float = 0.0, **options: Any) -> Tensor:
        """Summed cross-entropy of the head on `targets`, for a model whose `linear_head` is true.

        agreement: above 0 the rows are run through twice and the loss is that of `agreeing_loss`.
        """
        rows = len(input_ids)
        if self.compile and rows < self.rows:  # one shape, one compilation
            filling = (0, 0, 0, self.rows - rows)
            input_ids, targets = pad(input_ids, filling), pad(targets, filling, value=IGNORE)
            options["position_ids"] = pad(options["position_ids"], filling)
        chunk = self.chunk
        if agreement:
            input_ids, chunk = torch.cat([input_ids] * 2), partial(self.twice, agreement=agreement)
            options["position_ids"] = torch.cat([options["position_ids"]] * 2)
        hidden = self.body(input_ids=input_ids, **self._isolate(options)).last_hidden_state
        if agreement:
            hidden = torch.stack(hidden.chunk(2), -2)
        return sum_cross_entropy(hidden, self.get_output_embeddings().weight, targets, chunk)

    def _isolate(self, options: dict[str, Any]) -> dict[str, Any]:
        positions = options.get("position_ids")
        if not self.isolates or positions is None or options.get("attention_mask") is not None:
            return options
        blocks = positions.device.type == "cpu" and not self.compile
        documents = attention.group_documents(positions) if blocks else attention.mask_documents(positions)
        # a mask that is 4-D already keeps transformers from making one of its own
        return options | {"documents": documents, "attention_mask": positions.new_ones((1, 1, 1, 1), dtype=torch.bool)}


def compute_head_at(head: torch.nn.Module, places: Tensor) -> RemovableHandle:
    """While entered, the head gives the logits (K, vocabulary) of the flattened positions `places`; not compiled."""
    return head.register_forward_pre_hook(lambda _, args: (args[0].flatten(0, -2)[places],))


@torch.no_grad()
def has_linear_head(model: Any) -> bool:
    """Are the logits the last hidden state times the output embeddings, and nothing else? Tried on three tokens."""
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        return False
    training, ids = model.training, torch.arange(3, device=head.weight.device)[None] % len(head.weight)
    model.eval()
    logits = model(input_ids=ids).logits
    hidden = model.base_model(input_ids=ids).last_hidden_state
    model.train(training)
    return hidden.shape[-1] == head.in_features and torch.allclose(linear(hidden, head.weight), logits)


@torch.no_grad()
def hands_on_documents(model: Any) -> bool:
    """Does its attention get what says which documents are in a row? Tried on two; some decoders take no such thing."""
    training, ids = model.training, torch.arange(4, device=model.device)[None] % model.config.vocab_size
    model.eval()
    options = {"position_ids": ids % 2, "use_cache": False}
    plain = model(input_ids=ids, **options).logits
    mask = attention.mask_documents(options["position_ids"])
    ours = model(input_ids=ids, documents=mask, attention_mask=mask.new_ones((1, 1, 1, 1)), **options).logits
    model.train(training)
    return bool((plain - ours).abs().max() < 0.01 * plain.abs().max())  # TF32 differs by less, other rows by far more


def sum_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: Any = None) -> Tensor:
    """-sum log softmax(hidden @ weight.T)[target] over the valid targets: a float32 scalar, in nats.

    Shapes (..., size), or (..., 2, size) for `agreeing_loss`, (vocabulary, size) and (...). The product is rounded as
    autocast says, the softmax is float32. The gradients of a chunk's logits are used while they are at hand, so neither
    the logits of all positions nor their gradients are ever in memory (the idea of Liger Kernel, Hsu et al. 2024); it
    cannot be differentiated twice. Why not torch's: benchmarks/NOTES.md. `chunk` stands in for `chunk_loss`.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    grads = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    together = 8 if hidden.dim() - targets.dim() == 2 else 1  # of two draws several arrays are in use together
    chunks = -(-targets.numel() * together * len(weight) // LOGITS.get(kind, LOGITS["other"]))
    rows = -(-targets.numel() // chunks)  # chunks of one size, but for the last one: compiled twice at most
    return _Summed.apply(
        hidden.flatten(0, targets.dim() - 1), weight, targets.flatten(), (dtype, grads, rows, chunk or chunk_loss)
    )  # type: ignore[no-untyped-call]


def chunk_loss(hidden: Tensor, weight: Tensor, targets: Tensor, grads: bool) -> tuple[Tensor, ...]:
    """Summed loss of some positions, and with `grads` its gradients by `hidden` and `weight`, in their dtype."""
    scores = (hidden @ weight.T).float().log_softmax(1)
    valid, places = targets != IGNORE, targets.clamp(min=0)
    loss = -(scores.gather(1, places[:, None])[:, 0] * valid).sum()
    if not grads:
        return (loss,)
    slope = _subtract_target(scores.exp() if torch.compiler.is_compiling() else scores.exp_(), places)
    return loss, *_by_operands(slope.mul_(valid[:, None]).to(hidden.dtype), hidden, weight)


def agreeing_loss(hidden: Tensor, weight: Tensor, targets: Tensor, grads: bool, agreement: float) -> tuple[Tensor, ...]:
    """As chunk_loss, of two draws of dropout (positions, 2, size): the mean of their losses, and how far they differ.

    That is `agreement` times the mean of the Kullback-Leibler divergences of each from the other (R-Drop, Liang et al.
    2021). Their equation adds the two losses, so its alpha is twice `agreement`.
    """
    logs = (hidden @ weight.T).float().log_softmax(2)
    valid, places = targets != IGNORE, targets.clamp(min=0)
    shares, gaps = logs.exp(), logs - logs.flip(1)
    apart = (shares * gaps).sum(2, keepdim=True)
    losses = agreement * apart - logs.gather(2, places[:, None, None].expand(-1, 2, 1))
    loss = (losses[..., 0].mean(1) * valid).sum()
    if not grads:
        return (loss,)
    slope = gaps.sub_(apart).mul_(shares).add_(shares).sub_(shares.flip(1)).mul_(agreement).add_(shares)
    slope = _subtract_target(slope, places).mul_((valid / 2)[:, None, None]).to(hidden.dtype)
    return loss, *_by_operands(slope, hidden, weight)


def _subtract_target(shares: Tensor, places: Tensor) -> Tensor:
    """`shares` (positions, ..., vocabulary), 1 less at the place of each position."""
    if torch.compiler.is_compiling():  # one kernel with the softmax
        one = torch.arange(shares.shape[-1], device=places.device) == places[:, None]
        return shares - one.view(len(one), *[1] * (shares.dim() - 2), -1).float()
    shares.movedim(-1, 1)[torch.arange(len(places), device=places.device), places] -= 1.0  # not scatter_add_, which
    return shares  # trainer.deterministic refuses on GPUs


def _by_operands(slope: Tensor, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients by both operands of `hidden @ weight.T`, whose own is `slope`."""
    by_hidden = slope @ weight
    if shrink(hidden.dtype) != 1:  # times 1 would be a copy of all logits
        slope = slope * shrink(hidden.dtype)
    return by_hidden, slope.flatten(0, -2).T @ hidden.flatten(0, -2)


def shrink(dtype: torch.dtype) -> float:
    """Factor that keeps a sum of gradients over a chunk inside float16, which no loss scale can do afterwards."""
    return 2.0**-6 if dtype == torch.float16 else 1.0


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, hidden: Tensor, weight: Tensor, targets: Tensor, how: Any) -> Tensor:
        dtype, grads, rows, chunk = how
        cast, total = weight.to(dtype), hidden.new_zeros((), dtype=torch.float32)
        by_hidden = torch.empty_like(hidden) if grads else None
        by_weight = torch.zeros_like(weight) if grads else None
        for first in range(0, len(hidden), rows):
            part = slice(first, first + rows)
            loss, *slopes = chunk(hidden[part].to(dtype), cast, targets[part], grads)
            total += loss
            if by_hidden is not None and by_weight is not None:
                by_hidden[part] = slopes[0]
                by_weight.add_(slopes[1], alpha=1 / shrink(dtype))
        context.save_for_backward(by_hidden, by_weight)
        return total

    @staticmethod
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_hidden, by_weight = context.saved_tensors
        return by_hidden * grad.to(by_hidden.dtype), by_weight * grad, None, None
