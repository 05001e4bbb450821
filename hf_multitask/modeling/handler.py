"""What Inference Endpoints run of a repository: its model as a function from a request to an answer, both JSON."""

from pathlib import Path
from typing import Any

from transformers import Pipeline, pipeline

# What the code beside the weights needs where the package is not installed.
REQUIREMENTS = ("torch>=2.11", "transformers>=5.17,<6", "safetensors>=0.5")
FOR_AUDIO = ("soundfile>=0.13", "soxr>=0.5")
FOR_ADAPTERS = ("peft>=0.18",)
_KEYS = ("inputs", "tasks", "parameters")
Answer = dict[str, Any]  # by task


class EndpointHandler:
    """Answers requests with the model in a folder; see https://huggingface.co/docs/inference-endpoints.

    Args:
        path: the folder; that of this file if empty.
    """

    def __init__(self, path: str = "") -> None:
        self.pipeline: Pipeline = pipeline(  # type: ignore[call-overload]  # a task of ours
            "multitask", model=path or str(Path(__file__).parent), trust_remote_code=True
        )

    def __call__(self, data: dict[str, Any]) -> Answer | list[Answer]:
        """The answer to a request.

        Args:
            data: ``inputs``, what the pipeline takes or a list of such; ``tasks``, names of those that answer, all of
                them if missing; ``parameters``, a dict of further arguments of a call of the pipeline.

        Raises:
            ValueError: the request is malformed, or its input cannot be read.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('A request should be an object with "inputs": a text, or a list of texts.')
        if unknown := [key for key in data if key not in _KEYS]:
            raise ValueError(f"A request has {', '.join(_KEYS)}. Found {unknown[0]!r}.")
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise ValueError(f'"parameters" should be an object of arguments of the pipeline. Found {parameters!r}.')
        tasks = {} if data.get("tasks") is None else {"tasks": data["tasks"]}
        try:
            return self.pipeline(data["inputs"], **tasks, **parameters)
        except TypeError as problem:
            raise ValueError(str(problem)) from None
