"""One suite per port: what its docstring promises, as checks that an adapter passes by subclassing.

    class TestMyIndex(ExactIndexContract[NDArray]):
        def make_index(self) -> MyIndex:
            return MyIndex()

pytest collects the checks of `TestMyIndex`; `checks_of(TestMyIndex())` gives them to any other runner. An adapter of
another array kind says how to make its arrays (`tensor`) and how to read them (`array`).
"""

from __future__ import annotations

from lateinteraction.domain.errors import MissingExtra

try:
    import hypothesis as hypothesis  # asked for here, so that one message names both
    import pytest
except ModuleNotFoundError as error:
    raise MissingExtra(
        f"the contract suites without {error.name}",
        "pytest and hypothesis to be installed",
        'pip install "lateinteraction[testing]"',
    ) from error

# Before they are imported: failures then show the values compared, as they do in a test file.
_SUITES = ("encoder", "exact_index", "history", "index", "learning", "scorer", "sources", "storage", "stores")
pytest.register_assert_rewrite(*(f"{__name__}.{suite}" for suite in _SUITES))

from lateinteraction.testing.contracts.checks import Conversions, checks_of  # noqa: E402
from lateinteraction.testing.contracts.encoder import EncoderContract, TracingEncoderContract  # noqa: E402
from lateinteraction.testing.contracts.exact_index import ExactIndexContract  # noqa: E402
from lateinteraction.testing.contracts.index import IndexContract  # noqa: E402
from lateinteraction.testing.contracts.learning import LossContract, TrainerContract  # noqa: E402
from lateinteraction.testing.contracts.scorer import MaxSimContract, ScorerContract  # noqa: E402
from lateinteraction.testing.contracts.sources import ExampleSourceContract  # noqa: E402
from lateinteraction.testing.contracts.storage import StorageContract  # noqa: E402
from lateinteraction.testing.contracts.stores import (  # noqa: E402
    CandidateSourceContract,
    DocumentStoreContract,
    EmbeddingStoreContract,
)

__all__ = [
    "CandidateSourceContract",
    "Conversions",
    "DocumentStoreContract",
    "EmbeddingStoreContract",
    "EncoderContract",
    "ExactIndexContract",
    "ExampleSourceContract",
    "IndexContract",
    "LossContract",
    "MaxSimContract",
    "ScorerContract",
    "StorageContract",
    "TracingEncoderContract",
    "TrainerContract",
    "checks_of",
]
