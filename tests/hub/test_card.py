"""What cards say of the runs that they are of, and their picture."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import processes
import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from tiny import read_rows

from hf_multitask import MultiTaskTrainer, SequenceClassification
from hf_multitask.hub.card import CURVES_NAME


def test_card_shows_gradients_where_they_were_measured(build, tmp_path):
    build(gradient_logging_steps=2, save_strategy="steps", save_steps=4).train()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "- `gradient_logging_steps`: 2" in text
    picture = "by optimizer step, norms of the per-task gradients and the cosines between them](learning_curves.png)"
    assert (picture in text) == (find_spec("matplotlib") is not None)


def test_card_of_the_best_model_tells_its_figures_and_its_step(build, tmp_path):
    trainer = build(load_best_model_at_end=True, save_strategy="steps", save_steps=2, learning_rate=0.0)
    trainer.train()  # nothing is better than the first evaluation
    text = (tmp_path / "out" / "README.md").read_text()  # written at the end of training
    assert "The weights are those of step 2, with the best `eval_average`." in text
    assert "Measured on validation at step 2." in text
    trainer.evaluate()
    trainer.create_model_card()
    assert "Measured on validation at step 2." in (tmp_path / "out" / "README.md").read_text()


def test_card_of_a_model_that_was_not_evaluated(build, tmp_path):
    trainer = build(evaluation=False, eval_strategy="no", logging_strategy="no")
    trainer.train()
    assert not (tmp_path / "out" / "README.md").exists()  # it saves nothing by itself
    trainer.save_model()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Not evaluated." in text and "learning_curves" not in text and "Trained for 4 optimizer steps" in text
    assert "model-index" not in text and "| task | type | labels |\n" in text
    assert not (tmp_path / "out" / CURVES_NAME).exists()
    ModelCard.load(tmp_path / "out" / "README.md")


def test_evaluating_a_trained_model_leaves_what_its_card_says_of_the_training(build, data, tmp_path):
    trainer = build()
    trainer.train()
    trainer.save_model()
    later = build(trainer.model)
    later.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Trained for 4 optimizer steps" in text and "Measured on validation at step 4." in text
    assert ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
    later.evaluate(data(10, 6, "test"), metric_key_prefix="test")
    later.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Trained for 4 optimizer steps" in text and "Measured on test at step 0." in text


def test_the_page_on_the_card_runs(build, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "model-card.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {"trainer": build()})
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.language, data.license, data.datasets) == ("en", "apache-2.0", ["owner/reviews"])
    assert "reviews" in data.tags
    text = (tmp_path / "out" / "README.md").read_text()
    for heading in re.findall(r"^\| ([A-Z]\w+) \|", page, re.MULTILINE):
        assert f"## {heading}\n" in text
    # Its advice on a part that is to be written anew.
    text = text.replace("- Python", "- My Python")
    start, end = text.index("## Versions"), text.index("<!-- end of versions -->") + len("<!-- end of versions -->\n")
    (tmp_path / "out" / "README.md").write_text(re.sub('"# versions": "[^"]*"(, )?', "", text[:start] + text[end:]))
    build().create_model_card()
    assert "## Versions" in (tmp_path / "out" / "README.md").read_text()


def test_card_names_the_repository_in_its_code(build, tmp_path):
    trainer = build(hub_model_id="me/two-tasks", max_steps=1)
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "\n# two-tasks\n" in text and text.count('"me/two-tasks"') == 3
    trainer.create_model_card(model_name="you/other")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "\n# other\n" in text and text.count('"you/other"') == 3 and "two-tasks" not in text


def test_tasks_of_one_type_on_one_dataset_stay_apart(build_model, arguments, tokenizer, tmp_path):
    texts = [row["text"] for row in read_rows("sentiment", "train", 12)]
    rows = Dataset.from_dict({"text": texts, "a": ["x", "y"] * 6, "b": ["y", "x"] * 6})
    tasks = {
        name: SequenceClassification(label_names=["x", "y"], label_column=name, dataset="shared") for name in ("a", "b")
    }
    trainer = MultiTaskTrainer(
        build_model(tasks=tasks),
        arguments(),
        train_dataset={"shared": rows},
        eval_dataset={"shared": rows},
        processing_class=tokenizer,
    )
    trainer.train()
    metrics = trainer.evaluate()
    for _ in range(2):
        trainer.create_model_card()
        found = ModelCard.load(tmp_path / "out" / "README.md").data.eval_results
        assert {
            (one.task_name, one.dataset_config): one.metric_value for one in found if one.metric_type == "accuracy"
        } == {(name, name): round(metrics[f"eval_{name}_accuracy"], 4) for name in ("a", "b")}
        assert {one.dataset_type for one in found} == {"shared"}
    assert "| shared | a, b | 12 | 12 |" in (tmp_path / "out" / "README.md").read_text()


def test_card_of_many_tasks_folds_its_tables(build_model, arguments, tokenizer, tmp_path):
    texts = [row["text"] for row in read_rows("sentiment", "train", 30)]
    names = [f"t{number:02d}" for number in range(25)]
    data = {name: Dataset.from_dict({"text": texts[n : n + 2], "label": ["no", "yes"]}) for n, name in enumerate(names)}
    labels = ["no", "yes", "a|b", "`", *(f"label {number}" for number in range(30))]
    trainer = MultiTaskTrainer(
        build_model(tasks={name: SequenceClassification(label_names=labels) for name in names}),
        arguments(max_steps=8),
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    path = tmp_path / "out" / "README.md"
    text = path.read_text()
    for summary in ("25 tasks", "Results of 25 tasks", "25 datasets"):
        assert f"<summary>{summary}</summary>" in text
    assert "... 19 more" in text  # in the plan
    assert r"`no`, `yes`, `a\|b`, `` ` ``, `label 0`" in text and "... (34 in all)" in text
    assert len(ModelCard.load(path).data.eval_results) == 25 * len(
        {one.metric_type for one in ModelCard.load(path).data.eval_results}
    )


@pytest.mark.process
def test_without_matplotlib_the_card_says_nothing_of_a_picture(build, tmp_path):
    trainer = build(max_steps=2)
    trainer.train()
    state = json.dumps(trainer.state.log_history)
    script = processes.BLOCK.replace("NoPackage", "NoPicture").replace('"hf_multitask"', '"matplotlib"')
    script += """
from pathlib import Path
from hf_multitask import MultiTaskTrainingArguments
from hf_multitask.hub import Run, write_card
from hf_multitask.modeling import MultiTaskConfig
config = MultiTaskConfig(tasks=[{"name": name, "type": "sequence-classification"} for name in ("sentiment", "ner")])
arguments = MultiTaskTrainingArguments(sys.argv[1], report_to="none", use_cpu=True)
run = Run(arguments=arguments, history=json.loads(sys.argv[2]), step=2)
write_card(sys.argv[1], config, run, name="a", repository="a", given={})
print(json.dumps(sorted(path.name for path in Path(sys.argv[1]).iterdir())))
"""
    folder = tmp_path / "bare"
    assert processes.run(script, str(folder), state) == ["README.md"]
    text = (folder / "README.md").read_text()
    assert "learning_curves" not in text and "Measured on validation at step 2." in text


def test_picture_is_drawn_anew_for_new_figures_only_and_not_over_the_users_own(build, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    trainer = build()
    trainer.train()
    trainer.save_model()
    path = tmp_path / "out" / CURVES_NAME
    first, stamp = path.read_bytes(), path.stat().st_mtime_ns
    trainer.save_model()
    assert path.stat().st_mtime_ns == stamp
    trainer.state.log_history.insert(0, {"loss": 3.0, "ner_loss": 3.0, "step": 0})
    trainer.save_model()
    assert path.read_bytes() != first and path.read_bytes().startswith(b"\x89PNG")
    path.write_bytes(b"mine")
    trainer.state.log_history.pop(0)
    trainer.save_model()
    assert path.read_bytes() == b"mine" and "learning_curves.png" in (tmp_path / "out" / "README.md").read_text()


DIGITS = "Free Spoken Digit Dataset"
MADE = "Sentences made by examples/speech_translation/make_sentences.py"
DEMOS = {
    "sentiment-ner-minilm": [
        ("sentiment_ner", "sentiment", "Sentiment Labelled Sentences", "accuracy"),
        ("sentiment_ner", "ner", "Wikigold", "f1"),
    ],
    "spoken-digits-wav2vec2-bert": [
        ("spoken_digits", "digit", DIGITS, "accuracy"),
        ("spoken_digits", "speaker", DIGITS, "accuracy"),
        ("spoken_digits", "transcript", DIGITS, "word_accuracy"),
    ],
    "speech-translation-bart": [
        ("speech_translation", "translation", MADE, "chrf"),
        ("speech_translation", "transcript", DIGITS, "word_accuracy"),
    ],
}


@pytest.mark.parametrize("name", DEMOS)
def test_cards_of_the_examples_have_valid_metadata_and_the_figures_of_their_tables(name):
    root = Path(__file__).parents[2]
    card, measured = ModelCard.load(root / "model_cards" / name / "README.md"), DEMOS[name]
    found = [(one.task_name, one.dataset_name, one.metric_type) for one in card.data.eval_results]
    assert found == [tuple(row[1:]) for row in measured]
    recipe = yaml.safe_load((root / "examples" / measured[0][0] / "recipe.yaml").read_text(encoding="utf-8"))
    assert list(recipe["tasks"]) == [row[1] for row in measured]
    for one in card.data.eval_results:  # the metadata and the table say the same
        rows = [line for line in card.content.splitlines() if line.startswith("| test |")]
        assert any(f"**{one.metric_value:.3f}**" in row for row in rows)


@pytest.mark.parametrize("name", ["spoken-digits-wav2vec2-bert", "speech-translation-bart"])
def test_cards_of_speech_have_the_figures_of_the_page(name):
    root = Path(__file__).parents[2]
    page = (root / "docs" / "speech.md").read_text(encoding="utf-8")
    card = ModelCard.load(root / "model_cards" / name / "README.md")
    example = page.split(f"`examples/{DEMOS[name][0][0]}`", 1)[1]  # as the page introduces its table
    for task, _, metric in (row[1:] for row in DEMOS[name]):
        (row,) = re.findall(rf"^\| {task} \| {metric} \|(.*)\|$", example, flags=re.MULTILINE)[:1]
        for split, cell in zip(("validation", "test"), row.split("|"), strict=True):
            mean, least, most = re.findall(r"\d\.\d{3}", cell)
            line = rf"^\| {split} \| {task} .* \| \*\*{mean}\*\* \| {least} \| {most} \|$"
            assert re.search(line, card.content, flags=re.MULTILINE), (task, split)
