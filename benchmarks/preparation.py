"""Seconds before, between and around updates: preparing a corpus, a warm start, packing, evaluation, checkpoints.

    python benchmarks/preparation.py FILE [--vocabulary 8192] [--max-length 256]

FILE: as data=text reads it. Encoding is compared with the library's bare `encode_batch` of the same documents.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import Setting, model_of
from transformers import GPT2Config

from babylm_train.checkpoint import Checkpoints
from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import LinearSchedule
from babylm_train.curriculum.strategy import LengthBasedCurriculum
from babylm_train.data.packing import EvaluationRows, PackedRows
from babylm_train.data.read import TextFiles
from babylm_train.data.tokenizer import BPE
from babylm_train.data.tokens import tokenize
from babylm_train.evaluation.loss import evaluate
from babylm_train.model.forward import Forward
from babylm_train.objective import CausalObjective
from babylm_train.throughput import keep_pages


def timed(name: str, goal: str, function: Callable[[], Any]) -> Any:
    """Calls `function` and prints a line of the table."""
    begin = time.perf_counter()
    value = function()
    print(f"| {name} | {time.perf_counter() - begin:.2f} s | {goal} |", flush=True)
    return value


def first_update(directory: str, name: str, file: Path, vocabulary: int, max_length: int) -> float:
    """Seconds from the start of a process to its first applied update."""
    command = [sys.executable, "-m", "babylm_train", "data=text", f"data.train={file}", "logger=none"]
    command += [f"tokenizer.vocab_size={vocabulary}", f"data.max_length={max_length}", "trainer.max_steps=1"]
    command += [f"hydra.run.dir={directory}/{name}", f"data.cache_dir={directory}", "trainer.log_every=1"]
    begin = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    timings = Path(directory) / name / "timings.jsonl"
    while not timings.exists() or not timings.stat().st_size:
        if process.poll():
            raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}")
        time.sleep(0.02)
    seconds = time.time() - begin
    process.kill()
    process.wait()
    return seconds


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256)
    return parser.parse_args()


def main() -> None:
    """Prints the table."""
    options = read_arguments()
    length = options.max_length
    print("| what | measured | goal |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        rest = {"validation": None, "text_field": "text", "max_words": None, "validation_share": 0.05, "seed": 0}
        source = TextFiles(train=str(options.file), separator="line", max_length=length, cache_dir=cache, **rest)  # type: ignore[arg-type]
        corpus = timed("load, clean, deduplicate", "under 15 s", source.load)
        recipe = BPE(vocab_size=options.vocabulary, min_frequency=2)
        tokenizer = timed("train the tokenizer", "under 10 s", lambda: recipe.build(corpus.train))
        texts = list(corpus.train)
        backend = tokenizer.backend_tokenizer
        timed("bare encode_batch", "", lambda: backend.encode_batch(texts, add_special_tokens=False))
        split = timed("encode and store", "bare / 0.8", lambda: tokenize(corpus.train, tokenizer, cache_dir=cache))
        validation = tokenize(corpus.validation, tokenizer, cache_dir=cache)
        scores = LengthBasedCurriculum().compute_difficulty(corpus.train)
        curriculum = CurriculumTrainingManager(LengthBasedCurriculum(), LinearSchedule(5)).begin(
            scores, split.words, np.diff(split.offsets), epochs=5, targets_per_update=16 * length, max_length=length
        )

        def pack() -> None:
            rows = PackedRows(split, curriculum.prepare_epoch(0), length)
            for first in range(0, len(rows), 16):
                rows.batch(first, 16)

        timed("re-pool, shuffle, pack an epoch", "under 0.5 s", pack)
        setting = Setting(partial(GPT2Config, n_layer=6, n_embd=256, n_head=8), len(tokenizer), length, 16, 0)
        model = model_of(setting, plain=False)
        rows = EvaluationRows(validation, length)
        waste = 1 - rows.tokens / (len(rows) * length)
        evaluated = partial(evaluate, model, CausalObjective(), rows, 16, Forward(model))
        keep_pages(torch.device("cpu"))
        timed(f"evaluate {rows.tokens:,} tokens, {waste:.1%} padding", "at most 10 %", evaluated)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        CausalObjective()(Forward(model), next(rows.batches(2))).backward()
        optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": {"update": 1}}
        store = Checkpoints(Path(cache) / "checkpoints", 2)
        timed("a checkpoint", "under 2 % of 500 updates", lambda: store.save(state, ["checkpoint_step_1.pt"]))
        for name, goal in (("cold", ""), ("warm", "under 6 s")):
            seconds = first_update(cache, name, options.file, options.vocabulary, length)
            print(f"| {name} start to the first update | {seconds:.2f} s | {goal} |", flush=True)
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "babylm_train", "--help"], check=True, stdout=subprocess.DEVNULL)
        print(f"| `--help` | {time.perf_counter() - begin:.2f} s | under 1.5 s |")
        words = int(split.words.sum())
        print(f"\n{json.dumps({'documents': len(split.words), 'words': words, 'tokens': int(split.offsets[-1])})}")


if __name__ == "__main__":
    main()
