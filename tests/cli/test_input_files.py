"""Files of every form say the same to predict, whatever they are called, and what is none of them is refused."""

import csv
import gzip
import io
import json

import pytest

from hf_multitask import QuestionAnswering, SentenceSimilarity, SequenceClassification, TokenClassification
from hf_multitask.cli import main
from hf_multitask.cli.inputs import USUAL, Columns
from hf_multitask.cli.predict import read_inputs
from hf_multitask.cli.rows import open_rows
from hf_multitask.modeling.lifecycle import task_dict

TEXTS = ["A fine place, it is.", 'She said "no", twice;\tand left.', "Größe: 5 m² 😀", "a\nb", ""]
SENTIMENT = SequenceClassification(label_names=["no", "yes"])
NER = TokenClassification(label_names=["O", "B-X"])


def table(rows, delimiter):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


FORMS = {
    "csv": lambda rows: table(rows, ","),
    "semicolons": lambda rows: table(rows, ";"),
    "tsv": lambda rows: table(rows, "\t"),
    "lines": lines,
    "escaped": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
    "list": lambda rows: json.dumps(rows),
    "pretty": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False),
    "blank": lambda rows: "\n\n" + lines(rows).replace("\n", "\n  \n"),
}
NAMES = {
    "csv": ["in.csv", "in.CSV", "in.Csv.gz", "in", "in.txt", "in.data"],
    "semicolons": ["in.csv", "in"],
    "tsv": ["in.tsv", "in.TSV", "in.tab", "in", "in.csv"],
    "lines": ["in.jsonl", "in.JSONL", "in.json", "in.ndjson", "in", "in.txt", "in.jsonl.gz", "in.GZ"],
    "escaped": ["in.jsonl", "in.csv"],
    "list": ["in.json", "in.JSON", "in", "in.json.gz", "in.txt"],
    "pretty": ["in.json", "in.jsonl", "in", "in.txt"],
    "blank": ["in.jsonl", "in"],
}


def tasks_of(**tasks):
    return [task_dict(name, task) for name, task in tasks.items()]


@pytest.fixture
def read(tmp_path):
    """The inputs that are read of a file, and its kind."""

    def make(content, name="in.txt", tasks=None, packed=False, **options):
        path = tmp_path / name
        content = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(content, mtime=0) if packed or name.lower().endswith(".gz") else content)
        columns = Columns(tasks or tasks_of(sentiment=SENTIMENT), **options)
        file = open_rows(path, columns.names, USUAL)
        return list(read_inputs(file, columns)), file.kind

    return make


@pytest.mark.parametrize(("form", "name"), [(form, name) for form, names in NAMES.items() for name in names])
@pytest.mark.parametrize("packed", [False, True])
def test_form_is_recognised_by_what_the_file_holds(form, name, packed, read):
    rows = [{"id": str(number), "text": text, "label": "no"} for number, text in enumerate(TEXTS)]
    inputs, kind = read(FORMS[form](rows), name, packed=packed, id_column="id")
    assert [one.parts for one in inputs] == [[(None, {"text": text})] for text in TEXTS]
    assert [one.told for one in inputs] == [{"id": str(number)} for number in range(len(TEXTS))]
    assert kind != "text"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_marks_of_the_byte_order_and_ends_of_lines_are_no_part_of_a_text(encoding, ends, read):
    rows = [{"text": "Größe"}, {"text": "a, b"}]
    for form, name in [("csv", "in.csv"), ("lines", "in"), ("pretty", "in.json")]:
        content = ends.join(FORMS[form](rows).splitlines()).encode(encoding)
        assert [one.parts[0][1] for one in read(content, name)[0]] == rows
    content = f"Größe{ends}a, b{ends}".encode(encoding)
    assert [one.parts[0][1] for one in read(content, "in.txt")[0]] == ["Größe", "a, b"]


@pytest.mark.parametrize(
    "first",
    [
        "Well, the text, if any, is here.",
        "Text, he said, matters.",
        "A question; no answer.",
        "sentence after sentence, and so on",
        "[Music] and [laughter]",
        "[ ] buy milk, text",
        "{citation needed}, said the text",
        "text,text",
        "content",
        "1,2,3",
        "",
    ],
)
def test_text_with_commas_is_no_table(first, read):
    texts = [first, "It was fine, I guess, text", "", "  Spaces stay ", "the end"]
    inputs, kind = read("\n".join(texts) + "\n", "in.txt")
    assert kind == "text" and [one.parts[0][1] for one in inputs] == texts
    assert [one.number for one in inputs] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("header", "options", "tasks"),
    [
        ("id,text", {}, {}),
        (",text", {}, {}),  # as pandas writes it
        ("text", {}, {}),
        ("Id;Sentence", {}, {}),
        ("review\tstars", {}, {"sentiment": SequenceClassification(text_column="review", label_names=["a", "b"])}),
        ("review", {}, {"sentiment": SequenceClassification(text_column="review", label_names=["a", "b"])}),
        ("id,body", {"text_column": "body"}, {}),
        ("question,context", {}, {"qa": QuestionAnswering()}),
    ],
)
@pytest.mark.parametrize("name", ["in", "in.txt", "in.log"])
def test_header_is_never_answered_as_a_text(header, options, tasks, name, read):
    delimiter = next((one for one in ",;\t" if one in header), ",")
    row = delimiter.join("7" for _ in header.split(delimiter))
    inputs, kind = read(f"{header}\n{row}\n", name, tasks_of(**tasks) or None, **options)
    assert kind == "table" and len(inputs) == 1 and inputs[0].number == 2


def test_words_are_words_and_texts_are_texts(read):
    words, tasks = ["Ada", "Lovelace", ","], tasks_of(sentiment=SENTIMENT, ner=NER)
    for content, name in [
        (lines([{"tokens": words, "ner_tags": [0, 0, 0]}]), "in.jsonl"),
        (json.dumps([{"tokens": words}]), "in.json"),
        (table([{"id": 1, "tokens": json.dumps(words)}], ","), "in.csv"),
    ]:
        assert read(content, name, tasks)[0][0].parts == [(None, {"text": words})]
    assert [one.parts for one in read('["Ada", "a"]\n["b"]\n', "in")[0]] == [[(None, ["Ada", "a"])], [(None, ["b"])]]
    assert [one.parts for one in read('["Ada", "a"]\n', "in.jsonl")[0]] == [[(None, ["Ada", "a"])]]
    assert [one.parts for one in read('["Ada", "a"]\n', "in.json")[0]] == [[(None, "Ada")], [(None, "a")]]
    assert [one.parts for one in read('"Ada"\n"a"\n', "in.jsonl")[0]] == [[(None, "Ada")], [(None, "a")]]


def test_column_of_the_text_is_found(read, capsys):
    reviews = SequenceClassification(text_column="review", label_names=["a", "b"])
    for row, tasks, expected in [
        ({"review": "a", "text": "b"}, {"t": reviews}, {"text": "a"}),  # the task's own, as in training
        ({"text": "b", "sentence": "c"}, {"t": reviews}, {"text": "b"}),
        ({"title": "c", "Sentence": "d"}, {"t": reviews}, {"text": "d"}),
        ({"premise": "c", "hypothesis": "d"}, {"t": reviews}, {"text": "c", "text_pair": "d"}),
        ({"text": "a", "text_pair": None, "x": 1}, {"t": SENTIMENT, "s": SentenceSimilarity()}, {"text": "a"}),
        ({"sentence1": "a", "sentence2": "b"}, {"s": SentenceSimilarity()}, {"text": "a", "text_pair": "b"}),
        ({"text": "t", "question": "a", "context": "b"}, {"t": SENTIMENT, "q": QuestionAnswering()},
         {"text": "t", "question": "a", "context": "b"}),
    ]:  # fmt: skip
        (one,), _ = read(lines([row]), "in.jsonl", tasks_of(**tasks))
        assert one.parts == [(None, expected)]
    (one, other), _ = read(lines([{"a": "1", "b": "2", "text": "no"}] * 2), "in", text_column="a", text_pair_column="b")
    assert one.parts == other.parts == [(None, {"text": "1", "text_pair": "2"})]
    said = capsys.readouterr().err
    assert "The texts of" in said and "are read from the column 'Sentence'" in said


def test_tasks_read_columns_of_their_own(read):
    row = {"text": "Ada, here.", "tokens": ["Ada", ",", "here"], "label": 0}
    (one,), _ = read(lines([row]), "in", tasks_of(sentiment=SENTIMENT, ner=NER), include_inputs=True)
    assert one.parts == [(("sentiment",), {"text": "Ada, here."}), (("ner",), {"text": ["Ada", ",", "here"]})]
    assert one.told == {"input": ["Ada, here.", ["Ada", ",", "here"]]}


def test_blank_lines_keep_the_numbers_of_the_others(read):
    for content, name in [("text\n\n\na\n\n\nb\n", "in.csv"), ('\n\n\n"a"\n\n\n"b"\n', "in.jsonl")]:
        inputs, _ = read(content, name, include_line_numbers=True)
        assert [one.told["id"] for one in inputs] == [4, 7]
    inputs, _ = read('id,text\n1,"a\nb"\n2,c\n', "in.csv", include_line_numbers=True)
    assert [one.told["id"] for one in inputs] == [2, 4]  # where a row begins
    inputs, _ = read("a\n\nb\n", "in.txt", include_line_numbers=True)
    assert [(one.told["id"], one.parts[0][1]) for one in inputs] == [(1, "a"), (2, ""), (3, "b")]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("good\nGr\xf6\xdfe\n".encode("latin-1"), "in.txt", r"line 2 of '.*in.txt' is not in UTF-8: its byte 3 is 0xf6"),
        ("id,text\n1,Gr\xf6\n".encode("latin-1"), "in.csv", r"line 2 of '.*in.csv' is not in UTF-8"),
        ('{"text": "Gr\xf6"}\n'.encode("cp1252"), "in.jsonl", r"line 1 of '.*' is not in UTF-8"),
        ("日本".encode("shift-jis"), "in.txt", "is not in UTF-8"),
        ("one\ntwo".encode("utf-16-le"), "in.txt", r"line 1 of '.*' contains a null character.* UTF-16 without"),
        (b"\xff\xfea\x00\x00\xd8b\x00", "in.txt", "begins as UTF-16 and continues in another encoding"),
        (gzip.compress(b"a text\n" * 999, mtime=0)[:-12], "in.txt", "is a damaged gzip file"),
        (b"\x1f\x8bno gzip", "in.txt", "is a damaged gzip file"),
        ('{"text": "a"}\n{"text": \n', "in", r"line 2 of '.*' is not valid JSON"),
        ('{"text": "a"\n', "in", r"which begins like JSON, is not valid JSON"),
        ('[\n{"text": "a"},\n{"text" "b"}\n]', "in.json", r"is not valid JSON \(Expecting ':' delimiter, line 3\)"),
        ('{"text": "a"}\n7\n', "in.jsonl", r"line 2 of '.*' should be an object with 'text' or 'question'.* Found 7"),
        ('["a", 7]', "in.json", r"row 2 of '.*' should be an object.* Found 7"),
        ('{"text": 7}\n', "in.jsonl", r"line 1 of '.*' should be an object.* Found 7 in 'text'"),
        ('{"id": 1, "stars": 2}\n', "in", r"line 1 of '.*' should be .*Found the columns id, stars\. .*--text_column"),
        ("id,stars\n1,2\n", "in.csv", r"line 2 of '.*in.csv' has the columns id, stars, and none has a known name.*--text_column"),
        ("1,It is fine\n2,No\n", "in.csv", "has the columns 1, It is fine, and none"),
        ("id,text\n1,a,b\n", "in.csv", r"line 2 of '.*' has 3 cells, but the header has 2"),
        ('id,text\n1,"a\n2,b\n', "in.csv", r"line 2 of '.*' is not a row of a table \(unexpected end of data\)"),
        ("text,text\na,b\n", "in.csv", "has the column 'text' twice"),
        ("tokens\n\"['a', 'b']\"\n", "in.csv", r"column 'tokens' should contain a JSON list"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_place(content, name, message, read):
    with pytest.raises(ValueError, match=message):
        read(content, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_column": "txt"}, r"line 2 of '.*' has no column 'txt'; it has id, text\. Did you mean 'text'"),
        ({"id_column": "ids"}, r"has no column 'ids'; it has id, text\. Did you mean 'id'"),
        ({"text_pair_column": "b"}, r"has no column 'b'"),
    ],
)
def test_column_that_is_asked_for_has_to_be_there(options, message, read):
    with pytest.raises(ValueError, match=message):
        read("id,text\n1,a\n", "in.csv", **options)
    with pytest.raises(ValueError, match=r"line 1 of '.*' is a text without columns and has no column '"):
        read("only a text\n", "in.txt", **options)


def test_column_of_a_text_that_no_task_reads_is_refused():
    with pytest.raises(ValueError, match=r"Task 'q' reads question and context.* Remove --text_column"):
        Columns(tasks_of(q=QuestionAnswering()), text_column="text")


@pytest.fixture
def saved(build_model, tokenizer, tmp_path):
    build_model(tasks={"sentiment": SENTIMENT, "ner": NER, "id": SENTIMENT}).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_command_answers_files_of_all_forms_alike_and_repeats_what_is_asked_for(saved, tmp_path, capsys):
    def call(*words, code=0):
        assert main(["predict", saved, *words]) == code
        out, err = capsys.readouterr()
        return [json.loads(line) for line in out.splitlines()] if code == 0 else err

    rows = [{"key": number, "text": text} for number, text in enumerate(TEXTS)]
    expected = None
    for form in ("csv", "tsv", "lines", "list"):
        (tmp_path / "in").write_text(FORMS[form](rows), encoding="utf-8", newline="")
        answers = call("--input", str(tmp_path / "in"))
        assert [list(one) for one in answers] == [["sentiment", "ner", "id"]] * len(TEXTS)
        expected = expected or answers
        assert answers == expected
    input_ = ["--input", str(tmp_path / "in"), "--tasks", "sentiment"]
    told = call(*input_, "--id_column", "key", "--include_inputs")
    assert [list(one) for one in told] == [["id", "input", "sentiment"]] * len(TEXTS)
    assert [one["id"] for one in told] == list(range(len(TEXTS))) and [one["input"] for one in told] == TEXTS
    assert [one["sentiment"] for one in told] == [one["sentiment"] for one in expected]
    assert call("A fine place.", "--include_inputs", "--tasks", "ner")[0]["input"] == "A fine place."
    for words, message in [
        ([*input_, "--id_column", "key", "--include_line_numbers"], "Remove one of them"),
        (["A text", "--id_column", "key"], "--id_column applies to the rows of a file"),
        (["A \udcff text"], "is not in UTF-8"),
        (["--input", str(tmp_path / "in"), "--include_line_numbers"], "The answers of the task 'id' use the same key"),
    ]:
        assert message in call(*words, code=2)
    words, text = ["Ada", ",", "here"], "Somewhere else entirely."
    (tmp_path / "both").write_text(lines([{"text": text, "tokens": words}, {"text": text}]))
    first, second = call("--input", str(tmp_path / "both"))
    assert list(first) == ["sentiment", "ner", "id"]
    assert first["sentiment"] == pytest.approx(second["sentiment"]) and first["ner"] != second["ner"]
    assert {tag["word"] for tag in first["ner"]} <= set(words)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n\n{"text": ["a", 7]}\n')
    assert f"line 3 of '{tmp_path / 'bad.jsonl'}': a text should be" in call(
        "--input", str(tmp_path / "bad.jsonl"), code=2
    )
