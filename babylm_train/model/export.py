"""A model as a folder that other tools load: safetensors, configuration, tokenizer."""

from __future__ import annotations

import copy
import filecmp
import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from babylm_train.errors import StorageError
from babylm_train.files import link, read, replaced, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BOTH_WAYS = {"GPT2LMHeadModel": "GPT2ForMaskedLM", "Qwen3ForCausalLM": "Qwen3ForMaskedLM"}
REMOTE_CODE = Path(__file__).with_name("modeling_mntp.py")
WEIGHTS = "model.safetensors"
TOKENIZER_CLASS = "PreTrainedTokenizerFast"  # what transformers 4 calls it, and 5 still reads


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    backends: Sequence[str],
    *,
    like: Iterable[Path] = (),
    records: Mapping[str, Any] | None = None,
) -> None:
    """Writes `folder`, aside and renamed; what stood there is replaced. Raises StorageError.

    Args:
        backends: of the objective; with `mntp` the code that reads a decoder both ways is put beside the weights.
        like: folders with files that may be the same; those are hard-linked, not kept twice.
        records: further JSON files, by name.
    """
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.bos_token_id = tokenizer.eos_token_id
    model.config.backends = list(backends)
    if theta := (getattr(model.config, "rope_parameters", None) or {}).get("rope_theta"):
        model.config.rope_theta = theta  # where transformers 4 looks for it
    if "mntp" in backends:
        model.config.auto_map = {"AutoModelForMaskedLM": f"{REMOTE_CODE.stem}.{BOTH_WAYS[type(model).__name__]}"}
    try:
        with replaced(folder) as aside:
            model.save_pretrained(aside, state_dict=fold_embeddings(model))
            submitted(tokenizer).save_pretrained(aside)
            named = aside / "tokenizer_config.json"
            known = {"tokenizer_class": TOKENIZER_CLASS, "padding_side": padding_side(backends)}
            write_json(named, read(named, dict[str, Any]) | known)
            if "mntp" in backends:
                shutil.copyfile(REMOTE_CODE, aside / REMOTE_CODE.name)
            for name, record in (records or {}).items():
                write_json(aside / name, record)
            for path, other in itertools.product(list(aside.iterdir()), like):
                twin = other / path.name
                if twin.is_file() and filecmp.cmp(path, twin, shallow=False):
                    path.unlink()
                    link(twin, path)
    except SafetensorError as error:  # its words for a full disk
        raise StorageError(f"cannot write {folder}: {error}") from error


def fold_embeddings(model: Any) -> dict[str, Tensor]:
    """The weights of an exported model, by name: embeddings hold what their n-grams add to them."""
    weights = {name: value for name, value in model.state_dict().items() if ".parametrizations." not in name}
    added = [name for name, module in model.named_modules() if is_parametrized(module)]
    if added:
        folded = model.get_input_embeddings().weight.detach()
        weights |= {f"{name}.weight": folded for name in added}
    return weights


def padding_side(backends: Sequence[str]) -> str:
    """`left` for a decoder, as `generate` needs it of a batch; the BabyLM pipeline asks for `right` by itself."""
    return "left" if "causal" in backends else "right"


def submitted(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy that puts the end-of-text mark, also named the beginning of a sequence, before every text.

    So training did: an evaluation that begins a text with another token, or with none, scores its first words wrongly.
    """
    from tokenizers.processors import TemplateProcessing

    copied = copy.deepcopy(tokenizer)
    mark = copied.eos_token
    copied.bos_token = mark
    copied.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{mark} $A", pair=f"{mark} $A {mark} $B", special_tokens=[(mark, copied.eos_token_id)]
    )
    return copied
