"""Writes the table of ``licenses.md``: the packages that ``setup.cfg`` names, with the licenses that they declare.

All of them have to be installed: ``pip install -e '.[all,dev,docs,release]' && python docs/licenses.py``.
"""

import configparser
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licenses.md"
HEAD = "| package | needed by | license |\n|---|---|---|\n"
TOOLS = ("docs", "release", "dev")  # extras that nobody needs in order to use the package
NAMES = {  # of licenses, in the words of SPDX
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache License v2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "GPLv2+": "GPL-2.0-or-later",
    "GPLv3": "GPL-3.0",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0",
    "License agreement for matplotlib versions 1.3.0 and later": "the matplotlib license, based on PSF-2.0",
    "MIT License": "MIT",
    "BSD 3-Clause License": "BSD-3-Clause",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}


def requirements(expand: bool = True) -> dict[str, list[str]]:
    """By package, what needs it: ``core``, or the extras.

    Args:
        expand: add what the extras of other packages need, as in ``torchjd[cagrad]``; these have to be installed.
    """
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    sections = {"core": config["options"]["install_requires"], **config["options.extras_require"]}
    found: dict[str, list[str]] = {}
    for section, lines in sections.items():
        for line in filter(None, (line.partition(" #")[0].strip() for line in lines.split("\n"))):
            given = Requirement(line)
            if given.name == config["metadata"]["name"]:
                continue
            for package in [given.name, *(_of_extras(given) if expand else ())]:
                needed = found.setdefault(package, [])
                if section not in needed:
                    needed.append(section)
    return found


def _of_extras(given: Requirement) -> Iterator[str]:
    """The packages of the extras of a package that is installed."""
    for line in (metadata(given.name).get_all("Requires-Dist") or []) if given.extras else ():
        required = Requirement(line)
        if required.marker and any(required.marker.evaluate({"extra": extra}) for extra in given.extras):
            yield required.name


def license_of(package: str) -> str:
    """What an installed package declares: its expression, or the first line of its field, or its classifiers.

    Raises:
        ValueError: it declares none.
    """
    given = metadata(package)
    if expression := given.get("License-Expression"):
        return expression
    field = (given.get("License") or "").strip().partition("\n")[0]
    if 0 < len(field) < 60:
        return NAMES.get(field, field)
    classified = [
        one.rpartition(" :: ")[2] for one in given.get_all("Classifier") or [] if one.startswith("License ::")
    ]
    if not classified:
        raise ValueError(f"The package '{package}' declares no license. Add what its files say to this script.")
    return ", ".join(NAMES.get(one, one) for one in classified)


def rows() -> Iterator[str]:
    """The lines of the table: what users need, then tools of this repository, each in alphabetical order."""

    def order(item: tuple[str, list[str]]) -> tuple[bool, str]:
        return set(item[1]) <= {*TOOLS}, item[0].lower()

    for package, needed in sorted(requirements().items(), key=order):
        by = ", ".join("every installation" if one == "core" else f"`{one}`" for one in needed)
        yield f"| {package} | {by} | {license_of(package)} |\n"


if __name__ == "__main__":
    above, _, rest = PAGE.read_text(encoding="utf-8").partition(HEAD)
    below = rest[rest.index("\nSome licenses ") :]
    PAGE.write_text(above + HEAD + "".join(rows()) + below, encoding="utf-8")
