"""Trainings that end early, to be gone on from."""

from transformers import TrainerCallback


class StopAt(TrainerCallback):
    """Stops after an optimizer step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
