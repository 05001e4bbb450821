"""YAML documents: what is written twice or holds itself is a mistake, and everything else is YAML as before."""

import pytest

from hf_multitask.cli.document import read_document


@pytest.fixture
def read(tmp_path):
    def make(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_document(path)

    return make


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' occurs twice in lines 1 and 3; keep one"),
        ("t:\n  x: {n: 1, m: 2, n: 3}\n", "the key 'n' occurs twice in line 2"),
        ('t:\n  - k: 1\n    "k": 2\n', "the key 'k' occurs twice in lines 2 and 3"),
        ("a: &a {b: *a}\n", "the alias '\\*a' is inside of its own anchor"),
        ("a: &a [1, [*a]]\n", "the alias '\\*a' is inside of its own anchor"),
        ("a: {[x]: 1}\n", "unhashable key"),
        ("a: 2020-13-40\n", "month"),
        ("a: !!int x\n", "invalid literal"),
        ("a: !!bool x\n", "a value that does not match its tag"),
        ("a: *b\n", "undefined alias"),
        ("a: 1\n---\nb: 2\n", "expected a single document"),
        ("[" * 3000, "nested too deeply"),
        (b"a: \xff\n", "utf-8"),
    ],
)
def test_mistakes(text, said, read):
    with pytest.raises(ValueError, match=f"Recipe '.*recipe.yaml' is not valid YAML: .*{said}"):
        read(text)


def test_aliases_that_grow_without_end_are_refused_at_once(read):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ValueError, match="the aliases expand to more than 1,000,000 values"):
        read("\n".join(lines))


def test_anchors_merges_and_numbers(read):
    assert read(
        "base: &base {path: csv, sep: ';'}\n"
        "one: {<<: *base, sep: ','}\n"
        "deep: {inner: &inner {<<: *base, path: json}}\n"
        "two: {<<: *inner, more: *base}\n"
        "numbers: [1e-3, 1.5E3, -2e4, 5, 1.0, '1e-3', 1e, e3, abc1e5]\n"
    ) == {
        "base": {"path": "csv", "sep": ";"},
        "one": {"path": "csv", "sep": ","},
        "deep": {"inner": {"path": "json", "sep": ";"}},
        "two": {"path": "json", "sep": ";", "more": {"path": "csv", "sep": ";"}},
        "numbers": [0.001, 1500.0, -20000.0, 5, 1.0, "1e-3", "1e", "e3", "abc1e5"],
    }
