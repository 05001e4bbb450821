"""Task types from outside the package, by name: ``(head, decode)``, or ``(head, decode, reader)``.

The package has none of its own: ``register_task`` adds them. A saved model that has some comes with another file
of this name, which :func:`write_extensions` wrote and which imports them.
"""

from .aliases import Parts

EXTENSIONS: dict[str, Parts] = {}
