"""The private names of Transformers' Trainer that the training depends on, which a release may move without notice."""

import ast
import inspect
import textwrap
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import transformers
from transformers import Trainer

import hf_multitask

FOLDER = Path(hf_multitask.__file__).parent / "training"
# By name, what it is used for. Overriding is what binds us most: fewer are better, and a new one needs a reason.
OVERRIDDEN = {
    *("_clip_grad_norm", "_get_grad_norm", "_run_epoch", "_maybe_log_save_evaluate", "_finalize_training"),
    *("_save", "_save_checkpoint", "_save_rng_state"),
    *("_load_from_checkpoint", "_load_optimizer_and_scheduler", "_load_rng_state"),
    *("_determine_best_metric", "_finish_current_push", "_push_from_checkpoint"),
}
USED = {
    *("_get_output_dir", "_has_mixed_mesh_grads", "_prepare_inputs"),
    *("_globalstep_last_logged", "_total_loss_scalar", "_tr_loss", "_train_batch_size"),
}


@dataclass
class Use:
    """Where a private name occurs, the parameters that are counted on there, and those that each override takes."""

    overriding: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    taken: dict[str, set[str]] = field(default_factory=dict)
    positions: int = 0


def names_of(trainer):
    """Private methods of a class and the attributes that it sets on itself; methods with their parameters."""
    methods = {}
    attributes = set()
    for base in trainer.__mro__[:-1]:
        for name, value in vars(base).items():
            if inspect.isfunction(value):
                methods.setdefault(name, inspect.signature(value).parameters)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                attributes.add(node.attr)
    private = {name for name in {*methods, *attributes} if name.startswith("_") and not name.startswith("__")}
    return {name: methods.get(name) for name in private}


def uses(sources, names):
    """By private name, where modules override, call, read or write it.

    Args:
        sources: text by file.
        names: those that are looked for.
    """
    found = defaultdict(Use)
    classes = {}
    for file, text in sources.items():
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = (file, node)
            elif isinstance(node, ast.Attribute) and node.attr in names:
                found[node.attr].places.append(f"{file}:{node.lineno}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
                use = found[node.func.attr]
                use.names |= {keyword.arg for keyword in node.keywords if keyword.arg}
                plain = [given for given in node.args if not isinstance(given, ast.Starred)]
                by_class = ast.unparse(node.func.value) == Trainer.__name__  # which gives self as well
                use.positions = max(use.positions, len(plain) - by_class)

    def extends(name):
        if name == Trainer.__name__:
            return True
        bases = classes[name][1].bases if name in classes else []
        return any(extends(ast.unparse(base).split("[")[0].split(".")[-1]) for base in bases)

    for name, (file, node) in classes.items():
        for method in node.body if extends(name) else ():
            if isinstance(method, ast.FunctionDef) and method.name in names:
                use = found[method.name]
                use.overriding.append(f"{name} ({file})")
                given = [*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs]
                use.names |= {one.arg for one in given} - {"self"}
                if not (method.args.vararg or method.args.kwarg):
                    use.taken[use.overriding[-1]] = {one.arg for one in given}
    return dict(found)


def problems(found, there, version=transformers.__version__):
    """What a Trainer lacks of what is counted on, a sentence each.

    Args:
        found: see :func:`uses`.
        there: the Trainer's own; see :func:`names_of`.
        version: of Transformers.
    """
    for name, use in sorted(found.items()):
        where = f"{'overridden by' if use.overriding else 'used in'} {', '.join(use.overriding or use.places)}"
        if name not in there:
            yield f"The Trainer of transformers {version} has no '{name}', which is {where}."
            continue
        if (parameters := there[name]) is None:
            continue
        kinds = {parameter.kind for parameter in parameters.values()}
        lost = set() if inspect.Parameter.VAR_KEYWORD in kinds else use.names - set(parameters)
        if lost:
            yield (
                f"'{name}' of transformers {version} no longer takes {', '.join(sorted(lost))}; it takes "
                f"{', '.join(parameters)}, and is {where}."
            )
        for place, taken in use.taken.items():
            if gained := set(parameters) - taken:
                yield f"'{name}' of transformers {version} also takes {', '.join(sorted(gained))}, which {place} does not."
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        most = sum(parameter.kind in positional for parameter in parameters.values()) - 1  # without self
        if use.positions > most and inspect.Parameter.VAR_POSITIONAL not in kinds:
            yield f"'{name}' of transformers {version} takes {most} values, is given {use.positions}, and is {where}."


def sources_of(folder):
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py"))}


def test_private_hooks_in_use_are_those_of_the_list_and_the_trainer_has_them():
    there = names_of(Trainer)
    found = uses(sources_of(FOLDER), {*there, *OVERRIDDEN, *USED})
    assert not (lacking := list(problems(found, there))), "\n".join(lacking)
    assert {name for name, use in found.items() if use.overriding} == OVERRIDDEN
    assert {name for name, use in found.items() if not use.overriding} == USED


SOURCE = """
class Ours(Trainer):
    def _save_part(self, model, trial):
        super()._save_part(model, trial)
        self._steps_logged += 1

    def _own(self): ...

class More(Ours):
    def _log(self, logs): ...

class Aside:
    def _save_part(self): ...
"""


class Moved:
    def __init__(self):
        self._steps = 0

    def _save_part(self, model): ...

    def _log(self, logs, start): ...


class Kept:
    def __init__(self):
        self._steps_logged = 0

    def _save_part(self, model, trial): ...

    def _log(self, logs): ...


def test_a_hook_that_moves_is_named_with_the_class_that_overrides_it():
    found = uses({"ours.py": SOURCE}, {"_save_part", "_steps_logged", "_log"})
    assert {name: use.overriding for name, use in found.items()} == {
        "_save_part": ["Ours (ours.py)"],
        "_log": ["More (ours.py)"],
        "_steps_logged": [],
    }
    assert not list(problems(found, names_of(Kept)))
    assert list(problems(found, names_of(Moved), "9.0")) == [
        "'_log' of transformers 9.0 also takes start, which More (ours.py) does not.",
        "'_save_part' of transformers 9.0 no longer takes trial; it takes self, model, and is overridden by Ours "
        "(ours.py).",
        "'_save_part' of transformers 9.0 takes 1 values, is given 2, and is overridden by Ours (ours.py).",
        "The Trainer of transformers 9.0 has no '_steps_logged', which is used in ours.py:5.",
    ]
