"""Scripts that push to a Hub and pull from it, for processes of their own."""

from processes import BLOCK

# A trainer on the folder of a backbone, with the rest of the arguments of a run.
TRAINER = """
import json, logging, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from datasets import Dataset
from tiny import NER_LABELS, read_rows
from transformers import AutoTokenizer
from hf_multitask import (
    MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, SequenceClassification, TokenClassification
)

told = []
handler = logging.Handler()
handler.emit = lambda record: " push" in record.getMessage() and told.append(record.getMessage())
logging.getLogger("hf_multitask").addHandler(handler)
backbone, folder = sys.argv[2:4]
tasks = {"sentiment": SequenceClassification(label_names=["negative", "positive"]), "ner": TokenClassification(label_names=NER_LABELS)}
data = {name: Dataset.from_list(read_rows(name, "train", 16)) for name in tasks}

def trainer(name, **kwargs):
    torch.manual_seed(1)
    values = {
        "max_steps": 4, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "steps",
        "save_steps": 2, "learning_rate": 1e-3, "push_to_hub": True, "hub_model_id": name, "hub_always_push": True,
    }
    args = MultiTaskTrainingArguments(f"{folder}/{name}", **{**values, **kwargs})
    model = MultiTaskModel.from_backbone(backbone, tasks=tasks)
    return MultiTaskTrainer(model, args, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(backbone))
"""

# Each commit named on the command line: logits, and what the pipeline answers.
PULL = (
    BLOCK
    + """
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline

found, text = {}, "Ada Lovelace loved this place."
for name in sys.argv[1:]:
    repository, revision = name.split("@")
    model = AutoModel.from_pretrained(repository, revision=revision, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(repository, revision=revision, trust_remote_code=True)
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits
    answer = pipeline("multitask", repository, revision=revision, trust_remote_code=True)(text)
    assert type(model).__module__.startswith("transformers_modules")
    found[name] = [{k: v.tolist() for k, v in logits.items()}, answer]
print(json.dumps(found))
"""
)
