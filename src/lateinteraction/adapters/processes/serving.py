"""The worker's half: answer requests for an encoder until the other end closes."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from attrs import fields
from numpy.typing import NDArray

from lateinteraction.adapters.encoding.encoder import EncodingReport, WorkingEncoder
from lateinteraction.adapters.processes.frames import Arrays, Frame, read_frame, write_frame
from lateinteraction.domain.embeddings import TokenEmbeddings, TokenTrace
from lateinteraction.domain.errors import LateInteractionError
from lateinteraction.domain.text import Document, DocumentId, Query

HostEncoder = WorkingEncoder[NDArray[np.float32]]


def serve(requests: BinaryIO, replies: BinaryIO, load: Callable[[Frame], HostEncoder]) -> None:
    """Load the encoder that the first message describes, then encode and trace what the others hold.

    An error of our own tree is an answer; any other ends the process, whose standard error says why.
    """
    job = read_frame(requests)
    if job is None:
        return
    try:
        encoder = load(job)
    except LateInteractionError as error:
        write_frame(replies, _refusal(error))
        return
    write_frame(replies, Frame({"recipe": encoder.recipe.settings()}))
    while (request := read_frame(requests)) is not None:
        try:
            reply = _answer(encoder, request)
        except LateInteractionError as error:
            reply = _refusal(error)
        write_frame(replies, reply)


def _refusal(error: LateInteractionError) -> Frame:
    return Frame({"error": type(error).__name__, "parts": [error.given, error.expected, error.remedy]})


def _answer(encoder: HostEncoder, request: Frame) -> Frame:
    texts = request.message["texts"]
    queries = [Query(text) for text in texts]
    documents = [Document(DocumentId(str(position)), text) for position, text in enumerate(texts)]
    match request.message["do"]:
        case "trace queries":
            return Frame({}, _of_trace(encoder.trace_queries(queries)))
        case "trace documents":
            return Frame({}, _of_trace(encoder.trace_documents(documents)))
        case "encode queries":
            return _of_embeddings(*encoder.encode_queries_with_report(queries))
        case _:
            return _of_embeddings(*encoder.encode_documents_with_report(documents))


def _of_trace(trace: TokenTrace) -> Arrays:
    return {"token_ids": trace.token_ids, "starts": trace.starts, "ends": trace.ends, "offsets": trace.offsets}


def _of_embeddings(embeddings: TokenEmbeddings[NDArray[np.float32]], report: EncodingReport) -> Frame:
    values = {each.name: getattr(report, each.name) for each in fields(EncodingReport)}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    counts = {name: value for name, value in values.items() if name not in arrays}
    return Frame({"report": counts}, {"rows": embeddings.tokens, "offsets": embeddings.offsets, **arrays})
