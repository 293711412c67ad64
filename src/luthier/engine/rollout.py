"""Rows that the model writes itself: replies to prompts, sampled with the weights as they are, graded, and credited.

Which prompts a rollout asks is a pure function of (seed, epoch, position), as the order of rows is; the random numbers
of a reply are one of (seed, rollout, prompt, reply). One unit is the group of replies to one prompt, so the forest
computes the prompt once. A rollout serves `updates * minibatches` steps; where that is more than one, the
log-probability of each token under the weights that sampled goes with it.

Each rollout is a file of its own, written whole or not at all. One that is there is read instead of sampled, so that a
run that was killed ends with the bits of one that was not.

    rollouts/rollout-000001.jsonl  validation-000010.jsonl        a header, then a line for each reply
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch

from luthier.data.source import NOTHING, Places, Unit, micro_batches, order
from luthier.data.write import atomic_text, remove_unfinished
from luthier.errors import DataError, ModelError
from luthier.examples import Message, Row
from luthier.models.forest import build_batch
from luthier.models.generate import Generation
from luthier.models.scorer import in_mode
from luthier.objectives.base import Memory, Models, OnlineObjective, Reply

GREEDY = 0.0


@dataclass(frozen=True)
class Prompt:
    """What is asked."""

    id: str
    ids: tuple[int, ...]
    """As it is served."""
    messages: tuple[Message, ...]
    item: Mapping[str, Any]
    """What graders and environments see of the row."""
    tools: tuple[Mapping[str, Any], ...] = ()
    reference: Message | None = None
    """The reply that the row gives."""


@dataclass(frozen=True)
class Grade:
    """What a reply is worth."""

    reward: float
    """The weighted sum."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of each grader, by name."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Of graders that could not grade it, which then counts as 0."""


@dataclass(frozen=True)
class Written:
    """A reply, or a whole conversation with an environment."""

    text: str
    """What is graded: the last reply."""
    message: Message
    ids: tuple[int, ...]
    """What follows the prompt, stop tokens and the environment's messages included."""
    own: tuple[bool, ...]
    """Which of these the model wrote."""
    logprobs: tuple[float, ...]
    """Of each of these as the sampler saw it; 0 where the model did not write it."""
    truncated: bool
    turns: int = 1
    earned: float | None = None
    """What the environment gave; None: there was none."""


def said(message: Message) -> Written:
    """A message that was given, as if it had been written."""
    return Written(message.content, message, (), (), (), truncated=False)


Grader: TypeAlias = Callable[[Sequence[tuple[Prompt, Written]]], Sequence[Grade]]


class Sampler(Protocol):
    """Writes replies: our own generator, or another engine in its place (`writing.OwnSampler`, `vllm.VllmSampler`)."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], seeds: Sequence[int], temperature: float
    ) -> Sequence[Generation]:
        """One reply to each prompt, of at most so many tokens, with the log-probabilities that they were drawn with."""
        ...


class Writer(Protocol):
    """Writes the replies of a rollout, in one turn or in several."""

    def __call__(self, prompts: Sequence[Prompt], seeds: Sequence[int], temperature: float) -> Sequence[Written]:
        """One reply to each prompt; the same prompt may stand there several times."""
        ...


@dataclass(frozen=True)
class Plan:
    """How much is sampled, and what becomes of it."""

    prompts_per_step: int
    group_size: int
    max_new_tokens: int
    temperature: float
    seed: int
    updates: int = 1
    """Passes over each rollout."""
    minibatches: int = 1
    """Steps that one pass is cut into."""
    resample: int = 0
    """How many times groups whose rewards are all equal are replaced by those of further prompts."""
    mask_truncated: bool = False
    """Whether replies that ran into the limit are left out of the loss."""
    overlong_tokens: int = 0
    """Within so many tokens of the limit the reward falls, by 1 at the limit."""


@dataclass(frozen=True)
class Cast:
    """Who takes part in a rollout."""

    objective: OnlineObjective
    models: Models
    """At the temperature of the sampling."""
    model: torch.nn.Module
    device: torch.device
    write: Writer
    grade: Grader
    open: Callable[[], None] = lambda: None
    """Readies whatever writes."""
    close: Callable[[], None] = lambda: None
    """Lets go of it; it comes back when it is asked."""
    most_drift: float = math.inf
    """Nats a token between its log-probabilities and training's, over a rollout, which are refused above."""


class Rollouts:
    """A source of rows for the loop whose replies are sampled when a step needs them."""

    def __init__(
        self, plan: Plan, prompts: Sequence[Prompt], validation: Sequence[Prompt], cast: Cast, folder: Path, key: str
    ) -> None:
        """
        Args:
            plan: how much is sampled.
            prompts: what is asked to learn from.
            validation: what is asked to choose the best step by.
            cast: who writes, grades and learns.
            folder: for the files of the rollouts; made when needed.
            key: of the training; files of another one are not read.
        """
        self.plan, self.prompts, self.validation = plan, prompts, validation
        self.cast, self.folder, self.key = cast, folder, key
        self.micro_batch_tokens = 4096
        """Most tokens measured at once."""
        self._places, self._further = Places(len(prompts), plan.seed), Places(len(prompts), plan.seed + 1)
        self._held: tuple[int, list[Unit]] = (0, [])

    # what the loop calls

    def step(self, number: int, memory: Memory = NOTHING) -> list[Unit]:
        """The units of step `number`, counted from 1: sampled now, or held from an earlier step of the rollout."""
        plan = self.plan
        rollout, place = divmod(number - 1, plan.updates * plan.minibatches)
        if self._held[0] != rollout + 1:
            self._held = (rollout + 1, self._units(self.rollout(rollout + 1, memory)))
        units = self._held[1]
        taken, part = divmod(place, plan.minibatches)
        if plan.minibatches > 1:
            places = order(len(units), self.plan.seed, rollout * plan.updates + taken).tolist()
            units = [
                units[i] for i in places[part * self.plan.prompts_per_step : (part + 1) * self.plan.prompts_per_step]
            ]
        return units

    def planned(self, number: int) -> list[Unit]:
        """Units as large as those of step `number` can become: replies of made-up tokens, all of the longest length."""
        first = (number - 1) * self.plan.prompts_per_step
        return [self._made_up(self.prompts[i]) for i in self._places.between(first, first + self.plan.prompts_per_step)]

    def planned_validation(self) -> list[Unit]:
        """The same of the validation prompts, one reply each."""
        return [self._made_up(prompt)[:1] for prompt in self.validation]

    def validating(self, units: Sequence[Unit], number: int) -> list[Unit]:
        """Replies to the validation prompts, the likeliest token each time, graded."""
        path = self.folder / f"validation-{number:06d}.jsonl"
        lines = self._kept(path)
        if lines is None:
            seeds = [0] * len(self.validation)
            replies = self._answered(list(range(len(self.validation))), self.validation, seeds, GREEDY)
            lines = [{"step": number, "key": self.key}, *(self._line(reply) for reply in replies)]
            self._keep(path, lines)
        return [(self._row(line, self.validation[line["group"]]),) for line in lines[1:]]

    # what the pre-flight asks

    def reference_rewards(self, count: int) -> list[tuple[str, float, float, str]]:
        """Of at most so many prompts whose row gives a reply: the id, the reward of that reply and of an empty one, and
        why a grader could not grade it; none where no grader looks at replies."""
        known = [(prompt, prompt.reference) for prompt in self.prompts if prompt.reference is not None]
        known = known[:: max(1, len(known) // count)][:count]
        graded = self.cast.grade([(p, said(m)) for p, reply in known for m in (reply, Message("assistant", ""))])
        if not any(grade.parts for grade in graded):  # an environment alone rewards, and none was talked to
            return []
        pairs = zip(known, graded[::2], graded[1::2], strict=True)
        return [(p.id, own.reward, no.reward, "; ".join(own.problems.values())) for (p, _), own, no in pairs]

    def first(self) -> Mapping[str, float]:
        """Of the first rollout: `reward`, the shares of replies `truncated` and `ungraded`, and of groups `dead`: those
        that teach nothing."""
        header, *lines = self.rollout(1)
        objective = self.cast.objective
        dead = header["dead_groups"] / len(header["places"]) if objective.least_group > 1 else 0.0
        if objective.needs_rewards and len({line["reward"] for line in lines}) == 1:
            dead = 1.0
        return {**{name: header[name] for name in ("reward", "truncated", "ungraded")}, "dead": dead}

    # a rollout

    def rollout(self, number: int, memory: Memory = NOTHING) -> list[dict[str, Any]]:
        """The lines of rollout `number`, counted from 1: its header and its replies; sampled unless they are kept."""
        path = self.folder / f"rollout-{number:06d}.jsonl"
        lines = self._kept(path)
        if lines is None:
            lines = self._made(number, memory)
            self._keep(path, lines)
        return lines

    def _made(self, number: int, memory: Memory) -> list[dict[str, Any]]:
        places, groups, replaced = self._asked(number)
        measured = self._measured(places, groups)
        replies = [
            Reply(i, row, answer.reward, answer.truncated)
            for i, (group, rows) in enumerate(zip(groups, measured, strict=True))
            for answer, row in zip(group, rows, strict=True)
        ]
        rows = self.cast.objective.credit(replies, memory)
        answers = [answer for group in groups for answer in group]
        flags = [float(_is_dead(group)) for group in groups for _ in group]
        lines = []
        for reply, answer, row, is_dead in zip(replies, answers, rows, flags, strict=True):
            values = {**row.values, **answer.values, "dead": is_dead, **_divergence(row)}
            lines.append(self._line(replace(answer, group=reply.group, values=values), replace(row, values=values)))
        drift = sum(map(_drift, rows)) / len(rows)
        if drift > self.cast.most_drift:
            raise ModelError(
                f"rollout {number}: the sampler's log-probabilities are {drift:.2f} nats a token from training's: it "
                "writes with another model or other weights; remove [rollout.vllm], and the training writes itself"
            )
        header = {
            "rollout": number,
            "key": self.key,
            "places": places,
            "dead_groups": sum(map(_is_dead, groups)),
            "replaced_groups": replaced,
            "reward": sum(reply.reward for reply in replies) / len(replies),
            "truncated": sum(reply.truncated for reply in replies) / len(replies),
            "sampler_drift": drift,
            "ungraded": sum(bool(answer.grade.problems) for answer in answers) / len(answers),
        }
        return [header, *lines]

    def _asked(self, number: int) -> "tuple[list[int], list[list[_Answer]], int]":
        """The prompts of a rollout, the replies to each, and how many groups of equal rewards were replaced."""
        size, rounds = self.plan.prompts_per_step * self.plan.minibatches, self.plan.resample
        places = self._places.between((number - 1) * size, number * size)
        groups, replaced = self._sampled(number, places), 0
        further = iter(self._further.between((number - 1) * size * rounds, number * size * rounds))
        for again in range(1, rounds + 1):
            dead = [i for i, group in enumerate(groups) if _is_dead(group)]
            if not dead:
                break
            others = [next(further) for _ in dead]
            for i, place, group in zip(dead, others, self._sampled(number, others, again), strict=True):
                places[i], groups[i] = place, group
            replaced += len(dead)
        return places, groups, replaced

    def _sampled(self, number: int, places: Sequence[int], again: int = 0) -> "list[list[_Answer]]":
        """A group of graded replies to each prompt; one that is asked twice is answered otherwise."""
        size = self.plan.group_size
        prompts = [self.prompts[place] for place in places for _ in range(size)]
        asked = [(i, place, reply) for i, place in enumerate(places) for reply in range(size)]
        seeds = [seed_of(self.plan.seed, number, again, *one) for one in asked]
        groups = [group for group in range(len(places)) for _ in range(size)]
        answers = self._answered(groups, prompts, seeds, self.plan.temperature)
        return [answers[first : first + size] for first in range(0, len(answers), size)]

    def _answered(
        self, groups: Sequence[int], prompts: Sequence[Prompt], seeds: Sequence[int], temperature: float
    ) -> "list[_Answer]":
        written = self.cast.write(prompts, seeds, temperature)
        grades = self.cast.grade(list(zip(prompts, written, strict=True)))
        return [
            _Answer(group, prompt, answer, grade, self._values(answer, grade))
            for group, prompt, answer, grade in zip(groups, prompts, written, grades, strict=True)
        ]

    def _values(self, answer: Written, grade: Grade) -> dict[str, float]:
        parts = {f"reward_{name}": value for name, value in grade.parts.items()}
        return {
            "reward": grade.reward - overlong(answer, self.plan.max_new_tokens, self.plan.overlong_tokens),
            **parts,
            "truncated": float(answer.truncated),
            "limit": float(self.plan.max_new_tokens),
        }

    def _measured(self, places: Sequence[int], groups: "Sequence[Sequence[_Answer]]") -> list[list[Row]]:
        """The row of each reply with what the objective measures of its tokens, under the weights that sampled it."""
        units = [
            tuple(self._fresh(self.prompts[place], answer, number) for number, answer in enumerate(group))
            for place, group in zip(places, groups, strict=True)
        ]
        if self.plan.mask_truncated:
            units = _without_truncated(units, groups)
        found: list[Row] = []
        with torch.no_grad(), in_mode(self.cast.model, training=False):
            for rows in micro_batches(units, self.micro_batch_tokens):
                batch = build_batch(rows).to(self.cast.device)
                measured = self.cast.objective.measure(self.cast.models, batch)
                found += _with_token_values(rows, {name: v.float().cpu() for name, v in measured.items()})
        left = iter(found)
        return [[next(left) for _ in unit] for unit in units]

    def _fresh(self, prompt: Prompt, answer: "_Answer", number: int) -> Row:
        before, written = len(prompt.ids), answer.written
        return Row(
            (*prompt.ids, *written.ids),
            (*(0.0,) * before, *map(float, written.own)),
            f"{prompt.id}/{number}",
            {},
            {"sampled_logprob": (*(0.0,) * before, *written.logprobs)},
        )

    # files

    def _line(self, answer: "_Answer", row: Row | None = None) -> dict[str, Any]:
        """A reply as it is kept. Of a row, what stands before the reply is the prompt, which its id tells."""
        prompt, written = answer.prompt, answer.written
        before = len(prompt.ids)
        line: dict[str, Any] = {
            "group": answer.group,
            "prompt": prompt.id,
            "text": written.text,
            "reward": answer.reward,
            "rewards": dict(answer.grade.parts),
            **({"problems": dict(answer.grade.problems)} if answer.grade.problems else {}),
            "truncated": written.truncated,
            "turns": written.turns,
            "values": dict(answer.values),
            "ids": list(written.ids),
            "mask": [float(own) for own in written.own] if row is None else list(row.loss_mask[before:]),
        }
        if row is not None:
            line["token_values"] = {name: list(values[before:]) for name, values in row.token_values.items()}
            line["sampler_drift"] = _drift(row)
        return line

    def _units(self, lines: Sequence[Mapping[str, Any]]) -> list[Unit]:
        header, *replies = lines
        prompts = [self.prompts[place] for place in header["places"]]
        units: list[list[Row]] = [[] for _ in prompts]
        for line in replies:
            units[line["group"]].append(self._row(line, prompts[line["group"]], len(units[line["group"]])))
        return [tuple(unit) for unit in units]

    def _row(self, line: Mapping[str, Any], prompt: Prompt, number: int = 0) -> Row:
        before = (0.0,) * len(prompt.ids)
        token_values = {name: (*before, *values) for name, values in line.get("token_values", {}).items()}
        if self.plan.updates * self.plan.minibatches == 1:
            token_values.pop("old_logprob", None)  # the policy is the one that sampled: its ratio is 1, to the last bit
        ids, mask = (*prompt.ids, *line["ids"]), (*before, *line["mask"])
        return Row(ids, mask, f"{prompt.id}/{number}", dict(line["values"]), token_values)

    def _kept(self, path: Path) -> list[dict[str, Any]] | None:
        """The lines of a file that this very run wrote; None: there is none."""
        if not path.is_file():
            return None
        try:
            # not splitlines(): replies may hold other ends of lines, such as U+2028
            lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
            return lines if lines[0]["key"] == self.key else None
        except (ValueError, KeyError, IndexError, TypeError):
            raise DataError("is damaged; remove it, and its replies are sampled again", path) from None

    def _keep(self, path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(path.parent)
        with atomic_text(path) as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def _made_up(self, prompt: Prompt) -> Unit:
        """Replies that begin alike nowhere, so that none is computed for another."""
        length, most = self.plan.max_new_tokens, max(prompt.ids) + 1
        rows = []
        for number in range(self.plan.group_size):
            reply = tuple((number + place * (number + 1)) % most for place in range(length))
            ids = (*prompt.ids, *reply)
            mask = (0.0,) * len(prompt.ids) + (1.0,) * length
            nothing = (0.0,) * len(ids)
            names = (
                "old_logprob",
                "sampled_logprob",
                *(["reference_logprob"] if self.cast.objective.uses_reference else []),
            )
            values = {"advantage": 1.0, "limit": float(length), "reward": 0.0}
            rows.append(Row(ids, mask, f"{prompt.id}/{number}", values, dict.fromkeys(names, nothing)))
        return tuple(rows)


@dataclass(frozen=True)
class _Answer:
    group: int
    prompt: Prompt
    written: Written
    grade: Grade
    values: Mapping[str, float]
    """Of its row."""

    @property
    def reward(self) -> float:
        """The grade's, less what the length costs."""
        return self.values["reward"]

    @property
    def truncated(self) -> bool:
        """It ran into the limit."""
        return self.written.truncated


def _is_dead(group: Sequence[_Answer]) -> bool:
    """Whether all rewards are equal, so that nothing is better than the rest; a single reply is never."""
    return len(group) > 1 and len({answer.reward for answer in group}) == 1


def overlong(answer: Written, longest: int, room: int) -> float:
    """What a reply loses for coming within `room` tokens of the longest one: from 0 to 1 (arXiv:2503.14476, equation
    13); 0 where `room` is 0."""
    return min(max((sum(answer.own) - (longest - room)) / room, 0.0), 1.0) if room else 0.0


def seed_of(*numbers: int) -> int:
    """A number for a random stream, as far from that of its neighbors as any."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8])


def _without_truncated(units: Sequence[Unit], groups: Sequence[Sequence[_Answer]]) -> list[Unit]:
    """Replies that were cut off lose their mask; a rollout of which nothing else is left is refused.

    Raises:
        DataError: every reply was cut off.
    """
    if all(answer.truncated for group in groups for answer in group):
        raise DataError(
            "every reply of a rollout ran into rollout.max_new_tokens and rollout.mask_truncated leaves them all out: "
            "raise rollout.max_new_tokens, or set rollout.mask_truncated = false so that the model learns to end"
        )
    return [
        tuple(
            replace(row, loss_mask=(0.0,) * len(row.ids)) if answer.truncated else row
            for row, answer in zip(unit, group, strict=True)
        )
        for unit, group in zip(units, groups, strict=True)
    ]


def _with_token_values(rows: Sequence[Row], measured: Mapping[str, torch.Tensor]) -> list[Row]:
    """The rows with what was measured of their trained-on tokens."""
    found, first = [], 0
    for row in rows:
        end = first + row.trained_tokens
        found.append(row.telling({name: values_K[first:end].tolist() for name, values_K in measured.items()}))
        first = end
    return found


def _divergence(row: Row) -> dict[str, float]:
    """How many nats more likely a reply was to the policy than to the reference, where there is one."""
    if "reference_logprob" not in row.token_values:
        return {}
    pairs = zip(row.token_values["old_logprob"], row.token_values["reference_logprob"], row.loss_mask, strict=True)
    return {"reply_kl": sum(old - reference for old, reference, weight in pairs if weight)}


def _drift(row: Row) -> float:
    """Mean distance of training's log-probabilities from the sampler's, in nats a token."""
    pairs = zip(row.token_values["old_logprob"], row.token_values["sampled_logprob"], row.loss_mask, strict=True)
    distances = [abs(old - sampled) for old, sampled, weight in pairs if weight]
    return sum(distances) / len(distances) if distances else 0.0
