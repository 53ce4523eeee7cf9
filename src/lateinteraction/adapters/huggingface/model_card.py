"""The model card: what a checkpoint is and how each of the three libraries loads it, as Markdown with a YAML head."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from attrs import frozen

from lateinteraction.domain.recipe import EncodingRecipe

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@frozen(kw_only=True)
class CardFacts:
    """What a card states.

    Args:
        source: the model this one was made of: a hub name, or a path, which says nothing elsewhere.
        architecture: class of the transformer.
        dtype: of the weights.
        widths: dimensions after each dense layer.
        recipe: how text becomes tokens.
        not_honoured: what other libraries will not do, in words.
        versions: by package.
    """

    source: str
    architecture: str
    dtype: str
    widths: tuple[int, ...]
    recipe: EncodingRecipe
    not_honoured: tuple[str, ...]
    versions: Mapping[str, str]


def model_card(facts: CardFacts) -> str:
    """The text of README.md."""
    made_of = facts.source if _HUB_NAME.fullmatch(facts.source) else None
    head = ["library_name: lateinteraction", "pipeline_tag: sentence-similarity", "tags:"]
    head += [
        f"- {tag}" for tag in ("lateinteraction", "ColBERT", "PyLate", "sentence-transformers", "late-interaction")
    ]
    head += [] if made_of is None else [f"base_model: {made_of}"]
    parts = [
        "---\n" + "\n".join(head) + "\n---",
        "# A late-interaction model",
        _INTRODUCTION.format(
            architecture=facts.architecture,
            of="" if made_of is None else f", made of [{made_of}](https://huggingface.co/{made_of})",
            widths=" → ".join(map(str, facts.widths)),
            dtype=facts.dtype,
        ),
        "## Use",
        _USE.format(
            prompted_query=', prompt_name="query"' if facts.recipe.query_prompt else "",
            prompted_document=', prompt_name="document"' if facts.recipe.document_prompt else "",
        ),
        *_warning(facts.not_honoured),
        "## How text becomes tokens",
        _table(facts.recipe),
        "## Versions",
        "\n".join(f"- {name} {version}" for name, version in facts.versions.items()),
    ]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """\
Each token of a text becomes one embedding; the score of a query and a document is the sum, over the query's tokens, of
the largest similarity with any token of the document (MaxSim).

`{architecture}`{of}, projected to {widths} dimensions; weights in {dtype}."""

_USE = """\
`FOLDER` is this model's name on the hub, or the folder it is in.

```python
import lateinteraction as li

model = li.load_model("FOLDER")
model.encode_queries(["What is late interaction?"])
model.encode_documents(["One embedding for each token."])
```

With [PyLate](https://github.com/lightonai/pylate):

```python
from pylate import models

model = models.ColBERT("FOLDER")
model.encode(["What is late interaction?"], is_query=True{prompted_query})
model.encode(["One embedding for each token."], is_query=False{prompted_document})
```

With [sentence-transformers](https://sbert.net) 6:

```python
from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder("FOLDER")
model.encode_query(["What is late interaction?"])
model.encode_document(["One embedding for each token."])
```"""


def _warning(not_honoured: tuple[str, ...]) -> list[str]:
    if not not_honoured:
        return []
    lines = "\n".join(f"- {each}" for each in not_honoured)
    return [f"PyLate and sentence-transformers do not honour these settings, and give other embeddings:\n\n{lines}"]


def _table(recipe: EncodingRecipe) -> str:
    rows = [f"| `{name}` | {_code(value)} |" for name, value in recipe.settings().items()]
    return "\n".join(["| setting | value |", "| --- | --- |", *rows])


def _code(value: object) -> str:
    """JSON as code that ends neither its cell nor itself."""
    text = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}"
