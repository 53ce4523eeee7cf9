"""Every error and warning this library raises on purpose.

    LateInteractionError
    ├── InvalidText            (ValueError)    a text, query or document that cannot be one
    │   └── TextTooLong                        a text beyond the recipe's length, where that is an error
    ├── InvalidIdentifier      (ValueError)    an empty, non-string or repeated id
    │   └── DuplicateDocument                  an id that is given twice or already there
    ├── InvalidRecipe          (ValueError)    encoding settings that contradict each other
    ├── InvalidEmbeddings      (ValueError)    offsets that do not fit, wrong width, NaN or infinity
    ├── InvalidRanking         (ValueError)    scores and documents that make no ranking; k < 1
    ├── InvalidFilter          (ValueError)    a metadata filter that cannot be understood
    ├── InvalidExample         (ValueError)    a training example or its targets
    ├── InvalidEvaluation      (ValueError)    judgments, evaluation sets, measures
    ├── InvalidExplanation     (ValueError)    contributions that do not sum to the score
    ├── InvalidOption          (ValueError)    an option of an adapter or a command
    ├── UnknownDocument        (KeyError)      an id that is not there
    ├── MissingExtra           (ImportError)   an optional package that is not installed
    ├── OutOfMemory            (MemoryError)   one text alone is too much for the device
    ├── WorkerFailed           (RuntimeError)  a worker process that ended or did not answer
    ├── TrainingFailed         (RuntimeError)  a loss or gradient that is not finite
    ├── UnreadableFile         (OSError)       a file that cannot be read as what it should be
    ├── CorruptIndex           (OSError)       a file of an index that is damaged or missing
    ├── StorageFailed          (OSError)       a write that the system refused: disk full, input or output error
    ├── IndexLocked            (RuntimeError)  another process or object writes to the index
    ├── IndexMismatch          (ValueError)    an index of another encoder, width or format than is asked for
    └── InvalidModel           (OSError)       a folder that holds no usable model
        └── ModelMismatch                      weights whose digest is not the expected one

    TruncatedTextWarning       (UserWarning)   texts were cut to the recipe's length

Each error has three parts: what was given, what was expected, what to do. Vendor exceptions are translated where they
arise, `from` the original.
"""

from __future__ import annotations


class LateInteractionError(Exception):
    """The root of the tree: one message made of what was given, what was expected and what to do."""

    def __init__(self, given: str, expected: str, remedy: str) -> None:
        super().__init__(f"{given}; expected {expected}. {remedy}")
        self.given = given
        self.expected = expected
        self.remedy = remedy

    def __str__(self) -> str:  # KeyError would show the repr of its argument
        return f"{self.given}; expected {self.expected}. {self.remedy}"

    def __reduce__(self) -> tuple[type[LateInteractionError], tuple[str, str, str]]:
        """Errors cross process boundaries whole; OSError would otherwise keep two of the three parts."""
        return type(self), (self.given, self.expected, self.remedy)


class InvalidText(LateInteractionError, ValueError):
    """A text that is not a `str`, or that cannot be written as UTF-8."""


class TextTooLong(InvalidText):
    """A text of more tokens than the recipe allows, where cutting it was not asked for."""


class InvalidIdentifier(LateInteractionError, ValueError):
    """An id that is empty or not a string."""


class DuplicateDocument(InvalidIdentifier):
    """A document id given twice in one call, or already in the index."""


class InvalidRecipe(LateInteractionError, ValueError):
    """Encoding settings that contradict each other or the model."""


class InvalidEmbeddings(LateInteractionError, ValueError):
    """Token embeddings whose shape, offsets, width or values are not usable."""


class InvalidRanking(LateInteractionError, ValueError):
    """Scores that make no ranking, or a cut-off below 1."""


class InvalidFilter(LateInteractionError, ValueError):
    """A metadata filter that cannot be understood."""


class InvalidExample(LateInteractionError, ValueError):
    """A training example, or targets, that do not fit together."""


class InvalidEvaluation(LateInteractionError, ValueError):
    """Relevance judgments, an evaluation set or a measure that is not usable."""


class InvalidExplanation(LateInteractionError, ValueError):
    """Contributions that do not add up to the score they explain."""


class InvalidOption(LateInteractionError, ValueError):
    """An option of an adapter or a command that is out of range."""


class UnknownDocument(LateInteractionError, KeyError):
    """A document id that is not in the index or store."""


class MissingExtra(LateInteractionError, ImportError):
    """An optional package that is needed now and is not installed."""


class OutOfMemory(LateInteractionError, MemoryError):
    """A batch of one text, or an index, that does not fit into the device's memory."""


class WorkerFailed(LateInteractionError, RuntimeError):
    """A worker process that ended early or could not start."""


class TrainingFailed(LateInteractionError, RuntimeError):
    """A run that cannot go on: a loss or gradient that is not finite."""


class UnreadableFile(LateInteractionError, OSError):
    """A file that is absent, not permitted, or not what its name promises."""


class CorruptIndex(LateInteractionError, OSError):
    """A file of an index that is damaged, missing or not what its manifest names."""


class StorageFailed(LateInteractionError, OSError):
    """A write or a read that the operating system refused."""


class IndexLocked(LateInteractionError, RuntimeError):
    """Another process or object holds the right to write."""


class IndexMismatch(LateInteractionError, ValueError):
    """An index that was made with another encoder, another width, or by a newer version of this library."""


class InvalidModel(LateInteractionError, OSError):
    """A folder or name that gives no usable model."""


class ModelMismatch(InvalidModel):
    """A weights file whose digest differs from the published one."""


class TruncatedTextWarning(UserWarning):
    """Texts were longer than the recipe allows and were cut."""


def shown(value: object) -> str:
    """A value in a message: short, and safe where what was sent is deep enough to exhaust `repr`."""
    if isinstance(value, str):
        return repr(value[:60])
    if value is None or isinstance(value, (int, float, bool)):
        return repr(value)[:60]
    return f"a {type(value).__name__}"
