"""Imported once, by the process that the jobs of a study are forked from: what takes seconds, and nothing that runs."""

import os

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for GPUs otherwise would spoil CUDA for forks

import matplotlib.figure  # noqa: F401
import torch._dynamo  # noqa: F401 - the optimizers import it when they are first used
import transformers.models.auto.modeling_auto
import transformers.models.gpt2.modeling_gpt2  # noqa: F401

import babylm_train.build
import babylm_train.cli
import babylm_train.curriculum.scores
import babylm_train.data.corpus
import babylm_train.data.tokenizer
import babylm_train.run
import babylm_train.trainer  # noqa: F401
