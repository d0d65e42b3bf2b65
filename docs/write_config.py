"""Writes docs/CONFIG.md from conf/: every group, option and key with its default and its meaning (`make docs`).

The first comment of a fragment says what the option is, the comment behind a key what the key means. A key that several
options of a group have needs one comment, in any of them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

CONF = Path(__file__).parents[1] / "conf"
PAGE = Path(__file__).with_name("CONFIG.md")
HEAD = """# Every key of conf/

Written by `make docs` from the fragments in `conf/`: change those. `group=option` chooses a fragment, `group.key=value`
sets a key. `???` has to be given, `null` is nothing, `${seed}` is the value of another key.
"""
OURS = ("hydra/help", "hydra/job_logging")  # no choices


def leaves(node: yaml.Node, at: str = "") -> Iterator[tuple[str, yaml.Node]]:
    """Dotted keys and their values, without Hydra's own."""
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            if key.value not in ("defaults", "_partial_"):
                yield from leaves(value, f"{at}.{key.value}" if at else key.value)
    else:
        yield at, node


def read_fragment(path: Path) -> tuple[str, dict[str, tuple[str, str]]]:
    """What a fragment says of itself, and key: (default, meaning), the meaning empty where there is no comment."""
    text = path.read_text(encoding="utf8")
    lines = text.splitlines()
    head = re.match(r"(?:#.*\n)+", text)
    about = " ".join(line.lstrip("# ") for line in head[0].splitlines() if "@package" not in line) if head else ""
    if purpose := re.search(r"^# Purpose: (.*(?:\n#   .*)*)", text, re.M):
        about = " ".join(line.lstrip("# ") for line in purpose[1].splitlines())
    keys: dict[str, tuple[str, str]] = {}
    root = yaml.compose(text)
    for key, node in leaves(root) if root else ():
        comment = re.search(r"(?:^|\s)# ?(.*)", lines[node.start_mark.line])
        default = " ".join(text[node.start_mark.index : node.end_mark.index].split())
        keys[key] = default if len(default) < 80 else f"{default[:60]} ...", comment[1] if comment else ""
    return about.replace("|", "\\|"), keys


def find_groups() -> dict[str, list[Path]]:
    """Fragments by group, in the order of config.yaml's list and then of their names."""
    listed = re.findall(r"^  - (?:override )?([\w/]+):", (CONF / "config.yaml").read_text(encoding="utf8"), re.M)
    found: dict[str, list[Path]] = {}
    for path in sorted(CONF.rglob("*/*.yaml")):
        if (group := path.parent.relative_to(CONF).as_posix()) not in OURS:
            found.setdefault(group, []).append(path)
    return dict(sorted(found.items(), key=lambda item: (item[0] not in listed, (*listed, item[0]).index(item[0]))))


def describe(group: str, paths: list[Path]) -> list[str]:
    """The section of a group: a table of options, and one of keys unless its options set other groups' keys."""
    read = {path.stem: read_fragment(path) for path in paths}
    lines = [f"\n## {group}\n", "| option | what |", "|---|---|"]
    lines += [f"| `{option}` | {about} |" for option, (about, _) in read.items()]
    if group in ("experiment", "scale"):
        return lines
    defaults: dict[str, dict[str, list[str]]] = {}
    meanings: dict[str, str] = {}
    for option, (_, keys) in read.items():
        for key, (default, meaning) in keys.items():
            if not key.endswith("_target_"):
                defaults.setdefault(key, {}).setdefault(default, []).append(option)
                meanings[key] = meanings.get(key) or meaning
    lines += ["\n| key | default | meaning |", "|---|---|---|"] if defaults else []
    for key, values in defaults.items():
        everywhere = len(values) == 1 and len(next(iter(values.values()))) == len(read)
        shown = [f"`{value}`" + f" ({', '.join(options)})" * (not everywhere) for value, options in values.items()]
        meaning = meanings[key].replace("|", "\\|")
        lines.append(f"| `{group.replace('/', '.')}.{key}` | {'; '.join(shown)} | {meaning} |")
    return lines


def describe_all() -> str:
    """The whole page."""
    _, keys = read_fragment(CONF / "config.yaml")
    lines = [HEAD, "| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | `{default}` | {meaning} |" for key, (default, meaning) in keys.items()]
    for group, paths in find_groups().items():
        lines += describe(group, paths)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(describe_all(), encoding="utf8")
