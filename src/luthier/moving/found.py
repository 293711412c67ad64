"""An object of an export, with its place, so that whatever is wrong with it can be told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.data.read import kind_of
from luthier.errors import DataError
from luthier.examples import Where


@dataclass(frozen=True)
class Found:
    """An object of an export and where it stands."""

    values: Mapping[str, Any]
    where: Where

    def error(self, message: str) -> DataError:
        """A DataError at this place."""
        return DataError(message, self.where.path, self.where.line, self.where.row)

    def text(self, name: str) -> str:
        """A field that must be there and be text.

        Raises:
            DataError: it is not.
        """
        value = self.values.get(name)
        if not isinstance(value, str) or not value:
            raise self.error(f"{name!r} is {kind_of(value)}; expected a text, as OpenAI writes it")
        return value

    def table(self, name: str) -> Mapping[str, Any]:
        """A field that must be there and be an object.

        Raises:
            DataError: it is not.
        """
        value = self.values.get(name)
        if not isinstance(value, Mapping):
            raise self.error(f"{name!r} is {kind_of(value)}; expected an object, as OpenAI writes it")
        return value


def without_nulls(value: Any) -> Any:
    """Plain values without the fields that are null: servers write what was not set so."""
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
