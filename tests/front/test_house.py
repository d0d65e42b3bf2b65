"""The rules of the house, held on the code and on conf/."""

import ast
import os
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

from forked import SMALL

from babylm_train.config import CONF

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "babylm_train"
MODULES = {str(p.relative_to(ROOT).with_suffix("")).replace("/", "."): p for p in PACKAGE.rglob("*.py")}
DOORS = ("build", "config", "cli", "study.launcher", "tools.plan", "tools.difficulty")


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


TARGETS = {
    target
    for path in CONF.rglob("*.yaml")
    for target in re.findall(r"_target_: *(babylm_train[\w.]*)", path.read_text(encoding="utf8"))
}


def test_hydra_stays_at_the_doors():
    inside = {m for m, p in MODULES.items() if any(i.split(".")[0] in ("hydra", "omegaconf") for i in imports(p))}
    assert inside <= {f"babylm_train.{door}" for door in DOORS}


def test_no_files_import_each_other_in_a_circle():
    graph = TopologicalSorter({module: imports(path) & (MODULES.keys() - {module}) for module, path in MODULES.items()})
    graph.prepare()  # raises CycleError, which names the files
    assert graph.is_active()


def test_modules_named_by_targets_do_not_import_each_other_nor_the_trainer_what_is_named():
    modules = {target.rpartition(".")[0] for target in TARGETS}
    assert "babylm_train.objective" in modules
    for module in modules:
        assert not imports(MODULES[module]) & (modules - {module}), module
    assert not imports(MODULES["babylm_train.trainer"]) & TARGETS


def test_readme_is_short_and_its_map_is_the_code():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert len(text.splitlines()) <= 160
    allowed: dict[str, set[str]] = {}
    rooms = text.partition("\nbabylm_train/\n")[2].partition("```")[0]
    for names, found in re.findall(r"^  ([\w, ]+?)/?  .*?(?: <- (.*))?$", rooms, re.M):
        for name in names.split(", "):
            allowed[name] = {name, "errors", "files", "state", *filter(None, found.split(", "))}
    inside = {module: path for module, path in MODULES.items() if not path.name.startswith("__")}
    assert {module.split(".")[1] for module in inside} == set(allowed)
    for module, path in inside.items():
        rooms_imported = {name.split(".")[1] for name in imports(path) if name.startswith("babylm_train.")}
        assert rooms_imported & set(allowed) <= allowed[module.split(".")[1]], path


def test_no_function_is_long():
    for path in [*MODULES.values(), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("tests/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 50, f"{path}, line {node.lineno}: {node.name}"


FIRST_UPDATE = """
import sys
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from babylm_train import cli
from babylm_train.trainer import Trainer

composed, load = [], ConfigLoaderImpl.load_configuration

def count(*args, **kwargs):
    composed.append(1)
    return load(*args, **kwargs)

def stop(*_):
    files = {m.__file__ for name, m in sys.modules.items() if name.startswith("babylm_train") and m.__file__}
    print(len(composed), *(file for file in files if not file.endswith("__init__.py")), file=sys.stderr)
    sys.exit(9)

ConfigLoaderImpl.load_configuration, Trainer.make_update = count, stop
cli.main()
"""


def test_a_plain_run_runs_few_files_before_its_first_update(tmp_path):
    call = [sys.executable, "-c", FIRST_UPDATE, *SMALL, "data.words=1500"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    compositions, *files = done.stderr.splitlines()[-1].split()
    assert int(compositions) <= 2
    assert len(files) <= 30, files
