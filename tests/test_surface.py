"""What users write against: public names and their parameters, the keys of recipes, and the help of every command.

The files under tests/surface hold it as it is. After a change that is wanted, ``python tests/test_surface.py`` writes
them anew, and the diff shows what users will notice. Annotations are left out: they may become more exact.
"""

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import inspect
import io
import os
import re
from pathlib import Path
from unittest import mock

import pytest

import hf_multitask_cli
from hf_multitask import MultiTaskConfig, MultiTaskTrainingArguments
from hf_multitask.cli import main
from hf_multitask.cli.recipe import read_recipe
from hf_multitask.tasks import TASK_TYPES

SURFACE = Path(__file__).parent / "surface"
PACKAGES = ("", ".aggregation", ".balancing", ".data", ".hub", ".modeling", ".tasks", ".training")
COMMANDS = ("", *hf_multitask_cli.COMMANDS)
ENVIRONMENT = {"COLUMNS": "100", "NO_COLOR": "1"}
BY_FIELD = (MultiTaskConfig, MultiTaskTrainingArguments)  # of which most are another library's


def shown(value):
    """A default as a reader would write it."""
    plain = isinstance(value, str | int | float | bool | tuple | list | dict | type(None))
    return repr(value) if plain else getattr(value, "__name__", "...")


def signature(function):
    """Names, kinds and defaults of parameters."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a class that C made
        return "(...)"
    plain = [
        parameter.replace(annotation=inspect.Parameter.empty, default=inspect.Parameter.empty)
        for parameter in parameters
    ]
    written = str(inspect.Signature(plain, __validate_parameters__=False))
    for parameter in parameters:
        if parameter.default is not parameter.empty:
            written = re.sub(rf"\b{parameter.name}(?=[,)])", lambda found: f"{found[0]}=\0", written, count=1)
            written = written.replace("\0", shown(parameter.default))
    return written


def of_ours(function):
    return getattr(function, "__module__", "").split(".")[0] == "hf_multitask"


def fields(kind):
    """Those of a dataclass that it has beside its base's, with their defaults."""
    own = [field for field in dataclasses.fields(kind) if field.name in inspect.get_annotations(kind)]
    return {
        field.name: "..."
        if field.default is field.default_factory
        else shown(field.default_factory() if field.default is dataclasses.MISSING else field.default)
        for field in own
    }


def members(kind, described):
    """Public methods, properties and fields of a class that neither another library nor a described base gives it."""
    given = fields(kind) if kind in BY_FIELD else {}
    for name, default in given.items():
        yield f"  {name}={default}"
    for name in sorted(dir(kind)):
        owner = next((base for base in kind.__mro__ if name in vars(base)), None)
        if name.startswith("_") or name in given or not of_ours(owner) or (owner in described and owner is not kind):
            continue
        value = inspect.getattr_static(kind, name)
        if inspect.isclass(value):
            yield f"  {name}: {value.__name__}"
        elif isinstance(value, property):
            yield f"  {name}: property"
        elif isinstance(value, classmethod | staticmethod):
            yield f"  {type(value).__name__} {name}{signature(value.__func__)}"
        elif callable(value):
            yield f"  {name}{signature(value)}"


def describe_package(name):
    """A package's public names, with what one calls them with."""
    package = importlib.import_module(f"hf_multitask{name}")
    values = {public: getattr(package, public) for public in sorted(package.__all__)}
    described = {value for value in values.values() if inspect.isclass(value)}
    for public, value in values.items():
        if not name and (inspect.isclass(value) or callable(value)):
            yield public  # as in the package that it is of
        elif inspect.isclass(value):
            base = next(base for base in value.__mro__[1:] if not of_ours(base))
            over = next((base for base in value.__mro__[1:] if base in described), base)
            yield f"class {public}{'' if value in BY_FIELD else signature(value)}: {over.__name__}"
            yield from members(value, described)
        elif callable(value):
            yield f"{public}{signature(value)}"
        elif isinstance(value, dict):
            yield f"{public}: {', '.join(map(str, value))}"
        else:
            yield public


def known_keys(recipe):
    """What the error about an unknown key names as known."""
    with pytest.raises(ValueError, match="known keys are") as problem:
        read_recipe(recipe)
    return re.search(r"known keys are ([^.;]*)", str(problem.value))[1]


def describe_recipe(folder):
    """The keys of a recipe, section by section."""
    recipe = folder / "recipe.yaml"
    recipe.write_text("no_such_key: 1\n", encoding="utf-8")
    yield f"keys: {known_keys(recipe)}"
    recipe.write_text("backbone: b\ntasks: {a: {}}\nmodel: {no_such_key: 1}\n", encoding="utf-8")
    yield f"model: {known_keys(recipe)}"
    yield f"training, besides the Trainer's: {', '.join(fields(MultiTaskTrainingArguments))}"
    for name, kind in TASK_TYPES.items():
        yield f"tasks, {name}: {', '.join(inspect.signature(kind).parameters)}"


def describe_help(command):
    """What ``--help`` prints, without the training arguments, of which most are another library's."""
    output = io.StringIO()
    with mock.patch.dict(os.environ, ENVIRONMENT), contextlib.redirect_stdout(output):
        with pytest.raises(SystemExit) as ended:
            main([*([command] if command else []), "--help"])
        assert ended.value.code == 0
    return output.getvalue().partition("\ntraining arguments")[0].splitlines()


def makers(folder):
    """By file, what makes its lines."""
    return {
        **{f"hf_multitask{name}.txt": lambda name=name: describe_package(name) for name in PACKAGES},
        "recipe.txt": lambda: describe_recipe(folder),
        **{
            f"help{'-' if command else ''}{command}.txt": lambda command=command: describe_help(command)
            for command in COMMANDS
        },
    }


@pytest.mark.parametrize("name", makers(None))
def test_what_users_write_against_stays(name, tmp_path):
    now = [line.rstrip() for line in makers(tmp_path)[name]()]
    then = (SURFACE / name).read_text(encoding="utf-8").splitlines()
    changes = "\n".join(difflib.unified_diff(then, now, f"tests/surface/{name}", "now", n=1, lineterm=""))
    assert not changes, f"{changes}\nIf that is wanted, run: python tests/test_surface.py"


def test_every_file_and_every_command_is_looked_at():
    assert {path.name for path in SURFACE.iterdir()} == set(makers(None))
    listed = re.findall(r"^    (\w+)(?:  |$)", "\n".join(describe_help("")), flags=re.MULTILINE)
    assert listed == [command for command in COMMANDS if command]


def rewrite():
    """Write every file anew."""
    import tempfile

    SURFACE.mkdir(exist_ok=True)
    for path in SURFACE.iterdir():
        path.unlink()
    with tempfile.TemporaryDirectory() as folder:
        for name, make in makers(Path(folder)).items():
            lines = [line.rstrip() for line in make()]
            (SURFACE / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser(description="Write the files of tests/surface anew.").parse_args()
    rewrite()
