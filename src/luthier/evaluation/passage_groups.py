"""Questions that one passage answers, or passages of one title, stay on one side of a split.

A retriever that was trained on a question has seen its passage, and knows it again when another question asks for it.
Held-out questions show what it does on passages that it never saw only where none of theirs was trained on.

Rows may bring their passages as texts (the format `question_passages`); a text is then a source of the corpus that all
of them make together, and its id is a digest of it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from luthier.data.carried_passages import RIGHT_TEXTS, WRONG_TEXTS
from luthier.evaluation.retrieval import GOLD
from luthier.examples import Conversation, Example

WRONG = "wrong_passage_ids"
"""The field of a row that names passages which do not answer."""
FEWEST_TITLES, LARGEST_SHARE = 8, 0.25
"""Titles group passages if there are at least so many, none of which more than this share of the rows asks about: else
few splits are possible."""


def by_passage(examples: Sequence[Example], titles: Mapping[str, str]) -> list[Example]:
    """The examples with a `group` where they name passages and have none of their own.

    Args:
        examples: rows of one file.
        titles: of each source of the corpus, by id; empty: it has none.
    """
    asked = [_sources(example, titles) for example in examples]
    keys = [[titles.get(source) or source for source in sources] for sources in asked]
    counts: dict[str, int] = {}
    for one in keys:
        for key in set(one):
            counts[key] = counts.get(key, 0) + 1
    if len(counts) < FEWEST_TITLES or max(counts.values()) > LARGEST_SHARE * len(examples):
        keys = asked
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for one in keys:
        for key in one[1:]:
            parent[root(key)] = root(one[0])
    return [
        replace(example, group=f"passage {root(one[0])}") if one and example.group is None else example
        for example, one in zip(examples, keys, strict=True)
    ]


def named(example: Example) -> Example:
    """The row with the ids of the texts that it brings."""
    if not isinstance(example, Conversation) or not example.extra.get(RIGHT_TEXTS):
        return example
    right, wrong = ([id_of(text) for text in texts_of(example, kind)] for kind in (RIGHT_TEXTS, WRONG_TEXTS))
    return replace(example, extra={**example.extra, GOLD: right, WRONG: wrong})


def texts_of(example: Conversation, kind: str) -> list[str]:
    """The texts of a kind that a row brings."""
    texts = example.extra.get(kind)
    return [text for text in texts if isinstance(text, str)] if isinstance(texts, list | tuple) else []


def id_of(text: str) -> str:
    """The id of a source that is known by its text alone."""
    return f"text-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:20]}"


def _sources(example: Example, titles: Mapping[str, str]) -> list[str]:
    """The sources that a row names; of a passage of a cut source, the source."""
    if not isinstance(example, Conversation):
        return []
    gold = example.extra.get(GOLD)
    names = [name for name in gold if isinstance(name, str)] if isinstance(gold, list | tuple) else []
    return [name if name in titles else name.rpartition("#")[0] or name for name in names]
