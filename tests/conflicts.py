"""Training runs with an aggregator, and the whole Jacobian of the same rows beside them."""

import mixtures
import torch
from building import build
from torch import nn
from transformers import AutoTokenizer, TrainerCallback

from hf_multitask import MultiTaskTrainer
from hf_multitask.aggregation import GramianAggregator  # noqa: F401 - for the tests

# Rows of one task each, and rows that two tasks share.
APART = ("stars", "pairs", "ner")
SHARED = mixtures.KINDS


class Gradients(TrainerCallback):
    """The gradients of every step, before the optimizer uses them."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        named = getattr(model, "module", model).named_parameters()
        self.steps.append({name: one.grad.clone() for name, one in named if one.grad is not None})


class JacobianTrainer(MultiTaskTrainer):
    """Has autograd compute the gradient of each task over the rows of a step, one by one, before it trains on them."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.model.train()
        if self.accelerator.gradient_state.sync_gradients or not hasattr(self, "jacobian"):
            self.jacobian = {}
        for part in inputs["forwards"]:
            outputs = self.model(**part, num_items_in_batch=num_items_in_batch)
            for name, loss in outputs.losses.items():
                named = {key: one for key, one in self.model.named_parameters() if one.requires_grad}
                found = torch.autograd.grad(
                    self.task_weights[name] * loss, list(named.values()), retain_graph=True, allow_unused=True
                )
                sums = self.jacobian.setdefault(name, {})
                for key, gradient in zip(named, found, strict=True):
                    if gradient is not None:
                        sums[key] = sums.get(key, 0) + gradient
        return super().training_step(model, inputs, num_items_in_batch)


def matrix(trainer, names):
    """The whole Jacobian (K, P) of the shared parameters for the tasks of the last step, and the tasks."""
    present = [name for name in trainer.tasks if name in trainer.jacobian]
    parameters = dict(trainer.model.named_parameters())
    rows = [
        torch.cat([trainer.jacobian[task].get(name, torch.zeros_like(parameters[name])).flatten() for name in names])
        for task in present
    ]
    return torch.stack(rows), present


def train(path, output, tasks=APART, trainer_class=JacobianTrainer, aggregator=None, change=None, **args):
    """Train in one step of 24 rows or more; the trainer, and the gradients of every step."""
    made = mixtures.make_tasks(tasks)
    kept = {"dropout": args.pop("dropout", 0.0), "branches": args.pop("branches", None)}
    model = build(path, made, **kept)
    model = model.to(args.pop("dtype", torch.float64))
    if change is not None:
        change(model)
    sizes = {"reviews": 30, "stars": 20, "pairs": 20, "wiki": 20}
    values = {
        "output_dir": str(output),
        "per_device_train_batch_size": 24,
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "learning_rate": 1e-3,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "sampling": "uniform",
        "task_weights": {"pairs": 2.5},
        **args,
    }
    gradients = Gradients()
    trainer = trainer_class(
        model,
        mixtures.MultiTaskTrainingArguments(**values),
        train_dataset=mixtures.make_data(
            {mixtures.DATASET[task]: sizes[mixtures.DATASET[task]] for task in tasks}, 0.2, seed=0
        ),
        processing_class=AutoTokenizer.from_pretrained(path),
        callbacks=[gradients],
        aggregator=aggregator,
    )
    return trainer, gradients.steps


class RowMixer(nn.Module):
    """Adds to the states of every row a bit of the mean over all rows, as no backbone should."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        states = self.inner(*args, **kwargs)
        return states + 0.1 * states.mean(0, keepdim=True)


class BatchNorm(nn.Module):
    """A layer with weights that nobody knows how to tell apart by rows."""

    def __init__(self, inner, width):
        super().__init__()
        self.inner = inner
        self.norm = nn.BatchNorm1d(width, dtype=torch.float64)

    def forward(self, *args, **kwargs):
        states = self.inner(*args, **kwargs)
        return self.norm(states.transpose(1, 2)).transpose(1, 2)
