"""Models as they take part: what writes replies, what criticizes, what judges. A voice writes, and chooses letters.

A choice is log p("A") - log p("B") for the next token after a prompt. A model on this machine always tells it. An
endpoint tells it where it gives log-probabilities; elsewhere what it wrote is read, and a letter counts for `READ`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from luthier.constitution.calibration import READ
from luthier.constitution.prompts import LETTERS
from luthier.data.templates import Template
from luthier.errors import EvaluationError, TemplateError
from luthier.evaluation.answering import group_rows
from luthier.evaluation.style.pairs import ANSWER_TOKENS, read_choice
from luthier.evaluation.systems.base import Desk, System, message_text
from luthier.examples import Conversation, Message, Row
from luthier.models.decode import evaluating
from luthier.models.forest import build_batch
from luthier.models.generate import generate
from luthier.models.load import LoadedModel
from luthier.models.memory import tokens_in_flight
from luthier.models.scorer import Scorer

SCORED_TOKENS = 8192
"""Read at once where letters are chosen."""
NO_ROOM = "the question leaves no room for an answer in the model's context"
TOO_LONG = "with its prompt it has more tokens than training.max_tokens"
SEEDS = 2**31
"""What every endpoint takes for a seed lies below."""


@dataclass(frozen=True)
class Ask:
    """One question."""

    id: str
    messages: tuple[Message, ...]
    seed: int = 0
    """Of what is drawn."""

    @property
    def row(self) -> Conversation:
        """As systems are asked: with a place for the reply, since examples before the question have replies, too."""
        return Conversation((*self.messages, Message("assistant")), id=self.id)


@dataclass(frozen=True)
class Said:
    """What was written."""

    text: str
    truncated: bool = False
    """It ran into the limit, or into a loop."""
    fault: str = ""
    """Why nothing was."""


@dataclass(frozen=True)
class Leaning:
    """Which letter was chosen."""

    value: float | None
    """log p("A") - log p("B"); None: neither was named."""
    was_read: bool = False
    """It was read from what was written, since no log-probabilities were told."""


class Voice(Protocol):
    """Whoever writes and chooses."""

    name: str

    def write(self, asked: Sequence[Ask], tokens: int, temperature: float) -> list[Said]:
        """A text for each question, of at most so many tokens; at temperature 0 the likeliest tokens."""
        ...

    def choose(self, asked: Sequence[Ask]) -> list[Leaning]:
        """The letter that each question is answered with."""
        ...


class Here:
    """A model on this machine, in whatever state its adapter is."""

    def __init__(self, name: str, loaded: LoadedModel, template: Template) -> None:
        """
        Raises:
            EvaluationError: its tokenizer writes both letters alike.
        """
        self.name, self.loaded, self.template = name, loaded, template
        self._letters = tuple(template.text_ids(letter)[-1] for letter in LETTERS)
        if self._letters[0] == self._letters[1]:
            raise EvaluationError(f"{name}: its tokenizer writes A and B alike, so it cannot choose between them")

    def write(self, asked: Sequence[Ask], tokens: int, temperature: float) -> list[Said]:
        """As of `Voice`; a question that leaves no room for so many tokens has a fault."""
        prompts = [self._prompt(one, tokens) for one in asked]
        has_room = [at for at, prompt in enumerate(prompts) if prompt is not None]
        written = generate(
            self.loaded,
            [prompts[at] or () for at in has_room],
            max_new_tokens=tokens,
            stop_ids=self.template.stop_ids,
            batch_tokens=tokens_in_flight(self.loaded.model),
            stop_loops=True,
            temperature=temperature,
            seed=[asked[at].seed for at in has_room],
        )
        found = [Said("", fault=NO_ROOM)] * len(asked)
        for at, one in zip(has_room, written, strict=True):
            found[at] = Said(message_text(self.template.parse_reply(one.ids)), truncated=not one.finished)
        return found

    def choose(self, asked: Sequence[Ask]) -> list[Leaning]:
        """As of `Voice`; a question that leaves no room names nothing."""
        prompts = [self._prompt(one, 1) for one in asked]
        rows = [
            Row((*prompt, letter), (0.0,) * len(prompt) + (1.0,), one.id)
            for one, prompt in zip(asked, prompts, strict=True)
            if prompt is not None
            for letter in self._letters
        ]
        values: list[float] = []
        for group in group_rows(rows, SCORED_TOKENS):
            values += self._logprobs(group)
        leans = iter(a - b for a, b in zip(values[::2], values[1::2], strict=True))
        return [Leaning(None if prompt is None else next(leans)) for prompt in prompts]

    def _prompt(self, asked: Ask, tokens: int) -> tuple[int, ...] | None:
        ids = self.template.prompt_ids(asked.messages)
        return tuple(ids) if len(ids) + tokens <= self.loaded.max_tokens else None

    def unfit(self, messages: Sequence[Message], reply: str, longest: int) -> str:
        """Why no row of at most so many tokens can end with a reply; empty: one can."""
        said = (Message("assistant", reply),)
        try:
            row = self.template.reply_row(Conversation((*messages, *said)), said)
        except TemplateError as error:
            return str(error)
        return TOO_LONG if len(row.ids) > min(longest, self.loaded.max_tokens) else ""

    @torch.inference_mode()
    def _logprobs(self, rows: Sequence[Row]) -> list[float]:
        """Of each row the log-probability of its last token."""
        batch = build_batch(rows).to(self.loaded.device)
        with evaluating(self.loaded.model):
            found: list[float] = Scorer(self.loaded.model).token_logprobs(batch).tolist()
        return found

    def reply_logprobs(self, chats: Sequence[Conversation]) -> list[float | None]:
        """Of each chat the log-probability of its last message; None where the template cannot render it, or the
        context is too short."""
        found: list[float | None] = [None] * len(chats)
        rows: list[tuple[int, Row]] = []
        for at, chat in enumerate(chats):
            try:
                row = self.template.reply_row(chat, chat.messages[-1:])
            except TemplateError:
                continue
            if len(row.ids) <= self.loaded.max_tokens:
                rows.append((at, row))
        places = iter(at for at, _ in rows)
        for group in group_rows([row for _, row in rows], SCORED_TOKENS):
            for value in self._sums(group):
                found[next(places)] = value
        return found

    @torch.inference_mode()
    def _sums(self, rows: Sequence[Row]) -> list[float]:
        batch = build_batch(rows).to(self.loaded.device)
        with evaluating(self.loaded.model):
            values_K = Scorer(self.loaded.model).token_logprobs(batch)
        found: list[float] = batch.sum_rows(values_K * batch.loss_mask_K).tolist()
        return found


class Elsewhere:
    """A system that is asked over the network."""

    def __init__(self, name: str, system: System, desk: Desk, with_logprobs: bool) -> None:
        self.name, self._system, self._desk, self._with_logprobs = name, system, desk, with_logprobs

    def write(self, asked: Sequence[Ask], tokens: int, temperature: float) -> list[Said]:
        """As of `Voice`; a server that reads no seed draws as it likes, and what it said is kept."""
        seeds = [one.seed % SEEDS for one in asked]
        drawn = self._system.sample([one.row for one in asked], tokens, temperature, seeds, self._desk)
        # half of a character, which no file can hold
        texts = [answer.output.encode("utf-8", "replace").decode() for answer in drawn]
        return [Said(text, answer.finished is False) for text, answer in zip(texts, drawn, strict=True)]

    def choose(self, asked: Sequence[Ask]) -> list[Leaning]:
        """As of `Voice`."""
        told = self._system.letters([one.row for one in asked], ANSWER_TOKENS, self._with_logprobs, self._desk)
        return [leaning_of(text, logprobs) for text, logprobs in told]


def leaning_of(text: str, logprobs: Mapping[str, float]) -> Leaning:
    """From what an endpoint tells of its first token, or where neither letter is among that, from what it wrote.

    A letter may be several tokens, with and without a space; one that is not among those told is taken to be as likely
    as the least likely of them, which it is at most.
    """
    least = min(logprobs.values(), default=0.0)
    known = {letter: [v for token, v in logprobs.items() if token.strip() == letter] for letter in LETTERS}
    if any(known.values()):
        a, b = (_log_sum(known[letter]) if known[letter] else least for letter in LETTERS)
        return Leaning(a - b)
    choice = read_choice(text)
    return Leaning({"first": READ, "second": -READ, "tie": 0.0, None: None}[choice], was_read=True)


def _log_sum(values: Sequence[float]) -> float:
    most = max(values)
    return most + math.log(sum(math.exp(value - most) for value in values))
