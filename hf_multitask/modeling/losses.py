"""Losses of classes, label sets and numbers, as the options of a task set them.

Legend: N items, C classes, L tokens of an item.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .aliases import Settings

IGNORE = -100
BALANCED = "balanced"
CLASS_LOSSES, NUMBER_LOSSES = ("cross_entropy", "focal"), ("mse", "huber", "mae")
# By loss, its arguments with their defaults: gamma of section 4.1 of the paper, delta of torch.
LOSS_KWARGS: dict[str, dict[str, float]] = {"focal": {"gamma": 2.0}, "huber": {"delta": 1.0}}


@dataclass(frozen=True)
class LossOptions:
    """The options of a task's loss.

    Args:
        task: its name, for messages.
        loss: one of the losses above; the first one of classes or numbers if None.
        gamma: of the focal loss.
        delta: of the Huber loss.
        smoothing: the share of the label that is spread over all classes.
        class_weights: of the C classes, in their order; None if they weigh the same.
        balanced: whether the class weights are still to be computed from training data.
        soft: whether labels are a probability per class.
    """

    task: object = None
    loss: str | None = None
    gamma: float = 2.0
    delta: float = 1.0
    smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    balanced: bool = False
    soft: bool = False

    def weights(self, dtype: torch.dtype, device: torch.device, *more: float) -> torch.Tensor | None:
        """The class weights, and more numbers behind them, as a tensor; None without weights.

        Raises:
            ValueError: they are not known yet.
        """
        if self.balanced:
            raise ValueError(
                f"Task '{self.task}': `class_weights = '{BALANCED}'` are computed from training data by "
                "MultiTaskTrainer. Give train_dataset, or a weight for each label."
            )
        if self.class_weights is None:
            return None
        return torch.tensor((*self.class_weights, *more), dtype=dtype).to(device, non_blocking=True)


def loss_options(task: Settings) -> LossOptions:
    """The options in the dict of a task."""
    given, kwargs = task.get("class_weights"), dict(task.get("loss_kwargs") or {})
    weights = None
    if isinstance(given, Mapping) and task.get("label_names"):
        weights = tuple(float(given.get(name, 1.0)) for name in task["label_names"])
    return LossOptions(
        task=task.get("name"),
        loss=task.get("loss"),
        gamma=float(kwargs.get("gamma", LOSS_KWARGS["focal"]["gamma"])),
        delta=float(kwargs.get("delta", LOSS_KWARGS["huber"]["delta"])),
        smoothing=float(task.get("label_smoothing") or 0.0),
        class_weights=weights,
        balanced=given == BALANCED,
        soft=bool(task.get("soft_labels")),
    )


def class_losses(logits: torch.Tensor, labels: torch.Tensor, options: LossOptions) -> torch.Tensor:
    r"""Cross-entropy or focal loss of every item.

    With the class weights :math:`w` and the wanted distribution :math:`q`, the label after smoothing, it is
    :math:`-\sum_c w_c q_c (1 - p_c)^\gamma \log p_c`, with :math:`\gamma = 0` for the cross-entropy: for one label, the
    focal loss with :math:`\alpha = w` (Focal Loss for Dense Object Detection, ICCV 2017, equation 5,
    https://arxiv.org/abs/1708.02002), and the loss of ``torch.nn.CrossEntropyLoss``.

    Args:
        logits: (N, C) or (N, C, L).
        labels: (N,) or (N, L), ``IGNORE`` where there is none; or probabilities (N, C).
        options: of the task.

    Returns:
        (N,) or (N, L), 0 where there is no label.
    """
    weights, focal = options.weights(logits.dtype, logits.device), options.loss == "focal"
    if not (focal or options.smoothing or labels.is_floating_point()):
        return F.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORE, reduction="none")
    log_p = logits.log_softmax(1)
    negative = _negative_targets(log_p, labels, options.smoothing)
    if weights is not None:
        negative *= weights if log_p.dim() == 2 else weights.unsqueeze(1)
    return (negative * _focus(log_p, options.gamma) * log_p if focal else negative * log_p).sum(1)


def _negative_targets(log_p: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The wanted distributions times -1, with the shape of ``log_p``; 0 where there is no label."""
    spread = smoothing / log_p.shape[1]
    if labels.is_floating_point():
        return labels.to(log_p.dtype) * (smoothing - 1) - spread
    negative = torch.full_like(log_p, -spread, requires_grad=False)
    negative.scatter_(1, labels.clamp(min=0).unsqueeze(1), smoothing - 1 - spread)
    return negative.masked_fill_(labels.lt(0).unsqueeze(1), 0.0)


def _focus(log_p: torch.Tensor, gamma: float) -> torch.Tensor:
    """(1 - p)^gamma, which has a finite gradient where p is 1."""
    return (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).tiny) ** gamma


def set_losses(logits_NC: torch.Tensor, targets_NC: torch.Tensor, options: LossOptions) -> torch.Tensor:
    """The mean over classes of the binary cross-entropies or focal losses, (N,); a class weight is that of a positive.

    Args:
        logits_NC: of the classes.
        targets_NC: 0 or 1 each.
        options: of the task.
    """
    weights_C = options.weights(logits_NC.dtype, logits_NC.device)
    if options.loss != "focal":
        losses_NC = F.binary_cross_entropy_with_logits(logits_NC, targets_NC, pos_weight=weights_C, reduction="none")
        return losses_NC.mean(1)
    losses_NC = F.binary_cross_entropy_with_logits(logits_NC, targets_NC, reduction="none")  # -log p of the target
    losses_NC = _focus(-losses_NC, options.gamma) * losses_NC
    if weights_C is not None:
        losses_NC = losses_NC * (1 + (weights_C - 1) * targets_NC)
    return losses_NC.mean(1)


def number_losses(outputs_NC: torch.Tensor, targets_NC: torch.Tensor, options: LossOptions) -> torch.Tensor:
    """The mean over outputs of squared, Huber or absolute errors, (N,)."""
    if options.loss == "huber":
        return F.huber_loss(outputs_NC, targets_NC, delta=options.delta, reduction="none").mean(1)
    loss = F.l1_loss if options.loss == "mae" else F.mse_loss
    return loss(outputs_NC, targets_NC, reduction="none").mean(1)


def label_weights(labels: torch.Tensor, options: LossOptions) -> torch.Tensor | None:
    """The class weight of every label, 0 where there is none or it is unknown; None without class weights.

    Args:
        labels: (N,) or (N, ...); or probabilities (N, C), whose weight is the mean of the class weights by them.
        options: of the task.
    """
    dtype = precise(labels.device)
    if labels.is_floating_point():
        weights_C = options.weights(dtype, labels.device)
        return None if weights_C is None else labels.to(dtype) @ weights_C
    table = options.weights(dtype, labels.device, 0.0)
    if table is None:
        return None
    last = len(table) - 1
    return table[labels.masked_fill(labels < 0, last).clamp(max=last)]


def precise(device: torch.device) -> torch.dtype:
    """The type in which a device sums what losses are divided by."""
    return torch.float32 if device.type == "mps" else torch.float64


def divisor(items: torch.Tensor) -> torch.Tensor:
    """What the summed loss of a task is divided by: the weight of its items, or 1 if it is 0, as is the loss then."""
    return items.masked_fill(items == 0, 1)
