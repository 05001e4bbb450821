"""Cards of real runs written over one that is there: what was given or edited stays, here and on the Hub."""

import re
import shutil

import pytest
from huggingface_hub import ModelCard
from processes import run
from stopping import StopAt

from hf_multitask import MultiTaskTrainer
from hf_multitask.hub.card import write_card
from hf_multitask.hub.history import curves


def test_metadata_that_are_given_stay_in_later_cards_and_no_licence_is_made_up(build, tmp_path):
    trainer = build()
    trainer.train()
    trainer.hub_datasets = {"ner": "owner/wikigold"}
    trainer.save_model(str(tmp_path / "first"))
    data = ModelCard.load(tmp_path / "first" / "README.md").data
    assert data.license is None and data.language is None and data.datasets == ["owner/wikigold"]
    assert {(one.dataset_type, one.dataset_name) for one in data.eval_results} == {
        ("sentiment", "sentiment"),
        ("owner/wikigold", "ner"),
    }
    assert (
        "[owner/wikigold](https://huggingface.co/datasets/owner/wikigold)"
        in (tmp_path / "first" / "README.md").read_text()
    )
    trainer.create_model_card(language=["en", "de"], license="mit", tags="news", datasets="imdb", finetuned_from="a/b")
    trainer.save_model(str(tmp_path / "second"))
    for folder in ("out", "second"):
        data = ModelCard.load(tmp_path / folder / "README.md").data
        assert (data.language, data.license, data.datasets, data.base_model) == (["en", "de"], "mit", "imdb", "a/b")
        assert data.tags == ["hf_multitask", "multi-task-learning", "generated_from_trainer", "news"]
    with pytest.raises(TypeError, match="licence"):
        trainer.create_model_card(licence="mit")


def test_edits_survive_a_second_run(build, tmp_path):
    path = tmp_path / "out" / "README.md"
    trainer = build()
    trainer.train()
    trainer.save_model()
    text = path.read_text()
    text = text.replace("---\nlibrary_name", "---\nlicense: mit  # agreed\nlibrary_name", 1)
    text = text.replace("- multi-task-learning\n", "- multi-task-learning\n- reviews\n")
    text = text.replace("A `bert` backbone", "My model. A `bert` backbone")
    text = text.replace("## Training\n", "## Limitations\n\nEnglish only.\n\n## Training\n")
    text = re.sub(r"## Versions.*<!-- end of versions -->\n\n", "", text, flags=re.DOTALL)
    path.write_text(text)
    again = build(trainer.model, max_steps=6, eval_steps=6)
    again.train()
    again.save_model()
    text = path.read_text()
    for kept in (
        "license: mit  # agreed",
        "- reviews",
        "My model. A `bert`",
        "## Limitations\n\nEnglish only.\n\n## Training\n",
    ):
        assert text.count(kept) == 1
    assert "Versions" not in text
    assert "Trained for 6 optimizer steps" in text and "Measured on validation at step 6." in text
    card = ModelCard.load(path)
    (measured,) = [
        one.metric_value for one in card.data.eval_results if (one.task_name, one.metric_type) == ("ner", "f1")
    ]
    (last,) = [entry["eval_ner_f1"] for entry in again.state.log_history if "eval_ner_f1" in entry]
    assert measured == round(last, 4) and card.data.license == "mit"
    shutil.copy(path, tmp_path / "before.md")
    again.save_model()
    assert path.read_text() == (tmp_path / "before.md").read_text()


def test_edits_on_the_hub_survive_a_push(build, tmp_path, caplog):
    trainer = build(max_steps=1)
    trainer.create_model_card()
    path = tmp_path / "out" / "README.md"
    config, run = trainer.model.config, trainer.card.run()

    def push(here, on_hub):
        path.write_text(here)
        missed = write_card(path.parent, config, run, name="out", repository="out", given={}, on_hub=on_hub)
        return path.read_text(), missed

    fresh = path.read_text()
    old = fresh.replace("a head for 2 tasks", "a head for 3 tasks")
    mine, theirs = fresh.replace("## Use", "Mine.\n\n## Use"), fresh.replace("## Use", "Theirs.\n\n## Use")
    assert push(fresh, fresh) == (fresh, False) and push("", fresh) == (fresh, False)
    assert push(fresh, theirs) == (theirs, False) and push("", theirs) == (theirs, False)
    assert push(mine, fresh) == (mine, False) and push(mine, mine) == (mine, False)
    assert push(mine, theirs) == (mine, True) and push(fresh, old) == (old, False)


def test_card_on_the_hub_is_read_before_a_push(hub):
    hub.create("me/model").commit("main", "by hand", {"README.md": b"---\nlicense: mit\n---\n# Theirs\n"})
    script = """
import json, sys
from hf_multitask.training.report.card import card_on_hub
print(json.dumps([card_on_hub(name, revision=None, token=None) for name in sys.argv[1:]]))
"""
    told = run(script, "me/model", "me/none")
    assert told == ["---\nlicense: mit\n---\n# Theirs\n", None]


def test_card_that_finds_no_place_loses_neither_model_nor_card(build, tmp_path, caplog):
    trainer = build(save_strategy="steps", save_steps=4)
    (tmp_path / "out" / "_README.md.tmp").mkdir(parents=True)  # in the way of what is written
    trainer.train()
    trainer.save_model()
    assert caplog.text.count("could not be written (is a directory). The model is not touched.") == 2
    assert (tmp_path / "out" / "model.safetensors").is_file() and not (tmp_path / "out" / "README.md").exists()
    (tmp_path / "out" / "_README.md.tmp").rmdir()
    (tmp_path / "out" / "README.md").write_text("---\nlicense: [mit\n---\nMine.\n")
    trainer.save_model()
    assert "is not changed: its metadata are not valid YAML" in caplog.text
    assert (tmp_path / "out" / "README.md").read_text() == "---\nlicense: [mit\n---\nMine.\n"


@pytest.mark.slow
def test_a_card_after_a_resume_shows_what_that_of_the_run_left_alone_shows(
    build_model, arguments, data, tokenizer, tmp_path
):
    """The log of a checkpoint has metrics by the alphabet, ``accuracy`` before the ``f1`` that counts."""

    def train(name, *callbacks, resume=None):
        trainer = MultiTaskTrainer(
            build_model(),
            arguments(
                output_dir=str(tmp_path / name / "run"),
                max_steps=4,
                eval_strategy="steps",
                eval_steps=1,
                save_strategy="steps",
                save_steps=2,
            ),
            train_dataset=data(),
            eval_dataset=data(8, 4, "validation"),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            compute_metrics={"sentiment": lambda _: {"zeal": 0.25, "ardour": 0.5}},
        )
        trainer.train(resume_from_checkpoint=resume)
        trainer.create_model_card()
        return trainer, (tmp_path / name / "run" / "README.md").read_text()

    alone, expected = train("alone")
    train("again", StopAt(2))
    resumed, found = train("again", resume=True)
    log = [list(entry) for entry in resumed.state.log_history if "eval_average" in entry]
    assert log[0] != log[-1]  # the first one comes from the checkpoint
    assert found == expected
    names = alone.model.config.task_names
    shown = [curves(trainer.state.log_history, names, trainer.progress.metrics)[1] for trainer in (alone, resumed)]
    assert shown[0] == shown[1]
    assert {task: metric for task, (metric, _) in shown[1].items()} == {"sentiment": "zeal", "ner": "f1"}
    assert [step for step, _ in shown[1]["ner"][1]] == [1, 2, 3, 4]
