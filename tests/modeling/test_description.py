"""What a card says of a model by itself: the code in it runs, and a push without a trainer has a card."""

import re

import pytest
from huggingface_hub import ModelCard
from reading import TASKS
from transformers import AutoTokenizer
from transformers.utils.hub import create_and_tag_model_card

from hf_multitask.modeling import MultiTaskConfig
from hf_multitask.modeling.description import describe_pushed, introduction, is_hub_id, languages_of, metadata_of, usage
from hf_multitask.training.preparation.processors import ensure_pad_token

FAMILIES = {"text-generation": "gpt2", "translation": "bart", "summarization": "t5", "text2text-generation": "bart"}


@pytest.mark.parametrize(
    "kinds",
    [*([kind] for kind in TASKS), ["multiple-choice", "question-answering"], ["fill-mask", "sequence-classification"]],
    ids="+".join,
)
def test_code_in_the_card_runs_for_every_type(kinds, build_model, backbone_path, tmp_path, capsys):
    family = FAMILIES.get(kinds[0], "bert")
    model = build_model(family, tasks={f"task{number}": TASKS[kind]() for number, kind in enumerate(kinds)})
    model.save_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(backbone_path(family))
    ensure_pad_token(tokenizer)  # as the trainer does
    tokenizer.save_pretrained(tmp_path / "model")
    blocks = re.findall(r"```python\n(.*?)```", usage(model.config, str(tmp_path / "model")), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
    told = capsys.readouterr().out.splitlines()
    assert "task" in told[0] and len(told) >= 2


def config_of(*tasks, name=""):
    config = MultiTaskConfig(tasks=[{"name": f"t{number}", **task} for number, task in enumerate(tasks)])
    config.backbone_config._name_or_path = name
    return config


def test_metadata_follow_from_the_configuration(tmp_path):
    config = config_of(
        {"type": "of-my-own"},
        {"type": "translation", "source_lang": "en_XX", "target_lang": "de_DE"},
        {"type": "sequence-classification", "language": "en"},
        {"type": "sequence-classification", "language": "not a code"},
        name="google-bert/bert-base-uncased",
    )
    assert metadata_of(config) == {
        "library_name": "transformers",
        "pipeline_tag": "translation",
        "base_model": "google-bert/bert-base-uncased",
        "language": ["en", "de"],
        "tags": ["hf_multitask", "multi-task-learning"],
    }
    assert languages_of(config_of({"type": "translation", "source_lang": "eng_Latn"})) == ["eng"]
    assert metadata_of(config_of({"type": "of-my-own"}))["pipeline_tag"] is None
    for name in (str(tmp_path), "package:module/folder", "./bert", "a/b/c", "", None):
        assert not is_hub_id(name)


def test_push_without_a_trainer_has_a_card_that_tells_tasks_and_use(build_model, tmp_path):
    model = build_model()
    card = create_and_tag_model_card("me/two-tasks", [*model.model_tags, "mine"])  # what push_to_hub makes up, offline
    card.save(tmp_path / "README.md")
    describe_pushed(tmp_path, "me/two-tasks", model.config)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {
        "pipeline_tag": "text-classification",
        "library_name": "transformers",
        "tags": ["hf_multitask", "multi-task-learning", "mine"],
    }
    assert "# two-tasks" in card.text and "| ner | token-classification | `O`, `B-PER`" in card.text
    assert 'model="me/two-tasks"' in card.text and "More Information" not in card.text
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    describe_pushed(tmp_path, "me/two-tasks", model.config)
    assert (tmp_path / "README.md").read_text() == "---\nlicense: mit\n---\nMine.\n"
    assert type(model).model_tags is None  # each model has its own


def test_the_card_names_branches():
    config = config_of({"type": "sequence-classification"}, {"type": "token-classification"})
    assert introduction(config, "model").endswith("fine-tuned with `hf_multitask`.")
    config.branches, config.branch_layers = {"texts": ["t0"], "t1": ["t1"]}, 2
    told = introduction(config, "model")
    assert told.endswith("Groups of tasks have copies of the 2 top layers of their own: texts (t0), t1.")
