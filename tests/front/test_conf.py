"""Every fragment composes, and every option of every group trains on the built-in corpus."""

import json
import os
import sys
from pathlib import Path

import pytest

from babylm_train import cli
from babylm_train.config import CONF, check_command_line, plain

GROUPS = sorted(
    {p.parent.relative_to(CONF) for p in CONF.rglob("*.yaml") if "hydra" not in p.relative_to(CONF).parts} - {Path()}
)
OPTIONS = [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
LARGE = ("40m", "110m", "220m", "baseline")
NEEDS = {  # what an option cannot do without
    "data=text": ["data.train=corpus.txt"],
    "data=hub": ["data.name=dataset"],
    "tokenizer=pretrained": ["tokenizer.name=tokenizer"],
    **{o: ["objective=masked"] for o in OPTIONS if o.startswith(("model=deberta", "model=modernbert"))},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_every_fragment_composes(option):
    needs = (need.partition("=") for need in NEEDS.get(option, []))
    config, *_ = check_command_line([option, *(f"{key}={'x' if '.' in key else value}" for key, _, value in needs)])
    values = plain(config)
    group, _, name = option.partition("=")
    assert config.hydra.runtime.choices[group] == name
    node = values
    for part in group.split("/"):
        node = node.get(part, {}) if group not in ("experiment", "scale") else values
    assert node


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a text corpus, a tokenizer and a cache that all runs share."""
    from hindi_stories.stories import generate

    from babylm_train.data.tokenizer import BPE

    folder = tmp_path_factory.mktemp("workplace")
    texts = generate(2000, seed=5)
    (folder / "dataset").mkdir()
    for name in ("corpus.txt", "dataset/train.txt"):
        (folder / name).write_text("\n".join(t.replace("\n", " ") for t in texts), encoding="utf8")
    BPE(vocab_size=400, min_frequency=2).build(texts).save_pretrained(folder / "tokenizer")
    return folder


SWEEPS = {  # a job or two of each, at the small scale
    "experiment=curricula": ("hydra.sweeper.params={curriculum/strategy:'none,combined',seed:1}", 2),
    "experiment=optimizers": ("hydra.sweeper.params={optimizer:sgd,seed:1}", 1),
    "experiment=schedulers": ("hydra.sweeper.params={scheduler:constant,seed:1}", 1),
    "experiment=precisions": ("hydra.sweeper.params={precision:bf16,seed:1}", 1),
    "experiment=tokenizers": ("hydra.sweeper.params={tokenizer:byte,seed:1}", 1),
    "experiment=hpo": ("hydra.sweeper.n_trials=1", 1),
    "experiment=curriculum_schedules": ("hydra.sweeper.params={curriculum/schedule:root,seed:1}", 1),
    "experiment=data_amount": ("hydra.sweeper.params={curriculum.schedule.start_threshold:0.5,seed:1}", 1),
    "experiment=models": ("hydra.sweeper.params={model:modern_nano,seed:1}", 1),
    "experiment=objectives": ("hydra.sweeper.params={objective:hybrid,seed:1}", 1),
}
# What these choose trains under another name; pacing is sized by its epochs.
ALIKE = ("size", "experiment=baseline_published", "experiment=strict_small", "experiment=pacing")


@pytest.mark.parametrize("option", [option for option in OPTIONS if not option.startswith(ALIKE)])
def test_every_option_trains_two_updates(option, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    name = option.replace("/", "-").replace("=", "-")
    arguments = [option, *NEEDS.get(option, []), "trainer.max_steps=2", "trainer.batch_size=2", "data.max_length=16"]
    arguments += ["data.cache_dir=cache", f"hydra.run.dir={name}", f"hydra.sweep.dir={name}"]
    arguments += [SWEEPS[option][0], "scale=small", "trainer.epochs=1"] if option in SWEEPS else []
    arguments += [] if option.startswith("logger") else ["logger=none"]
    large = any(size in option for size in LARGE) or "objective=masked" in (option, *NEEDS.get(option, []))
    if large:  # no optimizer state to write, no minimal pairs to score
        arguments += ["optimizer=sgd", "optimizer.momentum=0", "data=text", *NEEDS["data=text"]]
    elif option not in ("data=text", "data=hub"):
        arguments.append("data.words=2000")
    arguments += [] if option.startswith(("tokenizer", "experiment")) else ["tokenizer.vocab_size=420"]
    monkeypatch.setattr(sys, "argv", ["babylm-train", *arguments])
    cli.main()
    results = [json.loads(path.read_text()) for path in (workplace / name).rglob("result.json")]
    assert len(results) == (SWEEPS[option][1] if option in SWEEPS else 1)
    assert all((result["status"], result["updates"]) == ("finished", 2) for result in results)
    for path in (workplace / name).rglob("*"):
        if path.suffix in (".pt", ".safetensors"):
            os.truncate(path, 0)  # room for the next model
