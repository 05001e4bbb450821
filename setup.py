"""Packaging stub: the metadata is in setup.cfg."""

import re
from pathlib import Path

from setuptools import setup

README = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")


README = re.sub(r"!\[[^\]]*\]\((?!https?://)[^)]*\)\n*", "", README)  # pictures, which an index does not have either


def as_text(link: re.Match[str]) -> str:
    """A link to a file of the repository, which a package index does not have beside the README."""
    words, path = link.groups()
    return words if words == path else f"{words} (`{path}`)"


setup(long_description=re.sub(r"\[([^\]]+)\]\((?!https?://)([^)]+)\)", as_text, README))
