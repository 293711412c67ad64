"""The first half of the method: replies to red-team prompts, criticized and revised, and replies to harmless prompts.

    replies/batch-000001.jsonl     a reply to each prompt, as the model was before training
    revised/batch-000001.jsonl     of each reply to a red-team prompt every critique and every revision

A revision takes the reply's place where it is whole; one that is empty, cut off, the critique once more, or what the
critic was told rather than a reply, is kept in the record and changes nothing. (Bai et al. 2022, arXiv:2212.08073,
section 3.1.)
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.constitution.batches import Record, in_batches
from luthier.constitution.cast import BEFORE, Cast
from luthier.constitution.principles import KINDS, Constitution, Kind, Principle, revised_by
from luthier.constitution.prompts import critique_prompt, revision_of, revision_prompt
from luthier.constitution.voices import Ask, Said, Voice
from luthier.data.asked import asked, reference_of
from luthier.data.write import message_values
from luthier.engine.rollout import seed_of
from luthier.errors import DataError
from luthier.examples import Conversation, Document, Example, Message
from luthier.progress import Progress
from luthier.rag.lexical import words
from luthier.recipe import ConstitutionSettings
from luthier.run_folder import RunFolder

REPLIES_AT_ONCE = 64
REVISED_AT_ONCE = 32
_FIRST, _CRITIQUE, _REVISION = 1, 2, 3
"""What a random stream is of."""
EMPTY, CUT_OFF = "it is empty", "it is cut off"
"""What is wrong with a text that no row shall end with."""
REPEATS = "it begins as the critique does"
"""What is wrong with a revision that is none; a small model goes on with what it just said."""
_BEGINNING = 40
"""Characters that are compared for it."""
ABOUT = "it speaks of the reply and is none"
"""What is wrong with a revision such as "The reply refuses a harmless question"."""
_ABOUT = re.compile(
    r"((the|this|that) (new |revised )?|(my|your) (new |revised ))(reply|response|revision)\b", re.IGNORECASE
)
SAYS_BACK = "it says back what the critic was told"
"""What is wrong with a revision that is the principle once more, or an example's, which answers another request."""
_RUN = 5
"""Words in a row that are looked for in what the critic was told."""
_SAID_BACK = 0.5
"""Share of a revision's runs from which on too many stand there."""


@dataclass(frozen=True)
class Prompt:
    """What is asked."""

    place: int
    """Among those of its kind."""
    kind: Kind
    id: str
    messages: tuple[Message, ...]
    given: str | None = None
    """The reply that its row gives."""

    def values(self) -> dict[str, Any]:
        """As records have it."""
        return {"id": self.id, "kind": self.kind, "prompt": [message_values(message) for message in self.messages]}


def prompts_of(rows: Sequence[Example], kind: Kind, most: int | None) -> list[Prompt]:
    """The prompts of rows of any format, the first ones; a pair's replies are not looked at.

    Raises:
        DataError: a row is raw text, has no prompt, or is about tools.
    """
    return [_prompt(place, row, kind) for place, row in enumerate(rows[:most])]


def _prompt(place: int, row: Example, kind: Kind) -> Prompt:
    messages = row.prompt
    given = None
    if isinstance(row, Conversation):
        reference = reference_of(row)
        messages, given = asked(row), None if reference is None else reference.content
    if isinstance(row, Document) or not messages or messages[-1].role != "user":
        raise DataError(
            f"a {kind} prompt ends with what a user says, and this row's does not",
            row.where.path,
            row.where.line,
            row.where.row,
        )
    if row.tools or any(message.tool_calls or message.role == "tool" for message in messages):
        raise DataError(
            f"a {kind} prompt is text, and this row's is about tools, which records do not hold; take it out",
            row.where.path,
            row.where.line,
            row.where.row,
        )
    return Prompt(place, kind, f"{kind}/{row.id}", messages, given)


def fault_of(said: Said) -> str:
    """Why no row shall end with it; empty: it may."""
    if said.fault:
        return said.fault
    if not said.text.strip():
        return EMPTY
    return CUT_OFF if said.truncated else ""


@dataclass(frozen=True)
class Workshop:
    """What the stages work with."""

    constitution: Constitution
    settings: ConstitutionSettings
    seed: int
    confidence: float
    """Of every interval."""
    cast: Cast
    folder: RunFolder
    progress: Progress


def first_replies(prompts: Sequence[Prompt], shop: Workshop) -> list[Record]:
    """The reply of the model before training to each prompt, with what is wrong with it."""
    settings = shop.settings

    def make(batch: Sequence[Prompt]) -> list[Record]:
        asks = [Ask(p.id, p.messages, seed_of(shop.seed, _FIRST, KINDS.index(p.kind), p.place)) for p in batch]
        said = shop.cast.writer(BEFORE).write(asks, settings.max_new_tokens, settings.temperature)
        return [_first(prompt, one, shop) for prompt, one in zip(batch, said, strict=True)]

    with shop.progress.stage("replies", f"a reply to each of {len(prompts):,} prompts"):
        return in_batches(prompts, REPLIES_AT_ONCE, shop.folder / "replies", make, shop.progress, "prompts")


def _first(prompt: Prompt, said: Said, shop: Workshop) -> Record:
    record = {**prompt.values(), "reply": said.text, "fault": _whole_fault(prompt, said, shop)}
    if prompt.given is not None and shop.settings.harmless_replies == "given":
        record["given_fault"] = _whole_fault(prompt, Said(prompt.given), shop)
    return record


def _whole_fault(prompt: Prompt, said: Said, shop: Workshop) -> str:
    return fault_of(said) or shop.cast.unfit(BEFORE, prompt.messages, said.text)


def revised(prompts: Sequence[Prompt], replies: Sequence[Record], shop: Workshop) -> list[Record]:
    """Every critique and revision of the replies to red-team prompts; `final` is what is left, `fault` what is wrong
    with it."""
    items = list(zip(prompts, replies, strict=True))
    with shop.progress.stage("revised", f"{len(items):,} replies criticized and revised"):
        return in_batches(
            items,
            REVISED_AT_ONCE,
            shop.folder / "revised",
            lambda batch: _revised(batch, shop),
            shop.progress,
            "replies",
        )


def _revised(batch: Sequence[tuple[Prompt, Record]], shop: Workshop) -> list[Record]:
    """All rounds of a batch; every round asks about the whole batch at once."""
    prompts = [prompt for prompt, _ in batch]
    principles = [revised_by(shop.constitution, shop.settings, shop.seed, prompt.place) for prompt in prompts]
    now, faults = [reply["reply"] for _, reply in batch], [reply["fault"] for _, reply in batch]
    steps: list[list[Record]] = [[] for _ in batch]
    critic = shop.cast.critic()
    for number in range(len(principles[0])):
        by = [of_reply[number] for of_reply in principles]
        for at, step in enumerate(_round(prompts, now, by, number, critic, shop)):
            steps[at].append(step)
            if not step["fault"]:
                now[at], faults[at] = step["revision"], shop.cast.unfit(BEFORE, prompts[at].messages, step["revision"])
    return [
        {**prompt.values(), "reply": reply["reply"], "steps": taken, "final": final, "fault": fault}
        for (prompt, reply), taken, final, fault in zip(batch, steps, now, faults, strict=True)
    ]


def _round(
    prompts: Sequence[Prompt],
    replies: Sequence[str],
    by: Sequence[Principle],
    number: int,
    critic: Voice,
    shop: Workshop,
) -> list[Record]:
    settings = shop.settings

    def write(what: int, asked: Sequence[tuple[Message, ...]]) -> list[Said]:
        asks = [
            Ask(f"{p.id}/{number}/{what}", messages, seed_of(shop.seed, what, p.place, number))
            for p, messages in zip(prompts, asked, strict=True)
        ]
        return critic.write(asks, settings.critic_tokens, settings.critic_temperature)

    asked = [
        critique_prompt(shop.constitution, settings.shots, principle, prompt.messages, reply)
        for prompt, reply, principle in zip(prompts, replies, by, strict=True)
    ]
    critiques = write(_CRITIQUE, asked)
    again = [revision_prompt(a, c.text, p) for a, c, p in zip(asked, critiques, by, strict=True)]
    revisions = write(_REVISION, again)
    shown = [text for one in shop.constitution.example[: settings.shots] for text in (one.critique, one.revision)]
    return [_step(*one, shown) for one in zip(by, critiques, revisions, strict=True)]


def _step(principle: Principle, critique: Said, said: Said, shown: Sequence[str]) -> Record:
    text = revision_of(said.text)
    whole = fault_of(Said(text, said.truncated, said.fault))
    return {
        "principle": principle.name,
        "critique": critique.text,
        "critique_fault": fault_of(critique),
        "revision": text,
        "fault": whole or no_reply(text, critique.text, (principle.revise, *shown)),
    }


def no_reply(text: str, critique: str, told: Sequence[str]) -> str:
    """Why a revision that is whole is no reply; empty: it is one.

    Rules of our own, made with what models of 135M and 0.5B parameters wrote in sight. A revision of fewer than five
    words says nothing back.

    Args:
        text: the revision.
        critique: that it came after.
        told: what else the critic was told: the principle, and the examples' critiques and revisions.
    """
    if text[:_BEGINNING] == critique.strip()[:_BEGINNING]:
        return REPEATS
    if _ABOUT.match(text):
        return ABOUT
    runs, known = _runs(text), set().union(*map(_runs, (critique, *told)))
    return SAYS_BACK if runs and sum(run in known for run in runs) >= _SAID_BACK * len(runs) else ""


def _runs(text: str) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[at : at + _RUN]) for at in range(len(found) - _RUN + 1)]


def drawn_principles(records: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """How often a reply was revised by each principle."""
    return Counter(step["principle"] for record in records for step in record["steps"])
