"""Hashes of rows, by which runs know those of an earlier one."""

import pytest
from datasets import Dataset

from hf_multitask.data.digests import digest_of_rows

WORDS = [["a", "b"][: number % 3] for number in range(40)]
TEXTS = [None if number % 7 == 3 else f"text {number}" for number in range(40)]


@pytest.mark.parametrize("part", [slice(0, 13), slice(5, 21), slice(37, 40)])
def test_rows_have_one_digest_wherever_they_lie(part):
    """A part of a dataset is written with bits of the rows beside it where it is not copied."""
    columns = {"words": WORDS, "text": TEXTS, "label": [number % 5 == 0 for number in range(40)]}
    own = Dataset.from_dict({name: values[part] for name, values in columns.items()})
    whole = Dataset.from_dict(columns)
    assert digest_of_rows(whole.select(range(part.start, part.stop))) == digest_of_rows(own)
    other = Dataset.from_dict(
        columns | {"text": [f"other {number}" for number in range(part.start)] + TEXTS[part.start :]}
    )
    assert digest_of_rows(other.select(range(part.start, part.stop))) == digest_of_rows(own)
    assert digest_of_rows(whole.select(range(part.stop - part.start))) != digest_of_rows(own) or part.start == 0
