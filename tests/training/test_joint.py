"""Translation and speech recognition in one encoder-decoder: rows of both in a step, whose losses fall together."""

import jiwer
import numpy as np
import pytest
import torch
from datasets import Dataset
from parameters import few
from safetensors.torch import load_file
from sounds import WIDE, recordings
from tiny import make_tokenizer, save_backbone

from hf_multitask import AutomaticSpeechRecognition, MultiTaskModel, MultiTaskPipeline, MultiTaskTrainer, Translation

SMALL = {"num_mel_bins": 20, "channels": [16, 16]}
TASKS = {
    "translate": Translation(source_column="en", target_column="de", max_target_length=8),
    "word": AutomaticSpeechRecognition(max_target_length=8),
}
WORDS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}


def sentences(count):
    words = list(WORDS)
    pairs = [(words[number % 4], words[number // 4 % 4]) for number in range(count)]
    return Dataset.from_list([{"en": " ".join(pair), "de": " ".join(WORDS[word] for word in pair)} for pair in pairs])


@pytest.fixture(params=few(["bart", "t5"], ["t5"]))
def build(request, tmp_path):
    save_backbone(request.param, tmp_path / "backbone")

    def make(dtype=None):
        torch.manual_seed(1)
        path = str(tmp_path / "backbone")
        return MultiTaskModel.from_backbone(path, tasks=TASKS, subsampler=SMALL, dtype=dtype, dropout=0.0)

    make.tokenizer = make_tokenizer(request.param)
    return make


@pytest.fixture
def trainer(build, arguments):
    def make(model=None, rows=16, **kwargs):
        data = {"translate": sentences(rows), "word": recordings(rows, rate=WIDE)}
        model = model or build()
        return MultiTaskTrainer(model, arguments(**kwargs), train_dataset=data, eval_dataset=data, processing_class=build.tokenizer)  # fmt: skip

    return make


@pytest.mark.parametrize("options", [{}, {"aggregation": "upgrad"}, {"balancing": "gradnorm"}], ids=str)
def test_micro_batches_make_no_difference(options, trainer, build):
    def weights(**kwargs):
        one = trainer(build(torch.float64), max_steps=3, optim="sgd", learning_rate=0.1, **options, **kwargs)
        one.train()
        return one.model.state_dict()

    whole = weights(per_device_train_batch_size=16)
    parts = weights(per_device_train_batch_size=4, gradient_accumulation_steps=4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-9, msg=name)


def test_both_losses_fall_and_what_is_evaluated_is_what_the_pipeline_writes(trainer, build, tmp_path):
    options = {
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": 150,
    }
    one = trainer(output_dir=str(tmp_path / "alone"), max_steps=160, **options)
    rows = [batch["rows"] for batch in one.get_train_dataloader()]
    assert all(set(mixed) == {"translate", "word"} for mixed in rows)
    before = one.evaluate()
    one.train()
    after = one.evaluate()
    assert all(after[f"eval_{task}_loss"] < 0.6 * before[f"eval_{task}_loss"] for task in TASKS)
    one.save_model()
    pipe = MultiTaskPipeline(model=MultiTaskModel.from_pretrained(tmp_path / "alone"), tokenizer=build.tokenizer)
    sounds = recordings(16, rate=WIDE)
    texts = [answer["word"]["text"] for answer in pipe([{"audio": audio} for audio in sounds["audio"]])]
    wer = jiwer.wer(list(sounds["text"]), texts)
    assert len(set(texts)) > 1 and after["eval_word_wer"] == pytest.approx(wer)
    assert after["eval_word_word_accuracy"] == pytest.approx(max(0, 1 - after["eval_word_wer"]))
    again = trainer(output_dir=str(tmp_path / "resumed"), max_steps=160, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "alone" / "checkpoint-150"))
    again.save_model()
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("resumed", "alone"))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_what_freezes_and_what_trains(trainer, build):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(model, max_steps=2, freeze=["backbone"], learning_rate=0.1).train()
    moved = {name.partition(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}  # fmt: skip
    assert moved == {"subsampler"}


def test_all_heads_reach_every_weight(build):
    """As ranks need it that wait for the gradient of every parameter, whatever rows they have."""
    model = build().train()
    ids = torch.ones(2, 5, dtype=torch.long) * 7
    model(ids, torch.ones_like(ids), labels={"translate": ids}, task_rows={"translate": torch.arange(2)}, all_heads=True).loss.backward()  # fmt: skip
    assert [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None] == []
    assert not any(one.grad.any() for one in model.subsampler.parameters())
    model.zero_grad(set_to_none=True)
    frames = torch.tensor(np.random.default_rng(0).standard_normal((2, 40, 20)), dtype=torch.float32)
    model(None, torch.ones(2, 40, dtype=torch.long), input_features=frames, labels={"word": ids}, task_rows={"word": torch.arange(2)}, all_heads=True).loss.backward()  # fmt: skip
    assert [name for name, one in model.named_parameters() if one.requires_grad and one.grad is None] == []
