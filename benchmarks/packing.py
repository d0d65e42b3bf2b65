"""How long an epoch's data takes before the model sees it: re-pool, shuffle and pack, on one core.

    python benchmarks/packing.py FILE [FILE ...] [--vocabulary 8192] [--max-length 256] [--rows 16]

Files: .txt, .jsonl or .jsonl.gz, as data=text reads them. Reading, tokenising and scoring come first and are not timed:
a run does them once and caches them. Timed, each the median of several epochs that take turns in a linear curriculum by
length: the pool and its order (`prepare_epoch`), the epoch's row index (`PackedRows`), and every micro-batch of the
epoch as tensors (inputs, targets, position ids, word count).
"""

import argparse
import statistics
import tempfile
import time

import numpy as np

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import LinearSchedule
from babylm_train.curriculum.strategy import LengthBasedCurriculum
from babylm_train.data.packing import PackedRows
from babylm_train.data.text import TextFiles
from babylm_train.data.tokens import TokenizedSplit, tokenize
from babylm_train.tokenizer import BPE

EPOCHS = 5


def read(files: list[str], vocabulary: int, max_length: int) -> tuple[TokenizedSplit, np.ndarray]:
    """Tokens of the training documents (95 % of them), and their difficulty, shape (N,)."""
    with tempfile.TemporaryDirectory() as cache:
        source = TextFiles(
            train=files,
            validation=None,
            text_field="text",
            separator="line",
            max_words=None,
            validation_share=0.05,
            seed=0,
            max_length=max_length,
            cache_dir=cache,
        )
        corpus = source.load()
        tokenizer = BPE(vocab_size=vocabulary, min_frequency=2).build(corpus.train)
        split = tokenize(corpus.train, tokenizer, cache_dir=cache)
        return split, LengthBasedCurriculum().compute_difficulty(corpus.train)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=256, help="targets a row")
    parser.add_argument("--rows", type=int, default=16, help="rows a micro-batch")
    arguments = parser.parse_args()
    split, scores = read(arguments.files, arguments.vocabulary, arguments.max_length)
    targets, words = int(split.offsets[-1]), int(split.words.sum())
    print(f"{len(scores):,} documents, {words:,} words, {targets:,} targets an epoch")

    curriculum = CurriculumTrainingManager(LengthBasedCurriculum(), LinearSchedule(EPOCHS)).begin(
        scores,
        split.words,
        np.diff(split.offsets),
        epochs=EPOCHS,
        targets_per_update=arguments.rows * arguments.max_length,
        max_length=arguments.max_length,
    )
    seconds: list[tuple[float, float, float]] = []
    for epoch in range(EPOCHS):
        begin = time.perf_counter()
        part = curriculum.prepare_epoch(epoch)
        ordered = time.perf_counter()
        rows = PackedRows(split, part, arguments.max_length)
        indexed = time.perf_counter()
        packed = sum(rows.batch(row, arguments.rows).tokens for row in range(0, len(rows), arguments.rows))
        seconds.append((ordered - begin, indexed - ordered, time.perf_counter() - indexed))
        assert packed == targets
    names = ("re-pool and shuffle", "index the rows", f"pack {len(rows):,} rows of {arguments.max_length}")
    for name, column in zip(names, zip(*seconds, strict=True), strict=True):
        print(f"{name:28} {statistics.median(column):6.3f} s")
    total = statistics.median(map(sum, seconds))
    print(f"{'an epoch in all':28} {total:6.3f} s; {total * 4e6 / words:.3f} s for 4 M words")


if __name__ == "__main__":
    main()
