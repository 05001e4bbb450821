"""A pushed model of recordings says on the Hub what it does, and in which languages."""

import pytest
import yaml
from processes import run
from sounds import SPEAKERS, save_encoder

from hf_multitask import AudioClassification, AutomaticSpeechRecognition, MultiTaskModel

PUSH = """
import sys
from hf_multitask import MultiTaskModel
MultiTaskModel.from_pretrained(sys.argv[1]).push_to_hub("me/sounds")
print("null")
"""


@pytest.mark.process
def test_a_pushed_model_has_the_tags_and_languages_of_its_tasks(hub, tmp_path):
    tasks = {
        "speaker": AudioClassification(label_names=list(SPEAKERS), language="en"),
        "word": AutomaticSpeechRecognition(vocabulary=list("abc"), language="de"),
    }
    model = MultiTaskModel.from_backbone(save_encoder(tmp_path / "encoder"), tasks=tasks)
    model.save_pretrained(tmp_path / "saved")
    run(PUSH, str(tmp_path / "saved"))
    repository = hub.repositories["me/sounds"]
    card = repository.trees[repository.log[-1][0]]["README.md"]
    metadata = yaml.safe_load((card.decode() if isinstance(card, bytes) else card).split("---")[1])
    assert metadata["pipeline_tag"] == "audio-classification"
    assert set(metadata["language"]) == {"en", "de"}
