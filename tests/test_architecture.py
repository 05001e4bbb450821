"""The page on the architecture names files, classes and functions that exist."""

import ast
import re
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest
from test_imports import MAY_IMPORT
from transformers import Trainer

from hf_multitask.hub.records import key_of
from hf_multitask.training.state.progress import STATE_NAME, Progress

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_multitask"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
BEFORE, DRAWING, AFTER = re.split(r"```(?:mermaid)?\n", PAGE)
TEXT = BEFORE + AFTER
EXAMPLES = {"ner_tags", "task_rows", key_of("ner", "f1", "eval"), STATE_NAME}


def defined():
    """The names that the package defines: of modules, each with its members where it is a class."""
    found = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            found.update({name: found[name] for name in names_of(node)})
            if isinstance(node, ast.ClassDef):
                found[node.name].update(name for inner in node.body for name in names_of(inner))
    return found


def names_of(node):
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


NAMES = defined()
MEMBERS = set().union(*NAMES.values())


def exists(word):
    if word in EXAMPLES or any((folder / word).exists() for folder in (ROOT, PACKAGE, PACKAGE / "training")):
        return True
    owner, _, member = word.partition(".")
    if owner == "Trainer":
        return not member or hasattr(Trainer, member)
    return member in NAMES[owner] if member else word in NAMES.keys() | MEMBERS


def table(header):
    """The rows of the table that begins with a header, as lists of cells."""
    (rows,) = re.findall(rf"^\| {header} .*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def test_what_the_text_names_exists():
    words = re.findall(r"`([^`]+)`", TEXT)
    assert len(words) > 100
    assert [word for word in words if not exists(word)] == []


def test_what_the_drawing_names_exists():
    files, classes = re.findall(r"[\w/]+(?:\.py|/)(?=<|\")", DRAWING), re.findall(r"\b[A-Z][a-z]\w+", DRAWING)
    assert len(files) > 10 and len(classes) > 10
    assert [word for word in (*files, *classes) if not exists(word)] == []


@pytest.mark.parametrize("word", ["step/engines.py", "Engines", "Engine.opens", "Trainer.steps", "Runtime.run", "x y"])
def test_a_name_that_is_gone_is_found(word):
    assert not exists(word)


def test_imports_are_those_that_are_allowed():
    rows = table("package")
    packages = [package.strip("`") for package, _, _ in rows]
    for number, (_, _, imports) in enumerate(rows):
        below = packages[number + 1 :] if imports == "everything below" else re.findall(r"`(\w+)`", imports)
        assert set(below) == MAY_IMPORT[packages[number]]
    assert set(packages) == set(MAY_IMPORT)


def test_the_keys_of_a_checkpoint_are_all_there():
    keys = [key for _, cell in table("from") for key in re.findall(r"`(\w+)`", cell)]
    assert sorted(keys) == sorted(field.name for field in fields(Progress))
