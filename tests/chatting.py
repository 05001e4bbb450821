"""Prompts, answers and chats of the demo's texts, and chat templates for tiny tokenizers."""

from datasets import Dataset
from tiny import read_rows

# Marks what the assistant says, as the templates of TRL for training do.
MARKING = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}assistant:{{ '\n' }}{% generation %}"
    "{{ message['content'] + eos_token }}{% endgeneration %}{% else %}{{ message['role'] + ': ' + message['content'] }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{{ '\n' }}{% endif %}"
)
# The same text without marks.
PLAIN = MARKING.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# Begins an answer behind a space, which tokenizers join to the first word.
SPACED = PLAIN.replace("assistant:{{ '\n' }}", "assistant: ")
# Says of a chat how long it is, so that no chat begins as a longer one does.
COUNTING = "{{ messages | length }} messages: " + PLAIN


def message(role, content):
    return {"role": role, "content": content}


def chats(count=12, split="train", turns=2):
    texts = [row["text"][:24].strip() for row in read_rows("sentiment", split, 2 * turns * count)]
    asked = [message(role, text) for role, text in zip(["user", "assistant"] * turns * count, texts, strict=True)]
    return [asked[start : start + 2 * turns] for start in range(0, len(asked), 2 * turns)]


def prompts(count=12, split="train"):
    """Prompts with completions, the last one without."""
    rows = [
        {"prompt": first["content"], "completion": " " + second["content"]} for first, second in chats(count, split, 1)
    ]
    rows[-1]["completion"] = None
    return Dataset.from_list(rows)
