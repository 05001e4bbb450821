"""The training loss of a run that was interrupted is that of the run that was left alone."""

import pytest
from stopping import StopAt

from hf_multitask import MultiTaskTrainer


@pytest.fixture
def build(build_model, data, arguments, tokenizer, tmp_path):
    def make(name, **kwargs):
        given = {"max_steps": 8, "logging_steps": 3, "save_strategy": "steps", "save_steps": 4, "balancing": "dwa"}
        callbacks = kwargs.pop("callbacks", None)
        return MultiTaskTrainer(
            build_model(),
            arguments(output_dir=str(tmp_path / name), **{**given, **kwargs}),
            train_dataset=data(),
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return make


def logged(trainer):
    times = ("runtime", "per_second")
    return [
        {key: value for key, value in entry.items() if not any(time in key for time in times)}
        for entry in trainer.state.log_history
    ]


def test_train_loss_and_logs_after_a_resume_cover_the_whole_run(build):
    alone = build("alone")
    output = alone.train()
    losses = [entry["loss"] for entry in alone.state.log_history if "loss" in entry]
    assert len(losses) == 2 and output.training_loss == output.metrics["train_loss"] > 0
    build("stopped", callbacks=[StopAt(4)]).train()  # between two logs
    resumed = build("stopped")
    found = resumed.train(resume_from_checkpoint=True)
    assert found.training_loss == found.metrics["train_loss"] == output.training_loss
    assert logged(resumed)[:-1] == logged(alone)[:-1]
    assert logged(resumed)[-1]["train_loss"] == output.training_loss
    again = build("stopped").train(resume_from_checkpoint=True)  # of a run that is over
    assert again.training_loss == output.training_loss


def test_train_loss_is_the_mean_of_all_steps(build):
    trainer = build("every", logging_steps=1, max_steps=5, save_strategy="no")
    output = trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert output.training_loss == pytest.approx(sum(losses) / 5)
