"""What processes send to each other in an optimizer step: counted, and from the sizes of the model."""

import math

import torch
from transformers import TrainerCallback

FLOAT, NUMBER = 4, 8  # bytes of a gradient in float32, and of a number that the trainer adds up or of an integer
ALIGNED, CHUNK = 64, 8192  # entries to multiples of which parameters begin, and buffers end
BYTES = {"float": 4, "int": 4, "double": 8, "long int": 8}  # by the profiler's names

# What the methods send beyond the gradients of the summed loss, or in place of them; see `in_step`.
METHODS = {"plain": {}, "famo": {"losses": 2}, "gradnorm": {"matrix": 0}, "pcgrad": {"losses": 1, "aggregates": True}}


class Sent(TrainerCallback):
    """Counts the bytes of all collectives from the beginning of the second step to that of the third."""

    def __init__(self):
        self.profile = torch.profiler.profile(record_shapes=True, activities=[torch.profiler.ProfilerActivity.CPU])

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.profile.start()
        if state.global_step == 2:
            self.profile.stop()

    def sizes(self):
        """Of every collective, bytes in order."""
        events = [event for event in self.profile.events() if event.name.startswith("gloo:")]
        assert all(len(event.input_shapes) == 1 for event in events), events
        return [math.prod(event.input_shapes[0]) * BYTES[event.input_dtypes[0]] for event in events]


def rounded_up(entries, grain):
    return -(-entries // grain) * grain


def in_step(shared, heads, buffers, datasets, *, tables=(), losses=0, matrix=0, aggregates=False):
    """Bytes that a process puts into the collectives of one optimizer step, in float32.

    Args:
        shared: shapes of the shared parameters.
        heads: by task, the shapes of its own.
        buffers: of the model, bytes.
        datasets: how many.
        tables: shapes of the embeddings among the shared parameters.
        losses: how often a method reads the losses, beside once after the backward pass.
        matrix: size of the matrix whose gradients GradNorm reads.
        aggregates: whether there is a gradient for every task.
    """
    own = [shape for shapes in heads.values() for shape in shapes]
    tasks, weights = len(heads), FLOAT * sum(map(math.prod, own))
    # Items, labelled rows and soft labels by task, and rows by dataset; losses; whether a process is to end.
    numbers = NUMBER * (3 * tasks + datasets + (1 + losses) * tasks + 1)
    if aggregates:
        # Which parameters have gradients, dense or of some rows; a gradient of each task, of each table by itself.
        others = list(shared)
        for shape in tables:
            others.remove(shape)
        sizes = [sum(rounded_up(math.prod(shape), ALIGNED) for shape in others), *map(math.prod, tables)]
        return numbers + weights + FLOAT * (2 * len(shared) + tasks * sum(rounded_up(size, CHUNK) for size in sizes))
    # Which parameters have gradients; the buffers of rank 0; GradNorm's matrix for every task.
    used = FLOAT * (len(shared) + len(own))
    return numbers + weights + FLOAT * sum(map(math.prod, shared)) + used + buffers + FLOAT * tasks * matrix


def sent(collective, ranks):
    """Bytes that each of some ranks sends where they reduce in a ring."""
    return 2 * (ranks - 1) * collective / ranks
