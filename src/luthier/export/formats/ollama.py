"""A GGUF file and the Ollama Modelfile that goes with it: template, default system message, stop words.

Ollama renders chats with Go's templates, and no program can turn any Jinja into Go. What is done: the template is
rendered with messages that say nothing; if all of it is one pattern (an opening, the role, a gap, the content, an end),
that pattern is written in Go. The Modelfile is then read back, and must render the run's own test rows, and chats made
to break such a pattern, as the template does. Everything else is refused.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from luthier.assemble import Trained
from luthier.examples import Conversation, Message
from luthier.export.formats._modelfile import Modelfile, derive, read, write
from luthier.export.formats.base import LLAMA_CPP, Exporter, without_bos
from luthier.export.formats.gguf import FILE, Gguf

NAME = "Modelfile"
CHATS: tuple[tuple[Message, ...], ...] = (
    (Message("user", "one"),),
    (Message("system", "be brief"), Message("user", " two \n")),
    (Message("user", "one"), Message("assistant", " an answer\n\n"), Message("user", "<b>two</b>\n")),
    (
        Message("system", "a\nb"),
        Message("user", "user"),
        Message("assistant", "<think>so</think> assistant"),
        Message("user", "{{ .Role }}"),
    ),
)


class Ollama(Exporter):
    """f16 unless another type is asked for."""

    types: ClassVar[tuple[str, ...]] = Gguf.types
    reloads_with: ClassVar[str] = LLAMA_CPP

    def __init__(self, type: str | None = None) -> None:
        super().__init__(type)
        self._gguf = Gguf(type)

    @property
    def few_bits(self) -> str | None:
        """As for GGUF."""
        return self._gguf.few_bits

    def keeping(self, least: float) -> "Ollama":
        """As for GGUF."""
        self._gguf.keeping(least)
        return self

    def measured(self) -> Mapping[str, Any]:
        """As for GGUF."""
        return self._gguf.measured()

    def told(self) -> list[str]:
        """As for GGUF."""
        return self._gguf.told()

    def require(self, trained: Trained) -> None:
        """As for GGUF; and the template is one that Go can say."""
        self._gguf.require(trained)
        derive(trained.template, trained.loaded.tokenizer, FILE)

    def write(self, trained: Trained, folder: Path) -> None:
        """The GGUF file and the Modelfile."""
        self._gguf.write(trained, folder)
        text = write(derive(trained.template, trained.loaded.tokenizer, FILE))
        (folder / NAME).write_text(text, encoding="utf-8")

    def rounded(self, trained: Trained, name: str, weight: Tensor) -> Tensor:
        """As GGUF rounds."""
        return self._gguf.rounded(trained, name, weight)

    def stop_ids(self, trained: Trained) -> frozenset[int]:
        """As for GGUF."""
        return self._gguf.stop_ids(trained)

    def like_arithmetic(self, trained: Trained, name: str, weight: Tensor) -> Tensor | None:
        """As for GGUF: the file is run in llama.cpp."""
        return self._gguf.like_arithmetic(trained, name, weight)

    def reload_settings(self, trained: Trained, folder: Path) -> Mapping[str, Any]:
        """The file."""
        return self._gguf.reload_settings(trained, folder)

    def check(self, trained: Trained, folder: Path, rows: Sequence[Conversation]) -> list[str]:
        """Read the Modelfile back: does it render chats as the template does, and stop where a turn ends?"""
        found = read((folder / NAME).read_text(encoding="utf-8"))
        template, tokenizer = trained.template, trained.loaded.tokenizer
        wrong = []
        stops = {tokenizer.convert_ids_to_tokens(token) for token in template.stop_ids}
        if set(found.stops) != stops:
            wrong.append(f"{NAME} stops at {sorted(found.stops)}, not at {sorted(stops)}")
        chats = [*CHATS, *(row.prompt for row in rows)]
        other = sum(not _same(found, trained, chat) for chat in chats)
        other += sum(bool(row.tools) for row in rows)
        if other:
            wrong.append(f"{NAME} renders {other} of {len(chats)} chats otherwise than the template")
        return wrong


def _same(found: Modelfile, trained: Trained, chat: tuple[Message, ...]) -> bool:
    wanted = trained.template.text(chat, add_generation_prompt=True)
    return found.render(trained.template.seen(chat)) == without_bos(trained, wanted)
