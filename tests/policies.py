"""A policy for tests of a loss alone, which says what it is asked and nothing else."""

from torch import Tensor

from luthier.models.forest import Batch, HeadValues, TokenScores


class Unasked:
    """What a loss does not ask for is an error; a test's own policy answers the rest."""

    def token_logprobs(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def token_scores(self, batch: Batch) -> TokenScores:
        raise NotImplementedError

    def logits(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def head_values(self, batch: Batch) -> HeadValues:
        raise NotImplementedError

    def logprobs_and_values(self, batch: Batch) -> tuple[Tensor, HeadValues]:
        raise NotImplementedError

    def at(self, temperature: float) -> "Unasked":
        raise NotImplementedError
