"""Golden runs: small configurations over the groups, and what they gave at the commit that froze them.

The text is of the built-in stories (train.jsonl.gz, validation.jsonl.gz: 4 000 and 800 words).
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from forked import command
from safetensors.torch import load_file

HERE = Path(__file__).parent
VALUES = HERE / "values.json"
GPT2 = "model.config.n_layer=2 model.config.n_embd=32 model.config.n_head=2"
WIDE = "model.config.num_hidden_layers=2 model.config.hidden_size=32 model.config.intermediate_size=64 model.config.num_attention_heads=2"
MODERN = f"model=modern_nano {WIDE} model.config.num_key_value_heads=1 model.config.head_dim=16"
COMMON = (
    f"data=text data.train={HERE}/train.jsonl.gz data.validation={HERE}/validation.jsonl.gz data.max_length=32 "
    "data.cache_dir=cache tokenizer.vocab_size=500 trainer.epochs=3 trainer.max_steps=24 trainer.batch_size=4 "
    "trainer.log_every=4 optimizer.lr=3e-3 logger=none trainer.device=cpu hydra.run.dir=run"
)
RUNS = {
    "plain": GPT2,
    "sgd_accumulation": f"{GPT2} optimizer=sgd scheduler=cosine scheduler.warmup_ratio=null scheduler.warmup_steps=5 model.dropout=0 "
    "trainer.gradient_accumulation_steps=3 trainer.max_steps=12",
    "modern_bf16": f"{MODERN} precision=bf16 scheduler=cosine scheduler.warmup_ratio=0.2",
    "modernbert_masked": f"model=modernbert_nano objective=masked {WIDE}",
    "deberta_masked": f"model=deberta_nano objective=masked {WIDE}",
    "gpt2_hybrid": f"{GPT2} objective=hybrid",
    "modern_hybrid": f"{MODERN} objective=hybrid trainer.gradient_accumulation_steps=2",
    "length_linear": f"{GPT2} curriculum/strategy=length curriculum/schedule=linear",
    "morphology_one_pass": f"{GPT2} curriculum/strategy=morphological curriculum/schedule=root curriculum.pacing=single_pass "
    "trainer.max_steps=null",
    "combined_words_tf32": f"{GPT2} curriculum/strategy=combined curriculum/schedule=step curriculum.schedule.step_epochs=[1,2] "
    "curriculum.schedule.step_thresholds=[0.5,1.0] curriculum.threshold_on=words precision=tf32",
    "dynamic": f"{GPT2} curriculum/strategy=dynamic curriculum/schedule=linear trainer.eval_every=3 seed=1 "
    "curriculum.strategy.performance_window=4 curriculum.strategy.min_threshold=0.2",
    "performance_reverse": f"{GPT2} curriculum/strategy=frequency curriculum.strategy.reverse=true "
    "curriculum/schedule=performance trainer.eval_every=3 curriculum.schedule.performance_window=4 "
    "curriculum.schedule.adaptation_rate=0.1",
    "random_score_fp16": f"{GPT2} curriculum/strategy=random curriculum/schedule=exponential curriculum.threshold_on=score "
    "precision=fp16",
    "unigram_attention": f"{GPT2} tokenizer=unigram optimizer=adam optimizer.weight_decay=0.0 scheduler=constant model.attention_dropout=0.2 "
    "trainer.gradient_checkpointing=true trainer.max_grad_norm=null trainer.eval_every=2 trainer.early_stopping.patience=2 "
    "trainer.early_stopping.min_delta=0.2",
}
KEPT = (
    "status", "stopped_early", "updates", "planned_updates", "best_update", "tokens", "words", "train_loss", "val_loss",
    "bits_per_byte", "pseudo_bits_per_byte", "perplexity", "pseudo_perplexity", "parameters", "exposures", "samples",
)  # fmt: skip


def machine() -> str:
    """What bits may depend on: processor and torch; one thread everywhere."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line for line in lines if line.startswith("flags")), platform.processor())
    return f"{hashlib.sha256(flags.encode()).hexdigest()[:12]} torch {torch.__version__}"


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Runs a configuration in `folder`: its metrics, result and the hash of its final weights."""
    child = command([*COMMON.split(), *RUNS[name].split()], folder, folder / "said", OMP_NUM_THREADS="1")
    assert child.wait(120) == 0, child.err
    result = json.loads((folder / "run/result.json").read_text())
    weights = load_file(folder / "run/model/model.safetensors")
    digest = hashlib.sha256(b"".join(key.encode() + weights[key].numpy().tobytes() for key in sorted(weights)))
    return {
        "weights": digest.hexdigest(),
        "metrics": [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()],
        "result": {key: result[key] for key in KEPT if key in result},
    }


def difference(a: Any, b: Any) -> float:
    """The largest relative difference of the numbers in two values of one shape; infinite where they differ otherwise."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max((difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return 0.0 if a == b else abs(a - b) / max(abs(a), abs(b))
    return 0.0 if a == b else math.inf


def moved(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How a run differs from what it gave before, in words."""
    if before == now:
        return "the same bits"
    parts = {key: difference(before[key], now[key]) for key in ("metrics", "result")}
    if before["weights"] != now["weights"]:
        parts["weights"] = math.nan
    return ", ".join(f"{key} {size:.1e}" for key, size in parts.items() if size)


def read() -> dict[str, Any]:
    """What write() froze: commit, machine and runs."""
    return json.loads(VALUES.read_text(encoding="utf8"))


def write(runs: dict[str, Any]) -> None:
    commit = subprocess.run(["git", "-C", HERE, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    values = {"commit": commit.stdout.strip(), "machine": machine(), "runs": runs}
    VALUES.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf8")
