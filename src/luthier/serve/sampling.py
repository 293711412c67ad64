"""One token out of one row of logits, by the row's own rules and its own random numbers.

Every completion has a stream of its own, a function of (seed, its index): what else is in the batch cannot change its
draws. Tokens are drawn by the function that evaluation draws with, `models.generate.sample`.
"""

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from luthier.models.generate import sample
from luthier.serve.constraint import Constraint
from luthier.serve.text import TokenText
from luthier.serve.work import Sampling, TokenScore


class Sampler:
    """The rules of one completion, and what it has generated so far."""

    def __init__(self, sampling: Sampling, index: int, constraint: Constraint | None = None) -> None:
        self.sampling, self._constraint = sampling, constraint
        self._counts: Counter[int] = Counter()
        key = None if sampling.seed is None else (sampling.seed % 2**64, index)  # None: the system's own entropy
        self._stream = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))

    def choose(self, logits_V: Tensor) -> int:
        """The next token, from finite float32 logits on the CPU."""
        adjusted_V = self._adjust(logits_V)
        if self._constraint is not None:
            adjusted_V = self._constraint.allow(adjusted_V)
        token = self._draw(adjusted_V) if self.sampling.temperature else int(adjusted_V.argmax())
        self._counts[token] += 1
        if self._constraint is not None:
            self._constraint.take(token)
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

    def _draw(self, logits_V: Tensor) -> int:
        # float64, and the maximum taken away first: no temperature above 0, however small, overflows or divides 0 by 0
        probabilities_V = torch.softmax((logits_V - logits_V.max()).double() / self.sampling.temperature, dim=-1)
        uniform_1 = torch.tensor([self._stream.random()], dtype=torch.float64)
        # the smallest set that reaches a `top_p` of 0 is the likeliest token alone, as for any tiny one
        return int(sample(probabilities_V[None], uniform_1, self.sampling.top_p or 1e-12))

    def score(self, logits_V: Tensor, token: int, names: TokenText) -> TokenScore:
        """Log-probability of `token` and of the likeliest tokens, under the model itself."""
        logprobs_V = torch.log_softmax(logits_V, dim=-1)
        values, ids = logprobs_V.topk(self.sampling.top_logprobs or 0)
        top = tuple((*names.of(i), v) for i, v in zip(ids.tolist(), values.tolist(), strict=True))
        text, data = names.of(token)
        return TokenScore(text, data, float(logprobs_V[token]), top)
