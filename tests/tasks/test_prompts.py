"""Rows of prompts and chats: their tokens, those that train, and bad input."""

import chatting
import pytest
from chatting import COUNTING, MARKING, PLAIN, SPACED, message
from datasets import Dataset
from tiny import make_tokenizer
from transformers import AutoConfig

from hf_multitask import TextGeneration
from hf_multitask.data import encode_dataset
from hf_multitask.tasks import build_task

PAIRS = {"prompt_column": "prompt", "completion_column": "completion"}
MESSAGES = {"messages_column": "messages"}


@pytest.fixture
def encode(backbone_path):
    """Encoded rows and the tokenizer."""

    def make(task, rows, family="gpt2", template=None):
        task = build_task("t", task.to_dict())
        tokenizer, config = make_tokenizer(family), AutoConfig.from_pretrained(backbone_path(family))
        tokenizer.chat_template = template
        task.check_tokenizer(tokenizer)
        data = Dataset.from_list(rows) if isinstance(rows, list) else rows
        made = encode_dataset("t", data, [task], tokenizer=tokenizer, config=config, split="train", training=True)
        return made, tokenizer

    return make


def trained(row):
    return [token for token in row["labels:t"] if token != -100]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_a_completion_trains_behind_its_prompt(family, encode):
    rows = chatting.prompts(6)
    encoded, tokenizer = encode(TextGeneration(**PAIRS), rows, family)
    for row, own in zip(rows, encoded.rows, strict=True):
        before = tokenizer(row["prompt"])["input_ids"]
        if row["completion"] is None:
            assert own["labels:t"] is None and own["input_ids"] == before
            continue
        whole = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
        assert own["input_ids"] == whole and own["attention_mask"] == [1] * len(whole)
        assert own["labels:t"] == [-100] * len(before) + whole[len(before) :]
        assert whole[-1] == tokenizer.eos_token_id
    assert encoded.labelled_rows("t") == 5 and not encoded.cut_rows()


def test_a_completion_that_has_its_end_gets_no_other(encode):
    end = make_tokenizer("gpt2").eos_token
    encoded, tokenizer = encode(TextGeneration(**PAIRS), [{"prompt": "A", "completion": f" place{end}"}])
    assert encoded.rows[0]["input_ids"].count(tokenizer.eos_token_id) == 1


def test_a_tokenizer_that_ends_every_text_ends_a_completion_once(backbone_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer("gpt2")
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    task, config = build_task("t", TextGeneration(**PAIRS).to_dict()), AutoConfig.from_pretrained(backbone_path("gpt2"))
    data = Dataset.from_list([{"prompt": "A", "completion": " place"}])
    encoded = encode_dataset("t", data, [task], tokenizer=tokenizer, config=config, split="train", training=True)
    ids, labels = encoded.rows[0]["input_ids"], encoded.rows[0]["labels:t"]
    assert ids.count(end[1]) == 1 and ids[-1] == end[1] == labels[-1] and labels[0] == -100


def test_a_prompt_that_ends_within_a_token_is_read_as_it_is_asked(encode):
    rows = [{"prompt": "It was ", "completion": "the place"}, {"prompt": "It was", "completion": " the place"}]
    encoded, tokenizer = encode(TextGeneration(**PAIRS), rows)
    asked = tokenizer("It was ")["input_ids"]
    assert encoded.rows[0]["input_ids"][: len(asked)] == asked and encoded.total("apart", "t") == 1
    assert tokenizer.decode(trained(encoded.rows[0])) == f"the place{tokenizer.eos_token}"
    assert tokenizer.decode(trained(encoded.rows[1])) == f" the place{tokenizer.eos_token}"


def test_rows_are_cut_at_their_end_and_without_an_answer_do_not_count(encode):
    rows = [{"prompt": "a" + " a" * more, "completion": " place"} for more in (0, 4, 40)]
    encoded, _ = encode(TextGeneration(**PAIRS, max_length=6), rows)
    assert encoded.lengths()[0] < 6 == encoded.lengths()[1] == encoded.lengths()[2] and encoded.cut_rows() == 2
    assert encoded.total("spent", "t") == 1 and encoded.labelled_rows("t") == 2
    assert encoded.rows[2]["labels:t"] is None and encoded.rows[1]["labels:t"] is not None


def test_all_that_the_template_marks_trains(encode):
    rows = [{"messages": chat} for chat in chatting.chats(3)]
    encoded, tokenizer = encode(TextGeneration(**MESSAGES), rows, template=MARKING)
    for row, own in zip(rows, encoded.rows, strict=True):
        made = tokenizer.apply_chat_template(row["messages"], return_assistant_tokens_mask=True)
        assert own["input_ids"] == made["input_ids"]
        said = "".join(one["content"] + tokenizer.eos_token for one in row["messages"][1::2])
        assert tokenizer.decode(trained(own)) == said
        assert [token != -100 for token in own["labels:t"]] == [bool(one) for one in made["assistant_masks"]]


def test_the_last_answer_trains_where_nothing_is_marked(encode):
    first, second = chatting.chats(2)
    rows = [{"messages": first}, {"messages": [*second, message("user", "Thanks.")]}, {"messages": None}]
    encoded, tokenizer = encode(TextGeneration(**MESSAGES), rows, template=PLAIN)
    for row, chat in zip(encoded.rows, (first, second), strict=False):
        assert row["input_ids"] == tokenizer.apply_chat_template(chat)["input_ids"]
        assert tokenizer.decode(trained(row)) == chat[-1]["content"] + tokenizer.eos_token + "\n"
    assert encoded.rows[2]["labels:t"] is None


def test_a_chat_whose_answer_begins_within_a_token_is_read_as_it_is_asked(encode):
    chat = chatting.chats(1)[0]
    encoded, tokenizer = encode(TextGeneration(**MESSAGES), [{"messages": chat}], template=SPACED)
    asked = tokenizer.apply_chat_template(chat[:3], add_generation_prompt=True)["input_ids"]
    assert encoded.rows[0]["input_ids"][: len(asked)] == asked and encoded.total("apart", "t") == 1
    assert tokenizer.decode(trained(encoded.rows[0])) == chat[3]["content"] + tokenizer.eos_token + "\n"


@pytest.mark.parametrize("template", [MARKING, PLAIN], ids=["marking", "plain"])
def test_prompt_and_completion_may_be_messages(template, encode):
    chat = chatting.chats(1)[0]
    encoded, tokenizer = encode(
        TextGeneration(**PAIRS), [{"prompt": chat[:3], "completion": chat[3:]}], template=template
    )
    before = tokenizer.apply_chat_template(chat[:3], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(chat)["input_ids"]
    assert encoded.rows[0]["input_ids"] == whole
    assert encoded.rows[0]["labels:t"] == [-100] * len(before) + whole[len(before) :]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt_column": "p"}, r"`prompt_column` needs `completion_column`.*Set `completion_column`"),
        ({"completion_column": "c"}, r"`completion_column` needs `prompt_column`"),
        ({**PAIRS, **MESSAGES}, r"`prompt_column` and `messages_column` exclude each other.*Leave out one"),
        ({**MESSAGES, "text_column": "body"}, r"`messages_column` and `text_column` exclude each other"),
        ({**PAIRS, "block_size": 8}, r"`prompt_column` and `block_size` exclude each other"),
        ({"messages_column": ["a"]}, r"`messages_column` should be one column"),
        ({**PAIRS, "weight_column": "w"}, r"`weight_column` is not for text-generation"),
    ],
)
def test_arguments_that_contradict_each_other(given, message):
    with pytest.raises(ValueError, match=message):
        TextGeneration(**given)


def test_a_tokenizer_without_a_chat_template_is_refused(encode):
    with pytest.raises(
        ValueError, match=r"needs a chat template, and the tokenizer .* has none. Set tokenizer.chat_te"
    ):
        encode(TextGeneration(**MESSAGES), [{"messages": chatting.chats(1)[0]}])
    with pytest.raises(ValueError, match=r"row 0 of the train data, the tokenizer .* has no chat template"):
        chat = chatting.chats(1)[0]
        encode(TextGeneration(**PAIRS), [{"prompt": chat[:1], "completion": chat[1:2]}])


@pytest.mark.parametrize(
    ("row", "template", "error"),
    [
        ([message("user", "Hi."), message("assistant", "Ho.")], COUNTING, r"row 0 .*Mark what the assistant says with"),
        ([message("user", "Hi.")], PLAIN, r"row 0 .*should have a message of the role 'assistant'"),
        ([message("assistant", "Hi.")], MARKING.replace("assistant", "bot"), r"row 0 .*marks no word of the assistant"),
        (
            [{"from": "user", "value": "Hi."}],
            PLAIN,
            r"row 0 .*should be a list of messages, each with 'role' and 'content'",
        ),
        ([message("assistant", "Hi.")], "{{ raise_exception('No.') }}", r"row 0 .*refuses the messages: No"),
    ],
)
def test_a_row_that_does_not_say_what_trains_is_named(row, template, error, encode):
    with pytest.raises(ValueError, match=error):
        encode(TextGeneration(**MESSAGES), [{"messages": row}], template=template)


def test_a_prompt_and_a_completion_of_different_kinds_are_refused(encode):
    chat = chatting.chats(1)[0]
    with pytest.raises(ValueError, match=r"row 0 .*the prompt is a chat"):
        encode(TextGeneration(**PAIRS), [{"prompt": chat[:1], "completion": "Yes."}], template=PLAIN)
    with pytest.raises(ValueError, match=r"row 0 .*column 'completion': a text"):
        encode(TextGeneration(**PAIRS), [{"prompt": "Hi", "completion": chat[1:2]}], template=PLAIN)
