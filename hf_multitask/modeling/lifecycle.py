"""Adding, changing and removing tasks: the head of each, and the parts of the backbone that they read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .adapters import adapter_parameters, follow_backbone, fresh_parameters, unread_adapters
from .aliases import Settings, Values
from .branches import branch_parameters
from .config import MultiTaskConfig, check_task_name
from .heads import Head
from .kinds import check_input, fitted, head_class, num_labels
from .labels import OF_CLASSES, build_head, more_labels, take_labels
from .layers import LayerMix
from .native import (
    asked_inputs,
    backbone_class,
    backbone_kwargs,
    build_backbone,
    language_model_class,
    materialise,
    refitted,
    take_pooler,
)
from .parsing import Projection
from .reach import parameters_below, unread_backbone, unread_layers
from .shared import SharedModel
from .subsampler import Convolution, ScaledNorm, Subsampler
from .trial import check_family

logger = logging.get_logger(__name__)


def language_model(config: MultiTaskConfig) -> str | None:
    """Which native language model the backbone has to be, of which the heads of a family need one at most."""
    return next((kind for task in config.tasks if (kind := head_class(task).language_model)), None)


def task_dict(name: str, task: object) -> Values:
    """A task object, or its dict, as the configuration keeps it under a name.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(task, type) or not (isinstance(task, Mapping) or callable(getattr(task, "to_dict", None))):
        raise TypeError(
            f"Task '{name}' should be a task object, such as TokenClassification(...), or its dict. Found {task!r}."
        )
    values: Values = dict(task) if isinstance(task, Mapping) else getattr(task, "to_dict")()  # noqa: B009
    return {"name": name, **{key: value for key, value in values.items() if key != "name"}}


class TaskLifecycle(SharedModel):
    """The part of :class:`MultiTaskModel` that adds, changes and removes tasks.

    What a task reads of the backbone beside its layers, BERT's pooler or a language model's last layers, is there as
    long as a task reads it, so that a saved model loads into the model of its configuration.
    """

    drop_adapter: Callable[[str], None]
    rename_adapter: Callable[[str, str], None]
    _join_branch: Callable[[str, str | None], None]
    _leave_branch: Callable[[str], None]
    _rename_in_branches: Callable[[str, str], None]
    _branches_without: Callable[[set[str]], list[str]]

    def add_task(self, name: str, task: object, *, branch: str | None = None) -> None:
        """Add a task with a fresh head; the logits of the other tasks stay bit-identical.

        Where the task reads a pooler or the layers of a language model that the backbone does not have, it gets fresh
        ones as well; tied to the embeddings, where the family ties them.

        Args:
            name: of the task.
            task: a task object, or its dict.
            branch: of a model with branches, the one that the task joins, or a new one, which starts as a copy of the
                first; None for the branch of its kind, opened where there is none.

        Raises:
            ValueError: a name is taken or not usable, or the backbone cannot have such a task.

        Example::

            model = MultiTaskModel.from_pretrained("me/ner-model")
            model.add_task("sentiment", SequenceClassification(label_names=["negative", "positive"]))
        """
        self._check_new(name)
        new = fitted(task_dict(name, task), self.config.backbone_config, self.config.subsampler)
        kind = head_class(new)
        check_input(new, self.config.backbone_config)
        head = None
        if num_labels(new):  # what is wrong with it is wrong here, while nothing has changed
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                head = kind(new, self.config.backbone_config, pooling=self.config.pooling).to(self.backbone.dtype)
            check_family(self, {name: head.eval()})
        self._check_inputs([*self.heads.values(), *([head] if head is not None else [])], f"Adding '{name}'")
        self.unfreeze_parameters()
        resting = self._unread_by_all()
        self.config.tasks = [*self.config.tasks, new]
        for parameter in () if self.config.adapters else resting:  # the backbone rests under its adapters
            parameter.requires_grad_(True)  # before a branch begins as a copy
        try:
            self._join_branch(name, branch)
        except ValueError:
            self.config.tasks = self.config.tasks[:-1]
            self._rest_unread()
            raise
        if head is not None:
            self._replace_heads([name])
        self._fit_backbone()
        self._fit_subsampler()
        self.initialize_weights()
        self._rest_unread()

    def add_labels(self, task: str, names: Sequence[str]) -> None:
        """Add labels to a trained head; the logits of those that it has, and of other tasks, stay bit-identical.

        The new labels come behind the others, and their weights begin as those of a fresh head. They have the class
        weight 1 and, in label sets, the threshold 0.5; what was fitted to the classes of single labels is removed, with
        a warning.

        Args:
            task: name of a task with ``label_names``.
            names: of the new labels.

        Raises:
            ValueError: there is no such task, it has no named labels, or a name is not usable.

        Example::

            model = MultiTaskModel.from_pretrained("me/sentiment-model")
            model.add_labels("sentiment", ["neutral"])
        """
        old, tasks, groups = self.config.task(task), self.config.tasks, self.config.label_groups
        head, new = self._head(task), more_labels(old, names)
        known = (groups or {}).get(task) or [len(old["label_names"])]
        self.config.tasks = [new if entry["name"] == task else entry for entry in tasks]
        self.config.label_groups = {**(groups or {}), task: [*known, len(names)]}
        self.unfreeze_parameters()
        try:
            self._replace_heads([task])
            take_labels(self._head(task), head)
        except ValueError:
            self.heads[task], self.config.tasks, self.config.label_groups = head, tasks, groups
            raise
        dropped = [f"`{key} = {old[key]}`" for key in OF_CLASSES if old.get(key) and not new.get(key)]
        if dropped:
            logger.warning(
                f"Task '{task}': {' and '.join(dropped)} belonged to the {len(old['label_names'])} classes that it "
                "had, and is removed. Evaluate again to fit what is fitted."
            )

    def remove_task(self, name: str) -> None:
        """Remove a task with its head; the logits of the other tasks stay bit-identical.

        Raises:
            ValueError: there is no such task, or no other.
        """
        self.config.task(name)
        if len(self.config.tasks) == 1:
            raise ValueError(f"Task '{name}' is the model's only one. Add another before you remove it.")
        self._check_inputs([head for key, head in self.heads.items() if key != name], f"Removing '{name}'")
        self.config.tasks = [task for task in self.config.tasks if task["name"] != name]
        self._rename_groups({name: None})
        if name in self.heads:
            del self.heads[name]
        self.drop_adapter(name)
        self._leave_branch(name)
        self._fit_backbone()
        self._fit_subsampler()
        self._rest_unread()

    def rename_task(self, old: str, new: str) -> None:
        """Give a task another name, which its metrics and, unless it names one, its dataset have from then on.

        Raises:
            ValueError: there is no such task, or the new name is taken or not usable.
        """
        self.config.task(old)
        self._check_new(new)
        self.config.tasks = [
            task | {"name": new if task["name"] == old else task["name"]} for task in self.config.tasks
        ]
        renamed = nn.ModuleDict({new if name == old else name: head for name, head in self.heads.items()})
        renamed.training = self.heads.training
        self.heads = renamed
        self._rename_groups({old: new})
        self.rename_adapter(old, new)
        self._rename_in_branches(old, new)

    def set_task(self, name: str, task: Settings) -> None:
        """Replace the dict of a task, and add its head where its labels were unknown until now.

        Raises:
            ValueError: the new dict would need a head of another size.
        """
        new = fitted({**task, "name": name}, self.config.backbone_config, self.config.subsampler)
        old = self.config.task(name)
        if name in self.heads and num_labels(new) != num_labels(old):
            raise ValueError(
                f"Task '{name}' has a head for {num_labels(old)} labels, and {num_labels(new)} are given. "
                "Keep the labels, or start from the backbone again."
            )
        if name in self.heads and new.get("layer") != old.get("layer"):
            raise ValueError(
                f"Task '{name}' has a head on `layer = {old.get('layer')!r}`, and {new.get('layer')!r} is given. Keep "
                "the layer, or start from the backbone again."
            )
        if head_class(new) is not head_class(old):
            raise ValueError(
                f"Task '{name}' has the type '{old['type']}', and '{new['type']}' is given. Keep the type."
            )
        if name in self.heads:
            self._head(name).adopt(new)
        self.config.tasks = [new if entry["name"] == name else entry for entry in self.config.tasks]
        if name not in self.heads and num_labels(new):
            self._replace_heads([name])
            self._fit_backbone()
            self._rest_unread()

    def unread_parameters(self, tasks: Iterable[str], *, layers: bool = True) -> Iterator[nn.Parameter]:
        """The parameters that none of some tasks reads: other heads and adapters, parts of the backbone.

        Args:
            tasks: their names.
            layers: whether layers of the backbone count.
        """
        readers = set(tasks)
        for name, head in self.heads.items():
            if name not in readers:
                yield from parameters_below(head)
        for name in self.config.adapters["tasks"] if self.config.adapters else ():
            if name not in readers:
                yield from adapter_parameters(self.backbone, name)
        for branch in self._branches_without(readers):
            yield from branch_parameters(self.backbone, branch)
        if self.subsampler is not None and not any(self.config.task(name).get("subsampler") for name in readers):
            yield from self.subsampler.parameters()
        heads = [cast(Head, self.heads[name]) for name in readers]
        yield from unread_backbone(self.backbone, heads)
        yield from unread_layers(self.backbone, heads) if layers else ()

    def set_pad_token_id(self, pad_token_id: int) -> None:
        """Tell backbone and heads which token is padding, for families whose checkpoints name none."""
        configs: list[PreTrainedConfig] = [self.config, self.config.backbone_config, self.backbone.config]
        texts = [head for head in self.heads.values() if not cast(Head, head).reads_audio]
        configs += [part.config for head in texts for part in head.modules() if isinstance(part, PreTrainedModel)]
        for config in configs:
            config.get_text_config().pad_token_id = pad_token_id

    def _head(self, name: str) -> Head:
        if name not in self.heads:
            raise ValueError(f"Task '{name}' has no head, because its labels are not known. Give it label_names.")
        return cast(Head, self.heads[name])

    def _rename_groups(self, names: Mapping[str, str | None]) -> None:
        """Follow a task to its new name in the groups of labels, or out of the model."""
        groups = {names.get(name, name): own for name, own in (self.config.label_groups or {}).items()}
        self.config.label_groups = {name: own for name, own in groups.items() if name is not None} or None

    def _check_new(self, name: str) -> None:
        check_task_name(name)
        if name in self.config.task_names:
            raise ValueError(
                f"The model has a task '{name}' already; its tasks are {', '.join(self.config.task_names)}. "
                "Choose another name."
            )

    def _check_inputs(self, heads: Iterable[nn.Module], what: str) -> None:
        """Check that other heads do not change the inputs of the backbone: Longformer's global attention."""
        if changed := self._changed_inputs(heads):
            raise ValueError(
                f"{what} would change the '{changed}' that all tasks share, and so what the others answer. "
                "Build the model with the tasks it is to have from the backbone."
            )

    def _changed_inputs(self, heads: Iterable[nn.Module]) -> str | None:
        """An input of the backbone that heads in place of those of the model would change."""
        ids = torch.zeros((1, 1), dtype=torch.long)

        def asked(heads: Iterable[nn.Module]) -> set[str]:
            modules = (module for head in heads for module in head.modules())
            return set(asked_inputs(self.config.backbone_config, modules, ids))

        return min(asked(heads) ^ asked(self.heads.values()), default=None)

    def _replace_heads(self, names: list[str]) -> None:
        """Build new heads for some tasks, on the device of the backbone, in its dtype or in float32."""
        device, dtype = self.backbone.device, torch.float32 if self.config.float32_heads else self.backbone.dtype
        for name in names:
            task = self.config.task(name)
            with torch.device("cpu"):
                head = build_head(self.config, task)
            self.heads[name] = head.to(device=device, dtype=dtype).train(self.training)
        self.initialize_weights()  # of the new modules only: the others are marked as set

    def _fit_backbone(self) -> None:
        """Give the backbone what the heads read, new parts if they are missing, and remove those that no head reads.

        What is there stays the same module, and what loads from the configuration has the same parts.
        """
        config, old = self.config.backbone_config, self.backbone
        kind = language_model(self.config)
        fresh = False
        before = {id(parameter) for parameter in fresh_parameters(self)} if self.config.adapters else set()
        if type(old) is not (language_model_class(config, kind) if kind else backbone_class(config)):
            with torch.device("meta"):
                new = build_backbone(config, language_model=kind, needs_pooler=False)
            self.backbone, fresh = refitted(old, new), True
        base = self.backbone.base_model
        heads = [cast(Head, head) for head in self.heads.values()]
        if any(head.needs_pooler for head in heads):
            if getattr(base, "pooler", None) is None:
                with torch.device("meta"):
                    take_pooler(base, build_backbone(config, language_model=None, needs_pooler=True))
                fresh = True
        elif (
            getattr(base, "pooler", None) is not None
            and len(heads) == len(self.config.task_names)
            and (kind is not None or backbone_kwargs(config, needs_pooler=False))
        ):
            base.pooler = None  # type: ignore[assignment]
        if fresh:
            if self.config.adapters:
                follow_backbone(self, old, before)
            materialise(self.backbone, device=old.device, dtype=old.dtype)
            self.backbone.train(self.training)
            self.post_init()  # sets the weights that are new, and ties

    def _init_weights(self, module: nn.Module) -> None:
        """Set the weights of a module that are not loaded."""
        if isinstance(module, Convolution | LayerMix | Projection | ScaledNorm):
            module.set_fresh()
        else:
            super()._init_weights(module)

    def _fit_subsampler(self) -> None:
        """Give the model a subsampler if a task reads recordings through one, and else none; its weights are not set.

        Raises:
            ValueError: the configuration has settings for one that no task reads.
        """
        settings = next((task["subsampler"] for task in self.config.tasks if task.get("subsampler")), None)
        if settings is None and self.config.subsampler is not None and self.subsampler is None:
            raise ValueError(
                "`subsampler` is for tasks of type automatic-speech-recognition on an encoder-decoder of texts, and "
                "the model has none. Leave it out, or add such a task."
            )
        self.config.subsampler = settings
        if settings is None:
            self.subsampler = None
            return
        dtype = torch.float32 if self.config.float32_heads else self.backbone.dtype
        if self.subsampler is None or (self.subsampler.norm.weight.is_meta and self.backbone.device.type != "meta"):
            made = Subsampler(settings, self.config.backbone_config)
            self.subsampler = made.to(device=self.backbone.device, dtype=dtype).train(self.training)

    def _unread_by_all(self) -> list[nn.Parameter]:
        below = any(cast(Head, head).layer is not None for head in self.heads.values())
        anything = below or self.config.backbone_config.is_encoder_decoder
        return list(self.unread_parameters(self.heads)) if anything else []

    def _rest_unread(self) -> None:
        """Freeze what no head reads, a decoder or parts of adapters, once all heads are known."""
        self.unfreeze_parameters()
        if len(self.heads) == len(self.config.task_names):
            adapters = unread_adapters(self) if self.config.adapters else ()
            for parameter in (*self._unread_by_all(), *adapters):
                parameter.requires_grad_(False)
