"""Rewriting a card without losing the changes of the user.

A card consists of parts: sections of text between two comments, keys of the metadata, and results of ``model-index``. A
comment at the end of the card holds a digest of every part as it was written. A part with this digest is updated; a
part with another digest was edited, and a missing part was deleted, and both are left unchanged. Everything outside of
the parts belongs to the user.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

Metadata = Mapping[str, Any]
Loaded = dict[str, Any]  # metadata as YAML has them
_SECTION = re.compile(r"^<!-- hf_multitask: (\w+) -->[ \t]*\n(.*?)^<!-- end of \1 -->[ \t]*$", re.DOTALL | re.MULTILINE)
_STATE = re.compile(r"^<!-- hf_multitask keeps what you change here: (\{.*?\}) -->[ \t]*$", re.MULTILINE)
_INDEX = "model-index"
# libyaml if it is available: the results of many tasks are long.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class UnreadableCard(ValueError):
    """The existing card cannot be rewritten without losing a part of it."""


@dataclass(frozen=True)
class Card:
    """The content that a save writes.

    Args:
        metadata: keys and values; None if nothing is known.
        given: keys and values that the user set in code, which replace existing ones.
        sections: by name, a heading, empty if the text contains its own, and a text.
        vague: sections, and ``model-index``, without information, which do not replace existing ones.
    """

    metadata: Metadata
    given: Metadata
    sections: Mapping[str, tuple[str, str]]
    vague: frozenset[str] = field(default_factory=frozenset)


def digest(value: object) -> str:
    """A short hash of a text, ignoring line endings and trailing spaces, or of a value of the metadata."""
    if isinstance(value, str):
        value = "\n".join(line.rstrip() for line in value.strip().splitlines())
    try:
        text = json.dumps(value, sort_keys=True, default=str)
    except TypeError:  # keys of several types, which are never written here
        text = repr(value)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def merge(text: str, card: Card) -> str:
    """The text of a card with its unchanged parts updated.

    Args:
        text: of the existing file, empty if there is none.
        card: the content to write.

    Raises:
        UnreadableCard: the existing metadata are not YAML, or cannot be preserved.
    """
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n")
    front, body = _split(lines)
    found = _STATE.search(body)
    old: dict[str, str] = _state(found[1]) if found else {}
    parts = _Parts(old)
    front = _merge_front(front, card, parts)
    body = _merge_body(body, card, parts)
    note = f"<!-- hf_multitask keeps what you change here: {json.dumps(parts.new, sort_keys=True)} -->"
    before, there, after = _halves(body)
    body = f"{before}{note}{after}" if there else f"{body.rstrip()}\n\n{note}\n"
    merged = f"---\n{front}\n---\n{body}"
    return merged.replace("\n", "\r\n") if "\r\n" in text else merged


Content = TypeVar("Content")


class _Parts:
    """Decides for each part from the digests of the last save, and collects the digests of this one."""

    def __init__(self, old: Mapping[str, str]) -> None:
        self.old = old
        self.new = dict(old)  # parts that are unknown to this save are not changed

    def settle(self, part: str, current: Content, new: Content) -> Content:
        """The new content of a part; None if it should not exist."""
        if self.kept(part, current):
            self.new.setdefault(part, "")
            return current
        self.new.pop(part, None)
        if new is not None:
            self.new[part] = digest(new)
        return new

    def kept(self, part: str, current: object) -> bool:
        """Whether the user has edited or deleted a part."""
        return part in self.old if current is None else digest(current) != self.old.get(part)


def _state(found: str) -> dict[str, str]:
    try:
        return {str(key): str(value) for key, value in json.loads(found).items()}
    except ValueError:
        return {}  # all parts count as edited


def _split(text: str) -> tuple[str, str]:
    match = REGEX_YAML_BLOCK.match(text)
    return (match[2], text[match.end() :]) if match else ("", f"\n{text}" if text.strip() else "")


# Sections


def _merge_body(body: str, card: Card, parts: _Parts) -> str:
    ours = {match[1] for match in _SECTION.finditer(body)}
    headings = {line.lstrip("#").strip().lower() for line in body.splitlines() if line.startswith("#")}

    def refreshed(match: re.Match[str]) -> str:
        name, there = match[1], match[2].strip()
        if name in card.vague or name not in card.sections:
            return match[0]
        text = parts.settle(_part(name), there, card.sections[name][1])
        return match[0] if text == there else _marked(name, text)

    before, note, after = _halves(_SECTION.sub(refreshed, body))
    added = []
    for name, (heading, text) in card.sections.items():
        if name in ours or parts.kept(_part(name), None):
            continue
        if before.strip() and (not heading or heading.lower() in headings):  # a card of the user has such a section
            parts.new[_part(name)] = ""
            continue
        added += [f"## {heading}", _marked(name, text)] if heading else [_marked(name, text)]
        parts.new[_part(name)] = digest(text)
    if added:
        before = "\n\n".join([before.rstrip() or "", *added]) if before.strip() else "\n" + "\n\n".join(added)
        before += "\n\n" if note else ""
    return before + note + after


def _halves(body: str) -> tuple[str, str, str]:
    """The text before the comment with the digests, the comment, and the text after it."""
    match = _STATE.search(body)
    return (body[: match.start()], match[0], body[match.end() :]) if match else (body, "", "")


def _part(section: str) -> str:
    return f"# {section}"


def _marked(name: str, text: str) -> str:
    return f"<!-- hf_multitask: {name} -->\n\n{text}\n\n<!-- end of {name} -->"


# Metadata


def _merge_front(front: str, card: Card, parts: _Parts) -> str:
    """The metadata block with the lines of changed keys replaced, and all other lines unchanged."""
    segments, values = _segments(front)
    noted = {key for key, lines in segments if re.search(r"(^|\s)#", lines, re.MULTILINE)}  # those with a comment
    new: Loaded = {}
    for key, value in card.metadata.items():
        current = values.get(key)
        if key in noted or (key in card.vague and current is not None):
            value = current
        elif key == _INDEX:
            value = _merge_index(current, value, parts)
        else:
            value = parts.settle(key, current, value)
        if value != current:
            new[key] = value
    for key, value in card.given.items():
        current = new.get(key, values.get(key))
        if key == "tags":
            value = [*(current or []), *(tag for tag in value if tag not in (current or []))]
        if value != current:
            new[key] = value
        parts.new.pop(key, None)  # neither an updated nor an edited part
    lines = [text if key not in new else _yaml(key, new[key]) for key, text in segments]
    lines += [_yaml(key, value) for key, value in new.items() if key not in values]
    return "\n".join(line for line in lines if line is not None)


def _segments(front: str) -> tuple[list[tuple[str, str]], Loaded]:
    """The lines of a metadata block by key; comments and blank lines between keys have no key.

    Returns:
        Keys and lines in their order, and the values of the keys.

    Raises:
        UnreadableCard: the block is not a mapping with one key at the beginning of each line.
    """
    blocks: list[tuple[str, list[str]]] = []
    for line in front.split("\n") if front.strip() else []:
        key = re.match(r"([^\s#\-\"'{\[][^:]*):(?:\s|$)", line)
        if key or not blocks:
            blocks.append((key[1] if key else "", [line]))
        else:
            blocks[-1][1].append(line)
    segments: list[tuple[str, str]] = []
    values: Loaded = {}
    for name, lines in blocks:
        end = len(lines)
        while name and end > 1 and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
            end -= 1
        segments += [(name, "\n".join(lines[:end])), *(("", line) for line in lines[end:])]
        own = _load("\n".join(lines[:end]))
        if set(own) != ({name} if name else set()):
            raise UnreadableCard("its metadata are written in a way that cannot be preserved")
        values |= own
    return segments, values


def _load(text: str) -> Loaded:
    try:
        values = yaml.load(text, _LOADER)  # a safe loader
    except (yaml.YAMLError, ValueError) as problem:  # ValueError for a date that does not exist
        raise UnreadableCard(f"its metadata are not valid YAML: {' '.join(str(problem).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UnreadableCard("its metadata are not a mapping of keys to values")
    return values


def _yaml(key: str, value: object) -> str | None:
    """A key and its value as the library of the Hub writes them; None to remove the key."""
    if value is None:
        return None
    return yaml.dump({key: value}, Dumper=_DUMPER, sort_keys=False, allow_unicode=True).strip()


# Results


def _merge_index(current: object, new: list[Any] | None, parts: _Parts) -> object:
    """The results, with those replaced that were written here and not edited, and with all results of the user."""
    if current is None:
        if new is None or parts.kept(_INDEX, None):
            return None
        current = [{"name": parts.settle("name", None, new[0]["name"]), "results": []}]
    if not isinstance(current, list) or len(current) != 1 or not isinstance(current[0], dict):
        return current
    there, fresh = current[0], new[0] if new else {"name": current[0].get("name"), "results": []}
    if not isinstance(there.get("results"), list):
        return current
    known = {_identity(result): result for result in there["results"]}
    own = [result for part, result in known.items() if parts.kept(part, result)]
    for part in [part for part in known if known[part] not in own]:
        del parts.old[part], parts.new[part]  # not edited: to be rewritten, or from an earlier model
    results = []
    for result in fresh["results"]:
        part = _identity(result)
        if (part not in known or known[part] not in own) and not parts.kept(part, None):
            parts.new[part] = digest(result)
            results.append(result)
    if not results + own:
        parts.new.pop(_INDEX, None)
        return None
    parts.new[_INDEX] = ""
    return [{**there, "name": parts.settle("name", there.get("name"), fresh["name"]), "results": [*results, *own]}]


def _identity(result: object) -> str:
    """The name of a result as a part: its task, dataset and split."""
    if not isinstance(result, dict):
        return digest(result)
    task, dataset = ({} if not isinstance(part := result.get(key), dict) else part for key in ("task", "dataset"))
    return digest([task.get("type"), *(dataset.get(key) for key in ("type", "config", "split", "revision"))])
