"""What is searched and found: passages, pieces of the sources that a corpus holds. No torch here."""

from dataclasses import dataclass

from luthier.examples import NOWHERE, Where


@dataclass(frozen=True, slots=True)
class Source:
    """One text of a corpus, as it was written: a row of a file, or a whole text file."""

    id: str
    text: str
    title: str = ""
    where: Where = NOWHERE


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a source; `text` is the source's text from character `start` to `end`."""

    id: str
    """That of the source, with `#2` and so on where it was cut into several."""
    text: str
    title: str = ""
    source_id: str = ""
    start: int = 0
    end: int = 0

    @property
    def titled(self) -> str:
        """The title, which often names what the text calls `it`, and the text below it."""
        return f"{self.title}\n{self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found; scores of one search compare with each other and with nothing else."""

    passage: Passage
    score: float
