"""Do others read our exports as we do? `make compat`, or `python benchmarks/compat.py PYTHON [FOLDER]`.

PYTHON is the interpreter of another environment: transformers 4.51.3 is what the BabyLM 2025 pipeline pins. Six models
with random weights, large enough that a wrong mask or position shows, are exported with five kinds of tokenizer and
read there by the rules of the pipeline: AutoProcessor, the Auto classes with trust_remote_code, batches padded on the
right; and in batches that `generate` continues. Each line says how far the two are apart; exit 1 if anything differs.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

MODELS = {  # export: architecture, backends, tokenizer
    "gpt2": ("gpt2_nano", ("causal",), "BPE"),
    "modern": ("modern_nano", ("causal",), "Unigram"),
    "gpt2_hybrid": ("gpt2_nano", ("causal", "mntp"), "WordPiece"),
    "modern_hybrid": ("modern_nano", ("causal", "mntp"), "Character"),
    "modernbert": ("modernbert_nano", ("mlm",), "Byte"),
    "deberta": ("deberta_nano", ("mlm",), "BPE"),
}
RECIPES = {"BPE": (600, 2), "Unigram": (600,), "WordPiece": (900, 2), "Character": (400, 2), "Byte": ()}
PAIRS, PROMPTS, LENGTH = 20, 4, 256
NATS = 1e-3  # of a sentence


def export_all(folder: Path) -> dict:
    """Writes the exports and the sentences; our own ids, scores and continuations by export."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from babylm_train.config import CONF
    from babylm_train.data import tokenizer as recipes
    from babylm_train.data.read import read_stories, read_story_pairs
    from babylm_train.evaluation.command import load_model
    from babylm_train.evaluation.likelihood import token_log_probabilities
    from babylm_train.model.export import write_model

    pairs, stories = read_story_pairs(), list(read_stories(20_000))
    pairs = pairs[:: len(pairs) // PAIRS][:PAIRS]
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf8")
    found = {}
    for name, (architecture, backends, recipe) in MODELS.items():
        tokenizer = getattr(recipes, recipe)(*RECIPES[recipe]).build(stories)
        tokenizer.model_max_length = LENGTH
        torch.manual_seed(0)
        fragment = OmegaConf.load(CONF / f"model/{architecture}.yaml")
        if name == "modern":  # a value that is no default
            fragment.config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
        model = instantiate(fragment, _convert_="all")(tokenizer=tokenizer, max_length=LENGTH, dropout=0.0)
        with torch.no_grad():
            for value in model.parameters():
                if value.ndim > 1:
                    value.normal_(std=0.12)
        write_model(model, tokenizer, folder / name, backends)
        found[name] = {}
        for backend in backends:
            loaded, saved, _ = load_model(folder / name, backend)
            scores = token_log_probabilities(loaded, saved, texts, backend=backend, closing=False)
            found[name][backend] = {"scores": [float(s.sum()) for s in scores], "ids": saved(texts)["input_ids"]}
    return found


def read_all(folder: Path) -> dict:
    """The same by transformers alone, as the pipeline calls it."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoProcessor

    texts, found = json.loads((folder / "texts.json").read_text(encoding="utf8")), {}
    for name, (_, backends, _) in MODELS.items():
        found[name] = {}
        for backend in backends:
            kind = AutoModelForCausalLM if backend == "causal" else AutoModelForMaskedLM
            model = kind.from_pretrained(folder / name, trust_remote_code=True).eval()
            processor = AutoProcessor.from_pretrained(folder / name, padding_side="right", trust_remote_code=True)
            encoded = [processor(text=text, return_offsets_mapping=True) for text in texts]
            found[name][backend] = {
                "ids": [one["input_ids"] for one in encoded],
                "scores": score_causal(model, processor, encoded)
                if backend == "causal"
                else [score_masked(model, processor, one, backend == "mntp") for one in encoded],
            }
            if backend == "causal":
                found[name][backend]["generated"] = continue_texts(model, folder / name, texts[:PROMPTS])
    return found


@torch.no_grad()
def score_causal(model: object, processor: object, encoded: list) -> list[float]:
    """Sentences' log-probabilities, all in one batch that is padded on the right."""
    rows = [torch.tensor(one["input_ids"]) for one in encoded]
    seen = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    rows = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=processor.pad_token_id)
    logits = model(input_ids=rows[:, :-1], attention_mask=seen[:, :-1]).logits.log_softmax(-1)
    nats = logits.gather(2, rows[:, 1:, None])[:, :, 0]
    return (nats * seen[:, 1:]).sum(1).tolist()


@torch.no_grad()
def score_masked(model: object, processor: object, one: object, shifted: bool) -> float:
    """A sentence's pseudo-log-likelihood, its copies in one batch beside a longer row."""
    ids = torch.tensor(one["input_ids"])
    places = torch.tensor([i for i, (_, end) in enumerate(one["offset_mapping"]) if i and end > 0])
    rows = torch.cat([ids, torch.full((3,), processor.pad_token_id)]).repeat(len(places), 1)
    seen = torch.cat([torch.ones_like(ids), torch.zeros(3, dtype=torch.long)]).repeat(len(places), 1)
    rows[torch.arange(len(places)), places] = processor.mask_token_id
    logits = model(input_ids=rows, attention_mask=seen).logits.log_softmax(-1)
    return float(logits[torch.arange(len(places)), places - int(shifted), ids[places]].sum())


def continue_texts(model: object, folder: Path, texts: list[str]) -> dict:
    """Greedy continuations of the first words, one by one and in a batch as the tokenizer pads it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [" ".join(text.split()[: 1 + i]) for i, text in enumerate(texts)]
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    together = model.generate(**encode(tokenizer, prompts, padding=True), **options)
    alone = [model.generate(**encode(tokenizer, [prompt]), **options)[0] for prompt in prompts]
    return {
        "alone": [tokenizer.decode(row, skip_special_tokens=True) for row in alone],
        "batch": [tokenizer.decode(row, skip_special_tokens=True) for row in together],
    }


def encode(tokenizer: object, texts: list[str], **options: object) -> dict:
    """Ids and mask alone: a decoder takes no token types."""
    encoded = tokenizer(texts, return_tensors="pt", **options)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def compare(ours: dict, theirs: dict, version: str) -> bool:
    """Prints a line an export and backend; True if nothing differs."""
    good = True
    for name, backends in theirs.items():
        for backend, there in backends.items():
            here = ours[name][backend]
            worst = max(abs(a - b) for a, b in zip(here["scores"], there["scores"], strict=True))
            preferred = [
                [a > b for a, b in zip(s[::2], s[1::2], strict=True)] for s in (here["scores"], there["scores"])
            ]
            agree = sum(a == b for a, b in zip(*preferred, strict=True))
            same, batch = here["ids"] == there["ids"], there.get("generated", {})
            together = batch.get("alone") == batch.get("batch")
            good = good and same and together and worst < NATS and agree == PAIRS
            said = f"ids {'same' if same else 'DIFFER'}, sentences to {worst:.0e} nats, {agree} of {PAIRS} pairs agree"
            said += f", batches {'continue as alone' if together else 'DIFFER'}" if batch else ""
            print(f"transformers {version:<8}{name:<15}{backend:<8}{said}")
    return good


def main() -> None:
    if sys.argv[1] == "--read":
        import transformers

        print(json.dumps({"version": transformers.__version__, "found": read_all(Path(sys.argv[2]))}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, good = Path(sys.argv[2] if len(sys.argv) > 2 else temporary), True
        ours = export_all(folder)
        for python in (sys.executable, sys.argv[1]):
            call = [python, __file__, "--read", str(folder)]
            there = json.loads(subprocess.run(call, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
            good = compare(ours, there["found"], there["version"]) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
