"""What sources of examples promise: rows that stay what they are, and a key and a length for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from lateinteraction.domain.ports import ExampleSource
from lateinteraction.domain.training import TrainingExample
from lateinteraction.testing import strategies
from lateinteraction.testing.contracts.checks import holds_for

_examples = st.lists(strategies.training_examples(teacher=False), min_size=1, max_size=6)


class ExampleSourceContract:
    """Every `ExampleSource`."""

    def make_source(self, examples: Sequence[TrainingExample]) -> ExampleSource:
        """A source of these, one for each row, at least one."""
        raise NotImplementedError

    @holds_for(_examples)
    def test_rows_are_what_was_given_however_often_they_are_asked_for(self, examples: list[TrainingExample]) -> None:
        source = self.make_source(examples)
        assert len(source) == len(examples)
        assert source.name
        for row in (*range(len(examples)), *reversed(range(len(examples)))):
            found = source.example(row)
            assert found.query.text == examples[row].query.text
            assert [each.text for each in found.documents] == [each.text for each in examples[row].documents]

    @holds_for(_examples)
    def test_a_plan_is_told_a_key_and_a_length_for_each_row(self, examples: list[TrainingExample]) -> None:
        source = self.make_source([*examples, *examples])
        keys, lengths = source.positives(), source.lengths()
        assert keys.dtype == lengths.dtype == np.int64
        assert keys.shape == lengths.shape == (len(source),)
        assert np.all(lengths >= 0)
        np.testing.assert_array_equal(keys[: len(examples)], keys[len(examples) :])
        np.testing.assert_array_equal(keys, source.positives())
        for row, key in enumerate(keys):
            for other in np.flatnonzero(keys == key):
                assert source.example(int(other)).documents[0].id == source.example(row).documents[0].id
