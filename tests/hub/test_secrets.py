"""No secret is written anywhere: not in a checkpoint, a log, a card or a push."""

import copy

import pytest
import torch
from hub_server import TOKENS

from hf_multitask import MultiTaskTrainer
from hf_multitask.training.secrets import BLANK, without_secrets

SECRET = "hf_thisIsTheSecretOfATest0123"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's client, about its own library
def test_a_token_is_in_nothing_that_is_written_or_pushed(
    hub, build_model, arguments, data, tokenizer, monkeypatch, tmp_path
):
    monkeypatch.setitem(TOKENS, SECRET, ("me", True))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    report = pytest.importorskip("tensorboard") and "tensorboard"
    pushes = {"push_to_hub": True, "hub_token": SECRET, "hub_model_id": "me/secret", "hub_strategy": "all_checkpoints"}
    values = arguments(**pushes, report_to=report, save_strategy="steps", save_steps=2, max_steps=2)
    trainer = MultiTaskTrainer(build_model(), values, train_dataset=data(8, 8), processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    trainer.push_to_hub()
    assert values.hub_token == copy.copy(values).hub_token == copy.deepcopy(values).hub_token == SECRET
    assert SECRET not in repr(values) and SECRET not in values.to_json_string()
    written = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    names = {path.name for path in written}
    assert {"training_args.bin", "README.md", "multitask_state.json", "trainer_state.json"} <= names
    assert any("tfevents" in name for name in names)
    pushed = [content for tree in hub.repositories["me/secret"].trees.values() for content in tree.values()]
    assert any(b"hub_token" in content for content in [*written.values(), *pushed])
    for content in [*written.values(), *pushed, *hub.objects.values()]:
        assert SECRET.encode() not in content
    assert torch.load(tmp_path / "out" / "training_args.bin", weights_only=False).hub_token is None


def test_secrets_are_found_by_name_and_by_form():
    values = {
        "hub_token": "abcdefgh",
        "storage_options": {"key": "AKIA1234", "client_kwargs": {"endpoint": "x"}},
        "deep": [{"api_key": "sk-123456", "secret": "s3cret-value"}, "with s3cret-value inside"],
        "address": "https://me:pass-word@host/path",
        "text": f"a {SECRET} b",
        "max_new_tokens": 12,
        "average_tokens_across_devices": True,
        "tokenizer": "bert",
        "token": None,
        "seed": 3,
    }
    found = without_secrets(values)
    assert found["hub_token"] == found["storage_options"] == BLANK
    assert found["deep"] == [{"api_key": BLANK, "secret": BLANK}, f"with {BLANK} inside"]
    assert found["address"] == f"https://{BLANK}@host/path" and found["text"] == f"a {BLANK} b"
    same = ("max_new_tokens", "average_tokens_across_devices", "tokenizer", "token", "seed")
    assert all(found[name] == values[name] for name in same)
    assert values["hub_token"] == "abcdefgh"  # the copy only
