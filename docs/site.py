"""Hooks of the documentation site: pages that are written elsewhere in the repository, links to it, and the API."""

import importlib
import inspect
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {  # of the site, and the files that they are
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "benchmarks.md": "benchmarks/README.md",
}
SCHEMA = "hf_multitask/cli/recipe.schema.json"
PACKAGES = ("", ".modeling", ".tasks", ".training", ".data", ".balancing", ".aggregation", ".hub")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]*)(#[^)\s]*)?(\))")
ROLE = re.compile(r":(?:class|func|meth|data|mod|attr|obj|exc|math):<code>~?([^<]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in ``docs``."""
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=_linked(text, source)))
    files.append(File.generated(config, "api.md", content=_api()))
    schema = (ROOT / SCHEMA).read_text(encoding="utf-8")
    files.append(File.generated(config, "recipe.schema.json", content=schema))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Let links to other files of the repository lead to their pages; those without a page become text."""
    source = page.file.src_uri
    return markdown if source in PAGES else _linked(markdown, f"docs/{source}")


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Show roles of docstrings as code."""
    return ROLE.sub(r"<code>\1</code>", html)


def _linked(text: str, source: str) -> str:
    """A page's text with its links as seen from the site."""
    pages = {file: name for name, file in PAGES.items()}

    def moved(link: re.Match[str]) -> str:
        before, target, anchor, after = link[1], link[2], link[3] or "", link[4]
        if not target or re.match(r"[a-z]+:", target):
            return link[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if path in pages:
            return f"{before}{pages[path]}{anchor}{after}"
        if path.startswith("docs/"):
            return f"{before}{path.removeprefix('docs/')}{anchor}{after}"
        words = before.strip("![(").removesuffix("]")
        return words if words == path else f"{words} (`{path}`)"

    return LINK.sub(moved, text)


def _api() -> str:
    """The public names of every package, each with its docstring."""
    parts, shown = ["# API reference"], set()
    for suffix in PACKAGES[1:] + PACKAGES[:1]:  # a name of the top is shown in the package that it is of
        package = importlib.import_module(f"hf_multitask{suffix}")
        names = []
        for name in package.__all__:
            value = getattr(package, name)
            if not (inspect.isclass(value) or inspect.isfunction(value)) or id(value) in shown:
                continue
            shown.add(id(value))
            names.append(f"::: {value.__module__}.{value.__qualname__}\n    options: {{heading_level: 3}}")
        if names:
            parts += [f"## hf_multitask{suffix}", inspect.getdoc(package) or "", *names]
    return "\n\n".join(parts) + "\n"
