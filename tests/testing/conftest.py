"""How the suites themselves are tested: run against an adapter with one fault, and seen to find it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from lateinteraction.testing.contracts import checks_of

# Always the same examples, so that a fault is not found on most days only; nothing shrunk, nothing remembered.
settings.register_profile(
    "faults",
    max_examples=60,
    derandomize=True,
    report_multiple_bugs=False,
    database=None,
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def failing() -> Iterator[Callable[[object, Iterable[str]], set[str]]]:
    """The names of the checks that fail: of those that need no generated examples, and of the named ones."""
    profile = settings.get_current_profile_name()
    settings.load_profile("faults")
    with pytest.MonkeyPatch.context() as patch:

        def fails(contract: object, name: str, check: Callable[[], None], named: Iterable[str]) -> bool:
            function = getattr(type(contract), name)
            if hasattr(function, "hypothesis"):
                if name not in named:
                    return False
                # `given` keeps the settings it was decorated with, whatever the profile.
                patch.setattr(function, "_hypothesis_internal_use_settings", settings())
            elif name == "test_any_history_is_that_of_a_dictionary" and name not in named:
                return False
            try:
                check()
            except (Exception, pytest.fail.Exception):
                return True
            return False

        yield lambda contract, named: {
            name for name, check in checks_of(contract) if fails(contract, name, check, named)
        }
    settings.load_profile(profile)
