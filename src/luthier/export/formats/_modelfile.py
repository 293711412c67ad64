"""Ollama's Modelfile: derived from a chat template, written, read back, rendered.

Ollama puts the Modelfile's SYSTEM before a chat that brings no system message, and then fills `.Messages` in. Of Go's
template language only what is written here is understood: `range .Messages`, `.Role`, `.Content` and `end`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.templates import Template
from luthier.errors import ExportError, TemplateError
from luthier.examples import Message

_ROLE, _CONTENT, _RANGE, _END = "{{ .Role }}", "{{ .Content }}", "{{ range .Messages }}", "{{ end }}"
_LOOP = re.compile(
    rf"(.*?){re.escape(_RANGE)}(.*?){re.escape(_ROLE)}(.*?){re.escape(_CONTENT)}(.*?){re.escape(_END)}(.*)", re.S
)
_TEXT = re.compile(r'^(TEMPLATE|SYSTEM) """(.*?)"""$', re.S | re.M)
_STOP = re.compile(r'^PARAMETER stop "(.*)"$', re.M)
# what stands for a content: no template looks for them
_S, _U, _A, _V = "quelzap", "brofind", "wimtost", "dragnul"


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says."""

    file: str
    template: str
    system: str | None
    stops: tuple[str, ...]

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The prompt that Ollama makes of a chat.

        Raises:
            ExportError: the template holds more than is understood here.
        """
        found = _LOOP.fullmatch(self.template)
        if found is None or any("{{" in part for part in found.groups()):
            raise ExportError(f"the template of the Modelfile is not of the kind that is written here: {self.template}")
        before, opening, gap, end, after = found.groups()
        chat = list(messages)
        if self.system is not None and (not chat or chat[0]["role"] != "system"):
            chat.insert(0, {"role": "system", "content": self.system})
        turns = (f"{opening}{message['role']}{gap}{message['content']}{end}" for message in chat)
        return before + "".join(turns) + after


def derive(template: Template, tokenizer: Any, file: str) -> Modelfile:
    """The Modelfile of a template that renders every message by one pattern.

    Raises:
        ExportError: it does not, so Go could not say it.
    """
    chat = (Message("system", _S), Message("user", _U), Message("assistant", _A), Message("user", _V))
    whole, alone = _render(template, chat), _render(template, (Message("user", _U),))
    parts = re.split("|".join((_S, _U, _A, _V)), whole)
    bos = tokenizer.bos_token
    opens_with_bos = bool(template.text_ids(""))  # Ollama puts it, as the file tells it to
    first = parts[0].removeprefix(bos) if opens_with_bos else parts[0]
    opening, found, gap = first.partition("system")
    turn = f"{opening}user{gap}"
    if len(parts) != 5 or not found or not parts[1].endswith(turn):
        raise _no_pattern(template)
    end = parts[1].removesuffix(turn)
    reply = f"{end}{opening}assistant{gap}"
    if parts[2] != reply or parts[3] != end + turn or not parts[4].startswith(reply):
        raise _no_pattern(template)
    after = parts[4].removeprefix(end)
    lead = alone.removeprefix(bos) if opens_with_bos else alone
    system = lead.removesuffix(turn + _U + parts[4])
    before_system, after_system = f"{opening}system{gap}", end
    if lead == system or (system and not (system.startswith(before_system) and system.endswith(after_system))):
        raise _no_pattern(template)
    default = system[len(before_system) : len(system) - len(after_system)] if system else None
    text = f"{_RANGE}{opening}{_ROLE}{gap}{_CONTENT}{end}{_END}{after}"
    stops = tuple(tokenizer.convert_ids_to_tokens(token) for token in sorted(template.stop_ids))
    if any("{{" in part or '"""' in part for part in (opening, gap, end, after, default or "")):
        raise _no_pattern(template)
    return Modelfile(file, text, default, stops)


def _render(template: Template, chat: Sequence[Message]) -> str:
    try:
        return template.text(chat, add_generation_prompt=True)
    except TemplateError as error:
        raise ExportError(f"the template {template.name!r} cannot be put into a Modelfile: {error}") from None


def _no_pattern(template: Template) -> ExportError:
    return ExportError(
        f"the template {template.name!r} does not render every message by one pattern, so it cannot be written in Go "
        "for Ollama; use --format gguf, which carries the template itself"
    )


def write(found: Modelfile) -> str:
    """The text of the Modelfile."""
    lines = [f"FROM ./{found.file}", f'TEMPLATE """{found.template}"""']
    lines += [] if found.system is None else [f'SYSTEM """{found.system}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in found.stops]
    return "\n".join([*lines, ""])


def read(text: str) -> Modelfile:
    """What the text of a Modelfile says.

    Raises:
        ExportError: it names no file or no template.
    """
    file = re.search(r"^FROM \./(.+)$", text, re.M)
    texts = dict(_TEXT.findall(text))
    if file is None or "TEMPLATE" not in texts:
        raise ExportError("the Modelfile names no file (FROM ./...) or no TEMPLATE")
    return Modelfile(file[1], texts["TEMPLATE"], texts.get("SYSTEM"), tuple(_STOP.findall(text)))
