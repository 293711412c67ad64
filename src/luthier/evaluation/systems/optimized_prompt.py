"""The base model with a prompt that was searched for: instructions from the data and from a model, bred and raced.

1. The additions of `zero_shot` (keys, form or labels from training rows and schema), and instructions that a model
   writes from training rows, race on validation rows.
2. The best of them race again with solved examples before the question, chosen as in `few_shot`.
3. Each round a model says the champion in other words and adds rules for validation rows that it failed; these race
   against it.
4. Where answers are free text, these races go by the probability of the wanted replies: hundreds of long answers take
   hours, and their overlap with one wanted reply says little of a row. In the end the best of them, and no addition,
   answer validation rows, and the primary metric decides.

The search is given no test rows at all: it is a function of the context, and only then are the rows answered. Races are
successive halving (`_race.py`), so most of the budget goes to prompts that are worth it. The winner's validation score
is that of the best of many, on rows that its rules were written for: it flatters, and the test score does not.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field

from luthier.evaluation.answering import answer_with_model, tokens_with_reply
from luthier.evaluation.systems._other_model import ModelChoice, opened
from luthier.evaluation.systems._prompts import Addition, additions, choose, has_room, rows_to_compete_on, suggested
from luthier.evaluation.systems._proposer import Proposer, Writer, distinct
from luthier.evaluation.systems._race import Race
from luthier.evaluation.systems.base import (
    Answer,
    Answers,
    Context,
    System,
    require_questions,
    with_answer_room,
    with_instruction,
)
from luthier.evaluation.systems.few_shot import FewShot, Prompter, Way
from luthier.examples import Conversation, Example, Message

FIRST_ROWS = 10
"""Validation rows of the first heat."""
WITH_EXAMPLES = 3
"""Champions of the first race that are tried with examples."""
FINALISTS = 3
"""Champions of races by likelihood that answer in the end."""
FINAL_ROWS = 20
"""Validation rows that they answer, as many as the ways to ask of `few_shot`."""
MENDED_ROWS = 12
"""Where races go by likelihood: the rows that it gave least to are answered, for rules that would mend them."""
BASE = "base"


@dataclass(frozen=True)
class Candidate:
    """A way to ask."""

    addition: Addition = field(default_factory=Addition)
    shots: int = 0

    def dump(self) -> dict[str, Any]:
        """`addition`, `place`, `examples` and `shots`, for the records."""
        return {**self.addition.dump(), "examples": "nearest" if self.shots else "", "shots": self.shots}


@dataclass(frozen=True)
class Found:
    """What a search ends with."""

    best: Candidate
    details: dict[str, Any]


class OptimizedPrompt(System):
    """The base model, asked with the best prompt that a budget finds."""

    instruction: str = ""
    """Always added to the system message, before any addition that competes."""
    variants: tuple[str, ...] = ()
    """Instructions of your own that compete with all others."""
    proposer: str = BASE
    """Who writes instructions: `base`, or another local model by name, as `local_model.model`."""
    candidates: int = Field(8, ge=0)
    """Instructions that it writes to begin with; in each round half as many say the champion in other words, and half
    as many add a rule to it. 0: none, only those from the data compete."""
    rounds: int = Field(2, ge=0)
    """How often the champion is challenged by what the proposer makes of it."""
    shots: int = Field(3, ge=0)
    """Solved examples that are tried before the question; 0: none are tried."""
    tune_rows: int = Field(60, ge=0)
    """Validation rows on which prompts race; 0: none is tried, `instruction` alone is used."""
    temperature: float = Field(0.8, gt=0, le=2)
    """How freely the proposer writes."""
    seed: int = Field(0, ge=0)
    """Decides what the proposer is shown and writes."""
    answer_room: float = Field(2.0, ge=1)
    """Longest answer, in multiples of `evaluation.max_new_tokens`."""

    def identity(self, context: Context) -> str | None:
        """Changes when the files of a proposer that is not the base do; raises ModelError if there is no such model."""
        return None if self.proposer == BASE else ModelChoice(self.proposer).identity(context)

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The base model's answers with the winning prompt; `details` records all prompts, their scores, and the calls.

        Raises:
            EvaluationError: a row leaves no room for an answer or is no question, a validation row has a target of
                another kind, there are no training rows to take examples from, or the proposer does not fit.
            ModelError: the proposer cannot be had or used.
        """
        questions = require_questions(rows, "optimized_prompt")
        with context.adapter_disabled():
            found = self.search(context)
            asker = _Asker(self, context, found.best.shots)
            prompts = asker.prompts(questions, found.best)
            answers, seconds = answer_with_model(rows, prompts, asker.context, "optimized_prompt")
        return Answers(answers, seconds, found.details)

    def search(self, context: Context, proposer: Proposer | None = None) -> Found:
        """The best prompt, by training and validation rows alone; the model must be the base.

        Args:
            context: with the rows; there are no others.
            proposer: writes instructions; None: the one that the settings name.

        Raises:
            EvaluationError, ModelError: as `answer`.
        """
        asker = _Asker(self, context, self.shots)
        rows = asker.rows(self.tune_rows)
        if not rows:
            return Found(Candidate(), {"instruction": self.instruction, **Candidate().dump(), "tried": []})
        with self._proposing(context) if proposer is None else nullcontext(proposer) as writing:
            search = _Search(self, asker, rows, writing)
            best = search.run()
        return Found(best, search.details(best))

    @contextmanager
    def _proposing(self, context: Context) -> Iterator[Proposer]:
        if self.proposer == BASE or not self.candidates:
            yield Proposer(Writer(context, self.seed, self.temperature), context.train, self.seed)
            return
        with opened(ModelChoice(self.proposer), context, "optimized_prompt") as other:
            yield Proposer(Writer(other.context, self.seed, self.temperature), context.train, self.seed)


Origin = Literal["data", "given", "written", "examples", "paraphrase", "rule"]


class _Search:
    """One search; remembers where each candidate came from."""

    def __init__(
        self, settings: OptimizedPrompt, asker: "_Asker", rows: Sequence[Conversation], proposer: Proposer
    ) -> None:
        self.settings, self.asker, self.proposer = settings, asker, proposer
        self.context = replace(asker.context, alone_rows=0)
        self.race: Race[Candidate] = Race(
            rows, asker.prompts_to_score, self.context, "optimized_prompt", asker.by_likelihood
        )
        self.origins: dict[Candidate, Origin] = {}
        self.finals: dict[Candidate, tuple[float | None, int]] = {}
        """Where races go by likelihood: the metric over answers, and how many rows were answered."""
        self.written = 0
        """Answers beside those of the race."""

    def run(self) -> Candidate:
        """The champion of all races."""
        best = self.race.run(self._beginnings(), FIRST_ROWS)
        if self.settings.shots and self.context.train:
            best = self.race.run([best, *self._with_examples()], FIRST_ROWS)
        for _ in range(self.settings.rounds if self.settings.candidates else 0):
            best = self.race.run([best, *self._challengers(best)], FIRST_ROWS)
        return self._final() if self.race.by_likelihood else best

    def details(self, best: Candidate) -> dict[str, Any]:
        """What was tried, by whom it was made, and what it took; the winner first."""
        seen = sorted(self.race.seen, key=lambda candidate: (candidate != best, candidate not in self.finals))
        calls = {"answers": self.written + (0 if self.race.by_likelihood else self.race.calls)}
        if self.race.by_likelihood:
            calls["likelihoods"] = self.race.calls
        return {
            "instruction": self.settings.instruction,
            **best.dump(),
            "origin": self.origins[best],
            "proposer": self.settings.proposer,
            "calls": {**calls, "instructions": self.proposer.calls},
            "tried": [{**c.dump(), "origin": self.origins[c], **self._scores(c)} for c in seen],
        }

    def _scores(self, candidate: Candidate) -> dict[str, Any]:
        raced, rows = self.race.score(candidate), self.race.rows_answered(candidate)
        finite = raced if math.isfinite(raced) else None
        if not self.race.by_likelihood:
            return {"validation_score": finite, "rows": rows}
        score, answered = self.finals.get(candidate, (None, 0))
        return {"validation_score": score, "rows": answered, "perplexity": finite, "perplexity_rows": rows}

    def _final(self) -> Candidate:
        """The best by the primary metric, of the champions and no addition; of equals the plainest."""
        plain = Candidate()
        finalists = [plain, *(c for c in self.race.seen if c != plain)][: FINALISTS + 1]
        ask = self.asker.prompts
        best, tried = choose(finalists, ask, FINAL_ROWS, self.context, "optimized_prompt, final")
        self.finals = {c: (one["validation_score"], one["rows"]) for c, one in zip(finalists, tried, strict=True)}
        self.written += sum(one["rows"] for one in tried)
        return best

    def _failures(self, best: Candidate) -> list[tuple[Conversation, Answer]]:
        failures = self.race.failures(best)
        if not self.race.by_likelihood or not failures:
            return failures
        rows = [row for row, _ in failures[:MENDED_ROWS]]
        what = "optimized_prompt: rows to mend"
        answers, _ = answer_with_model(rows, self.asker.prompts(rows, best), self.context, what)
        self.written += len(answers)
        return list(zip(rows, answers, strict=True))

    def _beginnings(self) -> list[Candidate]:
        settings = self.settings
        found = [self._made(Candidate(a), "data") for a in additions(suggested(self.context))]
        found += [self._made(Candidate(a), "given") for a in additions(settings.variants)]
        written = self.proposer.write(settings.candidates) if settings.candidates else []
        return found + [self._made(Candidate(Addition(text)), "written") for text in self._new(written)]

    def _with_examples(self) -> list[Candidate]:
        """The best so far, no addition, and the one that says most about the task, each with examples."""
        champions = self.race.seen[:WITH_EXAMPLES]
        texts = [candidate.addition for candidate in champions]
        ways = dict.fromkeys([*texts, Addition(), Addition(suggested(self.context)[-1])])
        return [self._made(Candidate(addition, self.settings.shots), "examples") for addition in ways]

    def _challengers(self, best: Candidate) -> list[Candidate]:
        count, text = max(1, self.settings.candidates // 2), best.addition.text
        made: list[tuple[str, Origin]] = []
        if text:
            made += [(new, "paraphrase") for new in self._new(self.proposer.paraphrase(text, count))]
        mended = self.proposer.mend(text, self._failures(best), count)
        made += [(new, "rule") for new in self._new(mended)]
        return [self._made(Candidate(Addition(new, best.addition.place), best.shots), origin) for new, origin in made]

    def _new(self, texts: Sequence[str]) -> list[str]:
        """Texts that were not tried in any form."""
        known = [candidate.addition.text for candidate in self.origins]
        return list(distinct([*known, *texts]))[len(list(distinct(known))) :]

    def _made(self, candidate: Candidate, origin: Origin) -> Candidate:
        self.origins.setdefault(candidate, origin)
        return candidate


class _Asker:
    """Makes the prompts of a search."""

    def __init__(self, settings: OptimizedPrompt, context: Context, shots: int) -> None:
        self.settings, self.context = settings, with_answer_room(context, settings.answer_room)
        self.by_likelihood = context.task == "text"
        examples = FewShot(shots=shots, instruction=settings.instruction) if shots and context.train else None
        self._prompter = None if examples is None else Prompter(examples, context)

    def rows(self, count: int) -> list[Conversation]:
        """The first validation rows that can be asked plainly and, if need be, scored."""
        if not self.by_likelihood or not count:
            return rows_to_compete_on(self.context, count, self.plain)
        every = rows_to_compete_on(self.context, len(self.context.validation), self.plain)
        return list(itertools.islice((row for row in every if self._fits_scored(row, self.plain(row))), count))

    def plain(self, row: Conversation) -> tuple[Message, ...]:
        """A row asked without any addition."""
        return with_instruction(row.prompt, self.settings.instruction)

    def prompts(self, rows: Sequence[Conversation], candidate: Candidate) -> list[tuple[Message, ...]]:
        """The prompt of each row; without the addition, or with fewer examples, where it would leave no room."""
        return [self._prompt(row, candidate, self._fits) for row in rows]

    def prompts_to_score(self, rows: Sequence[Conversation], candidate: Candidate) -> list[tuple[Message, ...]]:
        """As `prompts`, for validation rows whose wanted replies need room, too, where races go by their likelihood."""
        return [self._prompt(row, candidate, self._fits_scored) for row in rows]

    def _prompt(
        self,
        row: Conversation,
        candidate: Candidate,
        fits: Callable[[Conversation, tuple[Message, ...]], bool],
    ) -> tuple[Message, ...]:
        if candidate.shots and self._prompter is not None:
            full = self._prompter.prompt(row, Way(candidate.addition, "nearest"))[0]
        else:
            full = candidate.addition.apply(self.plain(row))
        return full if fits(row, full) else self.plain(row)

    def _fits(self, row: Conversation, prompt: tuple[Message, ...]) -> bool:
        """Whether an answer has room; nothing is known of the wanted one, as of test rows."""
        return has_room(row, prompt, self.context)

    def _fits_scored(self, row: Conversation, prompt: tuple[Message, ...]) -> bool:
        """Whether an answer has room, and the wanted one where it is scored."""
        if not self._fits(row, prompt):
            return False
        if not self.by_likelihood or row.completion is None:
            return True
        return tokens_with_reply(row, prompt, self.context) <= self.context.loaded.max_tokens
