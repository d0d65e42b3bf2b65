"""The word ledger: white-space words of the training text that were seen, exact to the row."""

from bisect import bisect_right

import numpy as np
import pytest

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import LinearSchedule
from babylm_train.curriculum.strategy import LengthBasedCurriculum
from babylm_train.data.packing import PackedRows
from babylm_train.data.read import Stories
from babylm_train.data.tokenizer import BPE, Unigram, WordPiece
from babylm_train.data.tokens import tokenize

LENGTH, EPOCHS = 32, 3


def words_begun(tokenizer, text: str) -> list[int]:
    """Words that begin in each token of [mark] + text, by looking for the token that covers a word's first letter."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    counts, at = [0] * (len(encoded) + 1), 0
    ends = np.maximum.accumulate([end for _, end in encoded]).tolist()
    for word in text.split():
        at = text.index(word, at)
        counts[min(bisect_right(ends, at), len(encoded) - 1) + 1] += 1
        at += len(word)
    return counts


@pytest.mark.parametrize("recipe", [BPE(400, 2), Unigram(400), WordPiece(700, 2)], ids=lambda r: type(r).__name__)
def test_epochs_times_words_whatever_the_tokenizer_and_each_row_by_itself(tmp_path, recipe):
    options = {"validation_share": 0.2, "max_length": LENGTH, "cache_dir": str(tmp_path)}
    texts = Stories(words=2000, seed=1, **options).load().train
    tokenizer = recipe.build(texts)
    split = tokenize(texts, tokenizer, cache_dir=tmp_path)
    for start in (1.0, 0.3):
        manager = CurriculumTrainingManager(LengthBasedCurriculum(), LinearSchedule(EPOCHS, start), seed=3)
        size = {"epochs": EPOCHS, "targets_per_update": 2 * LENGTH, "max_length": LENGTH}
        manager.begin(split.words, split.words, np.diff(split.offsets), **size)
        seen = 0
        for epoch in range(EPOCHS):
            part = manager.prepare_epoch(epoch)
            rows = PackedRows(split, part, LENGTH)
            stream = [n for d in part.order.tolist() for n in words_begun(tokenizer, texts[d])]
            for row in range(len(rows)):
                first = part.start + 1 + row * LENGTH  # the first target: position i of the stream predicts i + 1
                last = min(first + LENGTH, part.start + part.targets + 1)
                assert rows.batch(row, 1).words == sum(stream[first:last])
                seen += sum(stream[first:last])
        assert start < 1 or seen == EPOCHS * sum(len(text.split()) for text in texts)
