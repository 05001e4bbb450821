"""The model as a graph that ONNX Runtime runs: one pass of the backbone, one output for every task.

It is written by torch.onnx, and not by ``transformers.exporters.OnnxExporter``, although that writes a graph of
ModernBERT with four tasks whose outputs are within 1.2e-07 of torch's. That exporter calls itself experimental, and
warns of versions of torch and onnx that it was not tested with. With the same named axes it refuses BERT, whose
positions end, and Longformer as torch.onnx does; and the graphs of speech encoders, which are recorded, would need this
file anyway.
"""

import importlib
import importlib.util
import json
import logging as builtin_logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import FeatureExtractionMixin, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from .aliases import Open, TaskDict, Values
from .finite import check_weights
from .fitted import DECISIONS
from .graph_inputs import GraphInputs, graph_inputs, is_there
from .heads import Head
from .kinds import reader_of
from .native import WRITING
from .shared import SharedModel
from .speech import AudioReader

logger = logging.get_logger(__name__)

FILE = "model.onnx"
TOLERANCE = 1e-4  # of the graph's outputs against torch's

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_TRACED = (7, 5)  # tokens, or frames, of the rows that the graph is traced with
_CHECKED = ((6,), (3, 9, 2))  # and of those that it is compared with torch on


class TaskGraph(nn.Module):
    """A model, in evaluation mode, whose inputs come by position and whose outputs are a tensor for every task.

    Args:
        model: a multi-task model.
        inputs: of the graph.
        tasks: of the outputs, in their order.
    """

    def __init__(self, model: SharedModel, inputs: GraphInputs, tasks: Sequence[str]) -> None:
        super().__init__()
        self.model, self.inputs, self.names, self.tasks = model, inputs, inputs.names, list(tasks)
        self.eval()

    def sample(self, lengths: Sequence[int]) -> tuple[torch.Tensor, ...]:
        """Inputs of rows of some lengths."""
        made = self.inputs.sample(lengths)
        return tuple(made[name].to(self.model.device) for name in self.names)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs (B, L, ...) to the logits of each task for the B rows, every row being an item."""
        logits = self.model(**dict(zip(self.names, inputs, strict=True)), tasks=self.tasks).logits
        several = {name: self.model.heads[name].reads_several for name in self.tasks}
        return tuple(logits[name].squeeze(1) if several[name] else logits[name] for name in self.tasks)


def output_name(task: str) -> str:
    """The name of a task's output in the graph."""
    return f"{task}_logits"


def write_onnx(
    model: SharedModel,
    save_directory: str | Path,
    tokenizer: PreTrainedTokenizerBase | FeatureExtractionMixin | ProcessorMixin | None = None,
    tasks: Sequence[str] | None = None,
) -> Path:
    """Write ``model.onnx``: inputs (batch, sequence), and an output ``<task>_logits`` for every task.

    The outputs are those of ``model(**inputs).logits``, every row being an item of its own. The file is compared with
    torch before it takes its place. Its metadata ``tasks`` is JSON: types, labels and vocabularies by name.

    Args:
        model: in float32; left as it is.
        save_directory: a folder.
        tokenizer: or the feature extractor, saved beside the graph, whose inputs are then the ones that it makes.
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
        reader = reader_of(model.config.task(readable[0]))  # that of one is that of all, as the backbone has it
        graph = TaskGraph(model, graph_inputs(reader, model.config.backbone_config, tokenizer), readable)
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
        elif (beyond := model.heads[name].beyond_graph) is not None:
            problems[name] = f"{beyond} ({task['type']})"
        elif model.heads[name].reads_audio and not isinstance(reader_of(task), AudioReader):
            problems[name] = f"reads audio by a reader of its own ({task['type']}), whose inputs are not known"
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
    inputs = graph.sample(_TRACED)
    with torch.no_grad():
        graph(*inputs)  # errors of the model itself are raised as they are
    try:
        with _quiet(), torch.no_grad():
            (_record if graph.inputs.unrolled else _export)(graph, inputs, path)
    except torch.onnx.errors.OnnxExporterError as problem:
        reason = " ".join(str(problem.__cause__ or problem).split("\n\n")[0].split())
        raise ValueError(
            f"Transformers' code of the backbone family '{graph.model.config.backbone_config.model_type}' cannot be "
            f"made an ONNX graph: {reason} Choose another backbone, or serve the model with torch."
        ) from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, torch says nothing about its own insides, such as operations of packages that are not installed."""
    notes = builtin_logging.getLogger("torch.onnx")
    level = notes.level
    notes.setLevel(builtin_logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        notes.setLevel(level)


def _export(graph: TaskGraph, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    from torch.export import Dim  # here, as it takes its time

    axes = {axis: Dim(name) for axis, name in graph.inputs.axes.items()}
    program = torch.onnx.export(
        graph,
        inputs,
        dynamo=True,
        input_names=graph.names,
        output_names=[output_name(name) for name in graph.tasks],
        dynamic_shapes=(tuple(axes for _ in graph.names),),
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program.")
    program.model.metadata_props["tasks"] = _metadata(graph)
    program.save(path)


def _record(graph: TaskGraph, inputs: tuple[torch.Tensor, ...], path: Path) -> None:
    """Write the operations of one run of the model.

    To torch.export the number of frames is a quotient of a quotient for every convolution, and it takes minutes to
    simplify these for every operation; a run is recorded in seconds. What branches on the data takes the branch of a
    batch with padding, which holds for batches without.
    """
    outputs = [output_name(name) for name in graph.tasks]
    axes = dict.fromkeys(graph.names, graph.inputs.axes)
    for name, one, other in zip(outputs, graph(*inputs), graph(*graph.sample(_CHECKED[-1])), strict=True):
        sizes = enumerate(zip(one.shape, other.shape, strict=True))
        axes[name] = {axis: "frames" if axis else "batch" for axis, (own, theirs) in sizes if own != theirs}
    torch.onnx.export(
        graph, inputs, str(path), dynamo=False, input_names=graph.names, output_names=outputs, dynamic_axes=axes
    )
    onnx: Open = importlib.import_module("onnx")
    written = onnx.load(str(path), load_external_data=False)
    onnx.helper.set_model_props(written, {"tasks": _metadata(graph)})
    onnx.save(written, str(path))


def _metadata(graph: TaskGraph) -> str:
    model, heads = graph.model, cast("dict[str, Head]", graph.model.heads)
    described = {name: _described(model.config.task(name)) | heads[name].described() for name in graph.tasks}
    return json.dumps(described, ensure_ascii=False)


def _described(task: TaskDict) -> Values:
    """What a reader of the graph needs to know of a task."""
    known = {
        key: task[key]
        for key in ("type", "label_names", "problem_type", "vocabulary", *DECISIONS)
        if task.get(key) is not None
    }
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
        inputs = graph.sample(lengths)
        given = {name: value.cpu().numpy() for name, value in zip(graph.names, inputs, strict=True)}
        found = [torch.from_numpy(value) for value in session.run(None, given)]
        with torch.no_grad():
            expected = graph(*inputs)
        there_NL = is_there(lengths)
        for name, ours, theirs in zip(graph.tasks, expected, found, strict=True):
            errors = (ours.cpu() - theirs).abs()
            if errors.shape[:2] == there_NL.shape and ours.dim() > 2:
                errors = errors[there_NL]
            if not float(errors.max()) <= TOLERANCE * max(1.0, float(ours.abs().max())):
                rows = f"{', '.join(map(str, lengths))} {graph.inputs.unit}"
                raise RuntimeError(
                    f"The ONNX graph of task '{name}' differs from torch by {float(errors.max()):.1e}, on rows of "
                    f"{rows}. Nothing was written; serve the model with torch."
                )
