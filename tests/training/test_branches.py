"""Models with branches in training: what the plan says of them, and how they are resumed."""

import json

import pytest
import torch
import yaml
from datasets import Dataset
from tiny import ALL, DATA
from transformers import AutoModel, AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainer, SequenceClassification
from hf_multitask.cli import main
from hf_multitask.modeling.branches import branch_of
from hf_multitask.training.report.branches import describe_branches

pytestmark = pytest.mark.trainer


@pytest.fixture
def trainer(build_model, data, arguments, backbone_path):
    def make(*, branches="kind", **kwargs):
        return MultiTaskTrainer(
            build_model(branches=branches, dropout=0.0),
            arguments(lr_scheduler_type="constant", **kwargs),
            train_dataset=data(),
            eval_dataset=data(12, 8, "validation"),
            processing_class=AutoTokenizer.from_pretrained(backbone_path()),
        )

    return make


def test_the_plan_says_what_branches_cost(trainer, capsys):
    plain, branched = trainer(branches=None), trainer()
    added = sum(one.numel() for one in branched.model.parameters()) - sum(
        one.numel() for one in plain.model.parameters()
    )
    branched.train()
    told = capsys.readouterr().out
    assert f"the top 1 of 2 layers once for each of texts (sentiment), ner (ner). They add {added:,} parameters" in told
    assert "takes 1.50 passes of the backbone in place of 1" in told
    assert "branches='none'" in told
    assert "a step computes as much as without branches, in smaller pieces. A step updates these as well." in told
    assert describe_branches(plain.model) == ""
    both = describe_branches(branched.model, {"sentiment": "rows", "ner": "rows"})
    assert "a row of dataset 'rows' with labels of 2 branches runs through each of them, which is 1.50 times" in both
    frozen = trainer(freeze=["backbone"])
    frozen.train()
    assert "They are frozen in this run" in capsys.readouterr().out


def test_a_resumed_run_ends_in_the_same_weights(trainer, tmp_path):
    whole = trainer(max_steps=4)
    whole.train()
    trainer(max_steps=2, save_strategy="steps", save_steps=2).train()
    resumed = trainer(max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.model.state_dict().items())
    assert {branch_of(name) for name in weights} == {None, "texts", "ner"}
    with pytest.raises(ValueError, match=r"has foreign weights for the branch 'ner'.*branches that it was saved with"):
        trainer(branches=None).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_labels_of_the_data_decide_the_branches(arguments, backbone_path, tmp_path, capsys):
    config = ALL["bert"]()
    config.update({"num_hidden_layers": 6})
    AutoModel.from_config(config).save_pretrained(tmp_path / "deep")
    rows = {
        name: Dataset.from_list([{"text": f"row {number}", "label": labels[number % 2]} for number in range(8)])
        for name, labels in {"tax": ["favor", "against"], "war": ["against", "favor"], "mood": ["sad", "glad"]}.items()
    }
    model = MultiTaskModel.from_backbone(
        str(tmp_path / "deep"), tasks={name: SequenceClassification() for name in rows}
    )
    tokenizer = AutoTokenizer.from_pretrained(backbone_path())
    trainer = MultiTaskTrainer(model, arguments(max_steps=2), train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    told = capsys.readouterr().out
    assert "once for each of tax (tax, war), mood (mood)." in told
    assert "Automatic: a branch for each kind of task and labels" in told
    trainer.save_model()
    assert MultiTaskModel.from_pretrained(tmp_path / "out").config.branches == {"tax": ["tax", "war"], "mood": ["mood"]}


def test_a_recipe_has_branches(backbone_path, tmp_path, capsys):
    recipe = {
        "backbone": backbone_path(),
        "model": {"branches": {"opinions": ["sentiment"], "names": ["ner"]}, "branch_layers": 1},
        "tasks": {
            "sentiment": {"type": "sequence-classification"},
            "ner": {"type": "token-classification"},
        },
        "datasets": {
            name: {"path": "json", "data_files": {"train": str(DATA / name / "validation.jsonl")}}
            for name in ("sentiment", "ner")
        },
        "training": {"output_dir": "out", "max_steps": 2, "use_cpu": True, "report_to": "none", "disable_tqdm": True},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["train", str(path)]) == 0
    assert (
        "Branches: the top 1 of 2 layers once for each of opinions (sentiment), names (ner)." in capsys.readouterr().out
    )
    saved = MultiTaskModel.from_pretrained(tmp_path / "out")
    assert saved.config.branches == {"opinions": ["sentiment"], "names": ["ner"]}
    path.write_text(yaml.safe_dump({**recipe, "model": {"branches": {"opinions": ["sentiment"], "names": ["nre"]}}}))
    assert main(["train", str(path)]) == 2
    assert "Branch 'names' names the task 'nre'" in capsys.readouterr().err
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["branch_layers"] == 1


def test_the_plan_says_what_was_chosen_and_why(trainer, capsys):
    trainer(branches="auto").train()
    told = capsys.readouterr().out
    assert "Automatic: no branches, as a backbone of 2 layers has none to spare; balancing none and aggregation" in told
    trainer(branches="none", balancing="none", aggregation="none").train()
    assert "Automatic" not in capsys.readouterr().out


def test_arguments_of_a_method_need_its_name(arguments):
    with pytest.raises(ValueError, match="`aggregation_kwargs` is for a method, and `aggregation = 'auto'` names none"):
        arguments(aggregation_kwargs={"c": 0.4})
