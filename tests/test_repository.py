"""The files around the code agree with it and with each other."""

import configparser
import contextlib
import importlib
import re
import sys
from email import message_from_string
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml
from launch import start
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from stages import STAGES

from hf_multitask import __version__

ROOT = Path(__file__).parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
PAGES = ["CONTRIBUTING.md", "SECURITY.md", ".github/PULL_REQUEST_TEMPLATE.md"]
METADATA = """
import sys
from pathlib import Path
from setuptools.build_meta import prepare_metadata_for_build_wheel

print("\\nMETADATA", (Path(sys.argv[1]) / prepare_metadata_for_build_wheel(sys.argv[1]) / "METADATA").read_text(), sep="\\n")
"""


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture
def setup():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["metadata"]


def test_citation_package_and_version_agree(setup):
    citation = load(ROOT / "CITATION.cff")
    assert citation["version"] == __version__ and setup["version"] == "attr: hf_multitask.version.__version__"
    assert [author["name"] for author in citation["authors"]] == [setup["author"]]
    assert citation["license"] == setup["license"]
    assert citation["title"].startswith(f"{setup['name']}: ")
    assert f"\n## {__version__}" in read("CHANGELOG.md")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_is_run_here(path):
    workflow = load(path)
    assert workflow[True]  # YAML 1.1 reads the key 'on' as a boolean
    for job in workflow["jobs"].values():
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert commands and all(command.split()[0] == ".ci/run" for command in commands)
        assert job["timeout-minutes"]


def test_workflows_cover_every_stage_every_python_and_the_oldest_transformers(setup):
    jobs = [job for path in WORKFLOWS for job in load(path)["jobs"].values()]
    words = {" ".join(step["run"].split()[1:]) for job in jobs for step in job["steps"] if "run" in step}
    assert words == {"", "oldest", "${{ matrix.stage }}"}
    (matrix,) = [job["strategy"]["matrix"] for job in jobs if "strategy" in job]
    assert matrix["stage"] == list(STAGES)
    assert matrix["python"] == re.findall(r"Python :: (3\.\d+)", setup["classifiers"])
    for word in (*STAGES, "oldest"):
        assert re.search(rf"^  [^)]*\b{word}\b[^)]*\)", read(".ci/run"), re.MULTILINE), word


def test_the_oldest_transformers_is_that_of_the_requirements():
    (command,) = re.findall(r"<!-- ci: oldest -->\n```bash\n([^\n]+)\n```", read("README.md"))
    (oldest,) = re.findall(r"transformers>=([\d.]+),", read("setup.cfg"))
    assert f"transformers=={oldest}.0 " in command


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_forms_and_workflows_are_yaml(path):
    assert isinstance(load(path), dict)


def test_paths_of_the_pages_exist():
    texts = [read(page) for page in PAGES]
    names = [one or other for text in texts for one, other in re.findall(r"`([\w.<>/-]+)`|\]\(([^)]+)\)", text)]
    paths = [name for name in names if re.search(r"^[\w.-]+/|\.(md|py|txt|cff)$", name) and "<" not in name]
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


CONDA = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}  # what conda calls packages of other names


def test_the_conda_recipe_agrees_with_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    recipe = load(ROOT / "recipe" / "recipe.yaml")
    assert str(recipe["context"]["version"]) == __version__ and recipe["package"]["name"] == config["metadata"]["name"]
    about = recipe["about"]
    assert (about["license"], about["summary"]) == (config["metadata"]["license"], config["metadata"]["description"])
    asked = [Requirement(line) for line in config["options"]["install_requires"].strip().splitlines()]
    expected = {CONDA.get(one.name, one.name): set(one.specifier) for one in asked}
    expected["python"] = set(SpecifierSet(config["options"]["python_requires"]))
    given = dict(line.split(" ", 1) for line in recipe["requirements"]["run"])
    assert {name: set(SpecifierSet(versions)) for name, versions in given.items()} == expected
    (build,) = re.findall(r'requires = \["setuptools(.*)"\]', read("pyproject.toml"))
    assert f"setuptools {build}" in recipe["requirements"]["host"]
    (oldest,) = re.findall(r"^python (\S+)\.\*$", "\n".join(recipe["requirements"]["host"]), re.MULTILINE)
    assert oldest == config["options"]["python_requires"].removeprefix(">=")
    commands = config["options.entry_points"]["console_scripts"].strip().splitlines()
    assert recipe["build"]["python"]["entry_points"] == commands


@pytest.fixture
def licenses(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("licenses")


def listed():
    rows = re.findall(r"^\| ([\w.-]+) \| (.+) \| (.+) \|$", read("docs/licenses.md"), re.MULTILINE)
    return {name: (by, license) for name, by, license in rows if name != "package"}


def test_every_dependency_has_its_license_listed(licenses):
    sections = set()
    for name, needed in licenses.requirements(expand=False).items():
        by, license = listed()[name]
        assert set(needed) <= {word.strip(" `").replace("every installation", "core") for word in by.split(",")}, name
        assert license.strip()
        sections |= set(needed)
    assert {"core", "serve", "onnx", "peft", "dev"} <= sections


@pytest.mark.slow
def test_licenses_are_those_that_installed_packages_declare(licenses):
    for name, (_, license) in listed().items():
        with contextlib.suppress(PackageNotFoundError):
            assert licenses.license_of(name) == license, name


@pytest.mark.process
def test_the_description_of_the_package_has_no_link_that_a_package_index_lacks(tmp_path):
    result = start([sys.executable, "-c", METADATA, str(tmp_path)], cwd=ROOT)
    assert result.returncode == 0, result.stderr
    metadata = message_from_string(result.stdout.split("\nMETADATA\n")[1])
    description = metadata.get_payload()
    assert not [link for link in re.findall(r"\]\(([^)]+)\)", description) if "://" not in link]
    assert "![" in read("README.md") and "docs/gallery-page.png" not in description
    assert "A run is described by a recipe (`examples/sentiment_ner/recipe.yaml`)" in description
    assert metadata["Author"] == "hf_multitask contributors" and metadata["Version"] == __version__
