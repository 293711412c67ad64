"""Which of several replies to a prompt become a pair, and why some do not: by what they are worth, or by a judge."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.engine.rollout import Prompt
from luthier.evaluation.style.pairs import Judged, Pair, request_of
from luthier.evaluation.systems.base import message_text
from luthier.examples import Conversation, Message, Preference

NO_ROOM = "the prompt leaves no room for rollout.max_new_tokens"
NOT_WHOLE = "every reply is cut off, empty, or nothing that the template can render"
ONE_NOT_WHOLE = "one of the two replies is cut off, empty, or nothing that the template can render"
SAME = "no whole reply is worth more than another reply"
TOO_CLOSE = "the best and the worst reply differ by less than --margin"
ALIKE = "both replies say the same"
TIE = "the judge calls it a tie in both orders"
ONE_ORDER = "the judge names no reply in both orders"
NOTHING_NAMED = "the judge's answer names nothing in one of the orders"
REASONS = (NO_ROOM, NOT_WHOLE, ONE_NOT_WHOLE, ALIKE, SAME, TOO_CLOSE, TIE, ONE_ORDER, NOTHING_NAMED)


@dataclass(frozen=True)
class Question:
    """A row that is asked."""

    place: int
    """Among the rows."""
    example: Conversation
    """With a place for a reply at its end."""
    prompt: Prompt


@dataclass(frozen=True)
class Reply:
    """One of several to a prompt."""

    message: Message
    truncated: bool = False
    """It ran into the longest reply: a row would say that it ends there, so it may lose and never win."""
    fault: str = ""
    """Why no row can hold it."""
    reward: float = 0.0
    rewards: Mapping[str, float] | None = None
    """Of each grader; None: it was not graded."""
    problems: Mapping[str, str] | None = None
    """Of graders that could not grade it, which counts 0."""

    @property
    def is_whole(self) -> bool:
        """Whether a row with it says what was written."""
        return not self.fault and not self.truncated


@dataclass(frozen=True)
class Fate:
    """What became of a prompt or, where a judge decides, of two replies to it."""

    place: int
    """Of the row."""
    id: str
    reason: str | None
    """Why there is no pair."""
    told: Mapping[str, Any]
    """Figures of the replies."""
    pair: Preference | None = None

    def values(self) -> dict[str, Any]:
        """As a report has it."""
        return {"id": self.id, "pair": self.pair is not None, "reason": self.reason, **self.told}


# by what replies are worth


def best_and_worst(
    replies: Sequence[Reply], margin: float | None = None, cut_off_may_lose: bool = True
) -> tuple[int, int] | str:
    """The places of the best and the worst reply, the earlier one of equals; or why there is no pair."""
    whole = [i for i, reply in enumerate(replies) if reply.is_whole]
    may_lose = [i for i, reply in enumerate(replies) if reply.is_whole or (cut_off_may_lose and not reply.fault)]
    if not whole:
        return NOT_WHOLE
    best = max(whole, key=lambda i: replies[i].reward)
    worst = min(may_lose, key=lambda i: replies[i].reward)
    gap = replies[best].reward - replies[worst].reward
    if gap <= 0:
        return SAME
    if margin is not None and gap < margin and not math.isclose(gap, margin):
        return TOO_CLOSE
    return ALIKE if _say_the_same(replies[best], replies[worst]) else (best, worst)


def graded_fate(
    question: Question, group: Sequence[Reply], writer: str, margin: float | None, cut_off_may_lose: bool
) -> Fate:
    """The best and the worst of a group as a pair."""
    found = best_and_worst(group, margin, cut_off_may_lose)
    told: dict[str, Any] = {
        "replies": len(group),
        "truncated": sum(reply.truncated for reply in group),
        "problems": sum(bool(reply.problems) for reply in group),
        "mean_reward": sum(reply.reward for reply in group) / len(group),
    }
    if isinstance(found, str):
        return Fate(question.place, question.example.id, found, told)
    chosen, rejected = (group[place] for place in found)
    worth = {"chosen_reward": chosen.reward, "rejected_reward": rejected.reward}
    extra = {
        "by": "rewards",
        **worth,
        "chosen_rewards": dict(chosen.rewards or {}),
        "rejected_rewards": dict(rejected.rewards or {}),
        "replies": len(group),
    }
    for side, reply in (("chosen", chosen), ("rejected", rejected)):
        if reply.problems:
            extra[f"{side}_problems"] = dict(reply.problems)
    pair = _pair(question, question.example.id, chosen, rejected, writer, extra)
    return Fate(question.place, question.example.id, None, {**told, **worth}, pair)


def _say_the_same(a: Reply, b: Reply) -> bool:
    return message_text(a.message).strip() == message_text(b.message).strip()


def _pair(
    question: Question, name: str, chosen: Reply, rejected: Reply, writer: str, extra: Mapping[str, Any]
) -> Preference:
    row = question.example
    return Preference(
        question.prompt.messages,
        (chosen.message,),
        (rejected.message,),
        row.tools,
        id=name,
        group=row.group,
        extra={"source": row.id, "writer": writer, **extra},
    )


# by a judge


@dataclass(frozen=True)
class Duel:
    """Two replies to one prompt."""

    question: Question
    shown: Pair
    replies: tuple[Reply, Reply]

    @property
    def reason(self) -> str | None:
        """Why nobody is asked about it."""
        if not all(reply.is_whole for reply in self.replies):
            return ONE_NOT_WHOLE
        return ALIKE if _say_the_same(*self.replies) else None


def duels_of(question: Question, group: Sequence[Reply]) -> Iterator[Duel]:
    """The replies of a group, two by two."""
    request = request_of(question.prompt.messages)
    for number, (a, b) in enumerate(zip(group[::2], group[1::2], strict=True)):
        shown = Pair(f"{question.example.id}/{number}", request, message_text(a.message), message_text(b.message))
        yield Duel(question, shown, (a, b))


def judged_fate(duel: Duel, judged: Judged | None, writer: str, judge: str) -> Fate:
    """The winner and the loser as a pair; `judged`: None where nobody was asked."""
    place, name = duel.question.place, duel.shown.id
    if judged is None:
        return Fate(place, name, duel.reason, {"orders": []})
    told = {"orders": [choice or "nothing" for choice in judged.orders]}
    if judged.outcome == "tie":
        unnamed = NOTHING_NAMED if None in judged.orders else ONE_ORDER
        return Fate(place, name, TIE if judged.orders == ("tie", "tie") else unnamed, told)
    chosen, rejected = duel.replies if judged.outcome == "a" else duel.replies[::-1]
    pair = _pair(duel.question, name, chosen, rejected, writer, {"by": "judge", "judge": judge})
    return Fate(place, name, None, told, pair)
