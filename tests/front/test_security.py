"""Hostile files and configurations: a canary that any of them could fire stays silent, a secret stays unwritten."""

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import SMALL, command

from babylm_train.checkpoint import load
from babylm_train.config import check_command_line
from babylm_train.data.read import HubDataset
from babylm_train.errors import InputError
from babylm_train.study.report import write_report

FIRE = "touch canary"
CALLS = {  # a callable that would fire the canary, or read or write what it should not, and its arguments
    "os.system": f"command:'{FIRE}'",
    "posix.system": f"command:'{FIRE}'",
    "subprocess.run": "args:[touch,canary]",
    "builtins.eval": '_args_:[\'open("canary","w")\']',
    "builtins.open": "file:canary,mode:w",
    "pathlib.Path": "_args_:[canary]",
    "shutil.rmtree": "path:precious",
    "importlib.import_module": "name:evil",
    "hydra.utils.get_method": "path:os.system",
    "hydra.utils.get_class": "path:subprocess.Popen",
    "hydra.utils.call": f"config:{{_target_:os.system,command:'{FIRE}'}}",
    "hydra.utils.instantiate": f"config:{{_target_:os.system,command:'{FIRE}'}}",
    "hydra._internal.utils._locate": "path:os.system",
    "functools.partial": f"_args_:[{{_target_:hydra.utils.get_method,path:os.system}},'{FIRE}']",
    "torch.load": "f:evil.pt,weights_only:false",
    "torch.hub.load": "repo_or_dir:.,model:evil,source:local",
    "torch.optim.lr_scheduler.LambdaLR": "optimizer:x,lr_lambda:y",
    "torch.optim.adamw.AdamW": "lr:1",
    "torch.optim.os": "lr:1",
    "numpy.load": "file:evil.npy,allow_pickle:true",
    "pickle.loads": "_args_:[x]",
    "pandas.read_pickle": "filepath_or_buffer:evil.pt",
    "yaml.unsafe_load": f"stream:'!!python/object/apply:os.system [{FIRE}]'",
    "transformers.pipeline": "model:.",
    "transformers.AutoModelForCausalLM.from_pretrained": "_args_:['.'],trust_remote_code:true",
    "transformers.AutoConfig": "x:1",
    "babylm_train.checkpoint.os.system": f"command:'{FIRE}'",
    "babylm_train.run.subprocess.run": "args:[touch,canary]",
    "babylm_train.files.shutil.rmtree": "path:precious",
    "babylm_train.build.instantiate": f"config:{{_target_:os.system,command:'{FIRE}'}}",
    "babylm_train.metrics.write_text": "path:canary,text:x",
    "babylm_train.cli.main": "",
}
PLACES = {  # where else a fragment can put such a node
    "a list": "trainer: {no_decay: [{%s}]}",
    "a list in a list": "data: {x: [[{%s}]]}",
    "an argument of another's": "optimizer: {x: {_target_: torch.optim.AdamW, _args_: [{%s}]}}",
    "a part of the model": "model: {config: {%s}}",
    "a group of one's own": "mine: {%s}",
    "an interpolation": "study: os.system\noptimizer: {_target_: '${study}'}",
    "a callback of Hydra's": "hydra: {callbacks: {x: {%s}}}",
    "the launcher": "hydra: {launcher: {_target_: os.system}}",
    "the sweeper": "hydra: {sweeper: {_target_: os.system}}",
    "a logging handler": "hydra: {job_logging: {handlers: {x: {class: os.system}}}}",
    "a logging factory": f"hydra: {{hydra_logging: {{formatters: {{x: {{(): os.system, command: '{FIRE}'}}}}}}}}",
    "a log file": "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, filename: canary}}}}",
    "an import by logging": "hydra: {job_logging: {handlers: {console: {stream: 'ext://evil.stream'}}}}",
}
FILES = {  # an experiment that somebody hands on
    "an environment": "hydra: {job: {env_set: {PYTHONPATH: .}}}",
    "a command before the job": "hydra: {launcher: {setup: [touch canary]}}",
    "a search path": "hydra: {searchpath: ['pkg://evil']}",
    "an object of Python's": f"x: !!python/object/apply:os.system ['{FIRE}']",
    "the allow-list": "hydra: {job: {env_set: {BABYLM_ALLOW_TARGETS: os}}}",
    "a target": f"optimizer: {{_target_: os.system, command: {FIRE}}}",
}


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The working directory holds a module, a pickle and an array that fire the canary when they are loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text("open('canary', 'w'); stream = None\n")
    (tmp_path / "precious").mkdir()
    torch.save({"state": Touch()}, tmp_path / "evil.pt")
    np.save(tmp_path / "evil.npy", np.array([Touch()], dtype=object), allow_pickle=True)
    yield tmp_path
    assert not (tmp_path / "canary").exists()
    assert (tmp_path / "precious").is_dir()


class Touch:
    def __reduce__(self):
        return os.system, (FIRE,)


@pytest.mark.parametrize("target", CALLS)
def test_no_target_but_those_offered(hostile, target):
    arguments = ",".join(filter(None, [f"_target_:{target}", CALLS[target]]))
    with pytest.raises(InputError, match=r"optimizer\._target_=.* is not allowed"):
        check_command_line([f"++optimizer={{{arguments}}}"])


def handed_on(folder: Path, text: str) -> str:
    """A configuration directory with the experiment `x`."""
    (folder / "theirs/experiment").mkdir(parents=True)
    (folder / "theirs/experiment/x.yaml").write_text(f"# @package _global_\n{text}\n")
    return str(folder / "theirs")


@pytest.mark.parametrize("place", PLACES)
def test_no_place_escapes_the_check(hostile, place):
    text = PLACES[place]
    text = text % f"_target_: os.system, command: '{FIRE}'" if "%s" in text else text
    with pytest.raises(InputError, match=r"is not allowed|from a file of others"):
        check_command_line(["experiment=x"], config_dir=handed_on(hostile, text))


@pytest.mark.parametrize("kind", FILES)
def test_an_experiment_from_a_stranger(hostile, kind):
    given = ["experiment=x"] + ["hydra/launcher=submitit_slurm"] * ("launcher" in FILES[kind])
    with pytest.raises(InputError, match=r"from a file of others|hydra\.searchpath|could not determine|is not allowed"):
        check_command_line(given, config_dir=handed_on(hostile, FILES[kind]))


def test_what_its_user_types_may_steer_other_programs(hostile):
    check_command_line(["+hydra.job.env_set.OMP_NUM_THREADS='2'"])


def packed_bomb() -> bytes:
    """A .pt whose archive says that it holds a gigabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"state": {"updates": 1}}, protocol=2))
        archive.writestr("x/data/0", bytes(30 << 20))
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("../../canary")
        archive.addfile(entry)
    return buffer.getvalue()


def torch_file(content: object, **options) -> bytes:
    torch.save(content, buffer := io.BytesIO(), **options)
    return buffer.getvalue()


CHECKPOINTS = {
    "a pickle": lambda: pickle.dumps(Touch()),
    "a pickle in a checkpoint": lambda: torch_file({"state": Touch()}),
    "a pickle in the old format": lambda: torch_file({"state": Touch()}, _use_new_zipfile_serialization=False),
    "an object": lambda: torch_file({"state": {"updates": 1}, "model": torch.nn.Linear(1, 1)}),
    "a path": lambda: torch_file({"state": {"updates": 1}, "x": Path("a")}),
    "a bomb": packed_bomb,
    "a tar that climbs": tar,
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_a_stranger(hostile, kind):
    path = hostile / "checkpoint_step_1.pt"
    path.write_bytes(CHECKPOINTS[kind]())
    with pytest.raises(InputError, match=str(path)):
        load(path)


def test_data_of_a_stranger(hostile):
    options = {"validation_share": 0.5, "max_words": None, "seed": 0, "max_length": 8, "text_field": "text"}
    hub = {
        "revision": None,
        "config_name": None,
        "train_split": "train",
        "validation_split": None,
        "cache_dir": "cache",
    }
    (hostile / "packed").mkdir()
    with zipfile.ZipFile(hostile / "packed/x.zip", "w") as archive:
        archive.writestr("../../canary", "x")
    with pytest.raises(InputError, match=r"x\.zip is packed"):
        HubDataset(name="packed", **hub, **options).load()
    (hostile / "scripted").mkdir()
    (hostile / "scripted/scripted.py").write_text("open('canary', 'w')")
    with pytest.raises(InputError, match=r"data\.name=scripted"):
        HubDataset(name="scripted", **hub, **options).load()


def test_a_tokenizer_with_code_of_its_own(hostile):
    from babylm_train.data.tokenizer import Pretrained

    (hostile / "theirs").mkdir()
    (hostile / "theirs/tokenization_evil.py").write_text("open('canary', 'w')")
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_evil.E", "tokenization_evil.E"]}, "tokenizer_class": "E"}
    (hostile / "theirs/tokenizer_config.json").write_text(json.dumps(settings))
    (hostile / "theirs/config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.C"}})
    )
    with pytest.raises(InputError, match=r"tokenizer\.name=theirs cannot be loaded"):
        Pretrained(name="theirs", revision=None).build()


def test_a_secret_of_the_environment_is_in_no_file(tmp_path):
    """A path and a W&B entity may come from a variable; the run's name, files, checkpoints and mirrors do not show it."""
    secret = "hunter2secret"
    (tmp_path / "data" / secret).mkdir(parents=True)
    (tmp_path / "data" / secret / "a.txt").write_text("".join(f"राम {i} घर गया\n" for i in range(60)), encoding="utf8")
    given = ["data=text", "data.train='data/${oc.env:SECRET}/a.txt'", "logger=tensorboard", "trainer.max_steps=2"]
    small = [s for s in SMALL if not s.startswith(("hydra.run", "logger"))]
    child = command([*small, *given], tmp_path, tmp_path / "said", SECRET=secret)
    assert child.wait(60) == 0, child.err
    files = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(tmp_path / "data")]
    assert len(files) > 15
    assert [p for p in files if secret.encode() in p.read_bytes() or secret in str(p.relative_to(tmp_path))] == []


def test_what_a_model_says_moves_no_cursor(tmp_path):
    """A byte tokenizer, untrained weights: samples hold whatever bytes come; on the terminal they are escaped."""
    from babylm_train.evaluation.loss import PROMPTS
    from babylm_train.run import show_result

    names = ("val_loss", "perplexity", "bits_per_byte", "word_perplexity", "updates", "tokens", "words", "seconds")
    shown = show_result({**dict.fromkeys(names, 1), "samples": ["\x1b]0;title\x07 राम \x9b2J\r"] * len(PROMPTS)})
    assert all(line.isprintable() for line in shown.splitlines())
    assert "राम" in shown


def test_a_report_over_results_of_a_stranger(tmp_path):
    folder = tmp_path / "study/<script>alert(1)<"
    folder.mkdir(parents=True)
    evil = "<script>alert(1)</script>"
    (folder / "config.yaml").write_text(f"seed: 0\nstudy: '{evil}'\noptimizer: {{_target_: '{evil}', lr: 0.1}}\n")
    result = {"status": "failed", "cause": evil, "config_hash": evil}
    (folder / "result.json").write_text(json.dumps(result))
    write_report(tmp_path / "study")
    page = (tmp_path / "study/report.html").read_text(encoding="utf8")
    assert "<script>alert" not in page
