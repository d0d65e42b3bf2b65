"""What the documents and fragments say is so: pages that are made, files that are named, experiments that plan."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from babylm_train.tools import plan

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]


def test_config_page_is_made_from_conf_and_explains_every_key():
    made = runpy.run_path(str(ROOT / "docs/write_config.py"))["describe_all"]()
    assert (ROOT / "docs/CONFIG.md").read_text(encoding="utf8") == made, "make docs"
    rows = [re.split(r"(?<!\\)\|", line) for line in made.splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row[1] for row in rows if not row[-2].strip()] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_plans_at_the_small_scale(name, tmp_path_factory, tmp_path, monkeypatch, capsys):
    cache = os.environ.get("BABYLM_TEST_CACHE", tmp_path_factory.getbasetemp() / "cache")
    words = {"overfit": 300, "strict_small": 20_000}.get(name, 3000)
    monkeypatch.chdir(tmp_path)
    arguments = [f"experiment={name}", "scale=small", f"data.words={words}", f"data.cache_dir={cache}"]
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])
    with pytest.raises(SystemExit, match=r"^0$"):
        plan.main()
    assert "memory, estimated" in capsys.readouterr().out
    assert not list(tmp_path.rglob("result.json"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere_and_options_that_are_named_exist(page):
    text = page.read_text(encoding="utf8")
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (page.parent / link).exists(), link
    for group, name in re.findall(r"\b(experiment|scale|size|curriculum/schedule)=(\w+)", text):
        assert (CONF / group / f"{name}.yaml").exists() or name.isupper(), f"{group}={name}"


def test_contributing_is_tried_word_for_word(tmp_path):
    """Each fenced block of CONTRIBUTING.md: one that begins with `# FILE` is written there, one of commands is run."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "WANDB_MODE": "disabled"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    small, ran = "data.words=3000 data.max_length=32 trainer.max_steps=2 hydra.run.dir", 0
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf8")
    for kind, block in re.findall(r"```(\w+)\n(.*?)```", text, re.S):
        if place := re.match(r"# (\S+/\S+|\S+\.py)(,|\n)", block):
            (tmp_path / place[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place[1]).write_text(block, encoding="utf8")
        elif kind == "console":
            for line in block.splitlines():
                how = {"shell": True, "cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
                done = subprocess.run(f"{line} {small}={ran}", **how)
                assert done.returncode == 0, f"{line}: {done.stderr}"
                assert (tmp_path / str(ran) / "result.json").exists()
                ran += 1
    assert ran == 4
