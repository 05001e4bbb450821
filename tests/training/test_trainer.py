import copy
import json
import math
from collections.abc import MutableMapping, MutableSequence

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback, pipeline

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification, TokenClassification
from hf_multitask.tasks import build_task


@pytest.fixture
def build(build_model, data, arguments, tokenizer):
    def make(model=None, args=None, **kwargs):
        kwargs.setdefault("train_dataset", data())
        return MultiTaskTrainer(
            model or build_model(), args or arguments(), **{"processing_class": tokenizer, **kwargs}
        )

    return make


def test_labels_left_out_are_read_from_the_data_training_first(build, build_model, tmp_path):
    def rows(*labels):
        return Dataset.from_list([{"text": f"text {label}", "label": label} for label in labels])

    model = build_model(tasks={"topic": SequenceClassification()})
    trainer = build(
        model,
        train_dataset={"topic": rows("sport", "art", "sport", "art")},
        eval_dataset={"topic": rows("art", "zoo", "music")},
    )
    assert model.config.task("topic")["label_names"] == ["art", "sport", "music", "zoo"]
    trainer.train()
    trainer.save_model(str(tmp_path))
    loaded = MultiTaskModel.from_pretrained(tmp_path)
    assert loaded.config.tasks == model.config.tasks
    assert loaded.heads["topic"].num_labels == 4


def test_reloaded_model_trains_on_without_being_told_its_tasks(build, build_model, tmp_path):
    build_model().save_pretrained(tmp_path)
    trainer = build(MultiTaskModel.from_pretrained(tmp_path))
    trainer.train()
    assert trainer.state.global_step == 3
    assert isinstance(trainer.tasks["ner"], TokenClassification)


def test_tasks_override_columns_and_keep_labels(build, build_model, data, tasks):
    renamed = {
        "sentiment": data()["sentiment"].rename_columns({"text": "review", "label": "stars"}),
        "ner": data()["ner"],
    }
    override = {"sentiment": SequenceClassification(text_column="review", label_column="stars")}
    trainer = build(train_dataset=renamed, tasks=override)
    trainer.train()
    assert trainer.tasks["sentiment"].label_names == ["negative", "positive"]
    with pytest.raises(ValueError, match=r"Task 'sentiment' was built with label_names"):
        build(tasks={"sentiment": SequenceClassification(label_names=["positive", "negative"])})


def test_shared_rows_take_one_pass_and_missing_labels_count_for_nothing(build, build_model, arguments, tokenizer):
    rows = [
        {"tokens": ["fly", "to", "Oslo"], "intent": "go", "slots": ["O", "O", "B-city"]},
        {"tokens": ["stop", "now"], "intent": None, "slots": ["O", "O"]},
        {"tokens": ["halt"], "intent": "halt", "slots": None},
        {"tokens": ["to", "Rome"], "intent": "go", "slots": ["O", "B-city"]},
    ]
    model = build_model(
        tasks={
            "intent": SequenceClassification(dataset="atis", text_column="tokens", label_column="intent"),
            "slots": TokenClassification(dataset="atis", tags_column="slots"),
        }
    )
    passes = []
    trainer = build(
        model,
        arguments(per_device_train_batch_size=4, max_steps=1),
        train_dataset={"atis": Dataset.from_list(rows)},
        eval_dataset={"atis": Dataset.from_list(rows)},
    )
    model.backbone.register_forward_hook(lambda _, __, output: passes.append(output.last_hidden_state.shape[0]))
    batch = next(iter(trainer.get_train_dataloader()))
    counts = trainer.engine.open([batch])
    assert {name: int(count) for name, count in counts.items()} == {"intent": 3, "slots": 7}
    trainer.train()
    assert sum(passes) == 4
    metrics = trainer.evaluate()
    assert {"eval_intent_accuracy", "eval_slots_f1"} <= metrics.keys()


def test_multi_label_regression_and_pairs_train_and_are_measured(build, build_model):
    texts = ["good", "bad", "fine", "ugly", "nice", "odd"]
    data = {
        "mood": Dataset.from_list(
            [{"text": text, "label": ["joy"] if n % 2 else ["joy", "fear"]} for n, text in enumerate(texts)]
        ),
        "stars": Dataset.from_list([{"text": text, "label": n / 2} for n, text in enumerate(texts)]),
        "nli": Dataset.from_list([{"a": text, "b": texts[-n], "label": n % 3} for n, text in enumerate(texts)]),
    }
    model = build_model(
        tasks={
            "mood": SequenceClassification(),
            "stars": SequenceClassification(),
            "nli": SequenceClassification(text_column="a", text_pair_column="b"),
        }
    )
    trainer = build(model, train_dataset=data, eval_dataset=data)
    trainer.train()
    metrics = trainer.evaluate()
    assert {"eval_mood_micro_f1", "eval_stars_pearson", "eval_stars_spearmanr", "eval_nli_accuracy"} <= metrics.keys()
    assert metrics["eval_average"] == pytest.approx(
        (metrics["eval_mood_micro_f1"] + metrics["eval_stars_pearson"] + metrics["eval_nli_accuracy"]) / 3
    )
    assert [task["problem_type"] for task in model.config.tasks] == [
        "multi_label_classification",
        "regression",
        "single_label_classification",
    ]
    assert model.config.task("nli")["label_names"] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_best_model_on_the_average_is_kept(build, arguments, data, tmp_path):
    args = arguments(
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    assert (args.metric_for_best_model, args.greater_is_better) == ("average", True)
    trainer = build(args=args, eval_dataset=data(20, 10, "validation"))
    trainer.train()
    averages = [entry["eval_average"] for entry in trainer.state.log_history if "eval_average" in entry]
    assert trainer.state.best_metric == max(averages)
    assert trainer.evaluate()["eval_average"] == pytest.approx(max(averages))


def test_early_stopping_watches_the_average(build, arguments, data):
    args = arguments(
        max_steps=40,
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=1,
        early_stopping_patience=2,
        save_strategy="no",
    )
    trainer = build(args=args, eval_dataset=data(8, 4, "validation"))
    trainer.train()
    assert trainer.state.global_step == 3  # the first evaluation is the best, two more are not better


def test_early_stopping_goes_on_counting_after_a_resume(build, arguments, data):
    def args(**kwargs):
        return arguments(learning_rate=0.0, eval_strategy="steps", eval_steps=1, early_stopping_patience=3, **kwargs)

    rows = data(8, 4, "validation")
    build(args=args(max_steps=3, save_strategy="steps", save_steps=1), eval_dataset=rows).train()
    resumed = build(args=args(max_steps=40, save_strategy="no"), eval_dataset=rows)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4  # one best evaluation, three that are not better


def test_metrics_of_tasks_whose_names_begin_alike_stay_apart(capsys):
    from hf_multitask.cli.shown import show_metrics
    from hf_multitask.hub.history import Result, results

    metrics = {"eval_a_accuracy": 0.5, "eval_a_b_accuracy": 0.25, "eval_average": 0.375, "step": 4}
    assert results([metrics], ["a", "a_b"]) == [
        Result("validation", "a", "accuracy", 0.5, 4),
        Result("validation", "a_b", "accuracy", 0.25, 4),
        Result("validation", None, "average", 0.375, 4),
    ]
    show_metrics({"validation": metrics}, ["a", "a_b"])
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-4:]] == [
        ["task", "metric", "validation"],
        ["a", "accuracy", "0.5000"],
        ["a_b", "accuracy", "0.2500"],
        ["average", "0.3750"],
    ]


def test_task_weight_of_zero_leaves_a_head_as_it_was(build, build_model, arguments):
    model = build_model()
    before = model.heads["ner"].native.classifier.weight.clone()
    build(model, arguments(task_weights={"ner": 0}, weight_decay=0.0)).train()
    assert torch.equal(before, model.heads["ner"].native.classifier.weight)


def test_tensorboard_is_on_where_installed(build, arguments, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from hf_multitask import MultiTaskTrainingArguments

    assert MultiTaskTrainingArguments(str(tmp_path)).report_to == ["tensorboard"]
    build(args=arguments(report_to="tensorboard")).train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((tmp_path / "out" / "runs").iterdir())))
    events.Reload()
    assert {"train/loss", "train/sentiment_loss", "train/ner_loss", "train/ner_share"} <= set(events.Tags()["scalars"])


def test_plan_is_printed_before_training(build, capsys):
    build().train()
    shown = capsys.readouterr().out
    assert "Plan: 3 steps of 8 rows" in shown
    assert shown.index("Plan:") < shown.index("'loss'")
    assert "sentiment  sentiment    40" in shown


def test_gpt2_tokenizer_without_padding_token_pads_with_the_end_of_text(build, build_model, backbone_path):
    tokenizer = AutoTokenizer.from_pretrained(backbone_path("gpt2"))
    model = build_model("gpt2")
    build(model, processing_class=tokenizer)
    assert tokenizer.pad_token == "<|endoftext|>"
    assert model.config.backbone_config.pad_token_id == tokenizer.pad_token_id == 4
    answer = pipeline("multitask", model=model, tokenizer=tokenizer)(["A fine place.", "No."], batch_size=2)
    assert len(answer) == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"processing_class": None}, ValueError, "Give the backbone's tokenizer as processing_class"),
        ({"train_dataset": {}}, ValueError, "Task 'sentiment' has no training data"),
        ({"train_dataset": []}, TypeError, "The train data should be a dict of datasets by name. Found list"),
        ({"compute_metrics": {"nre": len}}, ValueError, "`compute_metrics` names the task 'nre'.* Did you mean 'ner'?"),
        ({"compute_metrics": len}, TypeError, "`compute_metrics` should be a dict of functions by task"),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "`model` should be a MultiTaskModel. Found Linear"),
        ({"sampler": "uniform"}, TypeError, "`sampler` should be a SamplingRates. Found str"),
        ({"balancer": "dwa"}, TypeError, "`balancer` should be a Balancer. Found str"),
        ({"tasks": {"nre": TokenClassification()}}, ValueError, "`tasks` names the task 'nre'.* Did you mean 'ner'?"),
    ],
)
def test_mistakes_fail_when_built(change, error, message, build):
    with pytest.raises(error, match=message):
        build(**change)


def test_what_nobody_could_measure_or_heed_is_refused(build, build_model, arguments, data, tokenizer):
    evaluated = {"args": arguments(eval_strategy="epoch", metric_for_best_model="loss"), "eval_dataset": data()}
    with pytest.raises(ValueError, match=r"`metric_for_best_model` should be average, or .* as sentiment_loss"):
        build(**evaluated)

    class Measuring(MultiTaskTrainer):
        def evaluate(self, *args, **kwargs):
            return {**super().evaluate(*args, **kwargs), "eval_loss": 1.0}

    Measuring(build_model(), train_dataset=data(), processing_class=tokenizer, **evaluated)
    model = build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="`learning_rates` is for the optimizer that the trainer makes"):
        build(model, arguments(learning_rates={"ner": 1}), optimizers=(optimizer, None))
    with pytest.raises(ValueError, match="The eval data have no dataset"):
        build().evaluate({})
    with pytest.raises(ValueError, match=r"A search measures what it finds. Give eval_dataset."):
        build().hyperparameter_search(n_trials=1)
    silent = build(eval_dataset=data(), compute_metrics={"ner": lambda _: {}})
    with pytest.raises(ValueError, match=r"Task 'ner': its compute_metrics should return a dict of numbers.* Found {}"):
        silent.evaluate()


def test_tokens_that_the_backbone_does_not_know_are_refused_when_built(build, build_model, data, tokenizer):
    tokenizer.add_tokens(["<movie>"])
    rows = data()
    rows["sentiment"] = rows["sentiment"].map(lambda row: {"text": f"<movie> {row['text']}"})
    number = len(tokenizer) - 1
    message = (
        rf"The tokenizer has 1 tokens, up to {number} \('<movie>'\), without an embedding in the backbone, which has"
    )
    with pytest.raises(ValueError, match=message):
        build()  # of rows that have no such token as well
    with pytest.raises(ValueError, match=message):
        build(train_dataset=rows)
    model = build_model()
    model.resize_token_embeddings(len(tokenizer))
    build(model, train_dataset=rows).train()


def test_a_batch_that_found_no_memory_counts_for_nothing(build, build_model, arguments, tmp_path):
    class Small(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.train_batch_size == 8:
                raise RuntimeError("CUDA out of memory.")

    def run(*callbacks, steps, resume=None, **kwargs):
        args = arguments(max_steps=steps, balancing="dwa", save_strategy="steps", save_steps=2, **kwargs)
        trainer = build(build_model(dropout=0.0), args, callbacks=list(callbacks))
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    found = run(Small(), steps=4, auto_find_batch_size=True)
    size = found.state.train_batch_size
    assert size < 8
    asked = run(steps=4, per_device_train_batch_size=size, output_dir=str(tmp_path / "asked"))
    assert found.progress.seen == asked.progress.seen and found.progress.rows == asked.progress.rows
    assert (
        found.engine.weights.state_dict()["balancing"]["state"].keys()
        == asked.engine.weights.state_dict()["balancing"]["state"].keys()
    )
    again = run(steps=6, resume=True, auto_find_batch_size=True)  # with the size that was found
    assert (again.state.global_step, again.state.train_batch_size) == (6, size)
    assert sum(again.progress.seen.values()) == 6 * size


def test_datasets_fit_tasks(build, arguments, data):
    rows = data()
    with pytest.raises(ValueError, match=r"the dataset 'nerr', which no task reads.* Did you mean 'ner'?"):
        build(train_dataset=rows | {"nerr": rows["ner"]})
    with pytest.raises(
        ValueError, match=r"Task 'ner': the train data has no column 'ner_tags'.* Did you mean 'ner_tag'?"
    ):
        build(train_dataset=rows | {"ner": rows["ner"].rename_column("ner_tags", "ner_tag")})
    with pytest.raises(
        ValueError, match=r"Task 'ner' has no evaluation split. Add one to eval_dataset, or set eval_strategy='no'."
    ):
        build(args=arguments(eval_strategy="epoch"), eval_dataset={"sentiment": rows["sentiment"]})
    with pytest.raises(ValueError, match=r"Dataset 'ner' of the train data has a transform .* Make its rows with map"):
        build(train_dataset=rows | {"ner": rows["ner"].with_transform(dict)})
    with pytest.raises(ValueError, match=r"Task 'ner': the train data of dataset 'ner' are empty"):
        build(train_dataset=rows | {"ner": rows["ner"].select([])})


def test_arguments_are_checked_when_built(arguments):
    for kwargs, message in [
        ({"sampling": "proportionl"}, "Did you mean 'proportional'?"),
        ({"task_weights": {"ner": -1}}, "`task_weights` should hold numbers of 0 or more. Found -1 for 'ner'"),
        ({"task_weights": {"ner": "1"}}, "`task_weights` should hold numbers of 0 or more. Found '1' for 'ner'"),
        ({"early_stopping_patience": 0}, "`early_stopping_patience` should be 1 evaluation or more"),
        ({"early_stopping_patience": 2}, "Early stopping watches evaluations. Set eval_strategy"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is not supported.* Leave it at 0.0"),
        ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy` is not supported"),
        ({"dataloader_drop_last": True}, "`dataloader_drop_last` is not supported"),
        ({"batch_eval_metrics": True}, "`batch_eval_metrics` is not supported"),
        ({"include_for_metrics": ["inputs"]}, "`include_for_metrics` is not supported"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` should be 1 or more. Found"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` should be 1 or more"),
        ({"num_train_epochs": -1}, "`num_train_epochs` should be 0 or more"),
        ({"learning_rate": math.nan}, "`learning_rate` should be 0 or more. Found `learning_rate = nan`"),
    ]:
        with pytest.raises(ValueError, match=message):
            arguments(**kwargs)
    assert arguments(sampling="fixed", sampling_kwargs=json.dumps({"rates": {"ner": 1}})).sampling_kwargs == {
        "rates": {"ner": 1}
    }


def test_task_dicts_are_rebuilt_whole(build_model):
    for values in build_model().config.tasks:
        assert build_task(values["name"], values).to_dict() == values


def test_batches_survive_pinned_memory(build, data):
    """Loaders for GPUs pin every part of a batch in a copy of what holds it, which is updated with itself."""

    def pinned(part):
        if isinstance(part, MutableMapping):
            clone = copy.copy(part)
            clone.update({key: pinned(value) for key, value in part.items()})
            return clone
        if isinstance(part, MutableSequence):
            clone = copy.copy(part)
            for place, value in enumerate(part):
                clone[place] = pinned(value)
            return clone
        return part

    trainer = build(eval_dataset=data())
    for loader in (trainer.get_train_dataloader(), trainer.get_test_dataloader(trainer.eval_dataset)):
        batch = next(iter(loader))
        assert repr(pinned(batch)) == repr(batch)
