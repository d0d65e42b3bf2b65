"""The rules of the house, held on the code and on conf/."""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from babylm_train.config import CONF

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "babylm_train"
MODULES = {str(p.relative_to(ROOT).with_suffix("")).replace("/", "."): p for p in PACKAGE.rglob("*.py")}
FRAGMENTS = sorted(p.relative_to(CONF) for p in CONF.rglob("*.yaml") if "hydra" not in p.relative_to(CONF).parts)
DOORS = {
    "babylm_train.build",
    "babylm_train.config",
    "babylm_train.cli",
    "babylm_train.study.launcher",
    "babylm_train.tools.plan",
    "babylm_train.tools.difficulty",
}


def imports(path: Path) -> set[str]:
    """Every module a file imports when it runs, `from x import y` as x and x.y; type-checking blocks left out."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def nodes(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, list):
        return [n for v in value for n in nodes(v)]
    if not isinstance(value, dict):
        return []
    return ([value] if "_target_" in value else []) + [n for v in value.values() for n in nodes(v)]


def fragment(path: Path) -> Any:
    return yaml.safe_load((CONF / path).read_text(encoding="utf8"))


TARGETED = {
    n["_target_"].rpartition(".")[0]
    for f in FRAGMENTS
    for n in nodes(fragment(f))
    if n["_target_"].startswith("babylm")
}


def test_hydra_stays_at_the_doors():
    inside = {m for m, p in MODULES.items() if any(i.split(".")[0] in ("hydra", "omegaconf") for i in imports(p))}
    assert inside <= DOORS


def test_modules_named_by_targets_do_not_import_each_other_nor_the_trainer_them():
    assert "babylm_train.objective" in TARGETED
    for module in TARGETED:
        assert not imports(MODULES[module]) & (TARGETED - {module}), module


@pytest.mark.parametrize("path", FRAGMENTS, ids=str)
def test_every_leaf_is_an_argument_and_defaults_agree(path):
    for node in nodes(fragment(path)):
        module, _, name = node["_target_"].rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        for key, value in node.items():
            if key in ("defaults", "_target_", "_partial_"):
                continue
            assert key in parameters or "kwargs" in parameters, f"{path}: {node['_target_']} takes no {key}"
            default = parameters[key].default if key in parameters else inspect.Parameter.empty
            if path.stem == "default" and isinstance(value, (bool, int, float, str, list)) and "${" not in str(value):
                same = (list(default) if isinstance(value, list) else default) == value
                assert same or default is inspect.Parameter.empty, f"{path}: {key} is {value}, in Python {default}"


@pytest.mark.parametrize("path", FRAGMENTS, ids=str)
def test_every_fragment_says_what_it_is(path):
    assert (CONF / path).read_text(encoding="utf8").startswith("# ")


def test_the_loop_is_one_sitting_and_asks_for_no_name():
    text = (PACKAGE / "trainer.py").read_text(encoding="utf8")
    names = {p.stem for p in FRAGMENTS if len(p.parts) > 1} - {"default", "none", "full", "linear"}
    compared = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Compare)]
    strings = {c.value for n in compared for c in ast.walk(n) if isinstance(c, ast.Constant)}
    assert not strings & names
    assert len(text.splitlines()) <= 400
