"""A model writes instructions: from examples, in other words, or with a rule that mends what went wrong.

    write        inputs and wanted outputs -> the instruction that leads from one to the other
                 (Zhou et al. 2022, arXiv:2211.01910)
    paraphrase   the best instruction so far -> the same in other words
    mend         it, and answers that were wrong under it -> it with one rule more (Pryzant et al. 2023,
                 arXiv:2305.03495, call such a criticism a textual gradient; Agrawal et al. 2025, arXiv:2507.19457)

Small models are poor at this: much of what they write is no instruction. So nothing is trusted; whatever is short
enough takes part in the race, and loses it.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from luthier.evaluation.systems._prompts import MAX_LISTED
from luthier.evaluation.systems.base import Answer, Context, message_text
from luthier.examples import Conversation, Message
from luthier.models.generate import generate

EXAMPLES = 4
"""Rows that are shown when an instruction is written, and failures when it is mended."""
LONGEST_TEXT = 500
"""Characters of an input or output that are shown."""
NEW_TOKENS = 160
"""The longest instruction."""
_LABEL = re.compile(r"^\W*(the |a |new |your |reworded )*(instructions?|rule|prompt)\b[^:\n]{0,30}:\s*", re.IGNORECASE)


Ask: TypeAlias = Callable[[Sequence[str]], list[tuple[str, bool]]]
"""What a model says to each question that it has room for, and whether it came to an end."""


class Writer:
    """The context's model, in whatever state its adapter is, as one that can be asked.

    Args:
        context: whose model and template.
        seed: decides what is written.
        temperature: how freely.
    """

    def __init__(self, context: Context, seed: int, temperature: float) -> None:
        self._context, self._seed, self._temperature = context, seed, temperature
        self._asked = 0

    def __call__(self, questions: Sequence[str]) -> list[tuple[str, bool]]:
        """See `Ask`; every call has random numbers of its own."""
        template, loaded = self._context.template, self._context.loaded
        prompts = [template.prompt_ids((Message("user", question),)) for question in questions]
        fitting = [ids for ids in prompts if len(ids) + NEW_TOKENS <= loaded.max_tokens]
        seeds = [self._seed * 1_000_003 + self._asked + i for i in range(len(fitting))]
        self._asked += len(fitting)
        written = generate(
            loaded,
            fitting,
            max_new_tokens=NEW_TOKENS,
            stop_ids=template.stop_ids,
            batch_tokens=self._context.batch_tokens,
            stop_loops=True,
            on_progress=lambda done, total: self._context.on_progress("writing instructions", done, total),
            temperature=self._temperature,
            top_p=0.95,
            seed=seeds,
        )
        return [(message_text(template.parse_reply(one.ids)), one.finished) for one in written]


class Proposer:
    """Asks for instructions, and takes what may be one.

    Args:
        ask: the model.
        train: rows that may be shown.
        seed: decides which of them are.
    """

    def __init__(self, ask: Ask, train: Sequence[Conversation], seed: int) -> None:
        self._model = ask
        self._rows = [row for row in train if row.completion is not None]
        self._pick = random.Random(seed)
        self.calls = 0
        """How often the model was asked."""

    def write(self, count: int) -> list[str]:
        """So many instructions, or fewer, each from training rows of its own."""
        shown = min(EXAMPLES, len(self._rows))
        return self._ask([_write(self._pick.sample(self._rows, shown)) for _ in range(count if shown else 0)])

    def paraphrase(self, text: str, count: int) -> list[str]:
        """The instruction in other words, so many times, or fewer."""
        asked = f"Say this instruction in other words. Keep everything that it asks for.\n\n{text}\n\n{_ALONE}"
        return self._ask([asked] * count)

    def mend(self, text: str, failures: Sequence[tuple[Conversation, Answer]], count: int) -> list[str]:
        """The instruction with a rule more, from failures drawn for each."""
        shown = min(EXAMPLES, len(failures))
        asked = [_mend(text, self._pick.sample(list(failures), shown)) for _ in range(count if shown else 0)]
        return [f"{text}\n{rule}".strip() for rule in self._ask(asked)]

    def _ask(self, questions: Sequence[str]) -> list[str]:
        """What the model says, cleaned; empty and equal texts are left out."""
        said = self._model(questions) if questions else []
        self.calls += len(said)
        texts = (cleaned(text, finished) for text, finished in said)
        return list(dict.fromkeys(text for text in texts if text))


def cleaned(text: str, finished: bool) -> str:
    """The instruction in what a model wrote: without quotes and a label; of a cut one the whole sentences."""
    text = _LABEL.sub("", text.strip()).strip().strip("\"'`*“”").strip()
    if not finished:
        text = text[: max(text.rfind(mark) for mark in (".", "!", "\n")) + 1].strip()
    return text if len(text) <= MAX_LISTED else ""


_ALONE = "Reply with the instruction alone."


def _write(rows: Sequence[Conversation]) -> str:
    shown = "\n\n".join(_example(row) for row in rows)
    return (
        f"An assistant was given an instruction, and wrote these outputs for these inputs.\n\n{shown}\n\n"
        "What was the instruction? It says what the output must contain and in which form, for any input. " + _ALONE
    )


def _mend(text: str, failures: Sequence[tuple[Conversation, Answer]]) -> str:
    shown = "\n\n".join(f"{_example(row)}\nWritten instead: {_clip(answer.output)}" for row, answer in failures)
    given = f"this instruction:\n\n{text}" if text else "no instruction."
    return (
        f"An assistant was given {given}\n\nFor these inputs its output was wrong.\n\n{shown}\n\n"
        "Write one short rule that would have made these outputs right, and that holds for any input. Reply with the "
        "rule alone."
    )


def _example(row: Conversation) -> str:
    asked = next((m.content for m in reversed(row.prompt) if m.role == "user"), "")
    wanted = message_text(row.completion) if row.completion is not None else ""
    return f"Input: {_clip(asked)}\nOutput: {_clip(wanted)}"


def _clip(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " ..."


def distinct(texts: Sequence[str]) -> Iterator[str]:
    """Texts that differ in more than case, spaces and marks, in their order."""
    seen: set[str] = set()
    for text in texts:
        words = " ".join(re.findall(r"\w+", text.lower()))
        if words not in seen:
            seen.add(words)
            yield text
