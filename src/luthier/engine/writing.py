"""How the replies of a rollout come to be written: by our own sampler, in one turn."""

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data.templates import Template
from luthier.engine.rollout import Prompt, Sampler, Written
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
