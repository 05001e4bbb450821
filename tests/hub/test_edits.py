"""Cards written anew: what was edited, added or deleted stays, and all else is refreshed."""

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_multitask.hub.edits import Card, UnreadableCard, merge


def result(task, value, split="test"):
    dataset = {"name": task, "type": task, "split": split}
    return {"task": {"type": task}, "dataset": dataset, "metrics": [{"type": "f1", "value": value}]}


def card(number=1, *, results=("a", "b"), vague=(), given=(), **metadata):
    index = [{"name": "m", "results": [result(task, number / 10) for task in results]}] if results else None
    return Card(
        metadata={"library_name": "transformers", "tags": ["x", "y"], **metadata, "model-index": index},
        given=dict(given),
        sections={
            "intro": ("", f"# Title {number}\n\nIntro {number}."),
            "tasks": ("Tasks", f"| tasks | {number} |"),
            "use": ("Use", f"```python\n# code {number}\n```"),
            "results": ("Results", f"results {number}"),
        },
        vague=frozenset(vague),
    )


def front(text):
    return yaml.safe_load(text.split("---\n")[1])


def values(text):
    return {one["task"]["type"]: one["metrics"][0]["value"] for one in front(text)["model-index"][0]["results"]}


def test_untouched_card_is_refreshed_whole_and_written_alike_twice():
    first = merge("", card(1))
    assert merge(first, card(1)) == first
    assert merge(first, card(2)) == merge("", card(2))
    assert ModelCard(first).data.to_dict() == front(first)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_edits_inside_and_between_sections_stay(ends):
    text = merge("", card(1))
    text = text.replace("Intro 1.", "My intro.").replace("## Use", "## Limits\n\nFew.  \n\n## How to use it")
    text = text.replace("<!-- end of results -->", "<!-- end of results -->\n\nA word on the results.")
    text += "\nAt the end.\n"
    again = merge(text.replace("\n", ends), card(2))
    assert again.count("\r\n") == (again.count("\n") if ends == "\r\n" else 0)
    again = again.replace("\r\n", "\n")
    for kept in (
        "# Title 1\n\nMy intro.",
        "## Limits\n\nFew.  \n\n## How to use it",
        "A word on the results.",
        "At the end.",
    ):
        assert again.count(kept) == 1
    for new in ("| tasks | 2 |", "# code 2", "results 2"):
        assert again.count(new) == 1
    assert "Title 2" not in again and values(again) == {"a": 0.2, "b": 0.2}
    assert merge(again, card(2)) == again
    third = merge(again, card(3))
    assert "My intro." in third and "results 3" in third and "results 2" not in third


def test_deleted_sections_do_not_come_back():
    text = merge("", card(1))
    start, end = text.index("## Use"), text.index("## Results")
    text = text[:start] + text[end:]
    for number in (2, 3):
        text = merge(text, card(number))
        assert "Use" not in text and "code" not in text and f"results {number}" in text


def test_a_section_without_one_of_its_comments_is_the_users():
    text = merge("", card(1)).replace("<!-- end of tasks -->\n", "")
    again = merge(text, card(2))
    assert "| tasks | 1 |" in again and "| tasks | 2 |" not in again and "results 2" in again


def test_new_sections_are_added_once():
    old = card(1)
    text = merge("", Card(old.metadata, {}, {name: old.sections[name] for name in ("intro", "results")}))
    again = merge(text, card(2))
    assert again.count("## Tasks") == again.count("## Use") == 1
    assert again.rstrip().endswith("-->") and again.index("## Use") < again.index("keeps what you change here")
    assert merge(again, card(2)) == again


@pytest.mark.parametrize(
    "text",
    ["# Mine\n\nWords.\n\n## Results\n\n0.9\n", "---\nlicense: mit\n---\n# Mine\n\nWords.\n\n## results\n\n0.9\n"],
)
def test_a_card_of_the_users_own_stays_and_gets_what_it_lacks(text):
    again = merge(text, card(1))
    assert text.rpartition("---\n")[2].strip() in again and "Title 1" not in again and "results 1" not in again
    assert "| tasks | 1 |" in again and front(again)["library_name"] == "transformers"
    later = merge(again, card(2))
    assert "0.9" in later and "results 2" not in later and "| tasks | 2 |" in later
    assert ("license: mit" in later) == ("license: mit" in text)


def test_metadata_alone_are_kept_and_the_rest_is_written():
    text = merge("---\nlicense: mit\n---\n", card(1))
    assert front(text)["license"] == "mit" and "# Title 1" in text and "results 1" in text


def test_without_its_last_comment_all_that_is_there_is_the_users():
    text = "\n".join(line for line in merge("", card(1)).splitlines() if "keeps what you change" not in line)
    again = merge(text, card(2))
    for kept in ("Intro 1.", "| tasks | 1 |", "results 1"):
        assert again.count(kept) == 1
    assert "2" not in again.partition("<!-- hf_multitask keeps")[0].replace("---", "") and values(again) == {
        "a": 0.1,
        "b": 0.1,
    }


def test_keys_of_the_metadata_are_refreshed_kept_or_stay_deleted():
    text = merge("", card(1, pipeline_tag="a", base_model="b", language="en"))
    text = text.replace("pipeline_tag: a\n", "").replace("base_model: b", "base_model: mine")
    text = text.replace("- y\n", "- y\n- z\n").replace("---\n", "---\nlicense: mit\nwidget:\n- text: hello\n", 1)
    again = merge(text, card(2, pipeline_tag="c", base_model="d", language="de"))
    assert front(again) | {"model-index": None} == {
        "license": "mit",
        "widget": [{"text": "hello"}],
        "library_name": "transformers",
        "tags": ["x", "y", "z"],
        "base_model": "mine",
        "language": "de",
        "model-index": None,
    }
    assert "language" not in front(merge(again, card(2, language=None)))  # no longer known, and untouched


def test_values_of_any_kind_that_a_user_sets_stay():
    mine = 'tags: {1: a, b: c}\ndate: 2024-12-01\nlibrary_name: "one\u2028two"\nempty:\n'
    again = merge(f"---\n{mine}---\n# Mine\n", card(1))
    assert again.startswith(f"---\n{mine}model-index:")
    assert merge(again, card(2)).startswith(f"---\n{mine}model-index:")


def test_comments_in_the_metadata_stay():
    text = merge("", card(1, pipeline_tag="a", language="en"))
    text = text.replace("pipeline_tag: a", "# about the task\npipeline_tag: a  # mine\n\n# about the language")
    again = merge(text, card(2, pipeline_tag="b", language="de"))
    assert "# about the task\npipeline_tag: a  # mine\n\n# about the language\nlanguage: de\n" in again


def test_given_metadata_are_written_over_what_is_there_and_tags_are_added():
    text = merge("", card(1)).replace("---\n", "---\nlicense: mit\n", 1)
    again = merge(text, card(2, given={"license": "apache-2.0", "tags": ["y", "z"]}))
    assert front(again)["license"] == "apache-2.0" and front(again)["tags"] == ["x", "y", "z"]
    assert front(merge(again, card(3))) | {"model-index": None} == front(again) | {"model-index": None}


def test_given_metadata_do_not_look_edited_at_the_next_save():
    given = {"language": "en", "tags": ["y"]}
    text = merge(merge("", card(language=None, tags=["x"])), card(language=None, tags=["x"], given=given))
    for _ in range(2):
        text = merge(text, card(language=None, tags=["x"], given=given))
        assert text == merge("", card(language=None, tags=["x"], given=given))


def test_results_of_the_users_stay_beside_ours():
    text = merge("", card(1, results=("a", "b", "c")))
    head, _, body = text.partition("\n---\n")
    data = yaml.safe_load(head[4:])
    entries = data["model-index"][0]["results"]
    entries[1]["metrics"][0]["value"] = 0.77  # edited
    del entries[2]  # deleted
    entries.append(result("own", 0.99))
    text = "---\n" + yaml.safe_dump(data, sort_keys=False) + "---\n" + body
    for number in (2, 3):
        text = merge(text, card(number, results=("a", "b", "c")))
        assert values(text) == {"a": number / 10, "b": 0.77, "own": 0.99}
    text = merge(text, card(4, results=("d",)))  # another model
    assert values(text) == {"d": 0.4, "b": 0.77, "own": 0.99}


def test_results_go_with_the_model_that_had_them_and_stay_where_nothing_is_known():
    text = merge("", card(1))
    assert values(merge(text, card(2, results=(), vague=["model-index"]))) == {"a": 0.1, "b": 0.1}
    gone = merge(text, card(2, results=()))
    assert "model-index" not in front(gone)
    assert values(merge(gone, card(3))) == {"a": 0.3, "b": 0.3}
    deleted = text.replace(text[text.index("model-index:") : text.index("\n---\n")], "license: mit")
    assert "model-index" not in front(merge(deleted, card(2)))


def test_vague_sections_are_written_once_and_refresh_nothing():
    text = merge("", card(1, vague=["results"]))
    assert "results 1" in text
    assert "results 1" in merge(text, card(2, vague=["results"])) and "results 3" in merge(text, card(3))


@pytest.mark.parametrize(
    "block",
    ["license: [mit", "date: 2024-13-45", "just words", "- a\n- b", "{license: mit}", '"license": mit', "a: 1\n'b': 2"],
)
def test_metadata_that_could_not_be_kept_are_refused(block):
    with pytest.raises(UnreadableCard, match="its metadata are"):
        merge(f"---\n{block}\n---\nText\n", card(1))
