"""How long scoring takes: seconds and words a second of each strategy over text files, on one core.

    python benchmarks/curriculum.py FILE [FILE ...] [--show N]

Files: .txt (a document a line), .jsonl or .jsonl.gz (key `text`).
"""

import argparse
import gzip
import json
import resource
import time
from pathlib import Path

import numpy as np

from babylm_train.curriculum.hindi import count_features
from babylm_train.curriculum.strategy import (
    CombinedCurriculum,
    DynamicCurriculum,
    FrequencyBasedCurriculum,
    LengthBasedCurriculum,
    MorphologicalComplexityCurriculum,
)


def read(path: Path) -> list[str]:
    """The documents of a file."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = [line for line in data.decode("utf-8").split("\n") if line.strip()]
    return lines if path.suffix == ".txt" else [json.loads(line)["text"] for line in lines]


def main() -> None:
    """Prints the table, and with --show the easiest and hardest documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--show", type=int, default=0, help="documents to print at either end of each ranking")
    arguments = parser.parse_args()
    documents = [text for path in arguments.files for text in read(path)]

    words, case, verb, compound = (int(column.sum()) for column in count_features(documents))
    print(f"{len(documents):,} documents, {words:,} words")
    print(f"marks per 100 words: case {100 * case / words:.1f}, verb {100 * verb / words:.1f}, ", end="")
    print(f"compound {100 * compound / words:.1f}")
    total = 0.0
    for strategy in (
        LengthBasedCurriculum(),
        FrequencyBasedCurriculum(),
        MorphologicalComplexityCurriculum(),
        CombinedCurriculum(),
        DynamicCurriculum(),
    ):
        start = time.perf_counter()
        scores = strategy.compute_difficulty(documents)
        seconds = time.perf_counter() - start
        total += seconds
        print(f"{strategy.name:14} {seconds:6.2f} s {words / seconds:12,.0f} words/s")
        order = np.argsort(scores, kind="stable")
        for i in [*order[: arguments.show], *order[len(order) - arguments.show :]]:
            print(f"    {scores[i]:8.3f}  {documents[i][:90]!r}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{'all five':14} {total:6.2f} s; peak memory {peak:.0f} MiB, the text itself included")


if __name__ == "__main__":
    main()
