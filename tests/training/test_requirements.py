"""What a run needs beside its rows, packages and a folder to write to, is missed when the trainer is built."""

import sys

import pytest
from datasets import Dataset

from hf_multitask import MultiTaskTrainer, Summarization, Text2TextGeneration, Translation


@pytest.fixture
def build(build_model, arguments, tokenizer):
    def make(model=None, **kwargs):
        return MultiTaskTrainer(
            model or build_model(), arguments(**kwargs.pop("args", {})), **{"processing_class": tokenizer} | kwargs
        )

    return make


@pytest.mark.parametrize(
    ("task", "package"),
    [(Summarization(), "rouge_score"), (Text2TextGeneration(), "rouge_score"), (Translation(), "sacrebleu")],
)
def test_a_missing_extra(task, package, build, build_model, backbone_path, monkeypatch):
    from transformers import AutoTokenizer

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    rows = {"t": Dataset.from_list([{task.source_column: "a b c", task.target_column: "a"}] * 4)}
    given = {
        "model": build_model("bart", tasks={"t": task}),
        "processing_class": AutoTokenizer.from_pretrained(backbone_path("bart")),
        "train_dataset": rows,
    }
    said = f"Task 't': The metric .* needs the package '{package}', which is not installed. Run: pip install"
    with pytest.raises(ValueError, match=said):
        build(**given, eval_dataset=rows)
    own = {"t": lambda prediction: {"length": 0.5}}
    build(**given, eval_dataset=rows, compute_metrics=own)  # which needs none
    trainer = build(**given)  # nor does training
    with pytest.raises(ValueError, match=said):
        trainer.evaluate(rows)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("", "name a folder"),
        (" ", "name a folder"),
        ("file", "file exists"),
        ("file/out", "not a directory"),
        ("a\0b", "null"),
    ],
)
def test_an_output_folder_that_cannot_be_written(folder, said, build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=f"`output_dir` should .*{said}.*Found `output_dir = "):
        build(args={"output_dir": folder})
    build(args={"output_dir": "new/out"})
    assert not any((tmp_path / "new" / "out").iterdir())


def test_trackers(build):
    with pytest.raises(ValueError, match=r"`report_to` should hold trackers: .* Found 'wandbb'. Did you mean 'wandb'?"):
        build(args={"report_to": "wandbb"})
    with pytest.raises(ValueError, match=r"`report_to` names 'clearml', which cannot be used: .*to be installed"):
        build(args={"report_to": ["tensorboard", "clearml"]})
