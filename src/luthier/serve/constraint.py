"""Answers held to a JSON schema, and calls held to their tools: before each token, what is ruled out has no chance.

The library `llguidance` keeps a parser beside each completion and tells which tokens may come next. What it cannot hold
an answer to (`not`, `oneOf`, remote references ...) is refused when the request is read, and never approximated. What a
schema may cost is bounded by its own fuel limits.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock
from typing import Any

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from luthier.serve.api_error import ApiError, unsupported
from luthier.serve.argument_schema import ANY_OBJECT, arguments_schema
from luthier.serve.call_grammar import Offered, call_grammar
from luthier.serve.chat import ChatRequest
from luthier.serve.fields import SCHEMA_BYTES
from luthier.serve.models import ServedModel
from luthier.serve.tool_choice import CallRule, Tools, is_strict, name_of
from luthier.serve.work import Held

KEPT = 64
"""Compiled grammars that are kept, the latest ones."""
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As `json.dumps` writes, and as most training rows are; without it a model may write spaces for ever."""


class Constraint:
    """What one completion may still say."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._mask_1W = llguidance.numpy.allocate_token_bitmask(1, vocabulary)

    def allow(self, logits_V: Tensor) -> Tensor:
        """The logits, with minus infinity where the grammar rules a token out."""
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask_1W, 0)
        # the library's own way to apply it compiles a kernel, which takes seconds and a compiler
        bits_V = np.unpackbits(self._mask_1W.view(np.uint8)[0], bitorder="little")[: self._vocabulary]
        return logits_V.masked_fill(torch.from_numpy(bits_V == 0), -math.inf)

    def take(self, token: int) -> None:
        """Go on after a token that was chosen."""
        self._matcher.consume_token(token)


class Grammars:
    """Grammars compiled for the tokenizers of the served models; for any thread."""

    def __init__(self) -> None:
        self._tokenizers: dict[int, tuple[Any, LLTokenizer]] = {}  # the first is held so that its id stays its own
        self._compiled: OrderedDict[tuple[int, str], LLMatcher] = OrderedDict()
        self._lock = Lock()

    def held(self, served: ServedModel, asked: ChatRequest) -> Held | None:
        """What the answers to a request are held to; None: to nothing. Compiles it, which takes a moment.

        Raises:
            ApiError: 400: a schema is wrong, or says more than answers can be held to; or calls of this model's form.
        """
        if asked.schema is not None:
            found = Held(_of_schema(asked.schema), "response_format", "this schema")
        elif asked.calls is not None:
            found = self._calls(served, asked.calls, asked.tools)
        else:
            return None
        self.constraint(served, found)
        return found

    def constraint(self, served: ServedModel, held: Held) -> Constraint:
        """A constraint at its beginning.

        Raises:
            ApiError: 400: the schema is wrong, or says more than answers can be held to.
        """
        with self._lock:
            key = (id(served.loaded.tokenizer), held.grammar)
            if key not in self._compiled:
                self._compiled[key] = self._compile(served, held)
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            return Constraint(self._compiled[key].deep_copy(), served.vocabulary)

    def _calls(self, served: ServedModel, rule: CallRule, tools: Tools) -> Held:
        calls = served.template.calls
        if calls is None or calls.text is None:
            raise unsupported(
                rule.param,
                f"the chat template of {served.name!r} writes calls in a form that no grammar is known for, so they "
                "cannot be held to it; leave it out",
            )
        wanted = [(i, tool) for i, tool in enumerate(tools) if rule.names is None or name_of(tool) in rule.names]
        with self._lock:
            llm = self._tokenizer(served)
        tokens = {t: i for t, i in served.loaded.tokenizer.get_added_vocab().items() if llm.is_special_token(i)}
        for i, tool in wanted:
            _require_no_token(name_of(tool), tokens, f"tools[{i}].function.name")
        text = calls.text

        def found(each: bool) -> Held:
            offered = [Offered(name_of(tool), self._arguments(served, tool, i, tokens, each)) for i, tool in wanted]
            grammar = call_grammar(calls, text, rule, offered, tokens, SPACES)
            return Held(LLMatcher.grammar_from_lark(grammar), "tools", "these tools")

        # one by one, tools would fill what is kept, so only where it has to be found out which one does not go
        whole = found(each=False)
        try:
            self.constraint(served, whole)
        except ApiError:
            return found(each=True)
        return whole

    def _arguments(self, served: ServedModel, tool: Any, index: int, tokens: Iterable[str], compiles: bool) -> Any:
        """The schema that a call's arguments are held to: any object where only a strict one would be refused.

        `compiles`: whether it is tried out by itself.
        """
        schema = arguments_schema(tool["function"].get("parameters"))
        text = json.dumps(schema, ensure_ascii=False)
        at = f"tools[{index}].function.parameters"
        try:
            if len(text.encode()) > SCHEMA_BYTES:
                raise ApiError(f"A schema may have at most {SCHEMA_BYTES:,} bytes.", param=at)
            _require_no_token(text, tokens, at)
            if compiles:
                self.constraint(served, Held(_of_schema(text), at, f"the schema of {name_of(tool)!r}"))
        except ApiError:
            if is_strict(tool):
                raise
            return ANY_OBJECT
        return schema

    def _compile(self, served: ServedModel, held: Held) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer(served), held.grammar, log_level=0)
        if matcher.is_error():
            why = matcher.get_error().splitlines()[0][:300]
            raise ApiError(f"Answers cannot be held to {held.what}: {why}", param=held.param, code="unsupported_schema")
        return matcher

    def _tokenizer(self, served: ServedModel) -> LLTokenizer:
        tokenizer = served.loaded.tokenizer
        if id(tokenizer) not in self._tokenizers:
            stops = sorted(served.stop_ids)
            made = llguidance.hf.from_tokenizer(tokenizer, n_vocab=served.vocabulary, eos_token=stops)
            self._tokenizers[id(tokenizer)] = tokenizer, made
        return self._tokenizers[id(tokenizer)][1]


def _require_no_token(text: str, tokens: Iterable[str], at: str) -> None:
    # where a grammar leaves one text alone, the library lets it be written with the control tokens that it spells
    if found := next((token for token in tokens if token in text), None):
        raise ApiError(
            f"Calls cannot be held to {at!r}: it spells {found!r}, a control token of this model.",
            param=at,
            code="unsupported_schema",
        )


def _of_schema(schema: str) -> str:
    return str(LLMatcher.grammar_from_json_schema(schema, overrides=SPACES))


GRAMMARS = Grammars()
"""Of this process: its models share one tokenizer."""
