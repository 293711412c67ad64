"""Virtual tokens: places before every row whose contents an adapter trains.

They have ids of their own, above those of the vocabulary, which no tokenizer knows. The adapter says how many there are
by the model's attribute `virtual_ids`; whoever scores or writes puts them in front. A forest computes them once for all
of its rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def virtual_ids(model: Any) -> tuple[int, ...]:
    """The ids that stand before every row; none without such an adapter, or while it is off."""
    ids: tuple[int, ...] = vars(model).get("virtual_ids", ())
    return ids


@contextmanager
def without_virtual(model: Any) -> Iterator[None]:
    """No virtual tokens while open."""
    before = virtual_ids(model)
    model.virtual_ids = ()
    try:
        yield
    finally:
        model.virtual_ids = before
