"""A curriculum in a training loop of your own: python examples/curriculum.py

The manager says which documents an epoch trains on, in which order, and is told the validation loss; the rest is plain
torch. An epoch is one pass over what is admitted.
"""

from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import LinearSchedule
from babylm_train.curriculum.strategy import create_curriculum_strategy
from babylm_train.data.read import Stories
from babylm_train.data.tokenizer import BPE
from babylm_train.model.build import causal_lm

EPOCHS = 4
corpus = Stories(words=4000, seed=0, validation_share=0.1, max_length=64, cache_dir="stories/cache").load()
tokenizer = BPE(vocab_size=500, min_frequency=2).build(corpus.train)
torch.manual_seed(0)
model = causal_lm(partial(GPT2Config, n_layer=2, n_embd=64, n_head=2), tokenizer, 64, 0.1, 0.0)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

# Short documents first; the share that is admitted grows with each epoch, as far as the validation loss falls.
strategy = create_curriculum_strategy("dynamic", base=create_curriculum_strategy("length"), min_threshold=0.4)
curriculum = CurriculumTrainingManager(strategy, LinearSchedule(EPOCHS, start_threshold=0.4), pacing="single_pass")
words = np.array([len(text.split()) for text in corpus.train])
curriculum.begin(strategy.compute_difficulty(corpus.train), words, epochs=EPOCHS)


def encode(texts: list[str]) -> dict[str, torch.Tensor]:
    """A batch for transformers: padded tokens, and labels that leave the padding out."""
    batch = tokenizer(texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


for epoch in range(EPOCHS):
    part = curriculum.prepare_epoch(epoch)
    model.train()
    order = part.order.tolist()
    loader: DataLoader[str] = DataLoader(corpus.train, 8, sampler=order, collate_fn=encode)  # type: ignore[arg-type]
    for batch in loader:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        loss = float(model(**encode(list(corpus.validation))).loss)
    print(
        f"epoch {epoch + 1}: {len(part.pool)} documents at threshold {part.threshold:.2f}, validation loss {loss:.3f}"
    )
    curriculum.report_performance(loss)
