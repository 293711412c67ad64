"""Answers from a model: greedy or sampled, many prompts at once.

What all prompts begin with is computed once; prompts are laid end to end without padding; each answer leaves the batch
when it ends, and the next prompt takes its place. A row's answer does not depend on which rows it is computed with (but
for rounding), and its random numbers are a pure function of (seed, its place among the prompts, token number).

Left out: beam search, repetition penalties, speculative decoding.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from luthier.errors import ModelError
from luthier.examples import Row
from luthier.models.decode import Slots, evaluating
from luthier.models.forest import MIN_SHARED, build_batch
from luthier.models.load import LoadedModel
from luthier.models.scorer import Scorer, require_forest
from luthier.models.virtual import virtual_ids

MAX_ROWS = 256
"""Rows that are written at once, where memory has room: what a step costs beside its products is paid once for all."""
PREFILL_TOKENS = 4096
LOOP_TOKENS = 96
"""An answer loops when its last so many tokens are one span said over and over, at least three times."""

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (rows finished, rows in all)."""
Question: TypeAlias = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt and the sequences of tokens to choose from."""


class Sampling(TypedDict, total=False):
    """How the next token is chosen; all of it optional."""

    temperature: float
    """0: the most likely token. Otherwise logits are divided by it."""
    top_p: float
    """Sample only from the smallest set of tokens whose probabilities add up to at least this (Holtzman et al. 2019,
    arXiv:1904.09751)."""
    seed: int | Sequence[int]
    """One number for all prompts, or one for each: then a prompt's answer does not depend on its place."""


@dataclass(frozen=True)
class Generation:
    """One answer."""

    ids: tuple[int, ...]
    """New tokens, without the one that ended the answer."""
    logprob_sum: float
    """Log-probability of `ids` under the model itself (temperature 1), with the stop token's if there was one."""
    finished: bool
    """Whether a stop token ended it; False: it ran into the limit, or was stopped in a loop."""
    prompt_tokens: int
    logprobs: tuple[float, ...] = ()
    """Log-probability of each token of `ids`, and of the stop token where there was one, under what it was drawn from:
    the model with its logits divided by the temperature (at 0, the model itself); nucleus sampling aside."""
    stop_id: int | None = None
    """The stop token that ended it."""

    @property
    def completion_tokens(self) -> int:
        """Tokens that the model wrote, the stop token included."""
        return len(self.ids) + self.finished


@dataclass
class _Writing:
    """An answer in the making."""

    index: int
    limit: int
    ids: list[int]
    logprob_sum: float = 0.0
    logprobs: list[float] = field(default_factory=list)
    stop_loops: bool = False

    def has_ended(self, stops: frozenset[int]) -> bool:
        """Whether its last token was the last: a stop token, the limit, or one loop too many."""
        return self.ids[-1] in stops or len(self.ids) == self.limit or (self.stop_loops and loops(self.ids))


class _Chooser:
    """Chooses the next token of each row."""

    def __init__(self, rows: int, temperature: float = 0.0, top_p: float = 1.0, seed: int | Sequence[int] = 0) -> None:
        if not temperature >= 0 or not 0 < top_p <= 1:
            raise ValueError(f"temperature {temperature} must be 0 or more, and top_p {top_p} above 0 and at most 1")
        self.temperature, self.top_p = temperature, top_p
        keys = [(seed, i) for i in range(rows)] if isinstance(seed, int) else [(s, 0) for s in seed]
        if len(keys) != rows:
            raise ValueError(f"{len(keys)} seeds for {rows} prompts")
        self.streams = (
            [np.random.Generator(np.random.Philox(np.random.SeedSequence(key))) for key in keys] if temperature else []
        )

    def choose(self, logits_BV: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """(B,) chosen tokens, (B,) their log-probabilities at temperature 1, and (B,) those they were drawn with."""
        logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
        if self.temperature:
            # drawn in float64, which mps has not
            where = torch.device("cpu") if logits_BV.device.type == "mps" else logits_BV.device
            uniform_B = torch.tensor([self.streams[row].random() for row in rows], dtype=torch.float64, device=where)
            # subtracting the maximum first keeps a tiny temperature from overflowing
            below_BV = logits_BV - logits_BV.amax(dim=-1, keepdim=True)
            probs_BV = torch.softmax(below_BV / self.temperature, dim=-1).to(where)
            tokens_B = sample(probs_BV, uniform_B, self.top_p).to(logits_BV.device)
        else:
            tokens_B = logits_BV.argmax(dim=-1)
        plain_B = _chosen(logits_BV, tokens_B)
        if self.temperature in (0, 1):
            return tokens_B, plain_B, plain_B
        return tokens_B, plain_B, _chosen(below_BV / self.temperature, tokens_B)


def _chosen(logits_BV: Tensor, tokens_B: Tensor) -> Tensor:
    """(B,) log-probability of each row's token."""
    return logits_BV.gather(1, tokens_B[:, None])[:, 0] - logits_BV.logsumexp(dim=-1)


def sample(probs_BV: Tensor, uniform_B: Tensor, top_p: float = 1.0) -> Tensor:
    """(B,) tokens drawn by inverting the distribution function at `uniform_B`, which lies in [0, 1).

    With `top_p` below 1 only the most likely tokens that together reach it can be drawn, at least one.
    """
    order_BV = None
    probs_BV = probs_BV.double()  # a float32 running sum over a large vocabulary loses the tail
    if top_p < 1:
        probs_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        before_BV = probs_BV.cumsum(-1) - probs_BV
        probs_BV = probs_BV.masked_fill(before_BV >= top_p, 0.0)
    cumulative_BV = probs_BV.cumsum(-1)
    target_B1 = (uniform_B * cumulative_BV[:, -1])[:, None]
    drawn_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    return (drawn_B1 if order_BV is None else order_BV.gather(1, drawn_B1))[:, 0]


def generate(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int | Sequence[int],
    stop_ids: frozenset[int] | None = None,
    batch_tokens: int = 16384,
    stop_loops: bool = False,
    on_progress: Progress | None = None,
    **sampling: Unpack[Sampling],
) -> list[Generation]:
    """One answer to each prompt, in the order given.

    Args:
        loaded: the model, in whatever state its adapter is; it is run without dropout.
        prompts: token ids, each at least one. The same prompt may stand there several times (a group of rollouts).
        max_new_tokens: the longest answer, for all or for each. An answer also ends where the model's context does.
        stop_ids: tokens that end an answer; None: those of the model.
        batch_tokens: most tokens held in memory at once: rows times the widest of them, and the shared prefix. A prompt
            that needs more is answered by itself. Changes results by rounding only.
        stop_loops: end an answer that says the same span over and over (`loops`); it counts as not finished. A greedy
            model hardly ever leaves such a loop, and a small one spends most of its tokens there.
        on_progress: called whenever rows finish.
        sampling: `temperature`, `top_p`, `seed`; absent: greedy.

    Raises:
        ModelError: a prompt is empty or leaves no room in the model's context, or the model's layers are not plain
            attention.
    """
    given = [len(prompt) for prompt in prompts]
    if before := virtual_ids(loaded.model):
        prompts = [(*before, *prompt) if prompt else prompt for prompt in prompts]
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    limits = _require_room(loaded, prompts, limits)
    chooser = _Chooser(len(prompts), **sampling)
    stops = loaded.stop_ids if stop_ids is None else stop_ids
    prefix = _shared_prefix(prompts)
    needs = [len(prompt) - prefix + limit for prompt, limit in zip(prompts, limits, strict=True)]
    # longest first: rows in flight are of like length, and memory that is too small is noticed at once
    waiting = deque(sorted(range(len(prompts)), key=lambda i: (-needs[i], tuple(prompts[i]))))
    room = batch_tokens - prefix
    rows = min(MAX_ROWS, len(prompts), max(1, room // max(needs, default=1)))
    own = max((len(p) - prefix + min(limit, 128) for p, limit in zip(prompts, limits, strict=True)), default=0)
    slots = Slots(loaded.model, loaded.device, rows, own)
    writing: list[_Writing] = []
    results: dict[int, Generation] = {}
    if prompts:
        slots.set_prefix(prompts[0][:prefix])
    logits: list[Tensor] = []  # (rows, V) of those that are being written, then of those that are new
    while waiting or writing:
        admitted = _admit(waiting, [needs[w.index] for w in writing], needs, room)
        if admitted:
            admitted.sort(key=lambda i: tuple(prompts[i]))  # equal prompts become neighbors, whatever their limits
            logits.append(_prefill(slots, [prompts[i][prefix:] for i in admitted]))
            writing.extend(_Writing(i, limits[i], [], stop_loops=stop_loops) for i in admitted)
        tokens_B, ended = _advance(chooser, logits[0] if len(logits) == 1 else torch.cat(logits), writing, stops)
        if ended:
            for slot in ended:
                results[writing[slot].index] = _result(writing[slot], stops, given[writing[slot].index])
            order = slots.drop(ended)
            writing = [writing[slot] for slot in order]
            tokens_B = tokens_B[order]
            if on_progress is not None:
                on_progress(len(results), len(prompts))
        logits = [slots.step(tokens_B)] if writing else []
    return [results[i] for i in range(len(prompts))]


def _require_room(loaded: LoadedModel, prompts: Sequence[Sequence[int]], limits: list[int]) -> list[int]:
    require_forest(loaded.model)
    if len(limits) != len(prompts) or any(limit < 1 for limit in limits):
        raise ValueError(f"max_new_tokens must be at least 1, one for all or one for each of {len(prompts)} prompts")
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < loaded.max_tokens:
            raise ModelError(
                f"prompt {number} has {len(prompt)} tokens; the model takes 1 to {loaded.max_tokens - 1} and needs "
                "room for an answer. Shorten it, or use a model with a longer context"
            )
    return [min(limit, loaded.max_tokens - len(prompt)) for limit, prompt in zip(limits, prompts, strict=True)]


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; every prompt keeps at least one token of its own."""
    if len(prompts) < 2:
        return 0
    low, high = min(map(tuple, prompts)), max(map(tuple, prompts))  # what the extremes share, all share
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    shared = min(shared, min(map(len, prompts)) - 1)
    return shared if shared >= MIN_SHARED else 0


def _admit(waiting: "deque[int]", writing: Sequence[int], needs: Sequence[int], room: int) -> list[int]:
    """Take from `waiting` what fits, in groups: a prompt on its own would waste a pass over the weights.

    Args:
        waiting: places among the prompts, in the order of admission.
        writing: tokens that each row in flight may come to hold.
        needs: tokens that each prompt and its answer may come to hold, by place.
        room: most tokens held; slots are as wide as the widest row, so they count as rows times its tokens.
    """
    if len(writing) > MAX_ROWS * 3 // 4:
        return []
    widest = max(writing, default=0)
    admitted: list[int] = []
    while waiting and (rows := len(writing) + len(admitted)) < MAX_ROWS:
        widest = max(widest, needs[waiting[0]])
        if rows and (rows + 1) * widest > room:
            break
        admitted.append(waiting.popleft())
    return admitted


def _prefill(slots: Slots, own: Sequence[Sequence[int]]) -> Tensor:
    """(len(own), V) logits after each prompt; equal neighbors are computed once, and few enough tokens at a time."""
    parts, size = [], 0
    group: list[tuple[int, ...]] = []
    copies: list[int] = []
    for prompt, repeats in groupby(map(tuple, own)):
        if group and size + len(prompt) > PREFILL_TOKENS:
            parts.append(slots.prefill(group, copies))
            group, copies, size = [], [], 0
        group.append(prompt)
        copies.append(len(list(repeats)))
        size += len(prompt)
    parts.append(slots.prefill(group, copies))
    return torch.cat(parts)


@torch.inference_mode()
def _advance(
    chooser: _Chooser, logits_BV: Tensor, writing: list[_Writing], stops: frozenset[int]
) -> tuple[Tensor, list[int]]:
    """Choose a token for each row and note it; returns the tokens and the slots of the rows that end with them."""
    tokens_B, plain_B, drawn_B = chooser.choose(logits_BV, [w.index for w in writing])
    ended = []
    told = zip(writing, tokens_B.tolist(), plain_B.tolist(), drawn_B.tolist(), strict=True)
    for slot, (row, token, plain, drawn) in enumerate(told):
        row.ids.append(token)
        row.logprob_sum += plain
        row.logprobs.append(drawn)
        if row.has_ended(stops):
            ended.append(slot)
    return tokens_B, ended


def loops(ids: Sequence[int]) -> bool:
    """Whether the last `LOOP_TOKENS` tokens repeat one span; looked at once every eight tokens."""
    if len(ids) < LOOP_TOKENS or len(ids) % 8:
        return False
    last = ids[-LOOP_TOKENS:]
    return any(last[period:] == last[:-period] for period in range(1, LOOP_TOKENS // 3 + 1))


def _result(row: _Writing, stops: frozenset[int], prompt_tokens: int) -> Generation:
    finished = row.ids[-1] in stops
    return Generation(
        tuple(row.ids[:-1] if finished else row.ids),
        row.logprob_sum,
        finished,
        prompt_tokens,
        tuple(row.logprobs),
        row.ids[-1] if finished else None,
    )


def stream(
    loaded: LoadedModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: frozenset[int] | None = None,
    **sampling: Unpack[Sampling],
) -> Iterator[int]:
    """The answer to one prompt, token by token as it is written; the stop token ends it and is not yielded.

    The tokens are those that `generate` gives to the same prompt alone. Between tokens the model may do other work.

    Raises:
        ModelError: as `generate`, at the first token.
    """
    prompt = (*virtual_ids(loaded.model), *prompt) if prompt else prompt
    (limit,) = _require_room(loaded, [prompt], [max_new_tokens])
    stops = loaded.stop_ids if stop_ids is None else stop_ids
    chooser = _Chooser(1, **sampling)
    slots = Slots(loaded.model, loaded.device)
    logits_1V = slots.prefill([prompt], [1])
    row = _Writing(0, limit, [])
    while True:
        tokens_1, ended = _advance(chooser, logits_1V, [row], stops)
        if row.ids[-1] in stops:
            return
        yield row.ids[-1]
        if ended:
            return
        logits_1V = slots.step(tokens_1)


def score_choices_batch(
    loaded: LoadedModel,
    questions: Sequence[Question],
    *,
    batch_tokens: int = PREFILL_TOKENS,
    on_progress: Progress | None = None,
) -> list[list[float]]:
    """Log-probability of each choice after its prompt, for each question in the order given.

    Several questions are computed at a time, and what prompts and choices share only once; exact.

    Raises:
        ModelError: the model's layers are not plain attention.
        ValueError: a prompt or a choice has no token.
    """
    require_forest(loaded.model)
    scores: list[list[float]] = []
    for group in _groups(questions, batch_tokens):
        scores.extend(_score_group(loaded, group))
        if on_progress is not None:
            on_progress(len(scores), len(questions))
    return scores


def _groups(questions: Sequence[Question], batch_tokens: int) -> Iterator[list[Question]]:
    size = 0
    group: list[Question] = []
    for prompt, choices in questions:
        if not prompt or not choices or not all(choices):
            raise ValueError("a multiple-choice question needs a prompt and choices of at least one token each")
        # a prompt too short to be shared is computed for each choice
        times = 1 if len(prompt) >= MIN_SHARED else len(choices)
        tokens = times * len(prompt) + sum(map(len, choices))
        if group and size + tokens > batch_tokens:
            yield group
            group, size = [], 0
        group.append((prompt, choices))
        size += tokens
    if group:
        yield group


@torch.inference_mode()
def _score_group(loaded: LoadedModel, group: list[Question]) -> list[list[float]]:
    rows = [
        Row((*prompt, *choice), (0.0,) * len(prompt) + (1.0,) * len(choice))
        for prompt, choices in group
        for choice in choices
    ]
    batch = build_batch(rows).to(loaded.device)
    with evaluating(loaded.model):
        sums = iter(batch.sum_rows(Scorer(loaded.model).token_logprobs(batch)).tolist())
    return [[next(sums) for _ in choices] for _, choices in group]
