"""The whole pipeline from Python, without Hydra: python examples/train.py [directory]"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config

from babylm_train.curriculum.sampler import CurriculumTrainingManager
from babylm_train.curriculum.schedule import FullSchedule
from babylm_train.curriculum.strategy import NoCurriculum
from babylm_train.data.read import Stories
from babylm_train.data.tokenizer import BPE
from babylm_train.data.tokens import tokenize
from babylm_train.logger import NoLogger
from babylm_train.model.build import causal_lm
from babylm_train.model.export import write_model
from babylm_train.objective import CausalObjective
from babylm_train.optim import Precision, schedule
from babylm_train.options import TrainerOptions
from babylm_train.trainer import Trainer

out, length, rows = Path(sys.argv[1] if len(sys.argv) > 1 else "stories"), 128, 16
corpus = Stories(words=20_000, seed=0, validation_share=0.05, max_length=length, cache_dir=str(out / "cache")).load()
tokenizer = BPE(vocab_size=2000, min_frequency=2).build(corpus.train)
tokenizer.model_max_length = length
train, validation = (tokenize(split, tokenizer, cache_dir=out / "cache") for split in (corpus.train, corpus.validation))
curriculum = CurriculumTrainingManager(NoCurriculum(), FullSchedule())
size = {"epochs": 2, "targets_per_update": rows * length, "max_length": length}
curriculum.begin(np.zeros(len(corpus.train)), train.words, np.diff(train.offsets), **size)
torch.manual_seed(0)
model = causal_lm(partial(GPT2Config, n_layer=2, n_embd=128, n_head=4), tokenizer, length, 0.1, 0.0)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
how = (
    CausalObjective(),
    optimizer,
    schedule(optimizer, curriculum.total_updates, "cosine"),
    Precision("float32"),
    curriculum,
)
options = TrainerOptions(epochs=2, batch_size=rows)
Trainer(model, *how, train, validation, length, options, out, NoLogger()).train()
write_model(model, tokenizer, out / "model", CausalObjective.backends)
