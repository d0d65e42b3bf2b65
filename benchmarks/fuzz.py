"""`make fuzz`: 2 000 random configurations through the command line; each trains its updates or is refused in one line.

Options of every group, values in and out of range for every key, and what a hand can do to a command line. A traceback,
a hang, a refusal that names nothing or leaves something behind: each is printed with the command that shows it.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml
from forked import MEMORY_FOLDER, Child, command, import_all

from babylm_train.config import CONF

SECONDS = 60  # on a busy machine; a configuration takes 0.3 to 3
MEMORY = 8 << 30  # bytes of address space beyond this process's own: what asks for more is refused by the kernel
BASE = ["model.dropout=0.1", "data.max_length=16", "trainer.max_steps=2", "trainer.epochs=1", "trainer.batch_size=2"]
BASE += ["logger=none", "hydra.run.dir=out"]
SIZES = {"gpt2_nano": "n_layer=1 n_embd=16 n_head=2"}
SIZES["modern_nano"] = "num_hidden_layers=1 hidden_size=16 intermediate_size=32"
OFTEN = {"model": [*SIZES], "data": ["stories", "hub", *["text"] * 8], "logger": ["none"]}
WHOLE = [0, 1, 2, 3, 7, 64, 1000, -1, 10**6, 2**31, 2**63, 10**30]
REAL = [0.0, 0.5, 1.0, 1e-8, 1e8, -0.5, "nan", "inf", "-inf", "1e400", "1e-400", 1.5]
STRANGE = [
    "null", "''", "true", "False", "[]", "[1]", "[a,1]", "{}", "{a:1}", "x", "'a b'", "राम", "'\t'", "'\x1b[0m'",
    "a" * 300, "${seed}", "${nothing}", "${oc.env:HOME}", "???", "../x", "/dev/null", "/", ".", "'%s'",
    "{_target_:os.abort}",
    "\\", "1,2",
]  # fmt: skip
# keys that may well ask for minutes: a compiler, a download, a process of W&B's
SKIPPED = {"trainer.compile", "data.cache_dir", "logger.timeout", "model.config.n_embd"}
WORK = {f"trainer.{key}" for key in ("max_steps", "batch_size", "gradient_accumulation_steps")}
WORK |= {"model.config.n_layer", "model.config.num_hidden_layers", "data.words"}  # thousands take their time: no fault
Options = dict[str, dict[str, list[tuple[str, Any]]]]  # group: option: its keys with their defaults


def leaves(node: Any, at: str) -> list[tuple[str, Any]]:
    if not isinstance(node, dict):
        return [(at, node)]
    shown = [key for key in node if not key.startswith("_") and key != "defaults"]
    return [leaf for key in shown for leaf in leaves(node[key], f"{at}.{key}")]


def read_options() -> Options:
    """What conf/ offers."""
    found: Options = {}
    for path in sorted(CONF.rglob("*.yaml")):
        group = path.parent.relative_to(CONF).as_posix()
        if group not in (".", "experiment") and not group.startswith("hydra"):
            values = yaml.safe_load(path.read_text(encoding="utf8"))
            found.setdefault(group, {})[path.stem] = leaves(values, group.replace("/", "."))
    return found


def draw_value(rng: random.Random, default: Any) -> str:
    """Mostly of the default's type, in range or not."""
    if isinstance(default, str) or rng.random() < 0.15:
        return rng.choice(STRANGE)
    if isinstance(default, list):
        return str([rng.choice([*WHOLE, *REAL]) for _ in range(rng.randint(0, 3))]).replace("'", "")
    values = {bool: ["true", "false"], int: WHOLE, float: REAL}
    return str(rng.choice(values.get(type(default)) or rng.choice([WHOLE, REAL])))


def draw_arguments(rng: random.Random, options: Options, corpus: Path) -> list[str]:
    """One command line: an option of some groups, the small models only, and up to three of their keys changed."""
    groups = [group for group in options if group in ("data", "model") or rng.random() < 0.4]
    chosen = {group: rng.choice(OFTEN.get(group, list(options[group]))) for group in groups}
    given = [*BASE, *(f"{group}={option}" for group, option in chosen.items())]
    given += [f"model.config.{size}" for size in SIZES[chosen["model"]].split()]
    needs = {"stories": "data.words=1500", "text": f"data.train={corpus}", "hub": f"data.name={corpus.parent}"}
    given.append(needs[chosen["data"]])
    known = [leaf for group, option in chosen.items() for leaf in options[group][option]]
    known += [*options["trainer"]["default"], ("seed", 0), ("study", "runs"), ("resume", None)]
    if chosen.get("tokenizer", "bpe") not in ("byte", "pretrained", "character"):
        given.append(f"tokenizer.vocab_size={500 if chosen.get('tokenizer') == 'wordpiece' else 300}")
    for key, default in rng.sample(known, rng.choice([0, 0, 1, 1, 1, 2, 3])):
        wanted, sign = draw_value(rng, default), rng.choice([""] * 17 + ["+", "++", "~"])
        if key not in SKIPPED and not (key in WORK and len(wanted) in (4, 7)):
            given.append(f"~{key}" if sign == "~" else f"{sign}{key}={wanted}")
    if rng.random() < 0.05:  # a slip of the hand
        place = rng.randrange(len(given))
        text, cut = given[place], rng.randrange(len(given[place]))
        given[place] = text[:cut] + rng.choice("aZ.=/@[]{}$ ,'\"\\~+-0अ") + text[cut + 1 :]
    return given


def find_fault(child: Child, out: Path) -> str | None:
    """What is wrong with how a command ended, or None."""
    try:
        code = child.wait(SECONDS)
    except TimeoutError:
        return f"hangs: {SECONDS} s"
    if "Traceback" in child.err or code not in (0, 2, 3, 5):
        return f"exit {code}: {child.err[-1500:]}"
    if code == 0:
        return None if (out / "result.json").exists() or not out.exists() else "exit 0 without a result"
    lines = [line for line in child.err.splitlines() if line.startswith("error: ") and len(line) > 15]
    if len(lines) != 1:
        return f"exit {code}, but {len(lines)} lines name an error: {child.err[-500:]}"
    return f"refused ({lines[0]}), but left {sorted(os.listdir(out))}" if code == 2 and out.exists() else None


def run_campaign(count: int, seed: int, root: Path) -> tuple[Counter[int], int]:
    """Runs `count` command lines drawn from `seed`: how often each exit code came, and how many faults were printed."""
    options, rng, codes, faults = read_options(), random.Random(seed), Counter[int](), 0
    corpus = root / "corpus/text.txt"
    corpus.parent.mkdir(parents=True)
    corpus.write_text("".join(f"राम {i} घर गया और सीता वन गई ।\n" for i in range(300)), encoding="utf8")
    for number in range(1, count + 1):
        given, folder = draw_arguments(rng, options, corpus), root / f"{number}"
        folder.mkdir()
        child = command([*given, f"data.cache_dir={root}/cache"], folder, root / f"{number}-said")
        if fault := find_fault(child, folder / "out"):
            faults += 1
            print(f"FAULT {' '.join(map(repr, given))}\n{fault}", flush=True)
        codes[child.code] += 1
        shutil.rmtree(folder, ignore_errors=True)
    return codes, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/fuzz.txt")
    options = parser.parse_args()
    import_all()
    resource.setrlimit(resource.RLIMIT_AS, (int(Path("/proc/self/statm").read_text().split()[0]) * 4096 + MEMORY,) * 2)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY_FOLDER) as root:
        codes, faults = run_campaign(options.count, options.seed, Path(root))
    named = {0: "trained", 2: "refused", 3: "diverged", 5: "did not fit"}
    ends = ", ".join(f"{codes[code]} {end}" for code, end in named.items())
    line = f"{options.count} configurations (seed {options.seed}): {ends}; {faults} faults; "
    line += f"{time.monotonic() - began:.0f} s"
    print(line)
    options.out.write_text(line + "\n", encoding="utf8")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
