"""Training with the weights of the model sharded over processes by ``fully_shard``, which Accelerate does on GPUs only."""

from pathlib import Path

import torch
import torch.distributed as dist
from mixtures import make_data, make_tasks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoTokenizer
from transformers.models.bert.modeling_bert import BertLayer

from hf_multitask import MultiTaskModel, MultiTaskTrainingArguments
from hf_multitask.balancing import build_balancer
from hf_multitask.data import MixtureCollator
from hf_multitask.training.plan import Plan
from hf_multitask.training.preparation.tasks import build_tasks, resolve_tasks
from hf_multitask.training.runtime import PlainRuntime
from hf_multitask.training.step.engine import build_engine
from hf_multitask.training.step.update import UpdateBuilder
from hf_multitask.training.step.weights import TaskWeights

# Few rows of 'ner': in some steps only one of two ranks has any.
TASKS, SIZES, ROWS, STEPS = ("stars", "sentiment", "ner"), {"stars": 40, "reviews": 30, "wiki": 5}, 16, 4
BALANCINGS = {"none": None, "uncertainty": None, "famo": {"exact": True}, "branches": None}  # the last without any
BRANCHES = {task: [task] for task in TASKS[::-1]}  # the first of which is idle on one rank


class ShardedRuntime(PlainRuntime):
    """The runtime of a Trainer with FSDP, without Trainer."""

    engine = "FSDP"

    def __init__(self, args, model, optimizer):
        super().__init__(args, model, optimizer)
        self.wrapped, self.rank, self.processes = model, dist.get_rank(), dist.get_world_size()
        self.rows_per_step *= self.processes
        self.is_main = self.rank == 0

    def reduce(self, tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value):
        values = [None] * self.processes
        dist.all_gather_object(values, value)
        return values

    def on_any(self, happened):
        return any(self.gather(happened))


def shard(model):
    """Shard a model's layers, its heads and the rest over all processes, of which each holds a part."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layers = [module for module in model.backbone.modules() if isinstance(module, BertLayer)]  # also those of branches
    for module in (*layers, *model.heads.values(), model):
        fully_shard(module, mesh=mesh)
    parameters = list(model.parameters())
    assert sum(one.to_local().numel() for one in parameters) < 0.6 * sum(one.numel() for one in parameters)


def train(backbone, folder, balancing, ranks=1):
    """A few steps; the weights, and by step the tasks of which this process has rows."""
    torch.manual_seed(1)
    names, branches = (list(BRANCHES), BRANCHES) if balancing == "branches" else (TASKS, "none")
    balancing = "none" if branches is BRANCHES else balancing
    model = MultiTaskModel.from_backbone(backbone, tasks=make_tasks(names), dropout=0.0, branches=branches).double()
    args = MultiTaskTrainingArguments(
        str(Path(folder) / balancing), per_device_train_batch_size=ROWS // ranks, max_steps=STEPS, use_cpu=True,
        report_to="none",
    )  # fmt: skip
    if ranks > 1:
        shard(model)
        model.reads_in_parts = False
    runtime = (ShardedRuntime if ranks > 1 else PlainRuntime)(
        args, model, torch.optim.AdamW(model.parameters(), lr=1e-3)
    )
    rows, tokenizer = make_data(SIZES, 0.2, 0), AutoTokenizer.from_pretrained(backbone)
    tasks = resolve_tasks(build_tasks(model.config, None), [rows])
    plan = Plan(runtime, tasks, tokenizer, None)
    plan.read(rows)
    engine = build_engine(
        runtime,
        {name: task.source for name, task in tasks.items()},
        list(plan.data.sizes),
        weights=TaskWeights(build_balancer(balancing, BALANCINGS[balancing]), list(tasks), {"stars": 2.5, "sentiment": 1.0, "ner": 1.0}),
        update=UpdateBuilder(runtime, list(tasks), None).build(),
    )  # fmt: skip
    runtime.loss = engine.loss
    present = []
    for batch in list(plan.loader(MixtureCollator(tokenizer, tasks, seed=0)))[:STEPS]:
        present.append(sorted({task for forward in batch["forwards"] for task in forward["labels"]}))
        runtime.optimizer.zero_grad()
        items = engine.open([batch])
        engine.run(model, batch["forwards"], items)
        runtime.optimizer.step()
        engine.after_update()
        runtime.step += 1
    weights = model.state_dict()  # which shards again what a pass without gradients has left whole
    whole = {name: value.full_tensor() if ranks > 1 else value for name, value in weights.items()}
    return {name: value.detach().clone() for name, value in whole.items()}, present
