"""`lateinteraction.testing` asks for no more than it needs, and says what is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lateinteraction.testing
from lateinteraction.domain.errors import MissingExtra
from lateinteraction.testing import contracts, strategies


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)


def test_the_fakes_need_neither_torch_nor_hypothesis_nor_pytest() -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'hypothesis', 'pytest']))\n"
        "from lateinteraction.testing import HashEncoder, ListIndex\n"
        "print(HashEncoder().width, len(ListIndex()))\n"
    )
    outcome = run(program)
    assert (outcome.returncode, outcome.stdout) == (0, "32 0\n"), outcome.stderr


def test_strategies_and_contracts_need_no_torch() -> None:
    program = (
        "import sys\n"
        "import lateinteraction.testing.contracts, lateinteraction.testing.strategies\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    outcome = run(program)
    assert (outcome.returncode, outcome.stdout) == (0, "[]\n"), outcome.stderr


@pytest.mark.parametrize(
    ("module", "missing"),
    [("strategies", "hypothesis"), ("contracts", "hypothesis"), ("contracts", "pytest")],
)
def test_a_missing_package_is_named_with_its_extra(module: str, missing: str) -> None:
    program = (
        "import sys\n"
        f"sys.modules['{missing}'] = None\n"
        "from lateinteraction.domain.errors import MissingExtra\n"
        "try:\n"
        f"    import lateinteraction.testing.{module}\n"
        "except MissingExtra as error:\n"
        "    print(error)\n"
    )
    outcome = run(program)
    assert missing in outcome.stdout
    assert 'pip install "lateinteraction[testing]"' in outcome.stdout
    assert issubclass(MissingExtra, ImportError)


@pytest.mark.parametrize("module", [lateinteraction.testing, contracts])
def test_all_that_is_promised_is_there(module: object) -> None:
    assert sorted(module.__all__) == module.__all__
    assert all(hasattr(module, name) for name in module.__all__)


def test_every_strategy_says_what_it_gives() -> None:
    public = [each for name, each in vars(strategies).items() if not name.startswith("_") and callable(each)]
    own = [each for each in public if getattr(each, "__module__", "") == strategies.__name__]
    assert len(own) > 20
    assert all(each.__doc__ for each in own)
