"""Training on prompts and chats: the plain Trainer's update, beside other tasks, and what the model answers then."""

import math

import chatting
import numpy as np
import pytest
import torch
from chatting import MARKING, PLAIN, message
from datasets import Dataset
from layouts import relative_difference
from tiny import NER_LABELS, read_rows
from torch.utils.data import SequentialSampler
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_multitask import (
    MultiTaskModel,
    MultiTaskPipeline,
    MultiTaskTrainer,
    SequenceClassification,
    TextGeneration,
    TokenClassification,
)

PAIRS = {"prompt_column": "prompt", "completion_column": "completion", "max_new_tokens": 6}


@pytest.fixture
def made(backbone_path):
    """A model and a tokenizer with a chat template."""

    def make(tasks, family="gpt2", template=PLAIN):
        path = backbone_path(family)
        torch.manual_seed(1)
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.chat_template = template
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model = MultiTaskModel.from_backbone(path, tasks=tasks, dropout=0.0)
        model.set_pad_token_id(tokenizer.pad_token_id)
        return model, tokenizer

    return make


def several():
    tasks = {
        "answer": TextGeneration(**PAIRS),
        "chat": TextGeneration(messages_column="messages", max_new_tokens=6),
        "sentiment": SequenceClassification(label_names=["negative", "positive"]),
        "ner": TokenClassification(label_names=NER_LABELS),
    }
    data = {
        "answer": chatting.prompts(14),
        "chat": Dataset.from_list([{"messages": chat} for chat in chatting.chats(9)]),
        "sentiment": Dataset.from_list(read_rows("sentiment", "train", 20)),
        "ner": Dataset.from_list(read_rows("ner", "train", 12)),
    }
    return tasks, data


class InOrder(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)


def test_one_task_is_the_plain_trainer_with_labels_on_the_completion(made, arguments):
    model, tokenizer = made({"answer": TextGeneration(**PAIRS)})
    rows = chatting.prompts(33).select(range(32))
    args = arguments(max_steps=8, learning_rate=5e-4, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    ours = MultiTaskTrainer(model, args, train_dataset={"answer": rows}, processing_class=tokenizer)
    order = np.concatenate([rows for epoch in range(2) for rows in ours.plan.new_sampler().steps(epoch)])

    stock = AutoModelForCausalLM.from_config(model.backbone.config)
    stock.load_state_dict(model.backbone.state_dict())
    start = {name: value.clone() for name, value in stock.state_dict().items()}

    def encoded(row):
        before = tokenizer(row["prompt"])["input_ids"]
        whole = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        return {"input_ids": whole, "labels": [-100] * len(before) + whole[len(before) :]}

    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "learning_rate", "use_cpu")
    same = {name: getattr(args, name) for name in (*names, "disable_tqdm", "logging_steps", "save_strategy", "seed")}
    plain = InOrder(
        stock,
        TrainingArguments(args.output_dir + "-plain", **same),
        train_dataset=rows.map(encoded, remove_columns=rows.column_names).select(order),
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    ours.train()
    plain.train()
    losses = [[entry["loss"] for entry in one.state.log_history if "loss" in entry] for one in (ours, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 8
    assert relative_difference(start, stock.state_dict()) > 1e-3
    assert relative_difference(stock.state_dict(), model.backbone.state_dict()) < 1e-5


def test_prompts_beside_other_tasks_make_one_update_however_they_are_accumulated(made, arguments, record_property):
    def run(batch, accumulation):
        tasks, data = several()
        model, tokenizer = made(tasks)
        settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 4}
        trainer = MultiTaskTrainer(
            model.double(), arguments(**settings), train_dataset=data, processing_class=tokenizer
        )
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        return {name: value.clone() for name, value in model.state_dict().items()}, logs

    whole, logs = run(32, 1)
    assert all(f"{task}_loss" in entry for entry in logs[:1] for task in ("answer", "chat", "sentiment", "ner"))
    parts, part_logs = run(8, 4)
    record_property("32x1 against 8x4, relative norm", relative_difference(whole, parts))
    assert relative_difference(whole, parts) < 1e-9
    for one, other in zip(logs, part_logs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_evaluation_measures_the_answers(made, arguments):
    model, tokenizer = made({"answer": TextGeneration(**PAIRS)})
    rows = chatting.prompts(9, "test").select(range(8))
    trainer = MultiTaskTrainer(
        model, arguments(), train_dataset={"answer": rows}, eval_dataset={"answer": rows}, processing_class=tokenizer
    )
    measured = trainer.evaluate()
    losses, right = [], []
    for row in rows:
        begin = len(tokenizer(row["prompt"])["input_ids"])
        ids = torch.tensor(tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"])
        with torch.no_grad():
            logits = model(ids.unsqueeze(0)).logits["answer"][0, begin - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, ids[begin:], reduction="none").tolist()
        right += (logits.argmax(-1) == ids[begin:]).tolist()
    assert measured["eval_answer_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert measured["eval_answer_perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert measured["eval_answer_token_accuracy"] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_pipeline_writes_what_that_of_transformers_writes(family, made, tmp_path):
    tasks = {"answer": TextGeneration(**PAIRS), "chat": TextGeneration(messages_column="messages", max_new_tokens=6)}
    tasks["sentiment"] = SequenceClassification(label_names=["negative", "positive"])
    model, tokenizer = made(tasks, family)
    model.export_task("chat", tmp_path / "chat", tokenizer)
    stock = pipeline("text-generation", str(tmp_path / "chat"), device="cpu")
    ask = MultiTaskPipeline(model=model.eval(), tokenizer=tokenizer)
    chat = [message("system", "Be brief."), message("user", "A fine place in London?")]
    begun = [*chat, message("assistant", "It is")]
    for given in ("A fine place in", chat, begun):
        expected = stock(given, do_sample=False, max_new_tokens=6)[0]
        answer = ask(given)
        assert answer["answer"] == answer["chat"] == expected
        assert ("sentiment" in answer) == isinstance(given, str)
    assert ask(chat)["chat"]["generated_text"][:-1] == chat
    # Alone, in a list, by key, as a prompt, and as the pipelines of Transformers pass a chat on.
    several = ask([chat, "A fine place in", {"messages": begun}, {"text": chat}], batch_size=4)
    assert [one["chat"] for one in several] == [ask(one)["chat"] for one in (chat, "A fine place in", begun, chat)]
    assert [one["chat"] for one in ask(one for one in [chat, begun])] == [ask(chat)["chat"], ask(begun)["chat"]]


def test_a_chat_needs_a_task_and_a_template_for_it(made):
    model, tokenizer = made({"answer": TextGeneration(**PAIRS)}, template=None)
    with pytest.raises(ValueError, match=r"Task 'answer' takes single texts, and chats where the tokenizer has a chat"):
        MultiTaskPipeline(model=model, tokenizer=tokenizer)([message("user", "Hi.")])


def test_a_long_prompt_is_continued_from_its_end(made, caplog):
    model, tokenizer = made({"answer": TextGeneration(**PAIRS)})
    ask = MultiTaskPipeline(model=model.eval(), tokenizer=tokenizer)
    text = " place" * 300
    answer = ask(text)["answer"]["generated_text"]
    assert answer.startswith(text) and answer != text
    assert "an input is longer than 74 tokens, and is continued from its last ones" in caplog.text


def test_the_exported_model_has_the_same_logits_and_template(made, tmp_path):
    tasks, data = several()
    model, tokenizer = made(tasks, template=MARKING)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    model = MultiTaskModel.from_pretrained(tmp_path / "model")
    assert model.config.task("answer")["completion_column"] == "completion"
    ids = torch.tensor([tokenizer.apply_chat_template(data["chat"][0]["messages"])["input_ids"]])
    for name in ("answer", "chat"):
        model.export_task(name, tmp_path / name)
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        with torch.no_grad():
            assert torch.equal(stock(ids).logits, model.eval()(ids, tasks=[name]).logits[name])
        assert AutoTokenizer.from_pretrained(tmp_path / name).chat_template == MARKING
    card = (tmp_path / "chat" / "README.md").read_text()
    assert 'answer([{"role": "user", "content": ' in card


def test_rows_without_an_answer_left_are_counted(made, arguments, caplog):
    model, tokenizer = made({"answer": TextGeneration(**PAIRS, max_length=6)})
    rows = [{"prompt": "a" + " a" * more, "completion": " place"} for more in (0, 1, 4, 40)]
    args, train = arguments(max_steps=1), {"answer": Dataset.from_list(rows)}
    MultiTaskTrainer(model, args, train_dataset=train, processing_class=tokenizer).train()
    assert "2 of 4 rows of 'answer' (train) are longer than 6 tokens and were cut" in caplog.text
    assert "1 of 4 rows of 'answer' (train) have no token of the answer within this limit" in caplog.text
