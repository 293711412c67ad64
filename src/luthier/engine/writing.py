"""How the replies of a rollout come to be written: by our own sampler, in one turn or in talk with an environment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.data.templates import Template
from luthier.engine.rollout import Prompt, Sampler, Written
from luthier.environments.base import Environment
from luthier.errors import TemplateError
from luthier.examples import Conversation, Message
from luthier.models.generate import Generation, generate
from luthier.models.load import LoadedModel


@dataclass(frozen=True)
class OwnSampler:
    """The model that is trained, in the process that trains it."""

    loaded: LoadedModel
    stop_ids: frozenset[int]
    batch_tokens: int = 16384

    def __call__(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], seeds: Sequence[int], temperature: float
    ) -> Sequence[Generation]:
        """One reply to each prompt; all of the vocabulary can be drawn, as training scores it."""
        return generate(
            self.loaded,
            prompts,
            max_new_tokens=limits,
            stop_ids=self.stop_ids,
            batch_tokens=self.batch_tokens,
            temperature=temperature,
            seed=seeds,
        )


@dataclass(frozen=True)
class OneTurn:
    """Each prompt is answered once."""

    sample: Sampler
    template: Template
    max_new_tokens: int

    def __call__(self, prompts: Sequence[Prompt], seeds: Sequence[int], temperature: float) -> list[Written]:
        """One reply to each prompt."""
        limits = [self.max_new_tokens] * len(prompts)
        found = self.sample([prompt.ids for prompt in prompts], limits, seeds, temperature)
        return [self._written(generation) for generation in found]

    def _written(self, generation: Generation) -> Written:
        message = self.template.parse_reply(generation.ids)
        ids = whole_ids(generation)
        return Written(
            text=message.content,
            message=message,
            ids=ids,
            own=(True,) * len(ids),
            logprobs=generation.logprobs,
            truncated=not generation.finished,
        )


def whole_ids(generation: Generation) -> tuple[int, ...]:
    """All tokens that were written, the one that ended the reply included: to end is learned as well."""
    return generation.ids if generation.stop_id is None else (*generation.ids, generation.stop_id)


@dataclass(frozen=True)
class Turns:
    """Each prompt begins a conversation with an environment of its own, which ends when that says so."""

    sample: Sampler
    template: Template
    max_new_tokens: int
    """Of the whole conversation, what the environment says included."""
    max_turns: int
    make: Callable[[], Environment]

    def __call__(self, prompts: Sequence[Prompt], seeds: Sequence[int], temperature: float) -> list[Written]:
        """One conversation for each prompt; all of them take their turns together."""
        talks = [_Talk(prompt, self.make()) for prompt in prompts]
        for turn in range(self.max_turns):
            open_now = [i for i, talk in enumerate(talks) if not talk.is_over]
            if not open_now:
                break
            found = self.sample(
                [talks[i].context for i in open_now],
                [self.max_new_tokens - len(talks[i].ids) for i in open_now],
                [(seeds[i] + turn) % 2**64 for i in open_now],
                temperature,
            )
            for i, generation in zip(open_now, found, strict=True):
                talks[i].take(generation, self.template, self.max_new_tokens)
        return [talk.written() for talk in talks]


class _Talk:
    """A conversation in the making."""

    def __init__(self, prompt: Prompt, environment: Environment) -> None:
        self.prompt, self.environment = prompt, environment
        environment.reset(prompt.item)
        self.messages = prompt.messages
        self.ids: tuple[int, ...] = ()
        self.own: tuple[bool, ...] = ()
        self.logprobs: tuple[float, ...] = ()
        self.is_over = self.truncated = False
        self.earned, self.turns = 0.0, 0

    @property
    def context(self) -> tuple[int, ...]:
        """What the next reply follows: the tokens that were written, not what their text would be encoded to."""
        return (*self.prompt.ids, *self.ids)

    def take(self, generation: Generation, template: Template, longest: int) -> None:
        """Add a reply, and what is said to it."""
        written = whole_ids(generation)
        self._add(written, True, generation.logprobs)
        reply = template.parse_reply(generation.ids)
        self.messages, self.turns = (*self.messages, reply), self.turns + 1
        if not generation.finished:
            self.is_over = self.truncated = True
            return
        said, earned, self.is_over = self.environment.step(reply)
        self.earned += earned
        if self.is_over or not said:
            self.is_over = True
            return
        follows = self._following(said, template)
        if follows is None or len(self.ids) + len(follows) >= longest:
            self.is_over = self.truncated = True
            return
        self._add(follows, False, (0.0,) * len(follows))
        self.messages = (*self.messages, *said)

    def _add(self, ids: Sequence[int], own: bool, logprobs: Sequence[float]) -> None:
        self.ids, self.own = (*self.ids, *ids), (*self.own, *(own,) * len(ids))
        self.logprobs = (*self.logprobs, *logprobs)

    def _following(self, said: Sequence[Message], template: Template) -> tuple[int, ...] | None:
        """The tokens between the end of the last reply and the next one; None where the template has none.

        A reply can be of a form that a template refuses, or renders otherwise once it is history: then what was written
        would not be what is served, and the conversation ends.
        """
        try:
            row = template.reply_row(Conversation(self.messages, self.prompt.tools), self.messages[-1:])
            whole = template.prompt_ids((*self.messages, *said), self.prompt.tools)
        except TemplateError:
            return None
        end = max(i for i, weight in enumerate(row.loss_mask) if weight) + 1
        return tuple(whole[end:]) if tuple(whole[:end]) == row.ids[:end] else None

    def written(self) -> Written:
        """The conversation; one that was not over after the last turn was cut off."""
        last = next(message for message in reversed(self.messages) if message.role == "assistant")
        cut = self.truncated or not self.is_over
        return Written(last.content, last, self.ids, self.own, self.logprobs, cut, self.turns, self.earned)
