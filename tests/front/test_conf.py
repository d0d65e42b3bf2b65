"""Every fragment composes and is built; what other tests do not train trains two updates."""

import json

import pytest
from forked import SMALL

from babylm_train.build import build_parts, rehearse
from babylm_train.config import CONF, check_command_line
from babylm_train.data.tokenizer import BPE

OPTIONS = [
    f"{path.parent.relative_to(CONF).as_posix()}={path.stem}"
    for path in sorted(CONF.rglob("*/*.yaml"))
    if "hydra" not in path.relative_to(CONF).parts
]
NEEDS = {  # what an option cannot do without
    "data=text": ["data.train=corpus.txt"],
    "data=hub": ["data.name=dataset"],
    "tokenizer=pretrained": ["tokenizer.name=tokenizer"],
    **{option: ["objective=masked"] for option in OPTIONS if option.startswith(("model=deberta", "model=modernbert"))},
}
TINY = [small for small in SMALL if not small.startswith(("data.cache", "hydra"))]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a text corpus and a tokenizer."""
    folder = tmp_path_factory.mktemp("workplace")
    texts = [f"राम {i} घर गया और सीता वन गई ।" for i in range(300)]
    (folder / "dataset").mkdir()
    for name in ("corpus.txt", "dataset/train.txt"):
        (folder / name).write_text("\n".join(texts), encoding="utf8")
    BPE(vocab_size=300, min_frequency=2).build(texts).save_pretrained(folder / "tokenizer")
    return folder


def test_every_fragment_is_built(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    for option in OPTIONS:
        group, _, name = option.partition("=")
        config = check_command_line([option, *NEEDS.get(option, [])])[0]
        assert config.hydra.runtime.choices[group] == name
        parts = build_parts(config)
        if option.startswith(("model=", "optimizer=", "scheduler=", "objective=")):
            rehearse(parts)


@pytest.mark.parametrize("option", ["data=hub", "tokenizer=pretrained", "experiment=smoke", "experiment=best"])
def test_what_else_there_is_trains_two_updates(option, run, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    left_out = {"tokenizer=pretrained": "tokenizer.vocab_size", "experiment=best": "model.config"}.get(option, "none")
    words = ["size=nano", *(word for word in TINY if not word.startswith(left_out))]
    code, _, err = run(option, *NEEDS.get(option, []), *words, f"hydra.run.dir=out-{option}")
    assert code == 0, err
    assert json.loads((workplace / f"out-{option}/result.json").read_text())["updates"] == 2
