"""One tokenizer beside another: what a teacher's tokens are to its student."""

import torch

from luthier.data.alignment import aligned, shared_vocabulary
from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.models.kernels.buckets import NOTHING, likeliest
from luthier.models.load import LoadedModel
from luthier.objectives.base import Lesson, Scorer, Told
from luthier.serve.text import TokenText
from luthier.teaching.plan import Voice


class Words:
    """What a teacher's tokens are to its student."""

    def __init__(self, mine: Voice, theirs: Voice) -> None:
        """`mine`: the student."""
        self._mine, self._theirs = mine, theirs
        self._texts = TokenText(mine.loaded.tokenizer), TokenText(theirs.loaded.tokenizer)
        self.are_equal = _vocabulary(mine) == _vocabulary(theirs)
        width = width_of(theirs.loaded)
        self.map_V = torch.full((width,), NOTHING)
        """The student's token for each of the teacher's, -1 where it cannot say it."""
        for their_token, my_token in self._shared().items():
            if their_token < width and my_token < width_of(mine.loaded):
                self.map_V[their_token] = my_token
        self.map_V = self.map_V.to(theirs.loaded.device)

    def align(self, mine: Row, theirs: Row) -> list[int | None]:
        """For each trained token of the student's row the place among the teacher's; None: nowhere."""
        a, b = _trained(mine), _trained(theirs)
        if self.are_equal and b[: len(a)] == a:
            return list(range(len(a)))
        pieces = (
            [None if token in voice.template.stop_ids else text.of(token)[1] for token in tokens]
            for tokens, voice, text in zip((a, b), (self._mine, self._theirs), self._texts, strict=True)
        )
        return aligned(*pieces)

    def _shared(self) -> dict[int, int]:
        if self.are_equal:
            return {token: token for token in range(width_of(self._theirs.loaded))}
        both, added = (self._mine, self._theirs), [_added(voice) for voice in (self._mine, self._theirs)]
        mine, theirs = (
            {token: text.of(token)[1] for token in set(_vocabulary(voice).values()) - set(control.values())}
            for voice, text, control in zip(both, self._texts, added, strict=True)
        )
        control = {token: added[0][name] for name, token in added[1].items() if name in added[0]}
        their_end, my_end = self._theirs.template.end_of_turn_id, self._mine.template.end_of_turn_id
        if their_end is not None and my_end is not None:  # whatever it is called
            control = {token: other for token, other in control.items() if other != my_end} | {their_end: my_end}
        return shared_vocabulary(mine, theirs) | control


def width_of(loaded: LoadedModel) -> int:
    """How many tokens a model can say."""
    width: int = loaded.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    return width


def _vocabulary(voice: Voice) -> dict[str, int]:
    found: dict[str, int] = voice.loaded.tokenizer.get_vocab()
    return found


def _added(voice: Voice) -> dict[str, int]:
    """Tokens that steer, and others that were added to the vocabulary, by their texts."""
    found: dict[str, int] = voice.loaded.tokenizer.get_added_vocab()
    return found


def _trained(row: Row) -> list[int]:
    return [token for token, weight in zip(row.ids[1:], row.loss_mask[1:], strict=True) if weight]


@torch.no_grad()
def say(scorer: Scorer, batch: Batch, lesson: Lesson, words: Words) -> Told:
    """What a teacher says of a batch of its own rows, in tokens of its student."""
    ids_KB, logprobs_KB = likeliest(scorer.logits(batch), batch.hidden_K, lesson.top_k, words.map_V != NOTHING)
    return Told(words.map_V[ids_KB], logprobs_KB)
