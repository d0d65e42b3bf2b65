"""`make stories`: writes the two files that babylm_train ships, the same text on every machine, and its sha256."""

import gzip
import hashlib
import json
from pathlib import Path

from hindi_stories.pairs import minimal_pairs
from hindi_stories.stories import generate

WORDS, PAIRS_PER_PHENOMENON, SEED = 200_000, 200, 0
SHIPPED = Path(__file__).parents[2] / "babylm_train" / "data"


def story_lines(words: int) -> list[str]:
    """The first documents, about `words` words of them, as JSON lines."""
    return [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in generate(words, SEED)]


def pair_lines() -> list[str]:
    """All minimal pairs, as lines of a .tsv with a header."""
    return ["good\tbad\tphenomenon\n", *("\t".join(pair) + "\n" for pair in minimal_pairs(PAIRS_PER_PHENOMENON, SEED))]


def main() -> None:
    for name, lines in (("stories.jsonl.gz", story_lines(WORDS)), ("stories_pairs.tsv.gz", pair_lines())):
        data = "".join(lines).encode()
        (SHIPPED / name).write_bytes(gzip.compress(data, 9, mtime=0))
        print(f"{hashlib.sha256(data).hexdigest()}  {name.removesuffix('.gz')}: {len(lines):,} lines")


if __name__ == "__main__":
    main()
