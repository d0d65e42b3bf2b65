"""Text that a model writes:

    python -m babylm_train.generate RUN [prompt=TEXT] [temperature=1.0] [top_p=0.9] [max_new_tokens=40] [samples=1]

RUN is a run's directory or any exported decoder; `revision=chck_1M`: a milestone of the run. Without `prompt`, lines
are read and continued one at a time: from a terminal until an empty line or Ctrl-D, from a file or a pipe to its end.
`prompt=` begins with nothing. `temperature`: below 1 likely tokens are likelier yet, at 0 the likeliest is taken.
`top_p`: tokens are drawn from the likeliest that together have so much of the probability. `samples`: of each prompt.
`seed`: the same command gives the same text. Of a prompt too long for the model's positions the end is read.
"""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Annotated, Any

import torch
from pydantic import Field
from transformers import GenerationConfig, PreTrainedTokenizerBase

from babylm_train.command import CommandLine, start
from babylm_train.data.corpus import fold
from babylm_train.errors import InputError, printable
from babylm_train.evaluation.likelihood import encode

COLD = 1e-3  # a temperature below draws what is likeliest anyway, and logits divided by it may overflow


@dataclass(frozen=True)
class Options:
    """What is asked for."""

    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_new_tokens: Annotated[int, Field(ge=1)] = 40
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    prompt: str | None = None
    samples: Annotated[int, Field(ge=1)] = 1
    revision: str | None = None
    device: str = "auto"


def take_prompts(documents: Iterable[str]) -> list[str]:
    """The first two words of the first three documents that have two."""
    begun = (text.split()[:2] for text in documents)
    return [" ".join(words) for words in islice((words for words in begun if len(words) == 2), 3)]


def sample(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str], how: Options
) -> Iterator[tuple[str, str]]:
    """Each prompt and its continuation, as soon as it is asked for; leaves the model in eval mode."""
    device, limit, drawn = model.device, tokenizer.model_max_length, how.temperature >= COLD
    options: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    options |= {"temperature": how.temperature, "top_p": how.top_p, "top_k": 0} if drawn else {}
    room = limit - 1 - min(how.max_new_tokens, limit // 2)  # tokens of a prompt
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(how.seed)
        for prompt in prompts:
            mark, *ids = encode(tokenizer, [prompt], closing=False)[0]
            ids = [mark, *ids[max(len(ids) - room, 0) :]]
            rows, new = torch.tensor([ids], device=device), min(how.max_new_tokens, limit - len(ids))
            options |= {"attention_mask": torch.ones_like(rows), "max_new_tokens": new}
            out = model.generate(rows, do_sample=drawn, **options)
            begun, whole = (str(tokenizer.decode(row, skip_special_tokens=True)) for row in (ids, out[0]))
            yield prompt, whole.removeprefix(begun)


def read_lines() -> Iterator[str]:
    """Lines of standard input: of a terminal until an empty one or Ctrl-D, of a file or a pipe all."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then has keys to edit with, and a history
    print("a line is continued, an empty one ends", flush=True)
    try:
        yield from iter(partial(input, "> "), "")
    except EOFError:
        print()


def clean_prompts(lines: Iterable[str], times: int) -> Iterator[str]:
    """Each line so many `times`, cleaned as training text was. Raises InputError: a line is no UTF-8."""
    try:
        for line in lines:
            line.encode()  # a stray byte may have come as a surrogate
            yield from [fold(line)] * times
    except UnicodeError as error:
        raise InputError("a prompt is no UTF-8") from error


def generate(line: CommandLine) -> None:
    """Continues what it is given, by the one RUN of a command line."""
    from babylm_train.build import find_device
    from babylm_train.evaluation.command import find_folder, load_model, refuse_leak

    options: Options = line.options
    folder = find_folder(line.one_run(), options.revision)
    model, tokenizer, backend = load_model(folder, None, find_device(options))
    if backend != "causal":
        raise InputError(f"{folder} is an encoder: it predicts hidden tokens and continues no text")
    refuse_leak(model, tokenizer, folder)
    model.generation_config = GenerationConfig()  # the folder's may ask for anything
    lines = read_lines() if options.prompt is None else [options.prompt]
    for prompt, text in sample(model, tokenizer, clean_prompts(lines, options.samples), options):
        print("\n".join(map(printable, (prompt + text).split("\n"))), flush=True)


def main() -> None:
    """Entry point of `python -m babylm_train.generate`."""
    start(generate, __doc__, Options)
