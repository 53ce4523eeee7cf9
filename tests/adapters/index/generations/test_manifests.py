"""Manifests: the same bytes for the same content, and nothing else is accepted."""

from __future__ import annotations

import json
from zlib import crc32

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from lateinteraction.adapters.index.files import FileRecord
from lateinteraction.adapters.index.manifests import (
    FORMAT,
    Manifest,
    SegmentRecord,
    decode,
    digest_of,
    encode,
    file_name,
    generation_of,
    manifest_name,
    number_of,
)
from lateinteraction.domain.errors import CorruptIndex, IndexMismatch

COUNTS = st.integers(0, 2**63 - 1)
NUMBERS = st.integers(0, 10**16 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.builds(
    FileRecord,
    name=st.builds(file_name, NUMBERS, st.integers(0, 99)),
    length=COUNTS,
    digest=st.binary(min_size=16, max_size=16).map(bytes.hex),
)
BY_NAME = st.dictionaries(st.text(max_size=8), RECORDS, max_size=3)
SEGMENTS = st.builds(
    SegmentRecord,
    number=COUNTS,
    documents=COUNTS,
    tokens=COUNTS,
    kind=st.text(max_size=8),
    files=st.lists(RECORDS, max_size=3),
    deltas=BY_NAME,
)
MANIFESTS = st.builds(
    Manifest,
    generation=st.integers(1, 10**16 - 1),
    counter=COUNTS,
    settings=st.dictionaries(st.text(), JSON, max_size=4),
    segments=st.lists(SEGMENTS, max_size=3),
    shared=BY_NAME,
    note=st.text(max_size=20),
)
SMALL = Manifest(
    generation=7,
    counter=12,
    settings={"dimension": 128},
    segments=[SegmentRecord(3, 10, 99, "exact", [FileRecord(file_name(3, 0), 640, "0f" * 16)])],
)


def with_checksum(body: bytes) -> bytes:
    return body + b"\n%08x\n" % crc32(body)


def altered(**changes: object) -> bytes:
    """The small manifest with other content, and a checksum that is right."""
    content = {**json.loads(encode(SMALL).split(b"\n")[0]), **changes}
    body = json.dumps(
        {key: value for key, value in content.items() if value is not ...}, sort_keys=True, separators=(",", ":")
    )
    return with_checksum(body.encode())


@given(manifest=MANIFESTS)
def test_what_was_written_is_read_and_has_the_same_bytes_again(manifest: Manifest) -> None:
    data = encode(manifest)
    assert decode(data, manifest.generation) == manifest
    assert encode(decode(data, manifest.generation)) == data
    assert data.isascii()


@given(first=MANIFESTS, second=MANIFESTS)
def test_manifests_are_equal_where_their_bytes_are(first: Manifest, second: Manifest) -> None:
    assert (encode(first) == encode(second)) == (first == second)
    assert (digest_of(encode(first)) == digest_of(encode(second))) == (first == second)


@given(manifest=MANIFESTS)
def test_all_files_are_told(manifest: Manifest) -> None:
    told = [record.name for record in manifest.records()]
    assert all(name.encode() in encode(manifest) for name in told)
    assert len(told) == encode(manifest).count(b'"digest":"') - sum(
        json.dumps(dict(each)).count('"digest": "') for each in (manifest.settings,)
    )


@given(generation=NUMBERS, number=NUMBERS, part=st.integers(0, 99))
def test_names_give_their_numbers_back(generation: int, number: int, part: int) -> None:
    assert generation_of(manifest_name(generation)) == generation
    assert number_of(file_name(number, part)) == number
    assert generation_of(file_name(number, part)) is None
    assert number_of(manifest_name(generation)) is None


@pytest.mark.parametrize(
    "name", ["g-1", "g-00000000000000001", "g-000000000000000x", "s-0000000000000001", "commits", ""]
)
def test_other_names_have_no_number(name: str) -> None:
    assert generation_of(name) is None
    assert number_of(name) is None


def test_every_byte_counts() -> None:
    data = encode(SMALL)
    for place in range(len(data)):
        with pytest.raises(CorruptIndex, match=manifest_name(7)):
            decode(data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :], 7)
        with pytest.raises(CorruptIndex, match=manifest_name(7)):
            decode(data[:place], 7)
    for more in (b"\n", b" ", data):
        with pytest.raises(CorruptIndex):
            decode(data + more, 7)


@pytest.mark.parametrize(
    "changes",
    [
        {"generation": 8},
        {"generation": ...},
        {"generation": True},
        {"generation": 7.0},
        {"counter": -1},
        {"counter": 2**63},
        {"counter": "12"},
        {"extra": 1},
        {"note": None},
        {"note": 5},
        {"settings": []},
        {"settings": None},
        {"segments": {}},
        {"segments": [5]},
        {"segments": [{"number": 1}]},
        {"shared": []},
        {"shared": {"codebook": {"name": "../../etc/passwd", "length": 1, "digest": "0f" * 16}}},
        {"shared": {"codebook": {"name": "commits", "length": 1, "digest": "0f" * 16}}},
        {"shared": {"codebook": {"name": file_name(1, 1), "length": 1, "digest": "0F" * 16}}},
        {"shared": {"codebook": {"name": file_name(1, 1), "length": -1, "digest": "0f" * 16}}},
        {"format": 0},
        {"format": "1"},
        {"format": None},
    ],
)
def test_other_content_is_refused_whatever_its_checksum(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptIndex, match=manifest_name(7)):
        decode(altered(**changes), 7)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"5",
        b"nul",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format":' + b"9" * 5000 + b"}",
        b'{"format":NaN}',
    ],
)
def test_what_is_no_manifest_is_refused_whatever_its_checksum(body: bytes) -> None:
    with pytest.raises((CorruptIndex, IndexMismatch)):
        decode(with_checksum(body), 7)


def test_the_same_content_in_other_bytes_is_refused() -> None:
    body = encode(SMALL).split(b"\n")[0]
    for other in (body.replace(b":", b": "), body.replace(b'"note":""', b'"note":"","note":""'), b" " + body):
        with pytest.raises(CorruptIndex):
            decode(with_checksum(other), 7)


def test_a_newer_format_is_another_error_that_says_to_update() -> None:
    with pytest.raises(IndexMismatch, match=rf"g-0000000000000007 of format {FORMAT + 1}; .* Update this library"):
        decode(altered(format=FORMAT + 1, segments=..., new=[1]), 7)


def test_settings_are_kept_as_json_and_nobody_can_change_them() -> None:
    given_settings = {"shape": (1, 2), "nested": {"a": []}}
    manifest = evolve(SMALL, settings=given_settings)
    given_settings["nested"]["a"].append(5)
    assert manifest.settings == {"shape": [1, 2], "nested": {"a": []}}
    with pytest.raises(TypeError):
        manifest.settings["shape"] = 3  # type: ignore[index]
    for wrong in ({"a": float("nan")}, {"a": {1, 2}}, {"a": b"x"}):
        with pytest.raises((ValueError, TypeError)):
            evolve(SMALL, settings=wrong)
