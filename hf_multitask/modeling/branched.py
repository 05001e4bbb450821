"""What branches add to a model: building them, adding tasks to them, and one branch as a backbone of its own."""

from collections.abc import Callable
from itertools import count

import torch
from transformers import PreTrainedModel

from .branches import AUTO, Branching, decision, heads_of, kind_of_branch, of_branch, resolved
from .config import check_branches
from .forks import fork
from .keywords import parameter_names
from .kinds import num_labels
from .native import reading_part
from .shared import SharedModel
from .trial import ANYWHERE, evaluating

_TOKENS, _ROWS = 8, 4
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_TOLERANCE_LOW = 0.1


class Branched(SharedModel):
    """The part of :class:`MultiTaskModel` that has branches.

    Attributes:
        branching_reason: why a new model has branches, or none, where ``auto`` has chosen.
    """

    branching_reason: str | None = None
    _unsettled = False
    _asked_layers: int | None = None
    _rest_unread: Callable[[], None]

    def add_branches(self, branches: object, branch_layers: int | None = None) -> None:
        """Give groups of tasks their own copies of the backbone's top layers; all logits stay as they are.

        Args:
            branches: names of tasks by branch, or ``"kind"``; see :meth:`MultiTaskModel.from_backbone`.
            branch_layers: how many layers a branch has; a third of all where None.

        Raises:
            ValueError: the arguments are not usable, or the model has branches or adapters already.
        """
        if self.config.branches is not None:
            raise ValueError(
                f"The model has the branches {', '.join(self.config.branches)} already. Add tasks to them with "
                "add_task(name, task, branch=...), or start from the backbone again."
            )
        if self.config.adapters is not None:
            raise ValueError("The model has adapters already. Add branches first, and adapters to them.")
        tasks, config = self.config.tasks, self.config.backbone_config
        found, layers, _ = resolved(branches, branch_layers, tasks, config)
        if found is None:
            return
        self._unsettled = False
        self._plan_branches(found, layers, None)  # what is wrong is wrong here, while nothing has changed
        self._branch_out()

    def settle_branches(self) -> None:
        """Choose again where ``auto`` has chosen while the labels of some tasks were unknown.

        All branches are copies of the pretrained layers until then, as a task without a head does not train.
        """
        if not self._unsettled:
            return
        asked, tasks, config = self._asked_layers, self.config.tasks, self.config.backbone_config
        frozen = self.config.adapters is not None or bool(getattr(self.backbone, "is_quantized", False))
        found, layers, reason = resolved(AUTO, asked, tasks, config, frozen=frozen)
        self._unsettled = False
        if found == self.config.branches:
            return
        if self.config.branches is not None:
            Branching(self.backbone, self.routing, self.config.branch_layers or 0).take_out()
            self.config.branches = self.config.branch_layers = None
            self._route_branches()
        self._plan_branches(found, layers, reason, asked=asked)
        self._branch_out()
        self._rest_unread()

    def _build_branches(self) -> None:
        """Put the branches of the configuration into a backbone that has none."""
        self.unfreeze_parameters()
        self._route_branches()
        if self.config.branches is not None:
            Branching(self.backbone, self.routing, self.config.branch_layers or 0).put(self.config.branches)

    def _plan_branches(
        self,
        branches: dict[str, list[str]] | None,
        layers: int | None,
        reason: str | None,
        *,
        asked: int | None = None,
    ) -> None:
        """Take branches into the configuration, where the backbone can have them.

        Args:
            branches: names of tasks by branch, or None.
            layers: how many layers a branch has.
            reason: why there are branches, or none, where ``auto`` has chosen; then a backbone that cannot have any is
                left without, unless the user gave a number of layers.
            asked: this number.

        Raises:
            ValueError: the backbone cannot have branches, or not so many layers of them.
        """
        self.branching_reason, self._asked_layers = reason, asked
        self._unsettled = reason is not None and not all(map(num_labels, self.config.tasks))
        if branches is None:
            return
        try:
            Branching(self.backbone, self.routing, layers or 0)
        except ValueError:
            if reason is None or asked is not None:
                raise
            self._give_up_branches()
            return
        self.config.branches, self.config.branch_layers = branches, layers

    def _branch_out(self) -> None:
        """Put the branches of the configuration into a pretrained backbone, and check that they are copies of it."""
        if self.config.branches is None:
            return
        wanted, layers = unbranched_states(self), self.config.branch_layers or 0
        self._build_branches()
        try:
            check_branching(self, wanted)
        except ValueError:
            Branching(self.backbone, self.routing, layers).take_out()
            self.config.branches = self.config.branch_layers = None
            self._route_branches()
            if self.branching_reason is None or self._asked_layers is not None:
                raise
            self._give_up_branches()

    def _give_up_branches(self) -> None:
        self._unsettled = False
        self.branching_reason = (
            f"no branches, which a backbone like {self.config.backbone_config.model_type} cannot have"
        )

    def _route_branches(self) -> None:
        branches = self.config.branches or {}
        self.routing.branches = {task: name for name, own in branches.items() for task in own}

    def _join_branch(self, task: str, branch: str | None) -> None:
        """Put a new task into a branch, or open one for it, which starts as a copy of the first.

        Args:
            task: the name of a task of the configuration.
            branch: its branch, new or not; None for that of a task that decides the same, or of its kind.

        Raises:
            ValueError: the name is not usable.
        """
        branches = self.config.branches
        if branch is not None and not isinstance(branch, str):
            raise ValueError(
                f"Parameter `branch` should be the name of one branch. Found `branch = {branch!r}`. Name the one that "
                "the task joins, or a new one."
            )
        if branches is None:
            if branch is not None:
                raise ValueError(
                    f"The model has no branches, so `branch = {branch!r}` names none. Leave it out, or call "
                    "add_branches first."
                )
            return
        name = self._branch_like(task) if branch is None else branch
        if branch is not None:
            self._unsettled = False
        joined = {**branches, name: [*branches.get(name, ()), task]}
        check_branches(joined, self.config.branch_layers, self.config.task_names)
        if name not in branches:
            Branching(self.backbone, self.routing, self.config.branch_layers or 0).open(name, next(iter(branches)))
        self.config.branches = joined
        self._route_branches()

    def _branch_like(self, task: str) -> str:
        own = self.config.task(task)
        others = {one["name"]: one for one in self.config.tasks if one["name"] != task}
        same = [name for name, one in others.items() if decision(one) == decision(own)]
        if same:
            return self.routing.branches[same[0]]
        kind, branches = kind_of_branch(own), self.config.branches or {}
        names = (kind if number == 1 else f"{kind}_{number}" for number in count(1))
        return next(  # unless a branch of another kind is called so
            name
            for name in names
            if name not in branches or any(kind_of_branch(others[one]) == kind for one in branches[name])
        )

    def _leave_branch(self, task: str) -> None:
        """Remove a task from its branch, and the branch with its last task."""
        if self.config.branches is None:
            return
        left = {name: [one for one in own if one != task] for name, own in self.config.branches.items()}
        for name in [name for name, own in left.items() if not own]:
            Branching(self.backbone, self.routing, self.config.branch_layers or 0).close(name)
            del left[name]
        self.config.branches = left
        self._route_branches()

    def _rename_in_branches(self, old: str, new: str) -> None:
        """Follow a task to its new name."""
        if self.config.branches is not None:
            branches = self.config.branches.items()
            self.config.branches = {name: [new if one == old else one for one in own] for name, own in branches}
            self._route_branches()

    def _branches_without(self, tasks: set[str]) -> list[str]:
        """The branches that none of some tasks reads."""
        branches = (self.config.branches or {}).items()
        return [name for name, own in branches if not tasks.intersection(own)]

    def _backbone_of(self, task: str) -> PreTrainedModel:
        """The backbone as a task reads it: a copy with the layers of its branch, or itself without branches."""
        return of_branch(self.backbone, self.routing.branches[task]) if self.routing.branches else self.backbone


def unbranched_states(model: SharedModel) -> torch.Tensor | None:
    """What a backbone without branches makes of some short texts; None where it reads no texts, or elsewhere."""
    if not _tries(model):
        return None
    try:
        with torch.no_grad(), evaluating(model.backbone):
            states: torch.Tensor = reading_part(model.backbone)(**_texts(model)).last_hidden_state
    except (AttributeError, IndexError, KeyError, TypeError, RuntimeError):
        return None  # of what reads other texts or none, which is said where reading is checked
    return states


def check_branching(model: SharedModel, wanted_BLD: torch.Tensor | None) -> None:
    """Check that branches that are copies of the backbone's layers make of texts what the layers made of them.

    Args:
        model: with fresh branches.
        wanted_BLD: of :func:`unbranched_states`.

    Raises:
        ValueError: they do not, as of layers that mix rows, or that have rows on another axis.
    """
    branches = model.config.branches
    if wanted_BLD is None or not branches or len(branches) == 1:
        return
    given, rows = _texts(model), len(wanted_BLD)
    tables = {}
    for number, own in enumerate(branches.values()):  # the last row for all branches, any other for one
        mine = [row for row in range(rows - 1) if row % len(branches) == number]
        tables[own[0]] = torch.tensor([*mine, rows - 1], device=wanted_BLD.device)
    heads = heads_of(model.config.backbone_config)
    parting, places = fork(model.routing, given, tables, list(tables), (), everywhere=False, heads=heads)
    problem: str | None = None
    try:
        with torch.no_grad(), evaluating(model.backbone), model.routing.forked(parting):
            found_ULD = reading_part(model.backbone)(**given).last_hidden_state
        for task, table in tables.items():
            difference = (found_ULD[(places or {})[task]] - wanted_BLD[table]).abs().max()
            size = wanted_BLD.abs().max().clamp(min=1e-6)
            if not difference <= size * _TOLERANCE.get(wanted_BLD.dtype, _TOLERANCE_LOW):
                problem = f"they differ by {float(difference):.1e}"
    except (AttributeError, IndexError, KeyError, TypeError, RuntimeError, ValueError) as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if problem is not None:
        raise ValueError(
            f"The backbone family '{model.config.backbone_config.model_type}' cannot have branches: copies of its "
            f"layers do not make the states that the layers make ({problem}). Set branches='none', or choose another "
            "backbone."
        )


def _tries(model: SharedModel) -> bool:
    part, config = reading_part(model.backbone), model.config.backbone_config
    here = all(weight.numel() and not weight.is_meta for weight in part.parameters())
    known = config._attn_implementation in ANYWHERE and not getattr(model.backbone, "is_quantized", False)
    return "input_ids" in parameter_names(part.forward) and here and known


def _texts(model: SharedModel) -> dict[str, torch.Tensor]:
    """As many short texts as the layers have heads, so that an axis of heads that is taken for rows is found."""
    config = model.config.backbone_config.get_text_config()
    rows = max(_ROWS, heads_of(model.config.backbone_config))
    ids_BL = torch.arange(rows * _TOKENS).view(rows, _TOKENS) % min(getattr(config, "vocab_size", 50), 50)
    mask_BL = (torch.arange(_TOKENS) < _TOKENS - torch.arange(rows).unsqueeze(1) % 3).long()
    device = model.backbone.device
    return {"input_ids": ids_BL.to(device), "attention_mask": mask_BL.to(device)}
