"""The texts of an example, taken apart once for all checks, and findings as text that is safe on a terminal."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from luthier.data.checks.base import SEVERITIES, Finding
from luthier.data.prompts import Asked, asked, digest, is_trained, joined, message_text, tools_text
from luthier.examples import Conversation, Document, Example, Judged, Message, Preference, Where

_FOLD = bytes(
    code + 32 if 65 <= code <= 90 else code if 48 <= code <= 57 or 97 <= code <= 122 or code >= 128 else 32
    for code in range(256)
)
_SHOWN = 5  # places listed for a finding
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def normalized(text: str) -> bytes:
    """Text as UTF-8 in which only words and numbers are left: case folded, one blank between words.

    Two texts that differ in case, spacing, punctuation or Unicode form alone normalize to equal bytes.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
    return b" ".join(text.encode("utf-8", "surrogatepass").translate(_FOLD).split())


def text_digest(text: str) -> int:
    """`digest` of a text as it is, lone surrogates included."""
    return digest(text.encode("utf-8", "surrogatepass"))


class View:
    """The texts of one example.

    `system` the system and developer turns; `prompt` the other turns before the reply; `reply` what is trained on
    (last assistant turn, chosen or judged reply, document); `rejected` the other reply of a preference; `full` all but
    system.
    """

    __slots__ = ("_asked", "_exact", "_row", "_scanned", "example", "full", "prompt", "rejected", "reply", "system")

    def __init__(self, example: Example) -> None:
        self.example = example
        self._row: bytes | None = None
        self._exact: int | None = None
        self._asked: Asked | None = None
        self._scanned: str | None = None
        self.system, self.prompt, self.reply, self.rejected = "", "", "", ""
        if isinstance(example, Document):
            self.reply = self.full = example.text
            return
        if isinstance(example, Preference):
            self._split_turns(example.prompt)
            self.reply, self.rejected = joined(example.chosen), joined(example.rejected)
            self.full = f"{self.prompt}\n{self.reply}\n{self.rejected}"
            return
        if isinstance(example, Judged):
            self._split_turns(example.prompt)
            self.reply = joined(example.reply)
            self.full = f"{self.prompt}\n{self.reply}"
            return
        completion = example.completion
        self._split_turns(example.prompt)
        self.reply = "" if completion is None else message_text(completion)
        self.full = f"{self.prompt}\n{self.reply}"
        rest = example.messages[len(example.prompt) + 1 :]
        if rest:
            self.full = f"{self.full}\n{joined(rest)}"

    def _split_turns(self, messages: Sequence[Message]) -> None:
        self.system = joined(m for m in messages if m.role in ("system", "developer"))
        self.prompt = joined(m for m in messages if m.role not in ("system", "developer"))

    def normalized_row(self) -> bytes:
        """`normalized(full)`, worked out once."""
        if self._row is None:
            self._row = normalized(self.full)
        return self._row

    def exact(self) -> int:
        """The digest of `exact_content`, worked out once."""
        if self._exact is None:
            self._exact = text_digest(exact_content(self.example))
        return self._exact

    def asked(self) -> Asked:
        """What the row asks, as digests, worked out once."""
        if self._asked is None:
            self._asked = asked(self.example)
        return self._asked

    def scanned(self) -> str:
        """All that a scan shall see but the system turns and tools, worked out once.

        Other than `full` it has the texts inside of JSON without their escapes, names and ids, and the target.
        """
        if self._scanned is None:
            self._scanned = _scanned(self.example, self.full)
        return self._scanned


class _Latest:
    """The view of the example seen last: every check asks for the same one in turn."""

    view: View | None = None


def view(example: Example) -> View:
    """The texts of `example`; asking again for the same object costs nothing."""
    latest = _Latest.view
    if latest is None or latest.example is not example:
        latest = _Latest.view = View(example)
    return latest


def exact_content(example: Example) -> str:
    """All that makes a row what it is for training: roles, texts, tool calls and tools; not its id or place."""
    if isinstance(example, Document):
        return example.text
    if isinstance(example, Conversation):
        parts = [f"{m.role}\x1f{message_text(m)}\x1f{'' if m.weight is None else m.weight}" for m in example.messages]
    else:
        if isinstance(example, Judged):
            sides = [("prompt", example.prompt), ("good" if example.good else "bad", example.reply)]
        else:
            sides = [("prompt", example.prompt), ("chosen", example.chosen), ("rejected", example.rejected)]
        parts = [f"{side}\x1f{m.role}\x1f{message_text(m)}" for side, messages in sides for m in messages]
    if example.tools:
        parts.append(tools_text(example.tools))
    return "\x1e".join(parts)


def trained_replies(example: Example) -> Iterator[tuple[Sequence[Message], str]]:
    """Each reply that is trained on, with the messages before it; a document has none."""
    if isinstance(example, Preference):
        yield example.prompt, joined(example.chosen)
    elif isinstance(example, Judged):
        if example.good:
            yield example.prompt, joined(example.reply)
    elif isinstance(example, Conversation):
        for index, message in enumerate(example.messages):
            if is_trained(message):
                yield example.messages[:index], message_text(message)


# What a scan for secrets, personal data and damage sees

_JSON_START = re.compile(r"\s*[\[{]")
_APART = "\n\n\n"  # keeps what stands in two places from being read as one thing


def _scanned(example: Example, full: str) -> str:
    if isinstance(example, Document):
        return unescaped(full)
    target = None
    if isinstance(example, Preference):
        messages = (*example.prompt, *example.chosen, *example.rejected)
    elif isinstance(example, Judged):
        messages = (*example.prompt, *example.reply)
    else:
        messages, target = example.messages, example.target
    if not any(m.tool_calls or m.name or m.tool_call_id or _hides_text(m.content) for m in messages):
        return full if target is None else f"{full}{_APART}{leaves(target)}"
    parts = [part for m in messages if m.role not in ("system", "developer") for part in _parts(m)]
    return _APART.join([*parts, leaves(target)])


def unescaped(text: str) -> str:
    """The text, and where it is JSON with escapes in it, behind it the texts inside."""
    return f"{text}{_APART}{_inside(text)}" if _hides_text(text) else text


def _parts(message: Message) -> Iterator[str]:
    yield unescaped(message.content)
    yield message.name or ""
    yield message.tool_call_id or ""
    for call in message.tool_calls:
        yield f"{call.name}\n{call.id or ''}"
        yield leaves(call.arguments)


def _hides_text(text: str) -> bool:
    """May this be JSON in which something stands escaped?"""
    return "\\" in text and _JSON_START.match(text) is not None


def _inside(text: str) -> str:
    try:
        return leaves(json.loads(text))
    except (ValueError, RecursionError):
        return ""


def leaves(value: Any) -> str:
    """The texts and numbers in a JSON value, a line each, behind the key under which they stand; other keys alone."""
    lines: list[str] = []
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        key, inner = waiting.pop()
        if isinstance(inner, dict):
            waiting.extend((str(name), part) for name, part in inner.items())
        elif isinstance(inner, (list, tuple)):
            waiting.extend((key, part) for part in inner)
        if isinstance(inner, (str, int, float)) and not isinstance(inner, bool):
            lines.append(f"{key}: {inner}" if key else str(inner))
        elif key:
            lines.append(key)
    return _APART.join(lines)


def safe(text: str) -> str:
    """Text that cannot move a cursor, change a color or hide itself: such characters are shown as escapes."""
    return _UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def quoted(names: Iterable[str], most: int = 5) -> str:
    """Short names in quotes, at most `most` of them, each at most 40 characters."""
    listed = list(names)
    shown = ", ".join(repr(name if len(name) <= 40 else name[:39] + "…") for name in listed[:most])
    return shown if len(listed) <= most else f"{shown} and {len(listed) - most} more"


def rows(count: int) -> str:
    """`1 row`, `2 rows`, `1,000 rows`."""
    return "1 row" if count == 1 else f"{count:,} rows"


def share(part: int, whole: int) -> str:
    """`part` of `whole` in percent, with as many digits as it takes to be told from zero."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1f} %" if percent >= 0.1 else f"{percent:.2g} %"


def render_findings(findings: Iterable[Finding]) -> str:
    """Findings in their order as plain text, a paragraph each and a count at the end; safe whatever the data holds."""
    listed = list(findings)
    blocks = [_render(finding) for finding in listed]
    counts = {severity: sum(finding.severity == severity for finding in listed) for severity in SEVERITIES}
    totals = ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items() if count)
    return "\n".join([*blocks, f"data checks: {totals or 'nothing found'}"])


def _render(finding: Finding) -> str:
    lines = [f"{finding.severity:<8} {finding.check}: {safe(finding.message)}"]
    if finding.where:
        shown, hidden = finding.where[:_SHOWN], finding.count - min(_SHOWN, len(finding.where))
        more = f"; and {hidden:,} more" if hidden > 0 else ""
        lines.append(f"         where: {'; '.join(_grouped(shown))}{more}")
    if finding.advice:
        lines.append(f"         do:    {safe(finding.advice)}")
    return "\n".join(lines)


def _grouped(places: Iterable[Where]) -> list[str]:
    """Places with the path said once for consecutive lines of one file."""
    groups: list[tuple[str, str, list[str]]] = []
    for place in places:
        path, unit, number = place.parts()
        if not groups or groups[-1][:2] != (path, unit):
            groups.append((path, unit, []))
        groups[-1][2].append(str(number))
    return [f"{safe(path)}, {unit}{'s' if len(all_) > 1 else ''} {', '.join(all_)}" for path, unit, all_ in groups]
