"""Training runs that a test process, and ranks that are forked from a server, make of one description each.

On ranks, many descriptions run in one process group: starting the processes is what takes time.
"""

import gc
import hashlib
import json
import os
import random
from pathlib import Path

import mixtures
import sharding
import torch
from mixtures import DATASET, KINDS, TEXTS, make_tasks
from safetensors.torch import save_file
from sending import Sent
from stopping import StopAt
from transformers import TrainerCallback, TrainingArguments

from hf_multitask import MultiTaskTrainer
from hf_multitask.data import group_tasks
from hf_multitask.modeling.adapters import adapter_of
from hf_multitask.modeling.branches import branch_of
from hf_multitask.modeling.config import SHARED
from hf_multitask.tasks import build_task

ADAPTERS = {"lora": {"r": 2, "init_lora_weights": False}, "task_lora": {"r": 3, "init_lora_weights": False}}
# Its name in transformers 5.17, where that is the only one.
OLD = "activation_checkpointing" not in TrainingArguments.__dataclass_fields__
CHECKPOINTING = {"gradient_checkpointing" if OLD else "activation_checkpointing": True}
SAMPLINGS = [
    ("proportional", None),
    ("uniform", None),
    ("temperature", {"temperature": 3, "cap": 30}),
    ("annealed", {"end": 0.2}),
    ("fixed", None),
]


def describe(name, *, tasks=KINDS, sizes=None, missing=0.4, rows=32, seed=0, dtype="float64", adapters=None, **args):
    """One description: tasks, rows of each dataset, missing labels, rows of a step, adapters, training arguments."""
    # Of KINDS 67 rows: two steps of 32 and one of 3.
    sizes = sizes or {"reviews": 30, "stars": 9, "pairs": 17, "wiki": 11, "questions": 9, "choices": 8, "tones": 20}
    used = {DATASET[task] for task in tasks}
    return {
        "name": name,
        "tasks": list(tasks),
        "sizes": {dataset: size for dataset, size in sizes.items() if dataset in used},
        "missing": missing,
        "rows": rows,
        "seed": seed,
        "dtype": dtype,
        "adapters": adapters or {},
        "args": {"max_steps": 4, "task_weights": {tasks[0]: 2.5}, **args},
    }


def draw(seed, rows_per_step):
    """A mixture drawn at random, as a description."""
    chance = random.Random(seed)
    every = KINDS + TEXTS
    tasks = sorted(chance.sample(every, chance.randint(2, len(KINDS))), key=every.index)
    used = sorted({DATASET[task] for task in tasks})
    sampling, kwargs = chance.choice(SAMPLINGS)
    if sampling == "fixed":
        # A dataset whose tasks read different texts of it makes a group for each, named after the task.
        groups = group_tasks({name: build_task(name, task.to_dict()) for name, task in make_tasks(tasks).items()})
        kwargs = {"rates": {group: chance.choice([0.2, 1.0, 3.0]) for group in groups}}
    return describe(
        f"drawn-{seed}",
        tasks=tasks,
        sizes={dataset: chance.choice([2, 5, 13, 40]) for dataset in used},
        missing=chance.choice([0.0, 0.3, 0.8]),
        rows=rows_per_step,
        seed=seed,
        max_steps=chance.randint(3, 5),
        sampling=sampling,
        sampling_kwargs=kwargs,
        task_weights={task: chance.choice([0.3, 1.0, 4.0]) for task in tasks},
        weight_decay=chance.choice([0.0, 0.1]),
        max_grad_norm=chance.choice([0.0, 1.0]),
        freeze=chance.choice([None, None, None, ["backbone"], [tasks[0]]]),
    )


class Recorder(TrainerCallback):
    """Which heads, adapters of single tasks, and branches have a gradient when the optimizer steps."""

    def __init__(self):
        self.trained, self.adapted, self.branched = [], [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = getattr(model, "module", model)
        trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
        self.trained.append([name for name in model.heads if any(one.startswith(f"heads.{name}.") for one in trained)])
        adapted = {adapter_of(name) for name in trained} - {None, SHARED}
        self.adapted.append([name for name in model.heads if name in adapted])
        self.branched.append(sorted({branch_of(name) for name in trained} - {None}))


class RecordingTrainer(MultiTaskTrainer):
    """Writes down what every step saw, as loaded: the labelled items' rows, the tokens, and the denominators."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rows, self.tokens, self.denominators = [], [], []

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batch_samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        forwards = [forward for batch in batch_samples for forward in batch["forwards"]]
        self.rows.append(
            sorted(
                f"{task} {read_by(forward)[row][forward['attention_mask'][row] == 1].tolist()}"
                for forward in forwards
                for task, rows in forward["task_rows"].items()
                for row in rows[rows >= 0].tolist()
            )
        )
        self.tokens.append(sum(int(forward["attention_mask"].sum()) for forward in forwards))
        self.denominators.append({task: round(float(count), 6) for task, count in items.items()})
        return batch_samples, items


def read_by(forward):
    """The tokens of a forward pass, or the frames of recordings."""
    return forward["input_ids"] if "input_ids" in forward else forward["input_features"]


def relative_difference(ones, others):
    """The norm of the difference over all weights, relative to that of the weights."""
    difference = torch.cat([(ones[name].double() - others[name].double()).flatten() for name in ones]).norm()
    return float(difference / torch.cat([value.double().flatten() for value in ones.values()]).norm())


def differ(description, what):
    """The description of a rank that has something else than the others."""
    changed = json.loads(json.dumps(description))
    if what == "rows":
        changed["sizes"]["wiki"] += 9
    elif what == "contents":
        changed["seed_of_data"] = 1
    elif what == "tasks":
        changed["max_length"] = 30
    elif what == "evaluation":
        changed["evaluation_rows"] = 1
    else:
        changed["args"]["learning_rate"] = 2e-3
    return changed


def build(*layout):
    """A trainer that records what it sees, and a callback that records what trains."""
    recorder = Recorder()
    return mixtures.build(*layout, trainer_class=RecordingTrainer, callbacks=[recorder]), recorder


def run(description, backbone, output, batch, accumulation):
    """Train, stopped and resumed where the description says so; the weights, and what was recorded on this rank."""
    layout = backbone, Path(output) / description["name"], batch, accumulation
    trainer, recorder = build(description, *layout)
    sent = Sent() if description.get("counts") else None
    if sent is not None:
        trainer.add_callback(sent)
    if stop := description.get("stop"):
        trainer.add_callback(StopAt(stop))
        trainer.train()
        trainer, recorder = build(description, *layout)
        torch.manual_seed(99)
    trainer.train(resume_from_checkpoint=bool(stop))
    weights = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    together = hashlib.sha256(b"".join(value.numpy().tobytes() for _, value in sorted(weights.items())))
    return weights, {
        "world": trainer.args.world_size,
        "digest": together.hexdigest(),
        "rows": trainer.rows,
        "tokens": trainer.tokens,
        "denominators": trainer.denominators,
        "trained": recorder.trained,
        "adapted": recorder.adapted,
        "branched": recorder.branched,
        "branches": trainer.model.config.branches,
        "sent": [] if sent is None else sent.sizes(),
        "finished": trainer.progress.finished,
        "non_finite": trainer.progress.non_finite,
        "balancing": trainer.engine.weights.state_dict()["balancing"],
        "log": [
            {
                key: value
                for key, value in entry.items()
                if "runtime" not in key and "per_second" not in key and key != "total_flos"
            }
            for entry in trainer.state.log_history
        ],
    }


def main(jobs, backbone, folder):
    """Run every job, a description with a batch of a device and an accumulation, on this rank."""
    rank = int(os.environ["RANK"])
    for number, job in enumerate(json.loads(Path(jobs).read_text())):
        layout = Path(folder) / "out", job["batch"], job["accumulation"]
        if "differ" in job:
            description = differ(job["description"], job["differ"]) if rank else job["description"]
            try:
                run(description, backbone, *layout)
            except ValueError as problem:
                (Path(folder) / f"{number}-{rank}.json").write_text(json.dumps(str(problem)))
            continue
        weights, record = run(job["description"], backbone, *layout)
        if rank == 0:
            save_file(weights, Path(folder) / f"{number}.safetensors")
        (Path(folder) / f"{number}-{rank}.json").write_text(json.dumps(record))
    if int(os.environ["WORLD_SIZE"]) == 2:
        for balancing in sharding.BALANCINGS:
            weights, present = sharding.train(backbone, Path(folder) / "sharded", balancing, 2)
            save_file(weights, Path(folder) / f"sharded-{balancing}-{rank}.safetensors")
            (Path(folder) / f"sharded-{balancing}-{rank}.json").write_text(json.dumps(present))
        gc.collect()
        torch.distributed.destroy_process_group()  # before the interpreter ends, as the trainer does; see ranks.py


def work(words, *_):
    """As a run of ranks that are forked from a server."""
    main(*words)
