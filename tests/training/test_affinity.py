"""Cosines and affinities of a step: against autograd and a step by hand, and what measuring leaves as it was."""

import copy

import conflicts
import numpy as np
import pytest
import torch

from hf_multitask import MultiTaskTrainer
from hf_multitask.training.diagnosis.affinity import Measured, StepProbe, by_step, evenly

TASKS = ("stars", "pairs", "ner", "sentiment", "topics")  # the last two share rows


@pytest.fixture
def probed(backbone_path, tmp_path):
    """A trainer after one step that was measured, what was found, and the model as it was at that step."""

    def make(**args):
        trainer, _ = conflicts.train(backbone_path(), tmp_path / "out", TASKS, **args)
        before = copy.deepcopy(trainer.model)
        probe = StepProbe(trainer, [0], lookahead=True)
        trainer.add_callback(probe)
        trainer.train()
        (measured,) = probe.measured
        return trainer, measured, before

    return make


def test_cosines_and_norms_are_those_of_plain_autograd(probed):
    trainer, measured, before = probed()
    names = [name for name, _ in before.named_parameters() if name.startswith("backbone.")]
    jacobian, present = conflicts.matrix(trainer, names)
    assert list(measured.tasks) == present and measured.step == 1
    weights = torch.tensor([[trainer.task_weights[name]] for name in present])  # which the probe leaves out
    jacobian = jacobian / weights
    unit = jacobian / jacobian.norm(dim=1, keepdim=True)
    assert measured.norms() == pytest.approx(jacobian.norm(dim=1).numpy(), rel=1e-9)
    assert measured.cosines() == pytest.approx((unit @ unit.T).numpy(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_affinities_are_those_of_a_step_by_hand(probed, accumulation):
    trainer, measured, before = probed(
        gradient_accumulation_steps=accumulation, per_device_train_batch_size=24 // accumulation, learning_rate=0.05
    )
    batches = list(trainer.get_train_dataloader())[:accumulation]
    forwards = [forward for batch in batches for forward in batch["forwards"]]
    items = trainer.engine.open(batches)

    def losses(model):
        found = [model(**forward, num_items_in_batch=items).losses for forward in forwards]
        return {name: sum(one[name] for one in found if name in one) for name in measured.tasks}

    first = losses(before)
    for row, task in enumerate(measured.tasks):
        stepped = copy.deepcopy(before)
        shared = dict(before.backbone.named_parameters())
        found = torch.autograd.grad(first[task], list(shared.values()), retain_graph=True, allow_unused=True)
        with torch.no_grad():
            for name, gradient in zip(shared, found):
                if gradient is not None:
                    stepped.backbone.get_parameter(name).sub_(0.05 * gradient)
            after = losses(stepped)
        expected = [1 - (after[name] / first[name]).item() for name in measured.tasks]
        assert measured.affinity[row] == pytest.approx(expected, rel=1e-7, abs=1e-12)
    assert (measured.affinity.diagonal() > 0).all()  # a step along its own gradient lowers a loss


def test_measuring_leaves_the_training_as_it_is_to_the_bit(backbone_path, tmp_path):
    trained = []
    for measured_at in ([], [0, 2]):
        trainer, _ = conflicts.train(
            backbone_path(), tmp_path, trainer_class=MultiTaskTrainer, dtype=torch.float32, dropout=0.3, max_steps=4
        )
        probe = StepProbe(trainer, measured_at, lookahead=True)
        trainer.add_callback(probe)
        trainer.train()
        assert [one.step for one in probe.measured] == [step + 1 for step in measured_at]
        trained.append(trainer.model.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def test_dropout_is_the_same_before_and_after_the_step(backbone_path, tmp_path):
    trainer, _ = conflicts.train(
        backbone_path(), tmp_path, trainer_class=MultiTaskTrainer, dropout=0.5, learning_rate=1e-9, optim="sgd"
    )
    probe = StepProbe(trainer, [0], lookahead=True)
    trainer.add_callback(probe)
    trainer.train()
    assert abs(probe.measured[0].affinity).max() < 1e-6  # other draws would move a loss by per cents


def test_a_step_of_nothing_is_not_measured_for_affinity(backbone_path, tmp_path):
    trainer, _ = conflicts.train(backbone_path(), tmp_path, trainer_class=MultiTaskTrainer, warmup_steps=2, max_steps=3)
    probe = StepProbe(trainer, [0, 1], lookahead=True)
    trainer.add_callback(probe)
    trainer.train()
    first, second = probe.measured
    assert first.affinity is None and second.affinity is not None
    assert np.isnan(by_step(probe.measured, list(trainer.tasks), "affinity")[0]).all()


def test_tasks_that_a_step_lacks_are_not_a_number():
    two = Measured(1, ("c", "a"), np.ones(2), np.array([[4.0, 1.0], [1.0, 1.0]]), np.array([[0.4, 0.1], [0.2, 0.3]]))
    (cosines_KK,) = by_step([two], ["a", "b", "c"], "cosines")
    assert cosines_KK[0, 2] == cosines_KK[2, 0] == 0.5 and np.isnan(cosines_KK[1]).all()
    assert by_step([two], ["a", "b", "c"], "affinity")[0][2, 0] == 0.1
    norms_K = by_step([two], ["a", "b", "c"], "norms")[0]
    assert norms_K[2] == 2 and np.isnan(norms_K[1])


def test_measured_steps_lie_evenly():
    assert evenly(10, 5) == [1, 3, 5, 7, 9] and evenly(3, 20) == [0, 1, 2] and evenly(300, 20)[:2] == [7, 22]
