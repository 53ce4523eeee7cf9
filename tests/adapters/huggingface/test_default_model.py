"""The offline model is found without running anyone's code, and is the published one or is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lateinteraction.adapters.huggingface.default_model import (
    PACKAGE,
    WEIGHTS_SHA256,
    DefaultModel,
    describe_default_model,
    locate_default_model,
)
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.reading import read_checkpoint
from lateinteraction.domain.errors import InvalidModel, ModelMismatch
from lateinteraction.domain.text import Document, DocumentId


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the same name, found first, that must not be imported; its model folder is empty."""
    folder = tmp_path / PACKAGE / "model"
    folder.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    return folder


def test_the_installed_model_is_the_published_one(default_model: Path) -> None:
    assert locate_default_model() == default_model
    assert describe_default_model() == DefaultModel(default_model, WEIGHTS_SHA256)
    assert describe_default_model().usable_offline


def test_the_default_model_encodes(default_model: Path) -> None:
    encoder = HuggingFaceEncoder(read_checkpoint(locate_default_model()))
    texts = ["The fox sleeps.", "A sleeping fox", "Interest rates rose."]
    fox, similar, other = encoder.encode_documents([Document(DocumentId(text), text) for text in texts])
    assert fox.shape[1] == 384
    assert (fox @ similar.T).amax(1).mean() > (fox @ other.T).amax(1).mean()


def test_other_weights_are_refused_with_both_digests(package: Path) -> None:
    (package / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(ModelMismatch) as refused:
        locate_default_model()
    assert WEIGHTS_SHA256 in str(refused.value)
    assert "28d9db" in str(refused.value)
    digest = describe_default_model().digest
    assert digest is not None
    assert digest in str(refused.value)
    assert not describe_default_model().usable_offline


def test_a_package_without_weights_is_refused(package: Path) -> None:
    with pytest.raises(InvalidModel, match="without a readable"):
        locate_default_model()
    assert describe_default_model() == DefaultModel(package, None)


def test_without_the_package_and_a_hub_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    assert describe_default_model() == DefaultModel(None, None)
    with pytest.raises(InvalidModel, match=r"lateinteraction\[demo\]"):
        locate_default_model()


def test_looking_for_the_model_loads_no_torch() -> None:
    program = (
        "import sys\n"
        "from lateinteraction.adapters.huggingface.default_model import describe_default_model\n"
        "assert describe_default_model().usable_offline\n"
        f"assert not {{'torch', 'transformers', '{PACKAGE}'}} & set(sys.modules), 'loaded'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
