"""Text that a model writes: what is drawn, from what, and what reaches a terminal."""

import io
import json
import sys
from unittest.mock import Mock

import pytest
import torch
from exported import LENGTH, export

from babylm_train.evaluation.command import load_model
from babylm_train.evaluation.generate import Options, main, sample, take_prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def generate(monkeypatch, capsys):
    def call(*arguments, lines="", terminal=False):
        """Exit code and output of the command, `lines` being its standard input."""
        stdin = io.StringIO(lines)
        stdin.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "argv", ["generate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code, capsys.readouterr()

    return call


def test_the_likeliest_token_each_time_at_no_temperature(folder):
    model, tokenizer, _ = load_model(folder)
    before, how = torch.get_rng_state(), Options(temperature=0, max_new_tokens=6)
    [(prompt, text)] = sample(model.train(), tokenizer, ["अ आ"], how)
    ids = [tokenizer.eos_token_id, *tokenizer("अ आ", add_special_tokens=False)["input_ids"]]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    assert prompt + text == tokenizer.decode(ids, skip_special_tokens=True)
    assert torch.equal(torch.get_rng_state(), before)  # whoever samples within a run leaves its dice alone


def test_draws_turn_on_the_seed_and_stay_within_the_models_positions(folder):
    model, tokenizer, _ = load_model(folder)
    long = " ".join("अ" * 100)
    texts = [[t for _, t in sample(model, tokenizer, ["अ", long, ""], Options(seed=s))] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert all(0 < len(text.split()) < LENGTH for text in texts[0])
    sharp = [[t for _, t in sample(model, tokenizer, ["अ"], Options(top_p=1e-9, seed=s))] for s in (1, 2)]
    cold = [[t for _, t in sample(model, tokenizer, ["अ"], Options(temperature=t))] for t in (0, 1e-30)]
    assert sharp[0] == sharp[1] == cold[0] == cold[1]


def test_prompts_are_the_beginnings_of_documents():
    assert take_prompts(["एक", "एक दिन\nराम", "a b", "c", "d e f", "g h"]) == ["एक दिन", "a b", "d e"]
    assert take_prompts(["漢字"]) == []


def test_lines_of_a_pipe_and_a_prompt(generate, folder):
    code, said = generate(folder.parent, "samples=2", lines="अ  आ\n\nइ\x1b[2J\n")
    lines = said.out.splitlines()
    assert (code, len(lines)) == (0, 6)
    assert all(line.startswith("अ आ") for line in lines[:2])  # cleaned as training text was
    assert lines[0] != lines[1]
    assert all(line.isprintable() for line in lines)
    assert generate(folder, "prompt=अ", "seed=3", lines="इ\n") == generate(folder, "prompt=अ", "seed=3")


@pytest.mark.parametrize("end", ["", EOFError])
def test_a_terminal_until_an_empty_line_or_its_end(generate, folder, monkeypatch, end):
    monkeypatch.setattr("builtins.input", Mock(side_effect=["अ आ", end]))
    code, said = generate(folder, terminal=True)
    assert (code, sum(line.startswith("अ आ") for line in said.out.splitlines())) == (0, 1)


OUT_OF_RANGE = {"temperature": ["-1", "nan"], "top_p": ["0", "1.1"], "max_new_tokens": ["0"], "samples": ["0"]}
OUT_OF_RANGE |= {"prompt": ["\udcff"]}


@pytest.mark.parametrize("key", OUT_OF_RANGE)
def test_what_is_out_of_range_is_refused(generate, folder, key):
    for value in OUT_OF_RANGE[key]:
        code, said = generate(folder, f"{key}={value}", lines="अ\n")
        assert (code, said.out) == (2, "")
        assert key in said.err


def test_encoders_foreign_code_and_absent_revisions_are_refused(generate, tmp_path):
    encoder, path = export(tmp_path / "deberta", "deberta"), export(tmp_path / "model") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    refused = {"encoder": [encoder], "auto_map": [tmp_path], "chck_1M": [tmp_path, "revision=chck_1M"]}
    for named, words in refused.items():
        code, said = generate(*words, "prompt=अ")
        assert (code, said.out, named in said.err) == (2, "", True)
