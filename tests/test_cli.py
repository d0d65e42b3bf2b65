"""The command line: what it refuses, what it writes, that it goes on."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from babylm_train import cli
from babylm_train.config import check_command_line

SMALL = ["data.words=3000", "data.max_length=32", "trainer.batch_size=4", "trainer.epochs=2", "logger=none"]
WORDS = Path(__file__).parent / "words.tsv"  # a frequency list


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`run(*arguments)` -> (exit code, standard output, standard error), in this process and an empty folder."""
    cache = Path(os.environ.get("BABYLM_TEST_CACHE", tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["babylm-train", *arguments, f"data.cache_dir={cache}"])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


BAD = {
    "track=strict_small track.corpus_words=1000": "track=strict_small allows 1,000 words of text, this run has 2,927: shorten",
    "track=strict_small trainer.epochs=11": "track=strict_small allows 10 epochs, 29,270 words seen, this run would see 32,197 (11.00",
    "track=strict_small curriculum/schedule=linear curriculum/strategy=frequency curriculum.strategy.frequency_list=LIST": "was made from text outside the corpus",
    "track=strict_small track.milestones=[2000,1000]": "track.milestones must be ascending numbers of words, got [2000, 1000]",
    "trainer.metric=pairs/all": "trainer.metric must be val/loss, or with trainer.eval_pairs pairs/all, got pairs/all",
    "trainer.eval_pairs=corpus trainer.metric=pairs/al": "trainer.metric must be one of val/loss, pairs/all, pairs/",
    "optimizer=sgd ~optimizer.fused optimizer._target_=torch.optim.Muon": "optimizer: Muon only supports 2D parameters",
    "trainer.eval_pairs=none.jsonl": "pairs: no such file: none.jsonl",
    "objective=masked model=gpt2_nano": "objective: MaskedObjective needs an encoder, model is a decoder",
    "model=deberta_nano": "objective: CausalObjective needs a decoder, model is an encoder",
    "optimizer=sdg": "optimizer=sdg: no such option, did you mean sgd? (there are adam, adamw, sgd)",
    "optimiser=sgd": "optimiser: no such key or group, did you mean optimizer?",
    "optimizer.lrr=1": "optimizer.lrr: no such key or group, did you mean optimizer.lr?",
    "+optimizer.amsgrd=true": "optimizer.amsgrd: unknown key, did you mean optimizer.amsgrad?",
    "+traner.epochs=3": "traner: unknown key, did you mean trainer?",
    "optimizer.lr=abc": "optimizer.lr must be a number, got 'abc'",
    "optimizer.lr=-1": "optimizer.lr must not be negative, got -1",
    "trainer.max_steps=abc": "trainer.max_steps must be None or int, got 'abc'",
    "trainer.batch_size=0": "trainer.batch_size must be at least 1, got 0",
    "trainer.batch_size=1.5": "trainer.batch_size must be a whole number, got 1.5",
    "trainer.epochs=": "trainer.epochs must be a whole number, got ''",
    "~trainer.epochs": "trainer: missing 1 required positional argument: 'epochs'",
    "seed=-1": "seed must not be negative, got -1",
    "seed=-1 data.seed=0": "seed must not be negative, got -1",
    "optimizer.betas=[0.9]": "optimizer: list index out of range",
    "model.config.n_head=0": "model: ",
    "model.config.activation_function=foo": "model: ",
    "model=modern_nano model.config.num_key_value_heads=3": "model: ",
    "+model.config.vocab_size=10": "model.config.vocab_size is not free",
    "data.max_length=1": "max_length",
    "trainer.device=meta": "trainer.device=meta: only cpu and cuda are supported",
    "-m job_timeout=abc": "job_timeout must be seconds above 0, or null, got 'abc'",
    "job_timeout=0": "job_timeout must be seconds above 0, or null, got 0",
    "~logger": "logger: the group is missing",
    "curriculum.pacing=single_pass trainer.max_steps=5": "trainer.max_steps must be null",
    "hydra.run.dir=/proc/none/a": "cannot write /proc/none",
    "trainer.deterministic=${seed}": "trainer.deterministic must be true or false, got 0",
    "~study": "study: the key is missing",
    "optimizer.betas=[0.9,0.9,0.9]": "optimizer: too many values to unpack (expected 2)",
    "trainer.device=[]": "trainer.device must be text, got []",
    "seed=null": "seed must be int, got None",
    "trainer=3": "Config group override must be a string or a list. Got int",
    "trainer.early_stopping=3": "trainer.early_stopping is a group of keys (_target_, patience, min_delta), got 3",
    "trainer.device=tpu9": "trainer.device=tpu9 is not available",
    "trainer.no_decay=[bias,weights]": "trainer.no_decay may name norm, bias, embedding, got weights",
    "scheduler.warmup_steps=5 scheduler.warmup_ratio=0.1": "scheduler.warmup_steps and scheduler.warmup_ratio are both given",
    "scheduler.warmup_steps=99 trainer.max_steps=10": "scheduler.warmup_steps = 99 is longer than the run of 10 updates",
    "scheduler.warmup_steps=9999": "scheduler.warmup_steps = 9999 is longer than the run of",
    "scheduler.warmup_ratio=1.5": "scheduler.warmup_ratio must be in [0, 1], got 1.5",
    "scheduler=cosine scheduler.num_cycles=0": "scheduler.num_cycles must be positive, got 0",
    "model.dropout=1.5": "model.dropout must be in [0, 1), got 1.5",
    "model.config.n_head=7": "model: `embed_dim` must be divisible by num_heads",
    "data=text": "data.train is not set: give data.train=...",
    "data=text data.train=none.txt": "data.train",
    "tokenizer.vocab_size=3": "vocab_size",
    "resume=nothing": "resume=nothing: no checkpoint there",
    "curriculum.pacing=fast": "curriculum.pacing must be one of matched, single_pass, got fast",
    "curriculum/schedule=linear curriculum.schedule.start_threshold=1.5": "curriculum.schedule.start_threshold must be in (0, 1]",
    "++optimizer._target_=os.system": "optimizer._target_=os.system is not allowed",
    "++optimizer._target_=torch.load": "optimizer._target_=torch.load is not allowed",
    "++model._target_=builtins.eval": "model._target_=builtins.eval is not allowed",
    "++model.config._target_=transformers.GPT2Model": "model.config._target_=transformers.GPT2Model is not allowed",
    "++objective._target_=babylm_train.checkpoint.os.system": "objective._target_=babylm_train.checkpoint.os.system is not allowed",
    "++objective._target_=babylm_train.checkpoint.load_all": "babylm_train.checkpoint.load_all is not allowed",
    "++objective._target_=babylm_train.trainer.evaluate": "babylm_train.trainer.evaluate is not allowed",
    "+hydra.callbacks.x._target_=os.system": "hydra.callbacks.x._target_=os.system is not allowed",
    "hydra.job_logging.handlers.console.class=os.system": "hydra.job_logging.handlers.console.class=os.system is not",
    "a=[1": "no viable alternative at input '[1'",
    "-m optimizer=adamw,sdg": "optimizer=sdg: no such option",
    "-m trainer.batch_size=4,0": "trainer.batch_size must be at least 1, got 0",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_one_line_exit_2_and_nothing_written(run, tmp_path, arguments):
    small = [] if "data=text" in arguments else ["data.words=3000"]
    arguments, given = arguments.replace("LIST", str(WORDS)), arguments
    where = [] if "run.dir" in arguments else ["hydra.run.dir=out", "hydra.sweep.dir=out"]
    code, _, err = run(*arguments.split(), *small, "logger=none", *where)
    assert code == (4 if where == [] else 2)
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert BAD[given] in lines[0]
    assert {p.name for p in tmp_path.iterdir()} <= {"cache"}


def test_pairs_that_do_not_fit_are_said_before_training_and_after_it(run):
    code, out, err = run(*SMALL, "data.max_length=4", "trainer.max_steps=1", "trainer.eval_pairs=corpus")
    assert code == 0
    said = re.search(r"trainer.eval_pairs: (\d+) texts are longer than data.max_length and are cut", err)
    assert 0 < int(said[1]) <= 2000
    assert f"{int(said[1]):,} texts of pairs, longer than data.max_length" in out


def test_a_run_from_nothing_and_again(run, tmp_path):
    code, out, _ = run(*SMALL, "optimizer=sgd", "scheduler=cosine", "trainer.max_steps=12", "hydra.run.dir=a")
    assert code == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    assert result["status"] == "finished"
    assert result["updates"] == 12
    assert result["tokens"] == 12 * 4 * 32
    assert result["perplexity"] == pytest.approx(math.exp(result["val_loss"]))
    assert set(result["pairs"]) == {"all", "ergative", "gender", "number", "postposition", "word_order"}
    for name in ("config.yaml", "metrics.jsonl", "timings.jsonl", "curves.png", "model/model.safetensors"):
        assert (tmp_path / "a" / name).stat().st_size > 0
    assert (tmp_path / "a/checkpoints/checkpoint_best.pt").exists()
    for text in ("parameters", "devanagari", "tokens, ", "val_loss", "एक दिन"):
        assert text in out.lower() or text in out
    last = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()][-1]
    assert last["val/loss"] == result["val_loss"]
    before = (tmp_path / "a/result.json").stat().st_mtime_ns
    code, out, _ = run(*SMALL, "optimizer=sgd", "scheduler=cosine", "trainer.max_steps=12", "hydra.run.dir=a")
    assert code == 0
    assert "finished already" in out
    assert (tmp_path / "a/result.json").stat().st_mtime_ns == before
    code, _, err = run(*SMALL, "optimizer=adamw", "scheduler=cosine", "trainer.max_steps=12", "hydra.run.dir=a")
    assert code == 2
    assert "a is of another configuration: optimizer._target_" in err
    assert (tmp_path / "a/result.json").stat().st_mtime_ns == before


RELOAD = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from babylm_train.data.packing import EvaluationRows
from babylm_train.data.read import Stories
from babylm_train.data.tokens import tokenize
from babylm_train.evaluation.loss import evaluate
from babylm_train.objective import CausalObjective
model, cache = AutoModelForCausalLM.from_pretrained(sys.argv[1]), sys.argv[2]
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert tokenizer.is_fast and tokenizer.model_max_length == 32
corpus = Stories(words=3000, seed=0, validation_share=0.05, max_length=32, cache_dir=cache).load()
rows = EvaluationRows(tokenize(corpus.validation, tokenizer, cache_dir=cache), 32)
print(evaluate(model, CausalObjective(), rows, 3).loss)
"""


def test_the_exported_model_gives_the_same_loss_in_a_fresh_process(run, tmp_path):
    assert run(*SMALL, "model=modern_nano", "trainer.max_steps=6", "hydra.run.dir=a")[0] == 0
    result = json.loads((tmp_path / "a/result.json").read_text())
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, "a/model", "cache"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert float(done.stdout.split()[-1]) == pytest.approx(result["val_loss"], abs=1e-4)


def test_a_sweep_shares_a_directory_without_collisions(run, tmp_path):
    sweep = ["-m", *SMALL, "optimizer=adamw,sgd", "scheduler=linear,constant", "trainer.max_steps=2", "study=s"]
    assert run(*sweep)[0] == 0
    folders = [p for p in (tmp_path / "multirun_outputs/s").iterdir() if p.is_dir()]
    results = [json.loads((p / "result.json").read_text()) for p in folders]
    assert len({r["config_hash"] for r in results}) == len(folders) == 4
    assert all(p.name.isascii() for p in folders)
    again = run(*sweep)[1]
    assert again.count("finished already") == 4
    assert "report: " in again
    assert {"report.html", "report.md", "results.csv"} <= {p.name for p in (tmp_path / "multirun_outputs/s").iterdir()}


def test_a_run_keeps_its_name_in_whatever_words_it_is_asked_for(run, tmp_path):
    small = [*SMALL, "trainer.max_steps=2", "study=s"]
    assert run(*small, "optimizer=sgd", "seed=1")[0] == 0
    again = run("seed=1", "scheduler=linear", "optimizer=sgd", *small)
    assert "finished already" in again[1]
    (folder,) = (p for p in (tmp_path / "multirun_outputs/s").iterdir() if p.is_dir())
    assert yaml.safe_load((folder / "overrides.yaml").read_text())[-3:-1] == ["optimizer=sgd", "seed=1"]


def test_a_diverging_job_does_not_take_the_others_down(run, tmp_path):
    code, _, err = run("-m", *SMALL, "optimizer=sgd", "optimizer.lr=0.01,1e30", "trainer.max_steps=8", "study=s")
    assert code == 3
    assert "loss" in err
    statuses = [json.loads(p.read_text())["status"] for p in (tmp_path / "multirun_outputs/s").glob("*/result.json")]
    assert sorted(statuses) == ["diverged", "finished"]


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "babylm_train", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def wait_for(path: Path, lines: int, process: subprocess.Popen) -> None:
    until = time.time() + 120
    while process.poll() is None and time.time() < until:
        if path.exists() and len(path.read_bytes().splitlines()) >= lines:
            return
        time.sleep(0.01)


def weights(folder: Path) -> bytes:
    return (folder / "model/model.safetensors").read_bytes()


def test_killed_twice_mid_epoch_ends_with_the_same_weights_and_record(tmp_path):
    arguments = [*SMALL, "data.cache_dir=cache", "trainer.max_steps=40", "trainer.gradient_accumulation_steps=2"]
    arguments += ["trainer.save_every=3", "trainer.log_every=1", "trainer.eval_every=7"]
    assert start([*arguments, "hydra.run.dir=whole"], tmp_path).wait(300) == 0
    kills = []
    for lines in (6, 22):  # within the first epoch's 20 updates, then within the second's
        process = start([*arguments, "hydra.run.dir=killed"], tmp_path)
        wait_for(tmp_path / "killed/metrics.jsonl", lines, process)
        os.killpg(process.pid, signal.SIGKILL)
        kills.append(process.wait())
    assert kills == [-signal.SIGKILL] * 2
    assert start([*arguments, "hydra.run.dir=killed"], tmp_path).wait(300) == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert (tmp_path / "killed/metrics.jsonl").read_bytes() == (tmp_path / "whole/metrics.jsonl").read_bytes()


def test_preemption_saves_exits_75_and_resume_elsewhere_is_exact(tmp_path):
    arguments = [*SMALL, "data.cache_dir=cache", "trainer.max_steps=40", "trainer.log_every=1"]
    process = start([*arguments, "hydra.run.dir=a"], tmp_path)
    wait_for(tmp_path / "a/metrics.jsonl", 8, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 75
    assert json.loads((tmp_path / "a/result.json").read_text())["status"] == "preempted"
    assert start([*arguments, "hydra.run.dir=b", "resume=a"], tmp_path).wait(300) == 0
    assert start([*arguments, "hydra.run.dir=a"], tmp_path).wait(300) == 0
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


def test_a_signal_before_anything_has_begun_is_exit_75(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_check_values", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    code, _, err = run(*SMALL, "hydra.run.dir=a")
    signal.signal(signal.SIGTERM, before)
    assert (code, err) == (75, "error: preempted before anything had begun; the same command starts again\n")
    assert not (tmp_path / "a").exists()


def test_a_second_run_in_one_directory_is_refused(run, tmp_path):
    from filelock import FileLock

    (tmp_path / "a").mkdir()
    with FileLock(tmp_path / "a/.lock"):
        code, _, err = run(*SMALL, "hydra.run.dir=a")
    assert code == 2
    assert "a is in use by another run" in err


def test_a_refused_resume_writes_nothing(run, tmp_path):
    assert run(*SMALL, "trainer.max_steps=4", "hydra.run.dir=a")[0] == 0
    code, _, err = run(*SMALL, "trainer.max_steps=4", "optimizer.lr=0.01", "resume=a", "hydra.run.dir=b")
    assert code == 2
    assert "the checkpoint is of another configuration: optimizer.lr is 0.0003 there, 0.01 here" in err
    assert not (tmp_path / "b").exists()


def test_a_glob_sweeps_over_every_option(run, tmp_path):
    assert run("-m", *SMALL, "optimizer=glob(ad*)", "trainer.max_steps=2", "study=s")[0] == 0
    assert len(list((tmp_path / "multirun_outputs/s").glob("*/result.json"))) == 2


def test_help_and_config_need_no_heavy_import():
    code = "import sys; import babylm_train.cli; print([m for m in ('torch', 'transformers', 'wandb') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_paths_in_devanagari(run, tmp_path):
    from hindi_stories.stories import generate

    folder = tmp_path / "हिन्दी पाठ"
    folder.mkdir()
    (folder / "कहानियाँ.txt").write_text("\n".join(generate(3000, 1)), encoding="utf8")
    small = [
        "data=text",
        "data.train=हिन्दी पाठ/कहानियाँ.txt",
        "data.max_length=32",
        "trainer.max_steps=2",
        "logger=none",
    ]
    assert run(*small, "hydra.run.dir=परिणाम")[0] == 0
    assert json.loads((tmp_path / "परिणाम/result.json").read_text())["updates"] == 2
    assert run(*small)[0] == 0  # a generated name
    assert all(p.name.isascii() for p in (tmp_path / "multirun_outputs/runs").iterdir())
    assert len(check_command_line(small)) == 1  # as `plan` and `difficulty` read them


def test_a_strategy_of_ones_own_as_the_readme_shows_it(tmp_path):
    """The class, fragment and command of CONTRIBUTING.md, word for word."""
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf8")
    blocks = text.split("```")
    code, fragment, command = (
        next(b for b in blocks if mark in b) for mark in ("CommaCurriculum(", "_target_: my_", "ALLOW_TARGETS=my")
    )
    (tmp_path / "my_curricula.py").write_text(code.removeprefix("python"), encoding="utf8")
    (tmp_path / "my_conf/curriculum/strategy").mkdir(parents=True)
    (tmp_path / "my_conf/curriculum/strategy/commas.yaml").write_text(fragment.removeprefix("yaml"), encoding="utf8")
    call = (
        command.strip().replace("python -m", f"{sys.executable} -m")
        + " "
        + " ".join(SMALL)
        + " trainer.max_steps=2 hydra.run.dir=a"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(call, shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "a/result.json").read_text())["exposures"]["hardest_decile"] is not None
    refused = subprocess.run(
        call.replace("BABYLM_ALLOW", "NOT"), shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert refused.returncode == 2
    assert "curriculum.strategy._target_=my_curricula.CommaCurriculum is not allowed" in refused.stderr
