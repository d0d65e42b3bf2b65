"""What a curriculum admits, epoch by epoch: mean length and feature densities of the pool of `combined` + `linear`.

    python benchmarks/pools.py FILE [FILE ...]

Files: .txt (a document a line), .jsonl or .jsonl.gz (key `text`). Prints a Markdown table.
"""

import argparse
from pathlib import Path

import numpy as np
from curriculum import read

from babylm_train.curriculum.hindi import count_features
from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import LinearSchedule
from babylm_train.curriculum.strategy import CombinedCurriculum

EPOCHS = 10


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    documents = [text for path in parser.parse_args().files for text in read(path)]
    words, case, verb, compound = (np.asarray(column, dtype=np.int64) for column in count_features(documents))
    strategy = CombinedCurriculum()
    manager = CurriculumTrainingManager(strategy, LinearSchedule(EPOCHS)).begin(
        strategy.compute_difficulty(documents), words, epochs=EPOCHS
    )
    print("| epoch | threshold | documents | words | words a document | case a word | verb a word | compound a word |")
    print("|---|---|---|---|---|---|---|---|")
    for epoch in range(EPOCHS):
        part = manager.prepare_epoch(epoch)
        total = int(words[part.pool].sum())
        densities = (int(marks[part.pool].sum()) / total for marks in (case, verb, compound))
        print(
            f"| {epoch + 1} | {part.threshold:.2f} | {len(part.pool):,} | {total:,} | {total / len(part.pool):.0f} | "
            + " | ".join(f"{density:.3f}" for density in densities)
            + " |"
        )


if __name__ == "__main__":
    main()
