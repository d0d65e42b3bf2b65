"""Configurations of strangers: a canary that any of them could fire stays silent, a secret stays unwritten."""

import pytest
from forked import SMALL, command

from babylm_train.build import build_parts
from babylm_train.config import check_command_line
from babylm_train.errors import InputError

FIRE = "touch canary"
CALLS = [  # that would run something, or read or write what it should not
    *("os.system", "builtins.eval", "shutil.rmtree", "hydra.utils.instantiate", "functools.partial", "torch.load"),
    *("torch.optim.adamw.AdamW", "torch.optim.os", "transformers.GPT2Config", "babylm_train.babylm.track.Track"),
    "transformers.AutoModelForCausalLM.from_pretrained",
]
EVIL = f"_target_: os.system, command: {FIRE}"
LOGGING = "{class: logging.FileHandler, filename: canary}"
FILES = {  # experiments somebody hands on: what the line names
    # code
    f"optimizer: {{{EVIL}}}": "optimizer._target_",
    f"trainer: {{no_decay: [{{{EVIL}}}]}}": "trainer.no_decay.0._target_",
    f"optimizer: {{x: {{_target_: torch.optim.AdamW, _args_: [{{{EVIL}}}]}}}}": "optimizer.x._args_.0._target_",
    "study: os.system\noptimizer: {_target_: '${study}'}": "optimizer._target_",
    f"x: !!python/object/apply:os.system ['{FIRE}']": "experiment/x.yaml",
    "hydra: {launcher: {_target_: os.system}}": "hydra.launcher",
    f"hydra: {{hydra_logging: {{formatters: {{x: {{(): os.system, command: '{FIRE}'}}}}}}}}": "hydra.hydra_logging",
    "hydra: {job: {env_set: {BABYLM_ALLOW_TARGETS: os}}}": "hydra.job.env_set",
    "hydra: {launcher: {setup: [touch canary]}}": "hydra.launcher.setup",
    "hydra: null": "experiment=x",
    f"x: {'[' * 20_000}": "experiment=x",
    "hydra: {sweeper: {custom_search_space: evil.space}}": "hydra.sweeper.custom_search_space",
    # files
    f"hydra: {{job_logging: {{handlers: {{x: {LOGGING}}}}}}}": "hydra.job_logging",
    "hydra: {run: {dir: elsewhere}}": "hydra.run.dir",
    "hydra: {sweeper: {storage: 'sqlite:///elsewhere.db'}}": "hydra.sweeper.storage",
    "hydra: {mode: MULTIRUN, sweeper: {params: {data.cache_dir: '/elsewhere,elsewhere'}}}": "data.cache_dir",
    "defaults: [{override /hydra/hydra_logging: theirs}]": "hydra.hydra_logging",
    "data: {cache_dir: multirun_outputs/../elsewhere}": "data.cache_dir",
}  # fmt: skip
FINE = """# @package _global_
study: theirs
optimizer: {lr: 0.002}
data: {cache_dir: multirun_outputs/.cache/theirs}
hydra: {launcher: {n_jobs: 2}, mode: MULTIRUN, sweeper: {params: {seed: '1,2', curriculum/strategy: 'none,length'}}}
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The working directory holds a module that fires the canary when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text("open('canary', 'w'); stream = None\n")
    for group in ("experiment", "optimizer", "hydra/hydra_logging"):
        (tmp_path / "theirs" / group).mkdir(parents=True)
    (tmp_path / "theirs/hydra/hydra_logging/theirs.yaml").write_text(f"handlers: {{x: {LOGGING}}}\n")
    yield tmp_path
    assert not (tmp_path / "canary").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"evil.py", "theirs", "__pycache__"}


@pytest.mark.parametrize("target", CALLS)
def test_no_target_but_those_offered(hostile, target):
    with pytest.raises(InputError, match=r"optimizer\._target_=.* is not allowed"):
        check_command_line([f"++optimizer={{_target_:{target}}}"])


@pytest.mark.parametrize("text", FILES)
def test_an_experiment_from_a_stranger(hostile, text):
    (hostile / "theirs/experiment/x.yaml").write_text(f"# @package _global_\n{text}\n")
    given = ["experiment=x"] + ["hydra/launcher=submitit_slurm"] * ("setup" in text)
    given += ["hydra/sweeper=optuna"] * any(word in text for word in ("custom", "storage"))
    with pytest.raises(InputError) as refused:
        _ = [build_parts(config) for config in check_command_line(given, folder="theirs")]
    assert FILES[text] in str(refused.value)


def test_an_experiment_may_set_its_groups_and_its_sweep(hostile):
    (hostile / "theirs/experiment/x.yaml").write_text(FINE)
    for config in check_command_line(["experiment=x"], folder="theirs"):
        build_parts(config)


def test_other_ways_for_a_file_to_come_in(hostile, refused):
    """By hydra.searchpath, as the primary configuration, as a package of another group, or for --config-path."""
    evil = f"hydra: {{job_logging: {{handlers: {{x: {LOGGING}}}}}}}\n"
    (hostile / "theirs/experiment/x.yaml").write_text(f"# @package _global_\n{evil}")
    (hostile / "theirs/primary.yaml").write_text(f"defaults: [config, _self_]\n{evil}")
    (hostile / "theirs/searching.yaml").write_text("defaults: [config, _self_]\nhydra: {searchpath: ['pkg://evil']}\n")
    (hostile / "theirs/optimizer/x.yaml").write_text(f"# @package hydra.job_logging.handlers.x\n{LOGGING}\n")
    for given in (
        ["experiment=x", f"hydra.searchpath=[file://{hostile}/theirs]"],
        ["--config-name", "searching", "--config-dir=theirs"],
        ["--config-dir", "theirs", "+optimizer@hydra.job_logging.handlers.x=x"],
        ["--config-dir", "theirs", "optimizer=x"],
        ["--config-path", "theirs", "--config-name", "primary"],
    ):
        refused(*given)


def test_a_secret_of_the_environment_is_in_no_file(tmp_path):
    """A path may come from a variable; the run's name, files, checkpoints and mirrors do not show it."""
    secret = "hunter2secret"
    (tmp_path / "data" / secret).mkdir(parents=True)
    (tmp_path / "data" / secret / "a.txt").write_text("".join(f"राम {i} घर गया\n" for i in range(60)), encoding="utf8")
    given = ["data=text", "data.train=data/${oc.env:SECRET}/a.txt", "seed=${oc.decode:${oc.env:N}}"]
    given += ["logger=wandb", "logger.mode=offline"]
    small = [s for s in SMALL if not s.startswith(("hydra.run", "logger"))]
    child = command([*small, *given], tmp_path, tmp_path / "said", SECRET=secret, N="7")
    assert child.wait(120) == 0, child.err
    files = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(tmp_path / "data")]
    assert len(files) > 12
    assert [p for p in files if secret.encode() in p.read_bytes() or secret in str(p.relative_to(tmp_path))] == []
