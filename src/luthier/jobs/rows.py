"""Rows of a training file, looked at line by line while the bytes arrive.

What can be told of a line alone is told at once, with its number: no UTF-8, no JSON object, too long, a field of the
wrong kind. What takes more lines (labels, leaks, lengths) is the business of the run's data checks.
"""

from luthier import registry
from luthier.data import strict_json
from luthier.data.formats.base import FORMATS
from luthier.data.read import Record, kind_of
from luthier.errors import DataError
from luthier.examples import Where

LONGEST_LINE = 8 * 1024 * 1024
"""Bytes of one row."""
MOST_PROBLEMS = 5
"""Lines that a refusal names."""
MOST_BAD = 1000
"""After so many bad lines and no good one, the file is of another kind, and the rest is not looked at."""
ACCEPTED = ("messages", "preference", "prompt_completion")
"""Formats of OpenAI's training files."""


class Rows:
    """Takes chunks, counts rows, and remembers what is wrong with the first of them."""

    def __init__(self) -> None:
        self._modules = {name: registry.load(FORMATS, name) for name in ACCEPTED}
        self._rest = bytearray()
        self._line = 0
        self.count = 0
        """Rows so far."""
        self.formats: dict[str, int] = {}
        """Rows by format."""
        self.problems: list[str] = []
        """Of the first bad lines, each with its number."""
        self.bad = 0
        """Lines that cannot be used."""

    def feed(self, chunk: bytes) -> None:
        """Look at the lines that this chunk ends."""
        if not self.count and self.bad >= MOST_BAD:
            return
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            self._rest += part
            self._look(bytes(self._rest))
            self._rest.clear()
        self._rest += rest
        if len(self._rest) > LONGEST_LINE:  # nothing is kept of it, however long it grows
            del self._rest[LONGEST_LINE + 1 :]

    def finish(self) -> None:
        """Look at a last line without a line break."""
        if self._rest:
            self._look(bytes(self._rest))
            self._rest.clear()

    def refusal(self) -> str | None:
        """Why the file cannot be trained on; None if it can."""
        if self.bad:
            more = f"; and {self.bad - len(self.problems)} more lines" if self.bad > len(self.problems) else ""
            return "; ".join(self.problems) + more
        if not self.count:
            return "the file holds no rows"
        if len(self.formats) > 1:
            found = ", ".join(f"{count} of {name}" for name, count in sorted(self.formats.items()))
            return f"rows of several kinds are in one file: {found}; expected one kind"
        return None

    def _look(self, line: bytes) -> None:
        self._line += 1
        if self._line == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            return
        try:
            name = self._format_of(line)
        except (DataError, ValueError) as error:  # no UTF-8 and no JSON are ValueErrors
            self.bad += 1
            if len(self.problems) < MOST_PROBLEMS:
                said = error.message if isinstance(error, DataError) else str(error)
                self.problems.append(f"line {self._line}: {said}")
            return
        self.count += 1
        self.formats[name] = self.formats.get(name, 0) + 1

    def _format_of(self, line: bytes) -> str:
        if len(line) > LONGEST_LINE:
            raise DataError(f"longer than {LONGEST_LINE:,} bytes")
        values = strict_json.loads(line.decode("utf-8"))
        if not isinstance(values, dict):
            raise DataError(f"expected a JSON object, found {kind_of(values)}")
        for name, module in self._modules.items():
            if module.matches(values):
                module.parse(Record(values, Where("file", self._line)))
                return name
        keys = ", ".join(map(repr, list(values)[:8])) or "no fields"
        raise DataError(
            f"the row has {keys}; expected 'messages', 'prompt' with 'completion', or 'input' with 'preferred_output' "
            "and 'non_preferred_output'"
        )
