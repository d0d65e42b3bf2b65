"""A model as a folder that other tools load: safetensors, configuration, tokenizer.

The exported tokenizer puts the end-of-text mark before every text, as training did, and names it as the beginning of a
sequence too: an evaluation that begins a text with another token, or with none, scores its first words wrongly.
"""

from __future__ import annotations

import copy
import filecmp
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from babylm_train.errors import StorageError
from babylm_train.files import link, read, replaced, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BOTH_WAYS = {"GPT2LMHeadModel": "GPT2ForMaskedLM", "Qwen3ForCausalLM": "Qwen3ForMaskedLM"}
REMOTE_CODE = Path(__file__).with_name("modeling_mntp.py")
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
    """Writes `folder`, aside and renamed; what stood there is replaced.

    Args:
        backends: of the objective; with `mntp` the code that reads a decoder both ways is put beside the weights.
        like: folders with files that may be the same; those are hard-linked, not written twice.
        records: further JSON files, by name.

    Raises:
        StorageError: it cannot be written.
    """
    _describe(model, tokenizer, backends)
    try:
        with replaced(folder) as aside:
            model.save_pretrained(aside)
            submitted(tokenizer).save_pretrained(aside)
            named, side = aside / "tokenizer_config.json", padding_side(backends)
            known = {"tokenizer_class": TOKENIZER_CLASS, "padding_side": side}
            write_json(named, read(named, dict[str, Any]) | known)
            if "mntp" in backends:
                shutil.copyfile(REMOTE_CODE, aside / REMOTE_CODE.name)
            for name, record in (records or {}).items():
                write_json(aside / name, record)
            for other in like:
                _link_equal(aside, other)
    except SafetensorError as error:  # its words for a full disk
        raise StorageError(f"cannot write {folder}: {error}") from error


def _describe(model: PreTrainedModel, tokenizer: Any, backends: Sequence[str]) -> None:
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.bos_token_id = tokenizer.eos_token_id
    model.config.backends = list(backends)
    rope = getattr(model.config, "rope_parameters", None) or {}
    if "rope_theta" in rope:
        model.config.rope_theta = rope["rope_theta"]  # where transformers 4 looks for it
    if "mntp" in backends:
        masked = f"{REMOTE_CODE.stem}.{BOTH_WAYS[type(model).__name__]}"
        model.config.auto_map = {"AutoModelForMaskedLM": masked}


def padding_side(backends: Sequence[str]) -> str:
    """`left` for a decoder, as `generate` needs it of a batch; the BabyLM pipeline asks for `right` by itself."""
    return "left" if "causal" in backends else "right"


def submitted(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy that puts the end-of-text mark, also named the beginning of a sequence, before every text."""
    from tokenizers.processors import TemplateProcessing

    copied = copy.deepcopy(tokenizer)
    mark = copied.eos_token
    copied.bos_token = mark
    copied.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{mark} $A", pair=f"{mark} $A {mark} $B", special_tokens=[(mark, copied.eos_token_id)]
    )
    return copied


def _link_equal(folder: Path, other: Path) -> None:
    """Makes files of `folder` that `other` holds with the same content hard links to them, where the disk can."""
    for path in folder.iterdir():
        twin = other / path.name
        if twin.is_file() and filecmp.cmp(path, twin, shallow=False):
            path.unlink()
            link(twin, path)
