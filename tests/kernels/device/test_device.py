"""The Triton form on an accelerator: right, deterministic, never waiting, in graphs, and with very large tensors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import every_operation
import numpy as np
import pytest
import torch
from attrs import evolve
from every_operation import CALLS, OPERATIONS, World, check, eighths, expected_of, make
from torch import Tensor

from lateinteraction.adapters.flat import FlatIndex
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.text import Document, DocumentId
from lateinteraction.kernels.dispatch import load
from lateinteraction.kernels.form import Form
from lateinteraction.kernels.operands import Compressed, Tokens, spans_of

DEVICE = "cuda"
gpu = pytest.mark.gpu
every = pytest.mark.parametrize(
    ("name", "dtype"),
    [pytest.param(*call, id=f"{call[0]}, {str(call[1]).removeprefix('torch.')}") for call in CALLS],
)


@pytest.fixture
def form() -> Form:
    from lateinteraction.kernels.gpu.configurations import INTERPRETED

    assert not INTERPRETED, "Triton would interpret its kernels, on the host: run pytest with -m gpu and nothing else"
    return load("gpu")


def test_every_operation_of_a_form_is_here() -> None:
    names = {name for name in vars(Form) if not name.startswith("_")}
    assert names == {name.partition(",")[0] for name in OPERATIONS}


@every
def test_the_table_and_the_reference_speak_of_the_same(name: str, dtype: torch.dtype) -> None:
    """On the host, so that the tests of a device are right before there is one."""
    world = make(0, dtype)
    found = OPERATIONS[name](load("eager"), world)
    expected = expected_of(name, world)
    check(name, found, expected)
    assert bool(expected) != name.endswith("unit")
    wrong = tuple(each + 1 if each.is_floating_point() else each ^ 1 for each in found)
    with pytest.raises(AssertionError):
        check(name, found, wrong)


@every
def test_what_is_copied_into_the_inputs_of_a_graph_is_the_other_world(name: str, dtype: torch.dtype) -> None:
    before = make(5, dtype, width=64)
    after = _redrawn(before, 6)
    inputs = before.on("cpu")
    _overwrite(inputs, after)
    check(name, OPERATIONS[name](load("eager"), inputs), OPERATIONS[name](load("eager"), after))
    changed = zip(OPERATIONS[name](load("eager"), before), OPERATIONS[name](load("eager"), after), strict=True)
    assert any(not torch.equal(*both) for both in changed)


@pytest.mark.parametrize("which", ["queries", "documents"])
def test_far_tokens_are_the_same_tokens(which: str) -> None:
    world = make(8)
    far = evolve(world, **{which: _far(getattr(world, which), 500, "cpu")})
    assert getattr(far, which).values.shape[0] == 500
    name = "maxsim_all_pairs"
    check(name, OPERATIONS[name](load("eager"), far), OPERATIONS[name](load("eager"), world))


@gpu
@every
@pytest.mark.parametrize("seed", range(3))
def test_small_results_are_those_of_the_reference(form: Form, name: str, dtype: torch.dtype, seed: int) -> None:
    for bits in (1, 2, 4) if "residual" in name else (2,):
        world = make(seed, dtype, bits=bits)
        found = OPERATIONS[name](form, world.on(DEVICE))
        check(name, found, OPERATIONS[name](load("eager"), world))
        check(name, found, expected_of(name, world))


LARGE: tuple[dict[str, Any], ...] = (
    {"queries": (48, 40), "documents": (700, 310), "width": 128, "centroids": 4_096},
    {"queries": (2, 1_100), "documents": (40, 1_500), "width": 96, "centroids": 1_000, "bits": 4},
)


@gpu
@every
@pytest.mark.parametrize("shape", LARGE, ids=["many", "long"])
def test_large_results_are_those_of_the_eager_form(
    form: Form, name: str, dtype: torch.dtype, shape: Mapping[str, Any]
) -> None:
    world = make(7, dtype, **shape)
    check(name, OPERATIONS[name](form, world.on(DEVICE)), OPERATIONS[name](load("eager"), world))


@gpu
@pytest.mark.parametrize("width", [1, 16, 64, 130, 768, 1_024])
@pytest.mark.parametrize("name", ["maxsim_all_pairs_winners", "maxsim_all_pairs_gradients", "residual_maxsim"])
def test_any_width_is_taken(form: Form, name: str, width: int) -> None:
    world = make(width, width=width, queries=(3, 40), documents=(20, 70))
    check(name, OPERATIONS[name](form, world.on(DEVICE)), OPERATIONS[name](load("eager"), world))


def _random(world: World, seed: int) -> World:
    """The same shapes with values whose sums depend on their order."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def drawn(given: Tensor) -> Tensor:
        return torch.randn(given.shape, generator=generator, device=DEVICE).to(given.dtype)

    queries, documents = (each._replace(values=drawn(each.values)) for each in (world.queries, world.documents))
    codec = world.codec._replace(centroids=drawn(world.codec.centroids))
    return evolve(
        world,
        queries=queries,
        documents=documents,
        upstream=drawn(world.upstream),
        codec=codec,
        scores=codec.centroids @ queries.values.float().T,
    )


@gpu
@every
def test_twenty_runs_give_the_same_bits(form: Form, name: str, dtype: torch.dtype) -> None:
    world = make(3, dtype, queries=(16, 32), documents=(300, 180), width=64, centroids=512).on(DEVICE)
    if dtype != torch.int8:
        world = _random(world, 3)
    first = OPERATIONS[name](form, world)
    for _ in range(19):
        again = OPERATIONS[name](form, world)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.fixture
def strict_synchronisation() -> Iterator[Callable[[], None]]:
    """A switch: from then on, whatever makes the host wait for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch says once that it does not see everything
@every
def test_the_host_never_waits_for_the_device(
    form: Form, name: str, dtype: torch.dtype, strict_synchronisation: Callable[[], None]
) -> None:
    world = make(4, dtype, width=64).on(DEVICE)
    OPERATIONS[name](form, world)  # compiling may wait
    strict_synchronisation()
    OPERATIONS[name](form, world)


def _redrawn(world: World, seed: int) -> World:
    """The same shapes with other values, documents in another order, other codes."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for each in (world.queries, world.documents):
        values = eighths(generator, *each.values.shape)
        sides.append(each._replace(values=(values * 8 if each.scales is not None else values).to(each.values.dtype)))
    queries, documents = sides[0], sides[1]._replace(spans=sides[1].spans.flip(0))
    codec = world.codec._replace(centroids=eighths(generator, *world.codec.centroids.shape))
    compressed = world.compressed._replace(
        codes=world.compressed.codes.flip(0), residuals=world.compressed.residuals.flip(0), spans=documents.spans
    )
    return evolve(
        world,
        queries=queries,
        documents=documents,
        upstream=eighths(generator, *world.upstream.shape),
        pairs=world.pairs.flip(0),
        codec=codec,
        compressed=compressed,
        scores=codec.centroids @ queries.values.float().T,
    )


def _overwrite(world: World, other: World) -> None:
    """Every tensor of a world of its own gets the values of the other's."""
    for target, source in zip(_tensors(world), _tensors(other), strict=True):
        target.copy_(source)


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, World):
        given = tuple(getattr(given, name) for name in World.__annotations__)
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple):
        for each in given:
            yield from _tensors(each)


@gpu
@every
def test_a_graph_computes_with_what_its_inputs_hold_when_it_is_replayed(
    form: Form, name: str, dtype: torch.dtype
) -> None:
    before = make(5, dtype, width=64)
    after = _redrawn(before, 6)
    inputs = before.on(DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        OPERATIONS[name](form, inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = OPERATIONS[name](form, inputs)
    _overwrite(inputs, after.on(DEVICE))
    graph.replay()
    check(name, outputs, OPERATIONS[name](load("eager"), after))


def _needs(count: int) -> None:
    free = torch.cuda.mem_get_info()[0]
    if free < count:
        pytest.skip(f"needs {count / 1e9:.0f} GB of device memory, {free / 1e9:.0f} GB are free")


FAR_ROWS = 2**31 // 64 + 4_096
"""Rows of 64 values whose last ones lie beyond 2³¹ values."""


def _far(tokens: Tokens, rows: int = FAR_ROWS, device: str = DEVICE) -> Tokens:
    """The same items at the end of a tensor of so many rows, most of them NaN."""
    values = torch.full((rows, tokens.values.shape[1]), torch.nan, dtype=tokens.values.dtype, device=device)
    first = rows - tokens.values.shape[0]
    values[first:] = tokens.values
    return tokens._replace(values=values, spans=tokens.spans + first)


@gpu
@pytest.mark.parametrize("name", ["maxsim_all_pairs", "maxsim_pairs", "maxsim_top_k"])
@pytest.mark.parametrize("which", ["queries", "documents"])
def test_tokens_beyond_two_billion_values_are_found(form: Form, name: str, which: str) -> None:
    _needs(3 * FAR_ROWS * 64)
    world = make(8, torch.float16, queries=(4, 32), documents=(50, 60), width=64)
    moved = world.on(DEVICE)
    far = evolve(moved, **{which: _far(getattr(moved, which))})
    check(name, OPERATIONS[name](form, far), OPERATIONS[name](load("eager"), world))


@gpu
@pytest.mark.parametrize("name", ["maxsim_all_pairs_gradients", "maxsim_pairs_gradients"])
def test_gradients_beyond_two_billion_values_are_written(form: Form, name: str) -> None:
    _needs(9 * FAR_ROWS * 64)
    world = make(9, torch.float16, queries=(4, 32), documents=(50, 60), width=64)
    moved = world.on(DEVICE)
    found = OPERATIONS[name](form, evolve(moved, documents=_far(moved.documents)))
    expected = OPERATIONS[name](load("eager"), world)
    count = len(expected[1])
    check(name, (found[0], found[1][-count:]), expected)
    assert not bool(found[1][:-count].any()), "rows that no document has get no gradient"


@gpu
def test_residuals_beyond_two_billion_bytes_are_found(form: Form) -> None:
    world = make(10, queries=(1, 32), documents=(50, 60), width=128, bits=4)
    rows = 2**31 // 64 + 4_096
    _needs(80 * rows)
    moved = world.on(DEVICE)
    first = rows - len(world.compressed.codes)
    far = []
    for tensor in moved.compressed[:3]:
        larger = torch.zeros((rows, *tensor.shape[1:]), dtype=tensor.dtype, device=DEVICE)
        larger[first:] = tensor
        far.append(larger)
    compressed = Compressed(*far, moved.compressed.spans + first)
    found = OPERATIONS["residual_maxsim"](form, evolve(moved, compressed=compressed))
    check("residual_maxsim", found, OPERATIONS["residual_maxsim"](load("eager"), world))


@gpu
def test_more_scores_than_two_billion_are_written(form: Form) -> None:
    """2¹⁶ queries of one token with 2¹⁵ + 1 documents of one token."""
    queries, documents = 2**16, 2**15 + 1
    _needs(3 * 4 * queries * documents)
    sides = [
        Tokens(
            (torch.arange(count, device=DEVICE) % 64 / 8)[:, None], spans_of(torch.arange(count + 1, device=DEVICE)), 1
        )
        for count in (queries, documents)
    ]
    scores = form.maxsim_all_pairs(*sides)
    for query in (0, 1, queries // 2 + 5, queries - 1):
        assert torch.equal(scores[query], sides[0].values[query] * sides[1].values[:, 0])


def test_the_program_that_is_checked_runs_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    every_operation.main("cpu", "eager")
    assert capsys.readouterr().out == f"{len(CALLS)} operations\n"


@gpu
@pytest.mark.timeout(1_800)  # the checker makes everything tens of times slower
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_memory_is_only_touched_where_it_belongs(tool: str, tmp_path: Path) -> None:
    """NVIDIA's checkers over every operation, where they are installed: no access out of bounds or misaligned, no race
    for shared memory, nothing read that was never written."""
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        pytest.skip("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    log = tmp_path / "log"
    # A caching allocator would hide an access just beyond a tensor inside its own block.
    surroundings = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [
        checker,
        f"--tool={tool}",
        "--error-exitcode=86",
        f"--log-file={log}",
        sys.executable,
        every_operation.__file__,
    ]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{log.read_text()[-4000:]}\n{done.stderr[-2000:]}"
    assert f"{len(CALLS)} operations" in done.stdout


@gpu
def test_an_index_on_the_device_ranks_as_one_on_the_host() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (200,), generator=generator).numpy()
    tokens = torch.nn.functional.normalize(torch.randn(int(lengths.sum()), 64, generator=generator), dim=1)
    documents = [Document(DocumentId(str(number)), "") for number in range(200)]
    rankings = []
    for device in ("cpu", DEVICE):
        index = FlatIndex()
        index.add(documents, TokenEmbeddings(tokens.to(device), offsets_of(lengths)))
        rankings.append(index.search(TokenEmbeddings(tokens[:32].to(device), offsets_of([32])), 10)[0])
    assert rankings[0].documents == rankings[1].documents
    np.testing.assert_allclose(rankings[0].scores, rankings[1].scores, rtol=1e-4)
