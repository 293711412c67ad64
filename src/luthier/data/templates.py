"""Messages to token ids and loss mask: one render path for training, evaluation and serving.

A conversation is rendered by a Jinja chat template, usually the model's own. Let P_k be what is served before the k-th
turn: the messages before it, rendered with the generation prompt. A training row is cut at the end of every P_k and
each piece is encoded by itself, so that the ids before a trained reply are exactly `prompt_ids(messages[:k])`. What is
trained on begins there and ends with the first stop token after the reply.

Where a template renders history otherwise than it was served (Qwen3 drops earlier thinking), no single row can be
faithful to all turns; then every trained turn becomes a row of its own. Content can never become a control token (see
`control_tokens`); where a template would write one for what a message says, the row is refused. Left out: images and
other parts of a message that are not text.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from luthier.data.call_forms import Calls, Write, find_calls, lost_when_read
from luthier.data.chat_jinja import (
    Change,
    all_strings,
    compile_template,
    map_texts,
    message_dict,
    tool_values,
    with_texts,
)
from luthier.data.control_tokens import NO_STAND_INS, After, ControlTokens, StandIns
from luthier.data.replies import TAGGED, CallForm, parse_reply_text
from luthier.data.template_probes import (
    PROBE_ASKED,
    PROBE_TOOL,
    RENDER_ERRORS,
    find_capabilities,
    skeleton,
    wants_arguments_as_text,
    writes_call_ids,
)
from luthier.data.template_sources import added_bos, builtin_names, find_source
from luthier.data.tool_results import ResultError, in_order_of_calls
from luthier.errors import TemplateError
from luthier.examples import NOWHERE, Conversation, Document, Message, Row, Where

if TYPE_CHECKING:  # torch takes seconds to import, and this module needs none of it
    from luthier.models.load import LoadedModel

LossOn: TypeAlias = Literal["assistant", "last_assistant", "all"]
Tools: TypeAlias = Sequence[Mapping[str, Any]]


MEMO_CHARACTERS = 1 << 28
"""Rendered beginnings of one conversation are kept up to about this many characters."""

_WORD = re.compile(r"\w*")


@dataclass(frozen=True)
class Rendered:
    """What became of one example."""

    rows: tuple[Row, ...]
    truncated_tokens: int = 0
    """Tokens cut off on the right, over all rows."""
    truncated_trained_tokens: int = 0
    """Those of them that would have been trained on."""
    dropped_messages: int = 0
    """Messages after the last turn that is trained on; nothing would have been learned from them."""
    split: bool = False
    """Whether the template forced a row for each trained turn."""


@dataclass(frozen=True)
class _Chat:
    """Messages as the template sees them, with stand-ins for what control tokens need.

    `neutral` is the same chat with texts that say nothing. `calling` holds the assistant's messages with tool calls, as
    they are, by their number. `memo` keeps what was rendered of the first messages, by their number and whether the
    generation prompt follows.
    """

    messages: tuple[dict[str, Any], ...]
    tools: list[Any] | None
    stand_ins: StandIns
    where: Where
    neutral: "_Chat | None" = None
    calling: Mapping[int, Message] = field(default_factory=dict)
    memo: dict[tuple[int, bool], str] = field(default_factory=dict)

    def first(self, count: int) -> "_Chat":
        """The chat that ends before message `count`; what is rendered of either serves both."""
        neutral = None if self.neutral is None else self.neutral.first(count)
        return replace(self, messages=self.messages[:count], neutral=neutral)


@dataclass(frozen=True)
class _Turn:
    """One assistant turn in a rendered text: its reply, stop token included, is text[start:end]."""

    index: int
    start: int
    end: int


class Template:
    """Renders conversations and documents for one tokenizer.

    Attributes:
        name: what the recipe calls it.
        source: the Jinja text; "" for a model without a chat template, which can render documents only.
        sha256: of the source.
        stop_ids: ids that end an assistant turn, the template's own end-of-turn token among them.
        end_of_turn_id: the token that this template writes after a reply, or None if it writes none.
        capabilities: which of "system", "tools", "tool_calls" and "tool_results" the template renders at all.
        calls: how it writes tool calls; None if it writes none, or none that can be read back.
    """

    def __init__(
        self,
        tokenizer: Any,
        source: str,
        name: str = "model",
        *,
        stop_ids: frozenset[int] = frozenset(),
        loss_on: LossOn = "assistant",
        max_tokens: int | None = None,
    ) -> None:
        self.name, self.source = name, source
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        self.loss_on: LossOn = loss_on
        self.max_tokens = max_tokens
        self._bos_id: int | None = tokenizer.bos_token_id
        self._eos_id: int | None = tokenizer.eos_token_id
        self._bos_ids = added_bos(tokenizer)
        self._tokens = ControlTokens(tokenizer.backend_tokenizer)
        self._jinja = compile_template(source, name)
        self._specials = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        self._developer_as_system = "developer" not in source
        self._arguments_as_text = wants_arguments_as_text(self._render)
        self.capabilities = find_capabilities(self._render, self._arguments_as_text)
        whole, tail = skeleton(self._render)
        self.end_of_turn_id: int | None = next(iter(self._tokens.found_in(tail)), None)
        self.stop_ids = stop_ids | ({self.end_of_turn_id} if self.end_of_turn_id is not None else frozenset())
        self._tokens.reserve({*self._tokens.found_in(whole), *self.stop_ids})
        self._reply_adds_space = self._adds_space_to_reply()
        self._writes_call_ids = writes_call_ids(self._render, self._arguments_as_text)
        self.calls = self._find_calls() if "tool_calls" in self.capabilities else None

    # what other modules call

    def rows(self, example: Conversation | Document) -> tuple[Row, ...]:
        """The training sequences of one example: one row, or one a trained turn where the template demands it.

        Raises:
            TemplateError: the template refuses a message, or training and serving would see different text.
        """
        return self.render(example).rows

    def render(self, example: Conversation | Document) -> Rendered:
        """The same rows, with the count of what `max_tokens` cut off.

        Raises:
            TemplateError: as `rows`.
        """
        if isinstance(example, Document):
            return self._truncate([self._document_row(example)])
        chat = self._chat(example.messages, example.tools, example.where)
        if self.loss_on == "all":
            return self._truncate([self._whole_row(chat, example)])
        trained = {k: w for k, w in self._weights(example.messages).items() if w}
        if not trained:  # nothing to learn; the pre-flight says so, with the line
            text = self._own_text(chat, False)
            ids, _ = self._encode(chat, text, self._turns(chat, text))
            return self._truncate([_row(ids, [0.0] * len(ids), example.id)])
        last = max(trained) + 1
        rows, split = self._conversation_rows(chat.first(last), trained, example.id)
        return replace(self._truncate(rows), dropped_messages=len(chat.messages) - last, split=split)

    def reply_row(self, conversation: Conversation, reply: tuple[Message, ...]) -> Row:
        """One row in which only the assistant turns of `reply`, the last messages of `conversation`, are trained on.

        Raises:
            TemplateError: as `rows`; also if the template cannot hold several turns of the reply in one row.
        """
        messages = conversation.messages
        if not reply or tuple(messages[-len(reply) :]) != tuple(reply):
            raise TemplateError(f"{conversation.where}: the reply must be the last messages of the conversation")
        first = len(messages) - len(reply)
        weights = {k: _weight(m) for k, m in enumerate(messages) if k >= first and m.role == "assistant"}
        trained = {k: w for k, w in weights.items() if w}
        if not trained:
            raise TemplateError(f"{conversation.where}: the reply has no assistant message to train on")
        chat = self._chat(messages, conversation.tools, conversation.where)
        rows, _ = self._conversation_rows(chat.first(max(trained) + 1), trained, conversation.id)
        if len(rows) != 1:
            raise TemplateError(
                f"{conversation.where}: template {self.name!r} renders earlier turns otherwise than they were served, "
                f"so a reply of {len(trained)} assistant messages does not fit in one row; give the last message only"
            )
        return self._truncate(rows).rows[0]

    def prompt_ids(self, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
        """What is served: the messages, ended by the generation prompt. Training rows begin with exactly these ids.

        Raises:
            TemplateError: the template refuses a message.
        """
        return self.prompt_ids_before(messages, [len(messages)], tools)[0]

    def prompt_ids_before(
        self, messages: Sequence[Message], indices: Sequence[int], tools: Tools = ()
    ) -> list[list[int]]:
        """For each index, what is served before the message there: `prompt_ids(messages[:index], tools)`.

        What the prompts share is rendered once, so that a long conversation costs no more than it must.

        Raises:
            TemplateError: the template refuses a message.
        """
        chat = self._chat(messages, tools, NOWHERE)
        return [self._prompt(chat.first(index)) for index in indices]

    def _prompt(self, chat: _Chat) -> list[int]:
        text = self._own_text(chat, True)
        return self._encode(chat, text, self._turns(chat, text))[0]

    def text_ids(self, text: str) -> list[int]:
        """Raw text as it is served for completion: BOS where the tokenizer puts one, the text, and no end."""
        stand_ins = self._tokens.stand_ins([text])
        hidden = self._tokens.hide(text, stand_ins)
        return [*self._bos_ids, *self._tokens.encode(hidden, stand_ins, "token" if self._bos_ids else "start")]

    def text_spans(self, text: str) -> list[tuple[int, int]]:
        """Where each of `text_ids` begins and ends in the text, in characters; what the tokenizer puts before it is
        nowhere."""
        stand_ins = self._tokens.stand_ins([text])
        hidden = self._tokens.hide(text, stand_ins)
        own = self._tokens.spans(hidden, stand_ins, "token" if self._bos_ids else "start")
        return [*((0, 0) for _ in self._bos_ids), *own]

    def parse_reply(self, ids: Sequence[int]) -> Message:
        """The assistant message that generated ids mean, up to the first stop id; its tool calls are parsed.

        A tool call that is not valid JSON stays in the text. Special tokens other than stop ids are left out.
        """
        form = TAGGED if self.calls is None else self.calls.form
        return parse_reply_text(self._decode(ids, form), form)

    def seen(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages as the template is shown them, for programs that render it themselves.

        Raises:
            TemplateError: a tool result answers no call, or nobody could tell which one.
        """
        try:
            messages = in_order_of_calls(messages, gaps=self._writes_call_ids)
        except ResultError as error:
            raise TemplateError(str(error)) from None
        return [message_dict(m, self._arguments_as_text, self._developer_as_system) for m in messages]

    def seen_tools(self, tools: Tools) -> list[Any]:
        """The tools as the template is shown them."""
        return [tool_values(tool) for tool in tools]

    def text(self, messages: Sequence[Message], tools: Tools = (), add_generation_prompt: bool = False) -> str:
        """The rendered text, for people to read; ids come from `prompt_ids` and `rows` only.

        Raises:
            TemplateError: the template refuses a message.
        """
        chat = self._chat(messages, tools, NOWHERE)
        return chat.stand_ins.show(self._own_text(chat, add_generation_prompt))

    # training rows

    def _weights(self, messages: Sequence[Message]) -> dict[int, float]:
        """Weight of each assistant turn, as `loss_on` and the messages' own weights say."""
        turns = {k: _weight(m) for k, m in enumerate(messages) if m.role == "assistant"}
        if self.loss_on == "last_assistant" and turns:
            last = max(turns)
            return {last: turns[last]}
        return turns

    def _conversation_rows(self, chat: _Chat, trained: Mapping[int, float], id: str) -> tuple[list[Row], bool]:
        """One row if every trained turn stands in it as it was served, else a row for each trained turn."""
        text = self._own_text(chat, False)
        turns = self._turns(chat, text)
        if set(trained) <= {turn.index for turn in turns}:
            ids, spans = self._encode(chat, text, turns)
            mask = [0.0] * len(ids)
            for turn, (start, end) in spans.items():
                mask[start:end] = [trained.get(turn, 0.0)] * (end - start)
                if turn in trained:
                    self._require_read_back(chat, turn, ids[start:end])
            return [_row(ids, mask, id)], False
        return [self._turn_row(chat.first(k + 1), w, f"{id}#{k}") for k, w in sorted(trained.items())], True

    def _turn_row(self, chat: _Chat, weight: float, id: str) -> Row:
        """The last message of `chat` as the reply to the prompt that is served before it."""
        history = chat.first(len(chat.messages) - 1)
        ids = self._prompt(history)
        reply = self._reply_text(chat, self._text(history, True))
        completion = self._tokens.encode(reply, chat.stand_ins, self._after(ids))
        self._require_read_back(chat, len(chat.messages) - 1, completion)
        return _row(ids + completion, [0.0] * len(ids) + [weight] * len(completion), id)

    def _reply_text(self, chat: _Chat, prompt: str) -> str:
        """The rendering of the last message from the end of `prompt` to its stop token."""
        whole = self._own_text(chat, False)
        if whole.startswith(prompt):
            return whole[len(prompt) : self._end_of_reply(whole, len(prompt))]
        # The generation prompt holds more than the rendered turn does (such as an empty thinking block). Where the
        # reply's own text begins is found with a stand-in for its content.
        header = self._header(chat)
        number = len(chat.messages)
        if not whole.startswith(header) or not prompt.startswith(header):
            raise TemplateError(
                f"{chat.where}: message {number} (assistant): template {self.name!r} renders this turn behind other "
                "text than is served before it, so training would teach a prompt that never comes; use another one, "
                'or train on the last turn only (data.loss_on = "last_assistant")'
            )
        reply = whole[len(header) : self._end_of_reply(whole, len(header))]
        extra = prompt[len(header) :]
        if extra.count("<think>") > extra.count("</think>") and "</think>" not in reply:
            raise TemplateError(
                f"{chat.where}: message {number} (assistant): the generation prompt of template {self.name!r} opens "
                "<think>, and this reply never closes it; put </think> after the reasoning in the reply, or use a "
                "template without thinking"
            )
        return reply

    def _header(self, chat: _Chat) -> str:
        """What is rendered before the content of the last message."""
        stand_in = "\uf8ffcontent\uf8ff"
        swapped = {**chat.messages[-1], "content": stand_in}
        swapped.pop("tool_calls", None)
        text = self._text(_Chat((*chat.messages[:-1], swapped), chat.tools, chat.stand_ins, chat.where), False)
        return text[: text.rindex(stand_in)] if stand_in in text else text

    def _document_row(self, document: Document) -> Row:
        ids = self.text_ids(document.text)
        if self._eos_id is not None:
            ids.append(self._eos_id)
        return _row(ids, [0.0] + [1.0] * (len(ids) - 1), document.id)

    def _whole_row(self, chat: _Chat, example: Conversation) -> Row:
        """Every token but the first is trained on; an assistant turn that has a weight of its own keeps it."""
        text = self._own_text(chat, False)
        ids, spans = self._encode(chat, text, self._turns(chat, text))
        mask = [1.0] * len(ids)
        for index, (start, end) in spans.items():
            mask[start:end] = [_weight(example.messages[index])] * (end - start)
            self._require_read_back(chat, index, ids[start:end])
        return _row(ids, [0.0, *mask[1:]], example.id)

    def _require_read_back(self, chat: _Chat, index: int, ids: Sequence[int]) -> None:
        """Check that the calls of a trained reply would be the same calls when the model writes these tokens.

        Raises:
            TemplateError: they would be lost, or others.
        """
        said = chat.calling.get(index)
        if said is None or "tool_calls" not in self.capabilities:  # the gate `nothing_dropped` tells of these
            return
        why = lost_when_read(self.parse_reply(ids), said, self.calls)
        if not why:
            return
        raise TemplateError(
            f"{chat.where}: message {index + 1} (assistant): template {self.name!r} writes its tool calls {why}; set "
            "model.template to 'chatml_tools', or change the row"
        )

    def _find_calls(self) -> Calls | None:
        found = find_calls(self._writer)
        hidden = self._tokens.special_ids.intersection(self._marks_of(found.form)) if found else ()
        return replace(found, is_visible=False) if found and hidden else found

    def _marks_of(self, form: CallForm) -> list[int]:
        """The control tokens that a form's openings and closings are."""
        return self._tokens.found_in(form.opening + form.closing)

    def _writer(self, form: CallForm) -> Write:
        """What the template makes of a reply to made-up words, as the reader of `form` is given it."""

        def write(reply: Message) -> str | None:
            try:
                chat = replace(self._chat((Message("user", PROBE_ASKED), reply), (PROBE_TOOL,), NOWHERE), calling={})
                return self._decode(self._turn_row(chat, 1.0, "").ids[len(self._prompt(chat.first(1))) :], form)
            except TemplateError:
                return None

        return write

    def _truncate(self, rows: Sequence[Row]) -> Rendered:
        limit = self.max_tokens
        if limit is None or all(len(row.ids) <= limit for row in rows):
            return Rendered(tuple(rows))
        kept = [row.first(limit) for row in rows]
        tokens = sum(len(row.ids) for row in rows) - sum(len(row.ids) for row in kept)
        trained = sum(row.trained_tokens for row in rows) - sum(row.trained_tokens for row in kept)
        return Rendered(tuple(kept), tokens, trained)

    # text

    def _chat(self, messages: Sequence[Message], tools: Tools, where: Where) -> _Chat:
        if not self.source:
            raise TemplateError(
                f"{where}: this model has no chat template; set model.template to a built-in one "
                f"({', '.join(builtin_names())}) or to a .jinja file"
            )
        try:
            dicts = self.seen(messages)
            listed = self.seen_tools(tools)
            stand_ins = self._tokens.stand_ins(all_strings([dicts, listed]), self.source)
        except TemplateError as error:
            raise TemplateError(f"{where}: {error}") from None

        calling = {k: m for k, m in enumerate(messages) if m.role == "assistant" and m.tool_calls}

        def changed(content: Callable[[str, bool], str], other: Change, neutral: _Chat | None = None) -> _Chat:
            new = tuple(with_texts(message, content, other) for message in dicts)
            return _Chat(new, map_texts(listed, other) or None, stand_ins, where, neutral, calling)

        neutral = changed(self._tokens.neutral, self._neutral_value)
        return changed(
            lambda text, reply: self._tokens.hide(text, stand_ins, reply),
            lambda text: self._tokens.hide(text, stand_ins),
            neutral,
        )

    def _neutral_value(self, text: str) -> str:
        """For texts beside the content: a single word stays, since templates look for some, such as `object`."""
        return text if _WORD.fullmatch(text) else self._tokens.neutral(text)

    def _own_text(self, chat: _Chat, add_generation_prompt: bool) -> str:
        """The rendered text, whose turns are known to be the template's own.

        Raises:
            TemplateError: with other words in the messages, the template would have written other control tokens.
        """
        text = self._text(chat, add_generation_prompt)
        if chat.neutral is not None and self._tokens.marks(text) != self._marks(chat.neutral, add_generation_prompt):
            raise TemplateError(
                f"{chat.where}: template {self.name!r} makes control tokens out of what the messages say, so whoever "
                "writes them could steer the model; change the text, or choose another model.template"
            )
        return text

    def _marks(self, chat: _Chat, add_generation_prompt: bool) -> list[int]:
        """The turn marks of a rendered chat; none if the template refuses it."""
        try:
            return self._tokens.marks(self._text(chat, add_generation_prompt))
        except TemplateError:
            return []

    def _text(self, chat: _Chat, add_generation_prompt: bool) -> str:
        key = (len(chat.messages), add_generation_prompt)
        text = chat.memo.get(key)
        if text is None:
            try:
                text = self._render(chat.messages, chat.tools, add_generation_prompt)
            except RENDER_ERRORS as error:
                raise self._explain(chat, add_generation_prompt, error) from None
            if len(chat.memo) * len(text) < MEMO_CHARACTERS:
                chat.memo[key] = text
        return text

    def _render(self, messages: Sequence[dict[str, Any]], tools: list[Any] | None, add_generation_prompt: bool) -> str:
        return self._jinja.render(
            messages=list(messages),
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._specials,
        )

    def _explain(self, chat: _Chat, add_generation_prompt: bool, error: Exception) -> TemplateError:
        """Blame the first message with which the template fails in the same way."""
        blamed = len(chat.messages)
        for count in range(1, len(chat.messages)):
            try:
                self._render(chat.messages[:count], chat.tools, add_generation_prompt)
            except RENDER_ERRORS as early:
                if str(early) == str(error):
                    blamed = count
                    break
        role = chat.messages[blamed - 1]["role"] if blamed else "none"
        return TemplateError(
            f"{chat.where}: message {blamed} ({role}): template {self.name!r} cannot render it: {error}. "
            "Change the row, or choose another model.template"
        )

    # ids

    def _turns(self, chat: _Chat, text: str) -> list[_Turn]:
        """The assistant turns that stand in `text` just as they were served and answered, in order."""
        turns = []
        for index, message in enumerate(chat.messages):
            if message["role"] != "assistant":
                continue
            prompt = self._text(chat.first(index), True)
            if not text.startswith(prompt):
                continue
            whole = self._text(chat.first(index + 1), False)
            if whole.startswith(prompt):
                end = self._end_of_reply(whole, len(prompt))
                if text.startswith(whole[:end]):
                    turns.append(_Turn(index, len(prompt), end))
        return turns

    def _end_of_reply(self, whole: str, start: int) -> int:
        """Where the first stop token after `start` ends; the end of the text if the template writes none."""
        end = self._tokens.find(whole, self.stop_ids, start, len(whole))
        return len(whole) if end is None else end

    def _encode(self, chat: _Chat, text: str, turns: Sequence[_Turn]) -> tuple[list[int], dict[int, tuple[int, int]]]:
        """Ids of `text`, cut where replies begin and end, and for each turn the span of ids that is its reply."""
        ids: list[int] = []
        spans: dict[int, tuple[int, int]] = {}
        at = 0
        for turn in turns:
            ids += self._tokens.encode(text[at : turn.start], chat.stand_ins, self._after(ids))
            start = len(ids)
            ids += self._tokens.encode(text[turn.start : turn.end], chat.stand_ins, self._after(ids))
            spans[turn.index] = (start, len(ids))
            at = turn.end
        ids += self._tokens.encode(text[at:], chat.stand_ins, self._after(ids))
        self._require_one_bos(chat, ids)
        return ids, spans

    def _after(self, ids: Sequence[int]) -> After:
        if not ids:
            return "start"
        return "token" if ids[-1] in self._tokens.added_ids else "text"

    def _require_one_bos(self, chat: _Chat, ids: Sequence[int]) -> None:
        if self._bos_id is not None and list(ids[:2]) == [self._bos_id] * 2:
            raise TemplateError(
                f"{chat.where}: template {self.name!r} writes the beginning-of-sequence token twice; remove one from it"
            )

    def _adds_space_to_reply(self) -> bool:
        """Whether the tokenizer puts a space of its own before a reply, because a control token stands before it."""
        try:
            prompt = self._render([{"role": "user", "content": "a"}], None, True)
        except RENDER_ERRORS:
            return False
        after = self._after(self._tokens.encode(prompt, NO_STAND_INS, "start"))
        alone, following = (self._tokens.encode("a", NO_STAND_INS, place) for place in (after, "text"))
        return alone != following

    def _decode(self, ids: Sequence[int], form: CallForm) -> str:
        """Text of generated ids up to the first stop id, special tokens left out but for those of tool calls."""
        marks = self._marks_of(form)
        kept: list[int] = []
        for i in ids:
            if i in self.stop_ids:
                break
            if i not in self._tokens.special_ids or i in marks:
                kept.append(i)
        text = self._tokens.decode(kept)
        return text.removeprefix(" ") if self._reply_adds_space else text


def _row(ids: Sequence[int], mask: Sequence[float], id: str) -> Row:
    return Row(tuple(ids), tuple(mask), id)


def _weight(message: Message) -> float:
    return 1.0 if message.weight is None else message.weight


def build_template(
    loaded: "LoadedModel", name: str = "model", *, loss_on: LossOn = "assistant", max_tokens: int | None = None
) -> Template:
    """The template that a recipe names: `model` for the model's own, a built-in one, or a path to a .jinja file.

    Raises:
        TemplateError: nothing is called `name`, the file cannot be read, or a built-in template's control tokens are
            not in the model's vocabulary.
    """
    source = find_source(loaded, name)
    return Template(loaded.tokenizer, source, name, stop_ids=loaded.stop_ids, loss_on=loss_on, max_tokens=max_tokens)
