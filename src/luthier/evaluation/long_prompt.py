"""A prompt that a model shall do without: what its teacher, and the base that it is compared with, read first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from luthier.config import canonical_hash
from luthier.data.formats.base import read_examples
from luthier.data.write import example_values
from luthier.errors import DataError
from luthier.evaluation.systems.base import with_examples, with_instruction
from luthier.examples import Conversation, Example, Message
from luthier.recipe import TeacherSettings


@dataclass(frozen=True)
class LongPrompt:
    """An instruction, and solved examples."""

    instruction: str = ""
    examples: tuple[Conversation, ...] = ()
    """No turn of them is trained on."""

    def before(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with the instruction at the end of their system message, and the examples as earlier turns."""
        return with_examples(with_instruction(tuple(messages), self.instruction), self.examples)

    @property
    def fingerprint(self) -> str:
        """Changes when anything in it does."""
        return canonical_hash([self.instruction, [example_values(row)["messages"] for row in self.examples]])


def read_long_prompt(settings: TeacherSettings | None) -> LongPrompt | None:
    """The prompt of a recipe's teacher; None: it reads what the trained model reads.

    Raises:
        DataError: a file cannot be read or says nothing, or an example is no chat with a reply.
    """
    if settings is None or not settings.has_prompt:
        return None
    instruction = "" if settings.prompt is None else _text(Path(settings.prompt))
    examples = [] if settings.examples is None else [_solved(row) for row in read_examples(Path(settings.examples))]
    if settings.examples is not None and not examples:
        raise DataError("holds no example; write some, or leave teacher.examples out", settings.examples)
    return LongPrompt(instruction, tuple(examples))


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as the prompt of [teacher]: {error}", path) from None
    if not text:
        raise DataError("is empty; write the prompt, or leave teacher.prompt out", path)
    return text


def _solved(row: Example) -> Conversation:
    if not isinstance(row, Conversation) or row.messages[-1].role != "assistant":
        at = row.where
        raise DataError("an example of [teacher] must be a chat that ends with a reply", at.path, at.line, at.row)
    return replace(row, messages=tuple(replace(m, weight=0.0) if m.role == "assistant" else m for m in row.messages))
