"""YAML documents in which duplicate keys, and aliases that contain themselves, are errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

Values = dict[str, Any]  # keys and values of a part of a recipe
_MERGE = "tag:yaml.org,2002:merge"
_MOST = 1_000_000  # values, with every alias expanded


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-3`` is a number, as in YAML 1.2 and JSON."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: list[str | None] = []
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            if event.anchor in self._open:
                raise yaml.composer.ComposerError(
                    None, None, f"the alias '*{event.anchor}' is inside of its own anchor", event.start_mark
                )
        node = super().compose_node(parent, index)
        self._sizes.setdefault(id(node), 1)
        return node

    # The stubs of yaml give both methods another type of anchor than PyYAML passes, which is None without one.
    def compose_sequence_node(self, anchor: str | None) -> yaml.SequenceNode:  # type: ignore[override]
        self._open.append(anchor)
        node = super().compose_sequence_node(anchor)  # type: ignore[arg-type]
        self._close(node, node.value)
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:  # type: ignore[override]
        self._open.append(anchor)
        node = super().compose_mapping_node(anchor)  # type: ignore[arg-type]
        self._close(node, [part for pair in node.value for part in pair])
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line, found = key.start_mark.line + 1, lines.get((key.tag, key.value))
            if found is not None:
                where = f"in line {line}" if line == found else f"in lines {found} and {line}"
                raise yaml.composer.ComposerError(None, None, f"the key '{key.value}' occurs twice {where}; keep one")
            lines[key.tag, key.value] = line
        return node

    def _close(self, node: yaml.Node, parts: list[yaml.Node]) -> None:
        self._open.pop()
        size = self._sizes[id(node)] = 1 + sum(self._sizes[id(part)] for part in parts)
        if size > _MOST:
            raise yaml.composer.ComposerError(
                None, None, f"the aliases expand to more than {_MOST:,} values", node.start_mark
            )


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_document(path: Path) -> object:
    """The content of a YAML file.

    Raises:
        ValueError: the file is not valid YAML, or contains a duplicate key.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError(f"Recipe '{path}' is not valid YAML: its brackets are nested too deeply.") from None
    except (LookupError, AttributeError, TypeError) as problem:
        raise ValueError(
            f"Recipe '{path}' is not valid YAML: it contains a value that does not match its tag ({problem})."
        ) from None
    except (yaml.YAMLError, ValueError) as problem:  # the latter for a date in month 13
        raise ValueError(f"Recipe '{path}' is not valid YAML: {' '.join(str(problem).split())}.") from None
