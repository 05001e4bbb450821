"""Hooks of the documentation site: pages that are written elsewhere in the repository, links to it, and the API."""

import base64
import importlib
import inspect
import json
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
    "measurements.md": "benchmarks/README.md",
}
NOTEBOOKS = {f"notebooks/{path.stem}.md": path for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))}
PAGES |= {name: path.relative_to(ROOT).as_posix() for name, path in NOTEBOOKS.items()}
SCHEMA = "hf_multitask/cli/recipe.schema.json"
PACKAGES = ("", ".modeling", ".tasks", ".training", ".data", ".balancing", ".aggregation", ".hub")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]*)(#[^)\s]*)?(\))")
ROLE = re.compile(r":(?:class|func|meth|data|mod|attr|obj|exc|math):<code>~?([^<]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in ``docs``."""
    for name, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if name in NOTEBOOKS:
            text, pictures = _notebook(text, NOTEBOOKS[name].stem)
            for picture, content in pictures.items():
                files.append(File.generated(config, f"notebooks/{picture}", content=content))
        files.append(File.generated(config, name, content=_linked(text, source, name)))
    files.append(File.generated(config, "api.md", content=_api()))
    schema = (ROOT / SCHEMA).read_text(encoding="utf-8")
    files.append(File.generated(config, "recipe.schema.json", content=schema))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Let links to other files of the repository lead to their pages; those without a page become text."""
    source = page.file.src_uri
    return markdown if source in PAGES else _linked(markdown, f"docs/{source}", source)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Show roles of docstrings as code."""
    return ROLE.sub(r"<code>\1</code>", html)


def _notebook(text: str, stem: str) -> tuple[str, dict[str, bytes]]:
    """The cells of a notebook with their outputs as a page, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text")})
            if "image/png" in data:
                name = f"{stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![output](./{name})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def _linked(text: str, source: str, name: str) -> str:
    """A page's text with its links as seen from the site.

    Args:
        text: of the page.
        source: the file that it is from, from which links lead to other files.
        name: of the page on the site.
    """
    pages = {file: page for page, file in PAGES.items()}

    def moved(link: re.Match[str]) -> str:
        before, target, anchor, after = link[1], link[2], link[3] or "", link[4]
        if not target or re.match(r"[a-z]+:|\./", target):
            return link[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        page = pages.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is not None:
            return f"{before}{os.path.relpath(page, os.path.dirname(name) or '.')}{anchor}{after}"
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
