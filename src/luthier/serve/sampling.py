"""One token out of one row of logits, by the row's own rules and its own random numbers.

Every completion has a generator of its own, seeded from the request: what else is in the batch cannot change its draws.
"""

import hashlib
import secrets
from collections import Counter

import torch
from torch import Tensor

from luthier.serve.text import TokenText
from luthier.serve.work import Sampling, TokenScore


class Sampler:
    """The rules of one completion, and what it has generated so far."""

    def __init__(self, sampling: Sampling, index: int) -> None:
        self.sampling = sampling
        self._counts: Counter[int] = Counter()
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            seed = secrets.randbits(63) if sampling.seed is None else _seed(sampling.seed, index)
            self._generator = torch.Generator().manual_seed(seed)

    def choose(self, logits_V: Tensor) -> int:
        """The next token, from finite float32 logits on the CPU."""
        adjusted_V = self._adjust(logits_V)
        token = int(adjusted_V.argmax()) if self._generator is None else self._draw(adjusted_V, self._generator)
        self._counts[token] += 1
        return token

    def _adjust(self, logits_V: Tensor) -> Tensor:
        s = self.sampling
        penalized = bool(s.presence_penalty or s.frequency_penalty) and bool(self._counts)
        if not penalized and not s.logit_bias:
            return logits_V
        logits_V = logits_V.clone()
        if penalized:
            ids = torch.tensor(list(self._counts))
            counts = torch.tensor([float(c) for c in self._counts.values()])
            logits_V[ids] -= s.presence_penalty + s.frequency_penalty * counts
        if s.logit_bias:
            logits_V[torch.tensor(list(s.logit_bias))] += torch.tensor(list(s.logit_bias.values()))
        return logits_V

    def _draw(self, logits_V: Tensor, generator: torch.Generator) -> int:
        # subtracting the maximum first keeps a tiny temperature from overflowing
        probabilities_V = torch.softmax((logits_V - logits_V.max()) / self.sampling.temperature, dim=-1)
        if self.sampling.top_p < 1:
            sorted_V, order_V = probabilities_V.sort(descending=True)
            before_V = sorted_V.cumsum(0) - sorted_V
            sorted_V[before_V >= self.sampling.top_p] = 0  # the first always stays: nothing lies before it
            if self.sampling.top_p == 0:
                return int(order_V[0])
            return int(order_V[torch.multinomial(sorted_V, 1, generator=generator)])
        return int(torch.multinomial(probabilities_V, 1, generator=generator))

    def score(self, logits_V: Tensor, token: int, names: TokenText) -> TokenScore:
        """Log-probability of `token` and of the likeliest tokens, under the model itself."""
        logprobs_V = torch.log_softmax(logits_V, dim=-1)
        values, ids = logprobs_V.topk(self.sampling.top_logprobs or 0)
        top = tuple((*names.of(i), v) for i, v in zip(ids.tolist(), values.tolist(), strict=True))
        text, data = names.of(token)
        return TokenScore(text, data, float(logprobs_V[token]), top)


def _seed(seed: int, index: int) -> int:
    """A seed for completion `index`: distinct for each, and the same again for the same request."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:7])
