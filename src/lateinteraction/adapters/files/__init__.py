"""Files that a person points at, read into documents: paragraphs, definitions, records, each with its place.

`reading` walks and decodes, `splitting` cuts text into pieces, `records` understands JSON lines. Nothing here knows
what the documents are for.
"""

from lateinteraction.adapters.files.reading import Passages, Skipped, read_list, read_passages
from lateinteraction.adapters.files.records import documents_of_lines

__all__ = ["Passages", "Skipped", "documents_of_lines", "read_list", "read_passages"]
