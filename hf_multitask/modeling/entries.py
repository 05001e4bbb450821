"""Task types that installed packages publish through an entry point, imported where a type is not known otherwise."""

from collections.abc import Container
from importlib.metadata import EntryPoint, entry_points

from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

GROUP = "hf_multitask.tasks"


def load_entries(kind: str, known: Container[str]) -> str:
    """Import the modules that the entries of the group name until a type is known, those of its name first.

    Code that came with a saved model imports none: a type of theirs is made known to the package, which is not there.

    Args:
        kind: the type.
        known: the types that are known, to which the import of a module adds its own.

    Returns:
        Which entries cannot be imported and why, the end of a sentence; empty where the type is known or all can be.
    """
    if __name__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."):
        return ""
    problems = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name != kind, entry.name)):
        if kind in known:
            break
        try:
            entry.load()
        except Exception as problem:
            problems.append(_said_of(entry, problem))
    return "" if kind in known else "".join(problems)


def _said_of(entry: EntryPoint, problem: Exception) -> str:
    package = f" of the package {entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
    reason = " ".join(str(problem).split())
    return (
        f", and the entry point '{entry.name} = {entry.value}'{package} in the group {GROUP} cannot be imported "
        f"({type(problem).__name__}: {reason}), so fix the package or uninstall it"
    )
