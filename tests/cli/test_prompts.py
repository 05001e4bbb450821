"""Prompts and chats by the command line."""

import json
import shutil

import chatting
import pytest
from chatting import PLAIN, message
from transformers import AutoTokenizer

from hf_multitask.cli import main


@pytest.fixture
def chat_kitchen(kitchen, backbone_path):
    """A recipe with a task on chats and one on prompts beside a classifier, on a decoder with a chat template."""
    folder = kitchen.folder / "decoder"
    AutoTokenizer.from_pretrained(backbone_path("gpt2")).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.pad_token = PLAIN, tokenizer.eos_token
    for path in ("config.json", "model.safetensors"):
        shutil.copy(f"{backbone_path('gpt2')}/{path}", folder / path)
    tokenizer.save_pretrained(folder)
    files = {}
    for split, count in (("train", 12), ("validation", 5)):
        kitchen.write(f"chat/{split}.jsonl", [{"messages": chat} for chat in chatting.chats(count, turns=1)])
        kitchen.write(f"ask/{split}.jsonl", list(chatting.prompts(count + 1))[:-1])
        files[split] = f"{split}.jsonl"
    recipe = kitchen.changed("tasks", ner=None)
    recipe["backbone"] = "decoder"
    recipe["datasets"].pop("ner")
    recipe["datasets"]["sentiment"]["data_files"].pop("test")
    for name in ("chat", "ask"):
        paths = {split: f"{name}/{file}" for split, file in files.items()}
        recipe["datasets"][name] = {"path": "json", "data_files": paths}
    recipe["tasks"]["chat"] = {"type": "text-generation", "messages_column": "messages", "max_new_tokens": 4}
    own = {"prompt_column": "prompt", "completion_column": "completion", "max_new_tokens": 4}
    recipe["tasks"]["ask"] = {"type": "text-generation", **own}
    recipe["training"]["output_dir"] = str(kitchen.folder / "out")
    kitchen.recipe = recipe
    return kitchen


def test_a_recipe_trains_on_prompts_and_chats(chat_kitchen, capsys):
    kitchen, out = chat_kitchen, str(chat_kitchen.folder / "out")
    code, _, errors = kitchen.run(["train"], kitchen.recipe)
    assert code == 0, errors
    results = json.loads((kitchen.folder / "out" / "all_results.json").read_text())
    assert {"eval_chat_perplexity", "eval_ask_token_accuracy", "eval_sentiment_accuracy"} <= results.keys()
    chat = [message("user", "A fine place?")]
    kitchen.write("asked.jsonl", [{"messages": chat}, {"prompt": "A fine place", "text": "A fine place"}])
    assert main(["predict", out, "--input", str(kitchen.folder / "asked.jsonl")]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first.keys() == {"chat", "ask"} and first["chat"]["generated_text"][:-1] == chat
    assert second["ask"]["generated_text"].startswith("A fine place") and "sentiment" in second
    answers = kitchen.folder / "answers.jsonl"
    code, _, errors = kitchen.run(["evaluate", out], None, "--split", "validation", "--save_predictions", str(answers))
    assert code == 0, errors
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    asked = [line for line in lines if line["task"] == "ask"]
    assert len(asked) == 5 and asked[0]["gold"] == chatting.prompts(6)[0]["completion"]
    assert not any(chatting.prompts(6)[0]["prompt"] in line["answer"] for line in asked)
    told = next(line for line in lines if line["task"] == "chat")
    assert told["answer"][:-1] == told["gold"][:-1] and len(told["gold"]) == 2


def test_a_recipe_without_a_chat_template_is_refused_in_a_sentence(chat_kitchen):
    (chat_kitchen.folder / "decoder" / "chat_template.jinja").unlink()
    code, _, errors = chat_kitchen.run(["train"], chat_kitchen.recipe)
    assert code == 2 and "Task 'chat': `messages_column` needs a chat template" in errors and "Traceback" not in errors
