"""The run's model answers prompts: rendered by the template, generated, parsed, and its targets scored if asked.

One code path for every model system, so that systems differ in their prompts and in the adapter, and in nothing else.
Raw text and preference pairs are only scored: the answer is empty, and what counts is the probability of the text, or
of both replies, or what a trained head says of them.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from luthier.data.templates import Template
from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import TargetScore
from luthier.evaluation.rewards import RewardModel
from luthier.evaluation.systems.base import Answer, Context, alone, message_text, require_questions
from luthier.evaluation.task import HEAD_TASKS, SCORED_TASKS
from luthier.examples import Conversation, Document, Example, Judged, Message, Preference, Row
from luthier.models.decode import evaluating
from luthier.models.forest import build_batch
from luthier.models.generate import Generation, generate
from luthier.models.scorer import Scorer

Prompts = Sequence[tuple[Message, ...]]

SCORED_TOKENS = 4096
"""Most tokens scored at once, which bounds memory. Longer texts are scored in windows of as many; a longer row with a
reply, which cannot be cut, by itself."""


def answer_with_model(
    rows: Sequence[Example], prompts: Prompts, context: Context, what: str, score_targets: bool | None = None
) -> tuple[list[Answer], float]:
    """The model's answer to each prompt, in order, in whatever state its adapter is; greedy. And the seconds it took.

    In a task without a written answer the answers are empty, and the seconds are those of scoring.

    Args:
        rows: what the prompts were made from; their ids, tools and targets are used.
        prompts: the messages to ask with.
        context: model, template and limits.
        what: for the progress display.
        score_targets: whether to score targets too; None: as the context says.

    Raises:
        EvaluationError: a prompt leaves no room for an answer, or a row does not fit the task.
    """
    start = time.perf_counter()
    if context.task in HEAD_TASKS.values():
        read = _rewards(rows, prompts, context, what)
        judged = [Answer(r.id, p, "", rewards=given) for r, p, given in zip(rows, prompts, read, strict=True)]
        return judged, time.perf_counter() - start
    if context.task in SCORED_TASKS:
        found = score_targets_of(rows, prompts, context, what)
        empty = [
            Answer(row.id, prompt, "", target_score=score, rejected_score=rejected)
            for row, prompt, (score, rejected) in zip(rows, prompts, found, strict=True)
        ]
        return empty, time.perf_counter() - start
    rows = require_questions(rows, what)
    ids = [context.template.prompt_ids(prompt, row.tools) for row, prompt in zip(rows, prompts, strict=True)]
    for row, prompt_ids in zip(rows, ids, strict=True):
        _require_room(row, len(prompt_ids) + 1, context)
    written = _written(ids, context, lambda done, total: context.on_progress(what, done, total))
    seconds = time.perf_counter() - start
    waited = alone(len(ids), context, lambda place: _written([ids[place]], context, lambda _done, _total: None))
    wanted = context.score_targets if score_targets is None else score_targets
    scores = score_targets_of(rows, prompts, context) if wanted else [(None, None)] * len(rows)
    answers = []
    for index, (row, prompt, generation, (score, _)) in enumerate(zip(rows, prompts, written, scores, strict=True)):
        reply = context.template.parse_reply(generation.ids)
        answers.append(
            Answer(
                id=row.id,
                prompt=prompt,
                output=message_text(reply),
                reply=reply,
                prompt_tokens=generation.prompt_tokens,
                completion_tokens=generation.completion_tokens,
                finished=generation.finished,
                target_score=score,
                alone_seconds=waited.get(index),
            )
        )
    return answers, seconds


def _written(
    ids: Sequence[Sequence[int]], context: Context, on_progress: Callable[[int, int], None]
) -> list[Generation]:
    return generate(
        context.loaded,
        ids,
        max_new_tokens=context.max_new_tokens,
        stop_ids=context.template.stop_ids,
        batch_tokens=context.batch_tokens,
        stop_loops=context.stop_loops,
        on_progress=on_progress,
    )


def _rewards(rows: Sequence[Example], prompts: Prompts, context: Context, what: str) -> list[tuple[float, ...]]:
    """What the head says of both replies of each pair, or of each step.

    Raises:
        EvaluationError: there is no head, a row does not fit the task or the model's context.
    """
    model = RewardModel(context.loaded, context.template, context.head)
    asked = [_judged(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
    told = iter(model.judge([one for group in asked for one in group], lambda d, n: context.on_progress(what, d, n)))
    found = [[next(told) for _ in group] for group in asked]
    return [group[0].steps or tuple(one.reward for one in group) for group in found]


def _judged(row: Example, prompt: tuple[Message, ...]) -> tuple[Conversation, ...]:
    """A pair's two conversations, or the conversation with steps itself."""
    if isinstance(row, Preference):
        replies = ((f"{row.id}/chosen", row.chosen), (f"{row.id}/rejected", row.rejected))
        return tuple(Conversation((*prompt, *reply), row.tools, row.where, id) for id, reply in replies)
    if not isinstance(row, Conversation) or row.completion is None:
        raise EvaluationError(f"row {row.id} ({row.where}): no assistant message, so there is no reply to judge")
    return (replace(row, messages=(*prompt, row.completion)),)


def _require_room(row: Conversation | Preference | Judged, tokens: int, context: Context) -> None:
    if tokens > context.loaded.max_tokens:
        raise EvaluationError(
            f"row {row.id} ({row.where}): with an answer it needs at least {tokens} tokens, and the model's context "
            f"ends at {context.loaded.max_tokens}; shorten the row, or use a model with a longer context"
        )


@dataclass(frozen=True)
class _Target:
    """What gets one score: the row of a reply, or the windows of a text."""

    rows: tuple[Row, ...]
    bytes: int
    """UTF-8 bytes of the text that the rows predict."""


def score_targets_of(
    rows: Sequence[Example], prompts: Prompts, context: Context, what: str = "scoring"
) -> list[tuple[TargetScore, TargetScore | None]]:
    """What is wanted of each row under the model, told each token before it predicts the next: the reply, the chosen
    reply of a pair, or the whole text. And the rejected reply of a pair.

    Raises:
        EvaluationError: a row has no assistant message to score, or does not fit into the model's context; a text has
            a prompt.
        TemplateError: the template refuses a row.
    """
    template = _uncut(context.template)
    targets = [_targets_of(row, prompt, template, context) for row, prompt in zip(rows, prompts, strict=True)]
    rendered = [row for of_row in targets for target in of_row for row in target.rows]
    parts = (part for group in group_rows(rendered, SCORED_TOKENS) for part in _score(group, context))
    found = []
    for done, of_row in enumerate(targets, 1):
        score, *rejected = [_sum(target, parts) for target in of_row]
        found.append((score, rejected[0] if rejected else None))
        context.on_progress(what, done, len(rows))
    return found


def tokens_with_reply(row: Conversation, prompt: tuple[Message, ...], context: Context) -> int:
    """Tokens of a prompt together with the row's wanted reply, as `score_targets_of` reads both.

    Raises:
        EvaluationError: the row has no assistant message.
        TemplateError: the template refuses the row.
    """
    return len(_rendered(row, prompt, _wanted(row), _uncut(context.template)).ids)


def _uncut(template: Template) -> Template:
    """Training may cut rows; a reply that is cut would look like an easy one."""
    whole = copy.copy(template)
    whole.max_tokens = None
    return whole


def _sum(target: _Target, parts: Iterator[tuple[int, float, int]]) -> TargetScore:
    """The score of a target from those of its rows, which are the next of `parts`."""
    own = [next(parts) for _ in target.rows]
    tokens, correct = sum(n for n, _, _ in own), sum(right for _, _, right in own)
    return TargetScore(tokens, sum(logprob for _, logprob, _ in own), correct, target.bytes)


def _targets_of(row: Example, prompt: tuple[Message, ...], template: Template, context: Context) -> tuple[_Target, ...]:
    """The reply or the text; of a pair the chosen reply, then the rejected one."""
    if isinstance(row, Document):
        if prompt:
            raise EvaluationError(
                f"row {row.id} ({row.where}): raw text has no prompt, so nothing can be added to it; leave out the "
                "instruction of the system"
            )
        return (_text_target(row, template, context),)
    if isinstance(row, Preference):
        replies = [row.chosen, row.rejected]
    else:
        replies = [row.reply if isinstance(row, Judged) else _wanted(row)]
    return tuple(_reply_target(row, prompt, reply, template, context) for reply in replies)


def _wanted(row: Conversation) -> tuple[Message, ...]:
    if row.completion is None:
        raise EvaluationError(f"row {row.id} ({row.where}): no assistant message, so there is no reply to score")
    return (Message("assistant", row.completion.content, tool_calls=row.completion.tool_calls),)


def _rendered(
    row: Conversation | Preference | Judged, prompt: tuple[Message, ...], reply: tuple[Message, ...], template: Template
) -> Row:
    return template.reply_row(Conversation((*prompt, *reply), row.tools, row.where, row.id), reply)


def _reply_target(
    row: Conversation | Preference | Judged,
    prompt: tuple[Message, ...],
    reply: tuple[Message, ...],
    template: Template,
    context: Context,
) -> _Target:
    """The assistant's messages of a reply to `prompt`, as training renders them."""
    rendered = _rendered(row, prompt, reply, template)
    _require_room(row, len(rendered.ids), context)
    trained = (message for message in reply if message.role == "assistant" and message.weight != 0)
    return _Target((rendered,), sum(len(message_text(message).encode()) for message in trained))


def _text_target(document: Document, template: Template, context: Context) -> _Target:
    """A whole text, as training renders it. Without a BOS nothing predicts its first token, which then has no bytes."""
    (row,) = template.rows(document)
    lead = tuple(template.text_ids(""))
    size = len(document.text.encode())
    if not lead and row.ids:
        first = context.loaded.tokenizer.decode([row.ids[0]])
        if not document.text.startswith(first):  # the token is a part of a character
            first = document.text[:1]
        size -= len(first.encode())
    return _Target(windows_of(row, min(SCORED_TOKENS, context.loaded.max_tokens), lead), size)


def windows_of(row: Row, size: int, lead: tuple[int, ...] = ()) -> tuple[Row, ...]:
    """Rows of at most `size` tokens that predict what `row` predicts, each token once.

    A window begins with the last token that the one before predicted; `lead`, what the tokenizer puts before a text,
    stands before it.
    """
    if len(row.ids) < 2:
        return ()
    windows, end = [Row(row.ids[:size], row.loss_mask[:size], row.id)], size
    before, step = (0.0,) * (len(lead) + 1), size - len(lead) - 1
    while end < len(row.ids):
        ids, mask = row.ids[end - 1 : end + step], row.loss_mask[end : end + step]
        windows.append(Row(lead + ids, before + mask, row.id))
        end += step
    return tuple(windows)


def group_rows(rows: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Neighbors together, at most `max_tokens` tokens at a time (a longer row by itself)."""
    group: list[Row] = []
    size = 0
    for row in rows:
        if group and size + len(row.ids) > max_tokens:
            yield group
            group, size = [], 0
        group.append(row)
        size += len(row.ids)
    if group:
        yield group


@torch.inference_mode()
def _score(rows: list[Row], context: Context) -> list[tuple[int, float, int]]:
    """Of each row: tokens predicted, the logarithm of the probability of all of them, first choices among them."""
    batch = build_batch(rows).to(context.loaded.device)
    with evaluating(context.loaded.model):
        logits_HV = Scorer(context.loaded.model).logits(batch)
    # position by position: all logits in float32 at once would be the largest tensor of the evaluation
    wide = torch.promote_types(logits_HV.dtype, torch.float32)
    normalizer_H = torch.cat([part.to(wide).logsumexp(-1) for part in logits_HV.split(64)])
    first_H = torch.cat([part.argmax(-1) for part in logits_HV.split(64)])
    chosen_Q = logits_HV[batch.hidden_Q, batch.target_Q].to(wide) - normalizer_H[batch.hidden_Q]
    right_Q = (first_H[batch.hidden_Q] == batch.target_Q).to(wide)
    sums = batch.sum_rows(chosen_Q[batch.prediction_K]).tolist()
    right = batch.sum_rows(right_Q[batch.prediction_K]).tolist()
    tokens = batch.sum_rows(torch.ones_like(batch.loss_mask_K)).tolist()
    return [(round(n), s, round(r)) for n, s, r in zip(tokens, sums, right, strict=True)]
