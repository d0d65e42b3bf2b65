"""What a run says of its speed."""

import torch
from tiny import model_of

from babylm_train.throughput import flops_per_token


def test_flops_of_a_token():
    """gpt2_110m: 85.1 M in the blocks, 24.6 M in the tied head, attention of 12 layers x 768 over 512 positions."""
    with torch.device("meta"):
        model = model_of("gpt2_110m", 32000, 512)
    blocks = sum(p.numel() for p in model.transformer.h.parameters()) + 2 * 768
    assert flops_per_token(model, 512) == 6 * (blocks + 32000 * 768) + 12 * 12 * 768 * 512
    assert 0.69e9 < flops_per_token(model, 512) < 0.72e9
