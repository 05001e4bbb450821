"""Adapters and heads alone, over the real wire."""

import json

import torch
from adapting import BOTH, ENCODER, build_adapted
from processes import run

SCRIPT = """
import json, sys
import torch
from hf_multitask import MultiTaskModel

MultiTaskModel.from_pretrained(sys.argv[1]).push_to_hub("me/adapters", adapters_only=True)
model = MultiTaskModel.from_pretrained("me/adapters")
ids = torch.arange(6, 30).reshape(2, 12)
with torch.no_grad():
    logits = model(ids, torch.ones_like(ids)).logits
print(json.dumps({name: value.tolist() for name, value in logits.items()}))
"""


def test_adapters_alone_are_pushed_and_pulled(hub, backbone_path, tmp_path):
    model = build_adapted(backbone_path(), ENCODER[:2], **BOTH)
    model.save_pretrained(tmp_path)
    found = run(SCRIPT, str(tmp_path))
    repository = hub.repositories["me/adapters"]
    tree = repository.trees[repository.log[-1][0]]
    assert json.loads(tree["config.json"])["adapters"]["only"]
    assert len(tree["model.safetensors"]) < (tmp_path / "model.safetensors").stat().st_size / 2
    ids = torch.arange(6, 30).reshape(2, 12)
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids)).logits
    for name, value in logits.items():
        torch.testing.assert_close(torch.tensor(found[name]), value)
