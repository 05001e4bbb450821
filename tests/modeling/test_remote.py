"""What is saved runs where the package is not installed."""

import json

import torch
from processes import BLOCK, REFUSED, run
from transformers import AutoModel, AutoTokenizer, pipeline

LOAD = (
    BLOCK
    + """
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline

folder, again, text = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**tokenizer(text, return_tensors="pt")).logits
answer = pipeline("multitask", model=folder, trust_remote_code=True)(text)
model.save_pretrained(again)
tokenizer.save_pretrained(again)
reloaded = pipeline("multitask", model=again, trust_remote_code=True)(text)
module = AutoConfig.from_pretrained(folder, trust_remote_code=True).__module__
print(json.dumps([{k: v.tolist() for k, v in logits.items()}, answer, reloaded, module]))
"""
)


def test_saved_model_runs_without_the_package(build_model, backbone_path, tmp_path):
    folder, again, text = str(tmp_path / "saved"), str(tmp_path / "again"), "Ada Lovelace loved this place."
    build_model().save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(backbone_path())
    tokenizer.save_pretrained(folder)
    # Loaded as well: weights of a file and weights made here lie differently in memory, and kernels round accordingly.
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        expected = {
            name: value.tolist() for name, value in model(**tokenizer(text, return_tensors="pt")).logits.items()
        }

    logits, answer, reloaded, module = run(LOAD, folder, again, text)
    assert logits == expected
    assert answer == reloaded == json.loads(json.dumps(pipeline("multitask", model=folder)(text)))
    assert module.startswith("transformers_modules")
    assert "trust_remote_code=True" in run(REFUSED, folder)
