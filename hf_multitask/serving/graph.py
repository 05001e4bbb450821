"""A model whose passes ONNX Runtime runs."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping
from typing import cast

import torch

from ..modeling.aliases import Open
from ..modeling.graphs import output_name
from ..modeling.heads import IGNORE, Head
from ..modeling.output import MultiTaskOutput
from ..modeling.routing import spread
from .served import ServedPipeline


class GraphForward:
    """The forward of a model, by a graph of it.

    The graph gives the outputs of all of its tasks for all rows of a batch; those of the tasks that are asked are
    taken, for their rows.

    Args:
        session: of ONNX Runtime.
        heads: of the model.
    """

    def __init__(self, session: Open, heads: Mapping[str, Head]) -> None:
        self.session, self.heads = session, heads
        self.inputs = [value.name for value in session.get_inputs()]

    def __call__(
        self,
        *,
        tasks: list[str],
        task_rows: Mapping[str, torch.Tensor] | None = None,
        labels: Mapping[str, torch.Tensor] | None = None,
        **inputs: torch.Tensor,
    ) -> MultiTaskOutput:
        """See :meth:`MultiTaskModel.forward`, of which this has what the pipeline gives."""
        given = {name: inputs[name].numpy() for name in self.inputs}
        found = self.session.run([output_name(name) for name in tasks], given)
        logits = {}
        for name, values in zip(tasks, found, strict=True):
            rows = None if task_rows is None else task_rows[name]
            logits[name] = self._of_items(self.heads[name], torch.from_numpy(values), rows, (labels or {}).get(name))
        return MultiTaskOutput(logits=logits)

    @staticmethod
    def _of_items(
        head: Head, outputs: torch.Tensor, rows: torch.Tensor | None, labels: torch.Tensor | None
    ) -> torch.Tensor:
        if rows is None:
            return outputs
        if rows.dim() == 2:
            return head.of_windows(spread(outputs[rows[rows >= 0]], rows, head.absent), rows >= 0)
        return outputs[rows] if labels is None else outputs[rows][labels != IGNORE]


def run_by_graph(pipeline: ServedPipeline) -> None:
    """Let ONNX Runtime run the model of a pipeline, and free the weights of the backbone.

    The graph is made of the model and compared with it. Tasks that cannot be in it are not served: a warning names
    them, or an error, if the pipeline was built with their names.

    Raises:
        ImportError: the extra ``onnx`` is not installed.
        ValueError: a task, the backbone or the dtype is not for ONNX.
    """
    model = pipeline.model
    with tempfile.TemporaryDirectory() as folder:
        path = model.export_onnx(folder, pipeline.reads_with, tasks=pipeline.chosen)
        onnxruntime = importlib.import_module("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    pipeline.limit(list(json.loads(session.get_modelmeta().custom_metadata_map["tasks"])))
    model.backbone.to("meta")
    model.forward = GraphForward(session, cast("Mapping[str, Head]", dict(model.heads.items())))
