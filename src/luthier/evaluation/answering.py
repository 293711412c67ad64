"""The run's model answers prompts: rendered by the template, generated, parsed, and its targets scored if asked.

One code path for every model system, so that systems differ in their prompts and in the adapter, and in nothing else.
"""

import copy
import time
from collections.abc import Iterator, Sequence

import torch

from luthier.errors import EvaluationError
from luthier.evaluation.metrics.base import TargetScore
from luthier.evaluation.systems.base import Answer, Context, message_text
from luthier.examples import Conversation, Message, Row
from luthier.models.decode import evaluating
from luthier.models.forest import build_batch
from luthier.models.generate import generate
from luthier.models.scorer import Scorer

Prompts = Sequence[tuple[Message, ...]]


def answer_with_model(
    rows: Sequence[Conversation], prompts: Prompts, context: Context, what: str, score_targets: bool | None = None
) -> tuple[list[Answer], float]:
    """The model's answer to each prompt, in order, in whatever state its adapter is; greedy. And the seconds it took.

    Args:
        rows: what the prompts were made from; their ids, tools and targets are used.
        prompts: the messages to ask with.
        context: model, template and limits.
        what: for the progress display.
        score_targets: whether to score targets too; None: as the context says.

    Raises:
        EvaluationError: a prompt leaves no room for an answer.
    """
    start = time.perf_counter()
    ids = [context.template.prompt_ids(prompt, row.tools) for row, prompt in zip(rows, prompts, strict=True)]
    for row, prompt_ids in zip(rows, ids, strict=True):
        _require_room(row, len(prompt_ids) + 1, context)
    written = generate(
        context.loaded,
        ids,
        max_new_tokens=context.max_new_tokens,
        stop_ids=context.template.stop_ids,
        batch_tokens=context.batch_tokens,
        on_progress=lambda done, total: context.on_progress(what, done, total),
    )
    seconds = time.perf_counter() - start
    wanted = context.score_targets if score_targets is None else score_targets
    scores = score_targets_of(rows, prompts, context) if wanted else [None] * len(rows)
    answers = []
    for row, prompt, generation, score in zip(rows, prompts, written, scores, strict=True):
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
            )
        )
    return answers, seconds


def _require_room(row: Conversation, tokens: int, context: Context) -> None:
    if tokens > context.loaded.max_tokens:
        raise EvaluationError(
            f"row {row.id} ({row.where}): with an answer it needs at least {tokens} tokens, and the model's context "
            f"ends at {context.loaded.max_tokens}; shorten the row, or use a model with a longer context"
        )


def score_targets_of(rows: Sequence[Conversation], prompts: Prompts, context: Context) -> list[TargetScore]:
    """The wanted reply of each row under the model, told each token before it predicts the next.

    Raises:
        EvaluationError: a row has no assistant message to score.
    """
    template = copy.copy(context.template)
    template.max_tokens = None  # training may cut rows; a reply that is cut would look like an easy one
    rendered = []
    for row, prompt in zip(rows, prompts, strict=True):
        if row.completion is None:
            raise EvaluationError(f"row {row.id} ({row.where}): no assistant message, so there is no reply to score")
        reply = Message("assistant", row.completion.content, tool_calls=row.completion.tool_calls)
        asked = Conversation((*prompt, reply), row.tools, row.where, row.id)
        rendered.append(template.reply_row(asked, (reply,)))
        _require_room(row, len(rendered[-1].ids), context)
    return [score for group in group_rows(rendered, 4096) for score in _score(group, context)]


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
def _score(rows: list[Row], context: Context) -> list[TargetScore]:
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
    return [TargetScore(round(n), s, round(r)) for n, s, r in zip(tokens, sums, right, strict=True)]
