"""Lists in pages, as OpenAI's clients walk them: by the id of the last object seen, in the order of creation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from luthier.jobs.database import Row
from luthier.jobs.objects import ListObject, T
from luthier.serve.api_error import ApiError


@dataclass(frozen=True)
class Page:
    """Which part of a list."""

    limit: int = 20
    after: str | None = None
    newest_first: bool = True


def page_of(
    connection: sa.Connection,
    query: sa.Select[Any],
    table: sa.Table,
    page: Page,
    wanted: Sequence[sa.ColumnElement[bool]] = (),
    first_by: Sequence[sa.ColumnElement[Any]] = (),
) -> tuple[Sequence[Row], bool]:
    """The rows of a page, and whether there are more.

    Args:
        connection: reads.
        query: all that the caller may see, columns of `table` among them; without an order.
        table: what it lists, with `seq` and `id`.
        page: which part; `after` is any row that the caller may see.
        wanted: conditions of the rows that are listed.
        first_by: columns that decide the order before that of creation.

    Raises:
        ApiError: 404: `after` is none of them.
    """
    order = (*first_by, table.c.seq)
    if page.after is not None:
        place = connection.execute(query.with_only_columns(*order).where(table.c.id == page.after)).first()
        if place is None:
            raise ApiError(f"'after' names nothing of this list: {page.after[:100]!r}.", status=404, param="after")
        here, there = sa.tuple_(*order), sa.tuple_(*(sa.literal(value) for value in place))
        query = query.where(here < there if page.newest_first else here > there)
    ordered = query.where(*wanted).order_by(*(one.desc() if page.newest_first else one.asc() for one in order))
    rows = connection.execute(ordered.limit(page.limit + 1)).mappings().all()
    return rows[: page.limit], len(rows) > page.limit


def list_body(rows: Sequence[Row], shape: Callable[[Row], T], has_more: bool) -> ListObject[T]:
    """OpenAI's list object; with the ids at its ends, which some of its pages read."""
    data = [shape(row) for row in rows]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
