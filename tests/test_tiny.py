"""What the tests are built on is the same in every process."""

import pytest
from tiny import ALL, _trained


@pytest.mark.parametrize("family", ALL)
def test_tokenizers_are_trained_the_same_each_time(family):
    first, second = (_trained.__wrapped__(family) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
