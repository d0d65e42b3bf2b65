"""How long do minimal pairs take? `python benchmarks/pairs.py [times]`: GPT-2 40M, vocabulary 32 000.

The weights are random: speed does not depend on them. The pairs are the built-in 1 000, scored so many times.
"""

import sys
import time

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from babylm_train.data.read import read_stories, read_story_pairs
from babylm_train.data.tokenizer import BPE
from babylm_train.evaluation.pairs import score_pairs


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    tokenizer = BPE(vocab_size=8192, min_frequency=2).build(read_stories(100_000))
    tokenizer.model_max_length = 512
    pairs = read_story_pairs() * count
    config = GPT2Config(vocab_size=32_000, n_positions=512, n_layer=8, n_embd=512, n_head=8)
    model = GPT2LMHeadModel(config).eval()
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    tokens = sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])
    began, spent = time.perf_counter(), time.process_time()
    score_pairs(model, tokenizer, pairs)
    seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    print(
        f"{len(pairs):,} pairs, {tokens:,} tokens, {sum(p.numel() for p in model.parameters()):,} parameters, "
        f"{torch.get_num_threads()} threads: {seconds:.1f} s ({cpu:.1f} s of CPU)"
    )


if __name__ == "__main__":
    main()
