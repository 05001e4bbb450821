"""Taking the code of task types from outside the package along with a saved model.

Transformers copies the files that the text of a model's file imports from its own folder. So a user's file becomes one
of them: its imports of this package are turned into imports of its new siblings, and ``extensions.py`` imports it.
"""

import ast
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .aliases import Function, Settings
from .extensions import EXTENSIONS

ROOM = __name__.rpartition(".")[0]
Definition = type | Function  # a head, a decode or a reader
PREFIX = "extension_"
_DIGEST = "# Code of its own task types: "
_FIX = "Keep head and decode in a file of their own that imports torch, transformers and hf_multitask.modeling only."

# By module, its text as it travels: as it was when the type was registered, even if the file changes later.
_SOURCES: dict[str, str] = {}


def keep_source(kind: str, thing: Definition) -> None:
    """Read the file that defines a head or a ``decode``, and see that it can travel.

    Raises:
        ValueError: it is not in a file, the name means something else, or it imports what does not travel.
    """
    if _neighbour(thing):
        return
    name = getattr(thing, "__qualname__", repr(thing))
    module = sys.modules.get(getattr(thing, "__module__", ""))
    path = Path(getattr(module, "__file__", None) or "")
    if module is None or thing.__module__ == "__main__" or path.suffix != ".py" or not path.is_file():
        where = "the script or notebook itself" if thing.__module__ == "__main__" else "no Python file"
        raise ValueError(f"Type '{kind}': {name} is defined in {where} and could not travel with the model. {_FIX}")
    if getattr(module, name, None) is not thing:
        raise ValueError(
            f"Type '{kind}': {name} is not found under that name in {path.name}. Define it at the top of the file."
        )
    _SOURCES[thing.__module__] = _travelling(kind, path, thing.__module__)


def kept_sources(parts: Iterable[Definition | None]) -> list[str]:
    """What defines the parts of a type, for comparison: text and name, or only the name of what the package defines."""
    return [_kept_source(part) for part in parts if part is not None]


def _kept_source(thing: Definition) -> str:
    module, name = thing.__module__, thing.__qualname__
    if _neighbour(thing):
        return name
    if module not in _SOURCES:
        return Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8") + name
    return _SOURCES[module] + name


def write_extensions(folder: str | Path, tasks: Iterable[Settings]) -> None:
    """Write the code of a model's task types from outside the package beside its own, which is there already."""
    folder = Path(folder)
    kinds = sorted({task["type"] for task in tasks} & EXTENSIONS.keys())
    if not kinds:
        return
    stems: dict[str, str] = {}
    parts: list[str] = []
    lines = ['"""Task types that this model has and hf_multitask has not; written when it was saved."""', ""]
    for number, kind in enumerate(kinds):
        names = []
        for role, thing in zip(("head", "decode", "reader"), EXTENSIONS[kind], strict=False):
            if thing is None:
                names.append("None")
                continue
            names.append(f"{role}_{number}")
            stem = thing.__module__.rpartition(".")[2]
            if not _neighbour(thing):
                stem = stems.setdefault(thing.__module__, _free_stem(stem, stems.values()))
            lines.append(f"from .{stem} import {thing.__qualname__} as {names[-1]}")
        parts.append(f"{kind!r}: ({', '.join(names)})")
    texts = {"extensions": "\n".join([*lines, "", f"EXTENSIONS = {{{', '.join(parts)}}}", ""])}
    texts |= {stem: _SOURCES[module] for module, stem in stems.items()}
    for stem, text in texts.items():
        (folder / f"{stem}.py").write_text(text, encoding="utf-8")
    _mark_config(folder)


def _mark_config(folder: Path) -> None:
    """Let the text of ``config.py`` depend on the extensions.

    Transformers keeps local code by the name of its folder and a hash of a file and its imports, and the first model
    class loaded for a configuration class serves all that follow: two models would get the first one's code if they lie
    in folders of one name and their ``config.py`` is the same.
    """
    digest = hashlib.sha256()
    for path in [
        folder / "extensions.py",
        *sorted({Path(file) for file in get_relative_import_files(folder / "extensions.py")}),
    ]:
        digest.update(path.name.encode() + path.read_bytes().partition(_DIGEST.encode())[0])
    config = folder / "config.py"
    text = config.read_text(encoding="utf-8").partition(_DIGEST)[0]
    config.write_text(f"{text}{_DIGEST}{digest.hexdigest()[:16]}\n", encoding="utf-8")


def _neighbour(thing: Definition) -> bool:
    """Whether a thing is defined in a file of this folder, or in another copy of a file that the package has."""
    folder, _, stem = getattr(thing, "__module__", "").rpartition(".")
    ours = folder.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.") and not stem.startswith(PREFIX)
    return folder == ROOM or ours


def _free_stem(stem: str, taken: Iterable[str]) -> str:
    """A file name that neither the package nor another type uses."""
    if not stem.startswith(PREFIX):
        stem = PREFIX + re.sub(r"\W", "_", stem, flags=re.ASCII).lower()
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    return name


def _travelling(kind: str, path: Path, module: str) -> str:
    """The text of a user's file with its imports of this folder's files turned into imports of siblings."""
    text = path.read_text(encoding="utf-8-sig")
    if module.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
        return text  # it was copied before
    where = f"Type '{kind}': {path.name}"
    if siblings := get_relative_imports(path):  # by text, docstrings too, as Transformers will look for them
        raise ValueError(f"{where} imports '.{siblings[0]}', or has a line that reads so, and cannot travel. {_FIX}")
    lines = text.split("\n")
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: node.lineno, reverse=True):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        for name in names:
            _check_import(where, node, name)
        if isinstance(node, ast.ImportFrom) and names[0].partition(".")[0] == ROOM.partition(".")[0]:
            indent = lines[node.lineno - 1][: node.col_offset]
            after = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()  # type: ignore[operator]
            if indent.strip() or after.partition("#")[0].strip():
                raise ValueError(f"{where}, line {node.lineno}: an import shares its line. Give it a line of its own.")
            lines[node.lineno - 1 : node.end_lineno] = [f"{indent}{line}{after}" for line in _moved(where, node)]
    return "\n".join(lines)


def _check_import(where: str, node: ast.AST, name: str) -> None:
    top = name.partition(".")[0]
    if top == ROOM.partition(".")[0]:
        if isinstance(node, ast.Import) or not f"{name}.".startswith(f"{ROOM}."):
            raise ValueError(
                f"{where} imports '{name}', which is not there where the package is not. {_FIX} "
                f"Write 'from {ROOM} import ...', and keep the Task in another file."
            )
    elif top not in (*sys.stdlib_module_names, "torch", "transformers") and top not in packages_distributions():
        raise ValueError(f"{where} imports '{name}', which is in no installed package and would not travel. {_FIX}")


def _moved(where: str, node: ast.ImportFrom) -> Iterator[str]:
    """An import of this folder's names as imports of the files that define them."""
    stem = str(node.module).removeprefix(ROOM).removeprefix(".")
    by_stem: dict[str, list[str]] = {}
    for alias in node.names:
        home = stem or getattr(getattr(sys.modules[ROOM], alias.name, None), "__module__", "").removeprefix(f"{ROOM}.")
        path = Path(__file__).with_name(f"{home}.py")
        if not home.isidentifier() or not path.is_file():
            raise ValueError(
                f"{where} imports '{alias.name}' from '{node.module}', which is no name of one of its files. "
                f"Name the file too, as in 'from {ROOM}.heads import Head'."
            )
        if "extensions" in {home, *(Path(file).stem for file in get_relative_import_files(path))}:
            raise ValueError(
                f"{where} imports '{alias.name}' from '{node.module}', which itself imports every head. {_FIX} "
                "Of hf_multitask.modeling, take what lies below the model: heads, decoding, readers, inputs, routing, "
                "config."
            )
        by_stem.setdefault(home, []).append(f"{alias.name} as {alias.asname}" if alias.asname else alias.name)
    return (f"from .{home} import {', '.join(names)}" for home, names in by_stem.items())
