"""The configuration of a multi-task model: one backbone configuration and one plain dict per task."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from difflib import get_close_matches
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .aliases import TaskDict, Values

FORMAT_VERSION = 2  # 2: words and windows, see words.py and readers.py; 1: the tokenizer's own words
POOLINGS = ("native", "cls", "mean", "last")
SHARED = "_shared"  # the adapter of all tasks, a name that no task can have

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Names that metrics and training arguments have beside those of tasks.
_RESERVED = ("average", "backbone", "shared_layers")


def close_match(word: str, known: list[str]) -> str:
    """The end of an error sentence: ``" Did you mean 'x'?"``, or nothing where no known word is near."""
    near = get_close_matches(word, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def check_task_name(name: object) -> str:
    """Return ``name`` if it can name a task.

    A name becomes a module name, a metric name and a key of the configuration, so it holds letters, digits, ``-`` and
    ``_`` only, and is no attribute of :class:`torch.nn.ModuleDict`.

    Raises:
        ValueError: the name cannot be used.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"Task name {name!r} is not usable: names are made of letters, digits, '-' and '_' and start with a letter "
            "or digit. Rename the task."
        )
    if name in _RESERVED:
        raise ValueError(f"Task name '{name}' is not usable: it has a meaning of its own. Rename the task.")
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(f"Task name '{name}' is not usable: torch.nn.ModuleDict reserves it. Rename the task.")
    return name


def check_branch_layers(branch_layers: object) -> None:
    """Check that a number of layers is one.

    Raises:
        ValueError: it is not.
    """
    if isinstance(branch_layers, bool) or not isinstance(branch_layers, int) or branch_layers < 1:
        raise ValueError(
            f"`branch_layers` should be a whole number of layers, 1 or more. Found `branch_layers = {branch_layers!r}`."
        )


def check_branches(branches: object, branch_layers: object, tasks: list[str]) -> None:
    """Check that every task is in one branch, and that branches have usable names and a number of layers.

    Raises:
        ValueError: they do not.
    """
    check_branch_layers(branch_layers)
    if not isinstance(branches, dict) or not branches or any(not isinstance(own, list) for own in branches.values()):
        raise ValueError(
            f"`branches` should have a list with names of tasks for each branch. Found `branches = {branches!r}`. "
            "Name the tasks of each."
        )
    for name, own in branches.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or hasattr(nn.ModuleDict(), name):
            raise ValueError(
                f"Branch name {name!r} is not usable: names begin with a letter or a digit, are made of these, '-' and "
                "'_', and are not reserved by torch.nn.ModuleDict. Rename the branch."
            )
        if not own:
            raise ValueError(f"Branch '{name}' has no task. Give it one, or leave it out of `branches`.")
        for task in own:
            if task not in tasks:
                raise ValueError(
                    f"Branch '{name}' names the task '{task}', and the model has {', '.join(tasks)}."
                    + close_match(str(task), tasks)
                )
    named = [task for own in branches.values() for task in own]
    for task in tasks:
        if named.count(task) != 1:
            where = "no branch" if task not in named else f"{named.count(task)} branches"
            raise ValueError(f"Task '{task}' is in {where} of `branches`, and should be in one. Name it once.")


def in_order(branches: Mapping[str, list[str]], tasks: Sequence[str]) -> dict[str, list[str]]:
    """Branches in the order of their tasks, which a saved configuration sorts by name.

    The weights of a model follow it, and an optimizer knows them by their order only.
    """
    order = {task: number for number, task in enumerate(tasks)}
    own = {name: sorted(read, key=order.__getitem__) for name, read in branches.items()}
    return dict(sorted(own.items(), key=lambda entry: order[entry[1][0]]))


class MultiTaskConfig(PreTrainedConfig):
    """Configuration of :class:`MultiTaskModel`.

    Args:
        backbone_config: configuration of the shared backbone, as an object or as a dict with its ``model_type``.
        tasks: one dict per task, with at least ``name`` and ``type``; the other keys are the arguments of the task's
            class. The order of this list is the order of the heads.
        pooling: ``"native"`` takes the classification head of the backbone's family; ``"cls"``, ``"mean"`` and
            ``"last"`` put dropout and a linear layer on the first, the average or the last token.
        adapters: written by ``add_adapters``: the LoRA settings of the adapter that all tasks ``shared``, of those of
            single ``tasks``, the ``source`` of their backbone, and whether ``only`` adapters and heads are saved.
        branches: names of tasks by branch, each of which has its own copy of the backbone's top layers, see
            :mod:`branches`; None where all tasks share all layers.
        branch_layers: how many layers these are.
        subsampler: of recordings for an encoder-decoder of texts, see :func:`subsampler_settings`; None without one.
        label_groups: by task whose labels came one group after the other, see ``add_labels``, the sizes of the groups.
        float32_heads: whether heads and adapters are float32 on a backbone in half precision; written by the model.
        format_version: version of this format, written by the package that saved the model.

    Raises:
        ValueError: a name, the pooling, the backbone's ``model_type`` or the format version is not usable.
    """

    model_type = "multitask"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - the name and the form are Transformers'
    keys_to_ignore_at_inference = ("losses",)

    backbone_config: Any = None
    tasks: list[TaskDict] = field(default_factory=list)
    pooling: str = "native"
    adapters: Values | None = None
    branches: dict[str, list[str]] | None = None
    branch_layers: int | None = None
    subsampler: Values | None = None
    label_groups: dict[str, list[int]] | None = None
    float32_heads: bool = False
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: object) -> None:
        kwargs.pop("custom_pipelines", None)  # always written by to_dict
        self._check_version()  # before all else, which another version may have in another form
        if self.backbone_config is None:
            self.backbone_config = AutoConfig.for_model("bert")
        elif isinstance(self.backbone_config, dict):
            values = dict(self.backbone_config)
            model_type = values.pop("model_type", None)
            if model_type is None:
                raise ValueError("backbone_config has no 'model_type'. Add the backbone's, for example 'bert'.")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"backbone_config has the model_type '{model_type}', which this transformers does not know. "
                    f"Upgrade transformers, or fix config.json.{close_match(str(model_type), list(CONFIG_MAPPING))}"
                )
            try:
                self.backbone_config = AutoConfig.for_model(model_type, **values)
            except StrictDataclassError as problem:
                raise ValueError(
                    f"backbone_config of '{model_type}': {' '.join(str(problem).split())}. Fix it."
                ) from None
        elif not isinstance(self.backbone_config, PreTrainedConfig):
            raise ValueError(
                "`backbone_config` should be a configuration, or a mapping with its 'model_type'. "
                f"Found `backbone_config = {self.backbone_config!r}`."
            )
        if not isinstance(self.tasks or [], list) or any(not isinstance(task, dict) for task in self.tasks or []):
            raise ValueError(f"`tasks` should be a list of one mapping per task. Found `tasks = {self.tasks!r}`.")
        self.tasks = [dict(task) for task in self.tasks or []]  # null in JSON
        self._check()
        super().__post_init__(**kwargs)

    def _check_version(self) -> None:
        version = self.format_version
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ValueError(f"`format_version` should be a whole number from 1. Found `format_version = {version!r}`.")
        if version > FORMAT_VERSION:
            raise ValueError(
                f"This model has format version {version}, and the installed hf_multitask reads up to "
                f"{FORMAT_VERSION}. Upgrade hf_multitask."
            )

    def _check(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"Parameter `pooling` should be one of {', '.join(POOLINGS)}. Found `pooling = {self.pooling!r}`."
                + close_match(str(self.pooling), list(POOLINGS))
            )
        for task in self.tasks:
            check_task_name(task.get("name"))
            if not isinstance(task.get("type"), str):
                raise ValueError(f"Task '{task['name']}' has no 'type'. Add one, for example 'token-classification'.")
            names = task.get("label_names")
            if names is not None and not (isinstance(names, list | tuple) and all(isinstance(n, str) for n in names)):
                raise ValueError(
                    f"Task '{task['name']}': `label_names` should be a list of strings. "
                    f"Found `label_names = {names!r}`."
                )
            most = task.get("max_length")
            if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
                raise ValueError(
                    f"Task '{task['name']}': `max_length` should be a whole number of tokens, 1 or more. "
                    f"Found `max_length = {most!r}`."
                )
        names = self.task_names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"Task name '{twice[0]}' is used {names.count(twice[0])} times. Rename all but one.")
        if self.branches is not None:
            check_branches(self.branches, self.branch_layers, names)
            self.branches = in_order(self.branches, names)
        for name, sizes in (self.label_groups or {}).items():
            known = self.task(name).get("label_names") or []
            whole = isinstance(sizes, list) and all(isinstance(one, int) and one > 0 for one in sizes)
            if not whole or sum(sizes) != len(known):
                raise ValueError(
                    f"Task '{name}': `label_groups` should be numbers whose sum is that of the labels, {len(known)}. "
                    f"Found {sizes!r}. Use the configuration as it was saved."
                )
        if self.adapters is not None:
            self._check_adapters(self.adapters)

    def _check_adapters(self, adapters: Values) -> None:
        known = {"shared": (dict, type(None)), "tasks": dict, "source": (dict, type(None)), "only": bool}
        for key, kind in known.items():
            if key not in adapters or not isinstance(adapters[key], kind):  # type: ignore[arg-type]
                raise ValueError(
                    f"Key 'adapters' of the configuration has no usable '{key}'. Use the configuration as it was saved."
                )
        for name in adapters["tasks"]:
            self.task(name)
        ordered = {name: adapters["tasks"][name] for name in self.task_names if name in adapters["tasks"]}
        self.adapters = {**adapters, "tasks": ordered}

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[Values, Values]:
        """What ``config.json`` holds, and the arguments that are not about finding it.

        Raises:
            ValueError: there is no ``config.json``, or it is of another kind of model.
        """
        values, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not values:
            raise ValueError(
                f"'{pretrained_model_name_or_path}' is not a model: it has no config.json. Check the name."
            )
        if values.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"'{pretrained_model_name_or_path}' is not a multi-task model: its config.json has the model_type "
                f"'{values['model_type']}'. Put heads on it with MultiTaskModel.from_backbone, or name another."
            )
        return values, rest

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order of the heads."""
        return [task["name"] for task in self.tasks]

    def task(self, name: str) -> TaskDict:
        """The dict of one task.

        Raises:
            ValueError: the model has no task of that name.
        """
        for task in self.tasks:
            if task["name"] == name:
                return task
        raise ValueError(
            f"The model has no task '{name}'; it has {', '.join(self.task_names) or 'none'}."
            + close_match(name, self.task_names)
        )

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The configuration of the backbone, which is the text model for Transformers."""
        return self.backbone_config.get_text_config(decoder=decoder, encoder=encoder)

    @property
    def custom_pipelines(self) -> Values:
        """Where ``pipeline("multitask", ..., trust_remote_code=True)`` finds its code.

        Empty where the package has registered the pipeline, so that its users need no trust.
        """
        from transformers.pipelines import PIPELINE_REGISTRY

        if "multitask" in PIPELINE_REGISTRY.supported_tasks:
            return {}
        return self._pipelines()

    @custom_pipelines.setter
    def custom_pipelines(self, value: object) -> None:
        """What ``Pipeline.save_pretrained`` sets is what is written anyway."""

    @staticmethod
    def _pipelines() -> Values:
        return {"multitask": {"impl": "pipeline.MultiTaskPipeline", "pt": ["AutoModel"], "type": "text"}}

    def to_dict(self) -> Values:
        """The configuration as a dict that JSON can hold."""
        return super().to_dict() | {"custom_pipelines": self._pipelines()}


MultiTaskConfig.register_for_auto_class()
