"""The trainer of a diagnosis, and its prices: equal budgets, fresh models, and methods that take turns."""

import copy

import pytest
import torch

from hf_multitask import MultiTaskTrainer
from hf_multitask.hub.beside import noise
from hf_multitask.training.diagnosis.diagnosis import Diagnosis
from hf_multitask.training.diagnosis.findings import compared_in_words, uneven_in_words
from hf_multitask.training.diagnosis.prices import AGGREGATIONS, BALANCERS, PriceList
from hf_multitask.training.diagnosis.trainer import DiagnosingTrainer, quiet


@pytest.fixture
def diagnosing(build_model, arguments, data, tokenizer):
    """A trainer that writes down the input rows of every step."""

    class Recording(DiagnosingTrainer):
        def get_batch_samples(self, epoch_iterator, num_batches, device):
            found = super().get_batch_samples(epoch_iterator, num_batches, device)
            steps = self.engine.step.row_numbers
            rows = [(name, row) for numbers in steps for name, own in numbers.items() for row in own]
            self.seen.append(sorted(rows))
            return found

    def make(model=None, **kwargs):
        model = model or build_model(dropout=0.0)
        rest = {key: kwargs.pop(key) for key in ("compute_metrics",) if key in kwargs}
        trainer = Recording(
            args=arguments(**kwargs),
            model_init=lambda: copy.deepcopy(model),
            train_dataset=data(),
            eval_dataset=data(split="validation"),
            processing_class=tokenizer,
            **rest,
        )
        trainer.seen = []
        return trainer

    return make


def train(trainer, alone=None):
    trainer.seen, trainer.alone = [], alone
    trainer.train()
    trainer.alone = None
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def test_a_task_alone_has_the_rows_that_it_has_in_the_mixture_in_the_same_steps(diagnosing, build_model):
    trainer = diagnosing(max_steps=4)
    together = train(trainer)
    steps, rows = trainer.seen, trainer.rows_trained()
    begun = build_model(dropout=0.0).state_dict()
    for task, other in (("sentiment", "ner"), ("ner", "sentiment")):
        weights = train(trainer, task)
        assert trainer.seen == [[row for row in step if row[0] == task] for step in steps]
        assert trainer.rows_trained() == {task: rows[task], other: 0}
        moved = {name for name, value in weights.items() if not torch.equal(value, begun[name])}
        assert any(name.startswith("backbone.") for name in moved)
        assert {name.split(".")[1] for name in moved if name.startswith("heads.")} == {task}
    again = train(trainer)
    assert all(torch.equal(value, again[name]) for name, value in together.items())


def test_together_is_the_training_of_the_plain_trainer_to_the_bit(diagnosing, build_model, arguments, data, tokenizer):
    plain = MultiTaskTrainer(build_model(dropout=0.3), arguments(), train_dataset=data(), processing_class=tokenizer)
    plain.train()
    together = train(diagnosing(build_model(dropout=0.3)))
    assert all(torch.equal(value, together[name]) for name, value in plain.model.state_dict().items())


def test_prices_are_of_methods_that_change_no_weight(diagnosing, build_model):
    prices = PriceList(diagnosing(max_grad_norm=None), rounds=2)
    seconds, found = prices.measure()
    assert seconds > 0
    for name, value in prices.trainer.model.state_dict().items():
        assert torch.equal(value, build_model(dropout=0.0).state_dict()[name]), name
    shared = sum(one.numel() * 4 for one in prices.trainer.model.backbone.parameters())
    assert found[AGGREGATIONS, "mgda"].kept_mb == pytest.approx(2 * shared / 2**20)
    assert found[BALANCERS, "dwa"].kept_mb == 0 < found[BALANCERS, "gradnorm"].kept_mb < 0.1
    assert "too few to leave out 2" in found[AGGREGATIONS, "trimmed_mean"].problem
    assert found[BALANCERS, "random"].time > 0 and found[AGGREGATIONS, "random"].time > 0
    assert found[AGGREGATIONS, "pcd"].kwargs == {"primary": "sentiment"}


def test_a_comparison_that_fails_leaves_the_other_parts(diagnosing):
    def fail(prediction):
        raise KeyError("no such label")

    told = []
    trainer = diagnosing(compute_metrics={"ner": fail})
    report = Diagnosis(trainer, {}, parts=["cosines", "affinity", "single"], measured_steps=3, tell=told.append).run()
    assert list(report["failed"]) == ["single"] and "cosines" in report and "groups" in report
    assert any("no such label" in line for line in told)


def test_half_precision_is_too_coarse_for_affinities(diagnosing, build_model):
    trainer = diagnosing(build_model(dropout=0.0).to(torch.bfloat16))
    report = Diagnosis(trainer, {}, parts=["cosines", "affinity"], measured_steps=2).run()
    assert "half precision" in report["left_out"]["affinity"]
    assert report["cosines"]["mean"]["ner"]["ner"] == pytest.approx(1, abs=1e-6) and "affinity" not in report


def test_warm_up_is_cut_with_the_run(diagnosing):
    trainer = diagnosing(max_steps=1000, warmup_steps=100)
    Diagnosis(trainer, {}, parts=[])
    assert (trainer.args.max_steps, trainer.args.warmup_steps) == (300, 30)


def test_a_gradient_that_drowns_another_is_worth_a_word():
    words = uneven_in_words({"a": 9.0, "b": 1.0, "c": 2.0, "d": None})
    assert words.startswith("The gradient of a is 9 times as long as that of b: weigh it down with task_weights")
    assert uneven_in_words({"a": 4.0, "b": 1.0}) == uneven_in_words({"a": None}) == ""


def test_what_came_of_tasks_is_told_beyond_the_noise_of_their_rows():
    single = {
        "together": {"a": 0.9, "b": 0.5, "c": 0.7},
        "alone": {"a": 0.8, "b": 0.7, "c": 0.69},
        "noise": dict.fromkeys("abc", 0.02),
        "metric": dict.fromkeys("abc", "accuracy"),
    }
    words = compared_in_words(single)
    assert "is higher together for a (0.100 accuracy) and alone for b (0.200 accuracy). It is more" in words
    assert "no task differs" in compared_in_words({**single, "noise": dict.fromkeys("abc", 0.2)})
    assert noise(0.5, 100) == 0.05 and noise(1.0, 100) == noise(7.0, 100) == 0.01


def test_evaluations_stay_where_training_reads_them():
    assert quiet({"eval_strategy": "epoch"})["eval_strategy"] == "no"
    assert "eval_strategy" not in quiet({"balancing": "coba"})
    assert "eval_strategy" not in quiet({"lr_scheduler_type": "reduce_lr_on_plateau"})
