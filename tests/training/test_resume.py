"""A run that is interrupted and resumed ends in the weights of the run that was left alone, to the bit."""

import json
from pathlib import Path

import pytest
import reading
import torch
from parameters import few
from safetensors.torch import load_file
from stopping import StopAt
from transformers import AutoTokenizer

from hf_multitask import MultiTaskModel, MultiTaskTrainer

# In the first epoch, at its end, in the second.
STOPS = [(3, 1, 0), (8, 1, 0), (11, 2, 0), (11, 1, 2)]
CASES = [(*stop, sampling) for stop in STOPS for sampling in ("proportional", "uniform")]


@pytest.mark.parametrize(
    ("stop", "accumulation", "workers", "sampling"), few(CASES, [(*stop, "uniform") for stop in (STOPS[1], STOPS[3])])
)
def test_resume_in_the_middle_of_an_epoch_is_exact(
    stop, accumulation, workers, sampling, build_model, data, arguments, backbone_path, tmp_path
):
    def trainer(name, **kwargs):
        return MultiTaskTrainer(
            build_model(),  # dropout stays on: the random state is part of a checkpoint
            arguments(
                output_dir=str(tmp_path / name),
                max_steps=-1,
                num_train_epochs=2,
                per_device_train_batch_size=8 // accumulation,
                gradient_accumulation_steps=accumulation,
                dataloader_num_workers=workers,
                sampling=sampling,
                eval_strategy="steps",
                eval_steps=2,
                save_strategy="steps",
                save_steps=stop,
                seed=5,
            ),
            train_dataset=data(43, 21),
            eval_dataset=data(9, 7, "validation"),
            processing_class=AutoTokenizer.from_pretrained(backbone_path()),
            **kwargs,
        )

    alone = trainer("alone")
    alone.train()
    assert alone.state.global_step == 16
    trainer("stopped", callbacks=[StopAt(stop)]).train()
    resumed = trainer("stopped")
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 16
    ours, theirs = (load_file(tmp_path / name / "checkpoint-16" / "model.safetensors") for name in ("stopped", "alone"))
    for name, value in theirs.items():
        assert torch.equal(value, ours[name]), name
    logs = [
        [
            {key: value for key, value in entry.items() if "runtime" not in key and "per_second" not in key}
            for entry in json.loads((Path(tmp_path) / name / "checkpoint-16" / "trainer_state.json").read_text())[
                "log_history"
            ]
        ]
        for name in ("stopped", "alone")
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("family", few(["bert", "gpt2", "bart"], ["bert", "bart"]))
def test_resume_with_every_type_of_task_is_exact(family, arguments, backbone_path, tmp_path):
    """Masks that are drawn, blocks, windows, groups, and evaluations that write."""
    kinds = [kind for kind in reading.TASKS if reading.refusal(family, kind) is None]
    path = backbone_path(family)

    def trainer(name, **kwargs):
        torch.manual_seed(1)
        return MultiTaskTrainer(
            MultiTaskModel.from_backbone(path, tasks={kind: reading.TASKS[kind]() for kind in kinds}),
            arguments(
                output_dir=str(tmp_path / name),
                max_steps=8,
                eval_strategy="steps",
                eval_steps=4,
                save_strategy="steps",
                save_steps=5,
            ),
            train_dataset={kind: reading.rows_of(kind) for kind in kinds},
            eval_dataset={kind: reading.rows_of(kind, 5, "validation") for kind in kinds},
            processing_class=AutoTokenizer.from_pretrained(path),
            **kwargs,
        )

    trainer("alone").train()
    trainer("stopped", callbacks=[StopAt(5)]).train()
    resumed = trainer("stopped")
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    ours, theirs = (load_file(tmp_path / name / "checkpoint-8" / "model.safetensors") for name in ("stopped", "alone"))
    for name, value in theirs.items():
        assert torch.equal(value, ours[name]), name


@pytest.mark.parametrize("parts", ["branches", "adapters"])
def test_a_model_that_is_loaded_from_a_checkpoint_resumes_from_it(
    parts, build_model, data, arguments, tokenizer, tmp_path
):
    """Its configuration is sorted by name, which is neither the order that was given nor that of the tasks."""
    if parts == "adapters":
        pytest.importorskip("peft", reason="the extra 'peft' is not installed")
        given = {"task_lora": {"sentiment": {"r": 2}, "ner": {"r": 3}}}
    else:
        given = {"branches": {"words": ["ner"], "texts": ["sentiment"]}, "branch_layers": 1}

    def train(name, model, stop=None, **kwargs):
        callbacks = [] if stop is None else [StopAt(stop)]
        more = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        trainer = MultiTaskTrainer(
            model, arguments(output_dir=str(tmp_path / name), **more), train_dataset=data(), processing_class=tokenizer,
            callbacks=callbacks,
        )  # fmt: skip
        trainer.train(**kwargs)
        return trainer.model.state_dict()

    expected = train("alone", build_model(**given))
    train("stopped", build_model(**given), 2)
    checkpoint = str(tmp_path / "stopped" / "checkpoint-2")
    found = train("stopped", MultiTaskModel.from_pretrained(checkpoint), resume_from_checkpoint=checkpoint)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
