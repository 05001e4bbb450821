"""Hyperparameter search over the arguments of a mixture, with fresh models."""

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import HPSearchBackend

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, TokenClassification

optuna = pytest.importorskip("optuna", reason="the extra 'optuna' is not installed")


@pytest.fixture
def build(backbone_path, data, arguments, tokenizer):
    def make(**kwargs):
        def model_init():
            tasks = {"sentiment": SequenceClassification(), "ner": TokenClassification()}  # labels come from the data
            return MultiTaskModel.from_backbone(backbone_path(), tasks=tasks, dropout=0.0)

        return MultiTaskTrainer(
            args=arguments(eval_strategy="epoch", **kwargs),
            model_init=model_init,
            train_dataset=data(),
            eval_dataset=data(9, 7, "validation"),
            processing_class=tokenizer,
        )

    return make


def test_every_training_starts_from_the_same_fresh_model(build):
    trainer = build()
    first = trainer.train().training_loss
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.train().training_loss == first
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())


def test_search_reaches_arguments_by_task_and_sampling(build):
    trainer = build(max_steps=1)
    runs = []

    def space(trial):
        return {
            "learning_rates": {"ner": trial.suggest_float("ner", 1e-3, 1e-2)},
            "task_weights": {"ner": trial.suggest_float("weight", 0.5, 2)},
            "sampling": trial.suggest_categorical("sampling", ["uniform", "annealed"]),
            "freeze": [trial.suggest_categorical("freeze", ["backbone", "sentiment"])],
        }

    class Note(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, optimizer=None, **kwargs):
            frozen = {name.split(".")[0] for name, value in model.named_parameters() if not value.requires_grad}
            rates = {group["initial_lr"] for group in optimizer.param_groups}
            runs.append((trainer.task_weights["ner"], type(trainer.plan.rates).__name__, frozen, rates))

    trainer.add_callback(Note)
    grid = {"ner": [2e-3], "weight": [0.5, 2], "sampling": ["uniform", "annealed"], "freeze": ["backbone", "sentiment"]}
    best = trainer.hyperparameter_search(space, n_trials=8, backend="optuna", sampler=optuna.samplers.GridSampler(grid))
    assert best.hyperparameters.keys() == grid.keys() and best.objective >= 0
    assert {(weight, kind) for weight, kind, _, _ in runs} == {
        (weight, kind) for weight in (0.5, 2) for kind in ("Uniform", "Annealed")
    }
    for _, _, frozen, rates in runs:
        assert frozen in ({"backbone"}, {"heads"})
        assert rates == {1e-3, 2e-3}


def test_search_reaches_the_balancing(build):
    trainer = build()
    runs = []

    class Note(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            balancer = trainer.engine.weights.balancer
            runs.append(None if balancer is None else (type(balancer).__name__, balancer.state_dict()))

    def space(trial):
        balancing = trial.suggest_categorical("balancing", ["none", "uncertainty", "dwa"])
        return {"balancing": balancing, "balancing_kwargs": {"interval": 1} if balancing == "dwa" else {}}

    trainer.add_callback(Note)
    grid = optuna.samplers.GridSampler({"balancing": ["none", "uncertainty", "dwa"]})
    trainer.hyperparameter_search(space, n_trials=3, backend="optuna", sampler=grid)
    assert {run and run[0] for run in runs} == {None, "Uncertainty", "DWA"}
    assert all(run[1]["steps"] == 3 for run in runs if run and run[0] == "DWA")
    with pytest.raises(ValueError, match=r"names 'nre', which is not a task. Did you mean 'ner'\?"):
        mistaken = {"balancing": "fixed", "balancing_kwargs": {"weights": {"nre": 2.0}}}
        trainer.hyperparameter_search(lambda trial: mistaken, n_trials=1, backend="optuna")


def test_a_trial_is_resumed_with_what_its_own_arguments_remember(build, tmp_path):
    def run(resume=None):
        trainer = build(max_steps=6, save_strategy="steps", save_steps=3)  # no balancing but the trial's
        trainer.hp_search_backend, trainer.compute_objective = HPSearchBackend.OPTUNA, lambda metrics: 0.0
        trainer.hp_space = lambda trial: {"balancing": trial.suggest_categorical("balancing", ["dwa"])}
        trainer.train(resume_from_checkpoint=resume, trial=optuna.trial.FixedTrial({"balancing": "dwa"}))
        return trainer

    alone = run()
    checkpoint = next(tmp_path.rglob("checkpoint-3"))
    resumed = run(str(checkpoint))
    assert resumed.engine.weights.state_dict() == alone.engine.weights.state_dict()
    assert resumed.progress.seen == alone.progress.seen and resumed.progress.rows == alone.progress.rows
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in alone.model.state_dict().items())


def test_mistakes_are_named(build, build_model):
    with pytest.raises(ValueError, match=r"takes either a model or a model_init. Give one of them."):
        MultiTaskTrainer(args=build().args, processing_class=build().processing_class)
    with pytest.raises(ValueError, match=r"`task_weights` names the task 'nre'.* Did you mean 'ner'?"):
        build().hyperparameter_search(lambda trial: {"task_weights": {"nre": 1.0}}, n_trials=1, backend="optuna")
    with pytest.raises(ValueError, match=r"Rows are chosen when the trainer is built"):
        build().hyperparameter_search(lambda trial: {"max_train_samples": 4}, n_trials=1, backend="optuna")
