"""Answers held to a JSON schema: before each token, what the schema rules out has no chance.

The library `llguidance` keeps a parser beside each completion and tells which tokens may come next. What it cannot hold
an answer to (`not`, `oneOf`, remote references ...) is refused when the request is read, and never approximated. What a
schema may cost is bounded by its own fuel limits.
"""

import math
from collections import OrderedDict
from threading import Lock
from typing import Any

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from luthier.serve.api_error import ApiError
from luthier.serve.models import ServedModel

KEPT = 64
"""Compiled schemas that are kept, the latest ones."""
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes, and as most training rows are; without it a model may write spaces for ever."""


class Constraint:
    """What one completion may still say."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._mask_1W = llguidance.numpy.allocate_token_bitmask(1, vocabulary)

    def allow(self, logits_V: Tensor) -> Tensor:
        """The logits, with minus infinity where the schema rules a token out."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask_1W, 0)
        # the library's own way to apply it compiles a kernel, which takes seconds and a compiler
        bits_V = np.unpackbits(self._mask_1W.view(np.uint8)[0], bitorder="little")[: self._vocabulary]
        return logits_V.masked_fill(torch.from_numpy(bits_V == 0), -math.inf)

    def take(self, token: int) -> None:
        """Go on after a token that was chosen."""
        self._matcher.consume_token(token)


class Grammars:
    """Schemas compiled for the tokenizers of the served models; for any thread."""

    def __init__(self) -> None:
        self._tokenizers: dict[int, tuple[Any, LLTokenizer]] = {}  # the first is held so that its id stays its own
        self._compiled: OrderedDict[tuple[int, str], LLMatcher] = OrderedDict()
        self._lock = Lock()

    def constraint(self, served: ServedModel, schema: str) -> Constraint:
        """A constraint at its beginning.

        Raises:
            ApiError: 400: the schema is wrong, or says more than answers can be held to.
        """
        with self._lock:
            key = (id(served.loaded.tokenizer), schema)
            if key not in self._compiled:
                self._compiled[key] = self._compile(served, schema)
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return Constraint(self._compiled[key].deep_copy(), served.vocabulary)

    def _compile(self, served: ServedModel, schema: str) -> LLMatcher:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=SPACES)
        matcher = LLMatcher(self._tokenizer(served), grammar, log_level=0)
        if matcher.is_error():
            why = matcher.get_error().splitlines()[0][:300]
            raise ApiError(
                f"Answers cannot be held to this schema: {why}", param="response_format", code="unsupported_schema"
            )
        return matcher

    def _tokenizer(self, served: ServedModel) -> LLTokenizer:
        tokenizer = served.loaded.tokenizer
        if id(tokenizer) not in self._tokenizers:
            stops = sorted(served.stop_ids)
            made = llguidance.hf.from_tokenizer(tokenizer, n_vocab=served.vocabulary, eos_token=stops)
            self._tokenizers[id(tokenizer)] = tokenizer, made
        return self._tokenizers[id(tokenizer)][1]


GRAMMARS = Grammars()
"""Of this process: its models share one tokenizer."""
