"""Models go to a hub and come back: from its cache, and over HTTP from a small hub that runs in the test."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import define, field

from lateinteraction.adapters.huggingface.checkpoint import Checkpoint
from lateinteraction.adapters.huggingface.encoder import HuggingFaceEncoder
from lateinteraction.adapters.huggingface.hub import HubStore
from lateinteraction.adapters.huggingface.reading import CheckpointOptions, read_checkpoint
from lateinteraction.domain.errors import InvalidModel, InvalidOption
from lateinteraction.domain.text import Document, DocumentId

SHORT = {"query_length": 16, "document_length": 40}
TOKEN = "hf_writes"


def embedded(checkpoint: Checkpoint) -> torch.Tensor:
    documents = [Document(DocumentId(text), text) for text in ("the quick brown fox", "again")]
    return HuggingFaceEncoder(checkpoint).encode_documents(documents).tokens


# ── a small hub ─────────────────────────────────────────────────────────────────────────────────────────────────────


@define
class Repository:
    """What the hub keeps under a name: every state by commit, and the commit of each branch."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(factory=lambda: {"main": "0" * 40})
    messages: list[str] = field(factory=list)

    def commit(self, branch: str, lines: list[dict[str, Any]]) -> str:
        files = dict(self.commits[self.branches[branch]])
        for line in lines:
            if line["key"] == "header":
                self.messages.append(line["value"]["summary"])
            elif line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


class Hub(ThreadingHTTPServer):
    """The part of the hub's HTTP interface that small files need."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuses = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def answer(self, status: int, content: bytes | dict[str, Any] | list[Any], **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def token(self) -> str | None:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.server.tokens.add(given)
        return given

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token, path = self.token(), self.path.partition("?")[0]
        self.server.asked.append(f"POST {path}")
        if self.server.refuses:
            return self.answer(self.server.refuses, {"error": "refused"})
        if token is None:
            return self.answer(401, {"error": "Invalid username or password."})
        if token != TOKEN:
            return self.answer(403, {"error": "Forbidden: this token may only read."})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        _, _, _, owner, name, action, branch = path.split("/")
        repository = self.server.repositories[f"{owner}/{name}"]
        if action == "branch":
            known = branch in repository.branches
            repository.branches.setdefault(branch, repository.branches["main"])
            return self.answer(409 if known else 200, {})
        if action == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        commit = repository.commit(branch, [json.loads(line) for line in body.splitlines()])
        url = f"{self.server.endpoint}/{owner}/{name}/commit/{commit}"
        return self.answer(200, {"commitUrl": url, "commitOid": commit, "success": True})

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        if asked["organization"] == "nobody":
            return self.answer(404, {"error": "no such owner"})
        known = name in self.server.repositories
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.repositories.setdefault(name, Repository(private))
        url = f"{self.server.endpoint}/{name}"
        return self.answer(409 if known else 200, {"url": url, "name": name, "id": "1"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        owner, name, *rest = parts[2:] if parts[0] == "api" else parts
        repository = self.server.repositories.get(f"{owner}/{name}")
        if repository is None or (repository.private and self.token() != TOKEN):
            return self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self.answer(404, {"error": "no such revision"}, X_Error_Code="RevisionNotFound")
        return self.show(repository.commits[commit], commit, rest, f"{owner}/{name}")

    def show(self, files: dict[str, bytes], commit: str, rest: list[str], name: str) -> None:
        kind = rest[0] if rest else "revision"
        if kind == "revision":
            siblings = [{"rfilename": each} for each in files]
            return self.answer(200, {"id": name, "sha": commit, "siblings": siblings, "private": False, "tags": []})
        if kind == "tree":
            listed = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            return self.answer(200, listed)
        content = files.get("/".join(rest[2:]))
        if content is None:
            return self.answer(404, {"error": "no such file"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(200, content, ETag=etag, X_Repo_Commit=commit, Accept_Ranges="bytes")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running hub, and no sign of any other."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    running = Hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


@pytest.fixture
def checkpoint(checkpoints: Any) -> Checkpoint:
    return read_checkpoint(checkpoints.pylate())


def store(hub: Hub, name: str = "someone/something", **options: Any) -> HubStore:
    return HubStore(name, **{"token": TOKEN, "endpoint": hub.endpoint, **options})


def pull(hub: Hub, name: str, **options: Any) -> Checkpoint:
    return read_checkpoint(name, options=CheckpointOptions(endpoint=hub.endpoint, **options))


# ── pushing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_pushed_model_is_one_commit_of_all_its_files(hub: Hub, checkpoint: Checkpoint) -> None:
    assert store(hub).save(checkpoint) == "someone/something"
    repository = hub.repositories["someone/something"]
    files = repository.commits[repository.branches["main"]]
    assert {"config.json", "model.safetensors", "modules.json", "tokenizer.json", "README.md"} <= set(files)
    assert {"1_Dense/config.json", "1_Dense/model.safetensors"} <= set(files)
    assert repository.messages == ["Save a late-interaction model"]
    assert repository.private


def test_what_was_pushed_is_read_back_by_its_name(hub: Hub, checkpoint: Checkpoint) -> None:
    name = store(hub, private=False).save(checkpoint)
    found = pull(hub, name)
    assert (found.recipe, found.source, found.format) == (checkpoint.recipe, name, "pylate")
    torch.testing.assert_close(embedded(found), embedded(checkpoint), rtol=0, atol=1e-6)


def test_a_second_read_of_the_same_commit_fetches_no_file_again(hub: Hub, checkpoint: Checkpoint) -> None:
    name = store(hub, private=False).save(checkpoint)
    pull(hub, name)
    assert any("/resolve/" in each for each in hub.asked)
    hub.asked.clear()
    pull(hub, name)
    assert not any("/resolve/" in each for each in hub.asked)
    hub.asked.clear()
    pull(hub, name, local_files_only=True)
    assert hub.asked == []


def test_only_the_files_that_are_read_are_fetched(hub: Hub, checkpoint: Checkpoint) -> None:
    name = store(hub, private=False).save(checkpoint)
    repository = hub.repositories[name]
    files = repository.commits[repository.branches["main"]]
    files |= {"onnx/model.onnx": b"x", "pytorch_model.bin": b"x", "training.txt": b"x", "own.py": b"x"}
    pull(hub, name)
    fetched = {each.rpartition("/")[2] for each in hub.asked if "/resolve/" in each}
    assert {"model.safetensors", "modules.json"} <= fetched
    assert not {"model.onnx", "pytorch_model.bin", "training.txt", "own.py", "README.md"} & fetched


def test_a_model_without_an_owner_goes_to_that_of_the_token(hub: Hub, checkpoint: Checkpoint) -> None:
    assert store(hub, "something").save(checkpoint) == "me/something"


def test_a_repository_that_is_there_gets_another_commit(hub: Hub, checkpoint: Checkpoint) -> None:
    shorter = checkpoint.with_recipe(checkpoint.recipe.merge({"document_length": 20}))
    name = store(hub, private=False).save(checkpoint)
    store(hub, message="Read less").save(shorter)
    assert hub.repositories[name].messages == ["Save a late-interaction model", "Read less"]
    assert pull(hub, name).recipe.document_length == 20


def test_a_revision_is_a_branch_of_its_own(hub: Hub, checkpoint: Checkpoint) -> None:
    shorter = checkpoint.with_recipe(checkpoint.recipe.merge({"document_length": 20}))
    name = store(hub, private=False).save(checkpoint)
    for _ in range(2):
        store(hub, revision="short").save(shorter)
    assert pull(hub, name).recipe.document_length == 40
    assert pull(hub, name, revision="short").recipe.document_length == 20
    commit = hub.repositories[name].branches["short"]
    assert pull(hub, name, revision=commit).recipe.document_length == 20


def test_a_private_model_is_read_with_a_token_and_kept_where_asked(
    hub: Hub, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    name = store(hub).save(checkpoint)
    with pytest.raises(InvalidModel, match="a private model needs a token"):
        pull(hub, name)
    found = pull(hub, name, token=TOKEN, cache_folder=tmp_path / "elsewhere")
    torch.testing.assert_close(embedded(found), embedded(checkpoint), rtol=0, atol=1e-6)
    assert (tmp_path / "elsewhere" / "models--someone--something").is_dir()
    assert not list((tmp_path / "cache").glob("models--*/snapshots"))


def test_a_revision_that_is_not_there_is_said_not_to_be(hub: Hub, checkpoint: Checkpoint) -> None:
    name = store(hub, private=False).save(checkpoint)
    with pytest.raises(InvalidModel, match="RevisionNotFound") as refused:
        pull(hub, name, revision="elsewhere")
    assert refused.value.remedy == "Check the revision."


def test_a_cached_model_of_which_a_part_is_missing_is_not_taken_for_a_plain_one(
    hub: Hub, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    name = store(hub, private=False).save(checkpoint)
    pull(hub, name)
    next((tmp_path / "cache").glob("models--*/snapshots/*/modules.json")).unlink()
    with pytest.raises(InvalidModel, match=r"modules\.json"):
        pull(hub, name, local_files_only=True)


@pytest.mark.parametrize(
    ("options", "refuses", "expected", "remedy"),
    [
        ({"token": False}, 0, "a token that the hub knows", "hf auth login"),
        ({"token": "hf_reads"}, 0, "a token that may write there", "write access"),
        ({"name": "nobody/something"}, 0, "an owner that the hub knows", "Check the name"),
        ({"name": "a/b/c"}, 0, "a name such as 'someone/something'", "Correct the name"),
        ({"name": "with spaces"}, 0, "a name such as 'someone/something'", "Correct the name"),
        ({}, 500, "a hub that takes it", "Nothing was pushed"),
        ({"endpoint": "http://127.0.0.1:9"}, 0, "a hub that can be reached", "Nothing was pushed"),
    ],
)
def test_a_push_that_is_refused_says_why_and_what_to_do(
    hub: Hub, checkpoint: Checkpoint, options: dict[str, Any], refuses: int, expected: str, remedy: str
) -> None:
    hub.refuses = refuses
    with pytest.raises(InvalidOption) as refused:
        store(hub, **options).save(checkpoint)
    assert refused.value.expected == expected
    assert remedy in refused.value.remedy
    assert repr(options.get("name", "someone/something")) in refused.value.given
    assert not any(repository.messages for repository in hub.repositories.values())


def test_a_hub_that_may_not_be_asked_is_out_of_reach(checkpoint: Checkpoint) -> None:
    with pytest.raises(InvalidOption, match="OfflineModeIsEnabled"):
        HubStore("someone/something", token=TOKEN).save(checkpoint)


def test_pushing_leaves_nothing_on_this_machine(
    hub: Hub, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    store(hub).save(checkpoint)
    with pytest.raises(InvalidOption):
        store(hub, token="hf_reads").save(checkpoint)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_token_is_sent_and_never_shown(hub: Hub, checkpoint: Checkpoint) -> None:
    store(hub).save(checkpoint)
    assert TOKEN in hub.tokens
    assert TOKEN not in repr(store(hub))


# ── names without a hub ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_loads_from_the_local_cache(checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoints.pylate()
    cache = tmp_path / "cache" / "models--someone--something"
    shutil.copytree(folder, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache.parent))
    for options in (CheckpointOptions(), CheckpointOptions(local_files_only=True), CheckpointOptions(revision="main")):
        found = read_checkpoint("someone/something", options=options)
        torch.testing.assert_close(embedded(found), embedded(read_checkpoint(folder)), rtol=0, atol=0)


@pytest.mark.parametrize("local", [False, True])
def test_a_name_that_cannot_be_reached_is_refused_by_that_name(local: bool) -> None:
    with pytest.raises(InvalidModel, match=r"'nobody/nothing'.*hf download nobody/nothing"):
        read_checkpoint("nobody/nothing", options=CheckpointOptions(local_files_only=local))


def test_a_folder_is_preferred_to_a_name_and_asks_nobody(hub: Hub, checkpoints: Any, monkeypatch: Any) -> None:
    folder = checkpoints.pylate()
    monkeypatch.chdir(folder.parent)
    assert read_checkpoint(folder.name).format == "pylate"
    assert hub.asked == []
