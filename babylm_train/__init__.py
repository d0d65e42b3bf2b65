"""Train language models on little data; every ablation is a composition of YAML fragments."""

__version__ = "0.1.0"
