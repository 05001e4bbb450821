"""The model as a graph that ONNX Runtime runs: one pass of the backbone, one output for every task."""

import importlib
import importlib.util
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .aliases import TaskDict, Values
from .finite import check_weights
from .inputs import input_names
from .native import WRITING
from .shared import SharedModel

logger = logging.get_logger(__name__)

FILE = "model.onnx"
TOLERANCE = 1e-4  # of the graph's outputs against torch's

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_NAMES = ("input_ids", "attention_mask", "token_type_ids")
_TRACED = (7, 5)  # tokens of the rows that the graph is traced with
_CHECKED = ((6,), (3, 9, 2))  # and of those that it is compared with torch on


class TaskGraph(nn.Module):
    """A model, in evaluation mode, whose inputs come by position and whose outputs are a tensor for every task.

    Args:
        model: a multi-task model.
        names: of the inputs, in their order.
        tasks: of the outputs, in theirs.
    """

    def __init__(self, model: SharedModel, names: Sequence[str], tasks: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names, self.tasks = model, list(names), list(tasks)
        self.eval()

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs (B, L) to the logits of each task for the B rows, every row being an item."""
        logits = self.model(**dict(zip(self.names, inputs, strict=True)), tasks=self.tasks).logits
        several = {name: self.model.heads[name].reads_several for name in self.tasks}
        return tuple(logits[name].squeeze(1) if several[name] else logits[name] for name in self.tasks)


def output_name(task: str) -> str:
    """The name of a task's output in the graph."""
    return f"{task}_logits"


def write_onnx(
    model: SharedModel,
    save_directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    tasks: Sequence[str] | None = None,
) -> Path:
    """Write ``model.onnx``: inputs (batch, sequence), and an output ``<task>_logits`` for every task.

    The outputs are those of ``model(**tokens).logits``, every row being an item of its own. The file is compared with
    torch before it takes its place. Its metadata ``tasks`` is JSON: types and labels by name.

    Args:
        model: in float32; left as it is.
        save_directory: a folder.
        tokenizer: saved beside the graph, whose inputs are then the ones that it makes.
        tasks: some tasks only; all but those that write texts where None.

    Returns:
        The path of the file.

    Raises:
        ImportError: the extra ``onnx`` is not installed.
        ValueError: a task, the backbone's family or the dtype is not for ONNX, or a weight is NaN or infinite.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs the package '{missing[0]}'. Run: pip install 'hf_multitask[onnx]'")
    if model.dtype != torch.float32:
        raise ValueError(
            f"An ONNX graph is made of a model in float32, and this one is in {model.dtype}. Load it with "
            "dtype=torch.float32, and convert or quantize the graph afterwards."
        )
    readable, was_training = _readable(model, tasks), model.training
    others = tuple(f"heads.{name}." for name in model.heads if name not in readable)
    weights = [(name, one) for name, one in model.state_dict().items() if not name.startswith(others)]
    check_weights(model, "so no graph is made of it. Take an earlier checkpoint, or train it again.", weights)
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        graph = TaskGraph(model, _input_names(model, tokenizer), readable)
        # Beside the files of an earlier export, which stay until this one is whole.
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _write(graph, Path(scratch) / FILE)
            _check(graph, Path(scratch) / FILE)
            for path in sorted(Path(scratch).iterdir(), reverse=True):  # the weights, if they have a file of their own
                os.replace(path, folder / path.name)
    finally:
        model.train(was_training)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder / FILE


def _input_names(model: SharedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[str]:
    """Inputs of the graph: those that the tokenizer makes, or the usual ones of the family without one."""
    config = model.config.backbone_config
    if tokenizer is not None:
        return input_names(tokenizer, config)
    taken = input_names(PreTrainedTokenizerBase(model_input_names=list(_NAMES)), config)
    several = (getattr(config, "type_vocab_size", None) or 0) > 1
    return [name for name in taken if name != "token_type_ids" or several]


def _readable(model: SharedModel, tasks: Sequence[str] | None) -> list[str]:
    """The tasks of the graph, in the order of the heads.

    Raises:
        ValueError: a task in ``tasks``, or every task, cannot be in a graph, or they cannot be in the same one.
    """
    tasks = [tasks] if isinstance(tasks, str) else tasks
    problems = {}
    for task in model.config.tasks:
        name = task["name"]
        if model.heads[name].language_model in WRITING:
            problems[name] = f"writes texts token by token ({task['type']}), which one graph does not"
        elif model.heads[name].reads_audio:
            problems[name] = f"reads audio ({task['type']}), and the inputs of the graph are tokens"
        elif task.get("language") is not None:
            problems[name] = "names a language, which the graph has no input for"
    wanted = [model.config.task(name)["name"] for name in (tasks or model.config.task_names)]
    wrong = [name for name in wanted if name in problems]
    if wrong and (tasks or len(wrong) == len(wanted)):
        raise ValueError(f"Task '{wrong[0]}' {problems[wrong[0]]}. Name other tasks.")
    if wrong:
        logger.warning(f"Task '{wrong[0]}' {problems[wrong[0]]}. The graph is made without {', '.join(wrong)}.")
    found = [name for name in model.config.task_names if name in wanted and name not in wrong]
    branches = {model.routing.branches.get(name) for name in found}
    if len(branches) > 1 and model.routing.tasks.intersection(found):
        raise ValueError(
            "Tasks with adapters of their own in several branches cannot be in one graph. Name tasks of one branch, or "
            "serve the model with torch."
        )
    return found


def _write(graph: TaskGraph, path: Path) -> None:
    from torch.export import Dim  # here, as it takes its time

    config = graph.model.config.backbone_config
    inputs = _sample(graph, _TRACED)
    with torch.no_grad():
        graph(*inputs)  # errors of the model itself are raised as they are
    axes = {0: Dim("batch"), 1: Dim("sequence")}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch about its own insides
            program = torch.onnx.export(
                graph,
                inputs,
                dynamo=True,
                input_names=graph.names,
                output_names=[output_name(name) for name in graph.tasks],
                dynamic_shapes=(tuple(axes for _ in graph.names),),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as problem:
        reason = " ".join(str(problem.__cause__ or problem).split("\n\n")[0].split())
        raise ValueError(
            f"Transformers' code of the backbone family '{config.model_type}' cannot be made an ONNX graph: {reason} "
            "Choose another backbone, or serve the model with torch."
        ) from problem
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program.")
    described = {name: _described(graph.model.config.task(name)) for name in graph.tasks}
    program.model.metadata_props["tasks"] = json.dumps(described, ensure_ascii=False)
    program.save(path)


def _described(task: TaskDict) -> Values:
    """What a reader of the graph needs to know of a task."""
    known = {key: task[key] for key in ("type", "label_names", "problem_type") if task.get(key) is not None}
    return {**known, "output": output_name(task["name"])}


def _check(graph: TaskGraph, path: Path) -> None:
    """Compare the graph with torch on batches of other sizes and lengths, with padding.

    Raises:
        RuntimeError: they differ, at a token that is there, by more than ``TOLERANCE``.
    """
    # By name: Transformers requires every package that remote code imports before it runs any of it.
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for lengths in _CHECKED:
        inputs = _sample(graph, lengths)
        given = {name: value.cpu().numpy() for name, value in zip(graph.names, inputs, strict=True)}
        found = [torch.from_numpy(value) for value in session.run(None, given)]
        with torch.no_grad():
            expected = graph(*inputs)
        there_NL = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
        for name, ours, theirs in zip(graph.tasks, expected, found, strict=True):
            errors = (ours.cpu() - theirs).abs()
            if errors.shape[:2] == there_NL.shape and ours.dim() > 2:
                errors = errors[there_NL]
            if not float(errors.max()) <= TOLERANCE * max(1.0, float(ours.abs().max())):
                raise RuntimeError(
                    f"The ONNX graph of task '{name}' differs from torch by {float(errors.max()):.1e}, on rows of "
                    f"{', '.join(map(str, lengths))} tokens. Nothing was written; serve the model with torch."
                )


def _sample(graph: TaskGraph, lengths: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Inputs of rows of some lengths, padded on the right: any tokens, the last one the end of the text."""
    config = graph.model.config.backbone_config.get_text_config()
    special = {getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos")}
    words = torch.tensor([token for token in range(config.vocab_size) if token not in special])
    shape = len(lengths), max(lengths)
    there_NL = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(1)
    ids_NL = words[torch.randint(len(words), shape, generator=torch.Generator().manual_seed(0))]
    end = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
    if end is not None:
        ids_NL[torch.arange(shape[0]), torch.tensor(lengths) - 1] = end
    made = {
        "input_ids": ids_NL.masked_fill(~there_NL, config.pad_token_id or 0),
        "attention_mask": there_NL.long(),
        "token_type_ids": torch.zeros(shape, dtype=torch.long),
    }
    return tuple(made[name].to(graph.model.device) for name in graph.names)
