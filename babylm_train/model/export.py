"""A model as a folder that other tools load: safetensors, configuration, tokenizer.

The exported tokenizer puts the end-of-text mark before every text, as training did, and names it as the beginning of a
sequence too: an evaluation that begins a text with another token, or with none, scores its first words wrongly.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import filecmp
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from babylm_train.errors import StorageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BOTH_WAYS = {"GPT2LMHeadModel": "GPT2ForMaskedLM", "Qwen3ForCausalLM": "Qwen3ForMaskedLM"}
REMOTE_CODE = Path(__file__).with_name("modeling_mntp.py")
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


def write_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    backends: Sequence[str],
    *,
    like: Iterable[Path] = (),
    texts: Mapping[str, str] | None = None,
) -> None:
    """Writes `folder`, aside and renamed; what stood there is replaced.

    Args:
        backends: of the objective; with `mntp` the code that reads a decoder both ways is put beside the weights.
        like: folders with files that may be the same; those are hard-linked, not written twice.
        texts: further files, by name.

    Raises:
        StorageError: it cannot be written.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        _describe(model, tokenizer, backends)
        model.save_pretrained(aside)
        submitted(tokenizer).save_pretrained(aside)
        if "mntp" in backends:
            shutil.copyfile(REMOTE_CODE, aside / REMOTE_CODE.name)
        for name, text in (texts or {}).items():
            (aside / name).write_text(text, encoding="utf8")
        for other in like:
            link_equal(aside, other)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _describe(model: PreTrainedModel, tokenizer: Any, backends: Sequence[str]) -> None:
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.bos_token_id = tokenizer.eos_token_id
    model.config.backends = list(backends)
    if "mntp" in backends:
        masked = f"{REMOTE_CODE.stem}.{BOTH_WAYS[type(model).__name__]}"
        model.config.auto_map = {"AutoModelForMaskedLM": masked}


def submitted(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy that puts the end-of-text mark, also named the beginning of a sequence, before every text."""
    from tokenizers.processors import TemplateProcessing

    copied = copy.deepcopy(tokenizer)
    mark = copied.eos_token
    copied.bos_token, copied.padding_side = mark, "right"
    copied.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{mark} $A", pair=f"{mark} $A {mark} $B", special_tokens=[(mark, copied.eos_token_id)]
    )
    return copied


def link_equal(folder: Path, other: Path) -> None:
    """Makes files of `folder` that `other` holds with the same content hard links to them, where the disk can."""
    for path in folder.iterdir():
        twin = other / path.name
        if twin.is_file() and not path.samefile(twin) and filecmp.cmp(path, twin, shallow=False):
            aside = path.with_name(f".{path.name}.link")
            with contextlib.suppress(FileNotFoundError):
                aside.unlink()
            try:
                os.link(twin, aside)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
            else:
                aside.replace(path)


def copy_or_link(source: str, target: str) -> None:
    """A hard link, or a copy where the disk has none."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        shutil.copyfile(source, target)
