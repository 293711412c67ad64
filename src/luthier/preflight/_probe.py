"""Scoring rows in a second, plain way, and moving an adapter a little so that its effect can be seen.

The plain way is one ordinary call of the model for each row: its own attention, no forest, no sharing. What the engine
computes is compared with it, both in float32: in bfloat16 rounding hides what is looked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from luthier.adapters.base import Injected
from luthier.examples import Row
from luthier.models.forest import Batch
from luthier.models.heads import Head
from luthier.models.load import LoadedModel
from luthier.models.scorer import in_mode
from luthier.models.virtual import virtual_ids
from luthier.objectives.base import Scorer
from luthier.preflight._cases import spread
from luthier.preflight.base import Subject

PROBE_ROWS = 8
PROBE_TOKENS = 1024
NUDGE = 0.02


@dataclass(frozen=True)
class Tolerance:
    """How far two ways of computing the same log-probability may differ, in nats."""

    largest: float
    mean: float


# The order of additions differs. Measured values stand in docs/preflight.md.
SINGLE, DOUBLE = Tolerance(5e-4, 5e-5), Tolerance(1e-9, 1e-10)


def tolerance(dtype: torch.dtype) -> Tolerance:
    """The tolerance for a model whose weights are `dtype`, computed `in_float32`."""
    return DOUBLE if dtype == torch.float64 else SINGLE


NARROW = (torch.bfloat16, torch.float16)
WIDENED = frozenset(
    [
        *("linear", "conv1d", "layer_norm", "rms_norm", "scaled_dot_product_attention", "einsum", "to", "type_as"),
        *("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "grouped_mm", "_grouped_mm"),
    ]
)
"""Names of the functions that compute with weights, or round to their type."""


class in_float32(TorchFunctionMode):
    """While open, a model computes in float32 whatever its weights are held in; float64 stays as it is.

    Embeddings come out widened, and each product widens the weight that it is called with, so one layer at a time is
    held in float32 and never the model. A backward pass widens again instead of keeping what was widened.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.embedding:
            return _wide(func(*args, **kwargs))
        if func.__name__ not in WIDENED:
            return func(*args, **kwargs)
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.dtype in NARROW for a in args):
            return checkpoint(_call_wide, func, args, kwargs, use_reentrant=False, preserve_rng_state=False)
        return _call_wide(func, args, kwargs)


def _call_wide(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    args, kwargs = _wide(args), {name: _wide(value) for name, value in kwargs.items()}
    if not (torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")):
        return func(*args, **kwargs)
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        return func(*args, **kwargs)


def _wide(value: Any) -> Any:
    """A narrow tensor, or the name of a narrow type, as float32, in a list as well; anything else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in NARROW else value
    if type(value) in (list, tuple):  # hundreds of thousands of calls: torch's tree_map takes longer than a small model
        return type(value)(map(_wide, value))
    return torch.float32 if value in NARROW else value


def probe_rows(subject: Subject) -> list[Row]:
    """Up to 8 real rows, spread over the file, of at most 1,024 tokens together; a longer one ends early.

    Every row keeps a trained token; one whose first trained token lies too far on is left out.
    """
    chosen: list[Row] = []
    left = PROBE_TOKENS
    for row in spread(subject.trained_rows, PROBE_ROWS):
        room = max(left // (PROBE_ROWS - len(chosen)), 1)
        first = next(i for i, weight in enumerate(row.loss_mask) if weight and i > 0)
        length = min(len(row.ids), max(room, first + 1))
        if length > left:
            continue
        chosen.append(row.first(length))
        left -= length
    if not chosen and subject.trained_rows:  # every row is longer than the budget: one row costs what it costs
        chosen = [min(subject.trained_rows, key=lambda row: len(row.ids))]
    return chosen


def evaluating(model: nn.Module, training: bool = False) -> AbstractContextManager[None]:
    """No dropout while open (with `training`, as in a step); every module's mode is put back."""
    return in_mode(model, training)


def plain_logprobs(model: Any, row: Row, device: torch.device) -> Tensor:
    """(k,) float32 log-probabilities of a row's trained tokens, by one plain call of the model; the graph is kept."""
    before = virtual_ids(model)
    trained = [i + len(before) for i, weight in enumerate(row.loss_mask) if weight and i > 0]
    ids = torch.tensor((*before, *row.ids), device=device)
    out = model(input_ids=ids[None], use_cache=False, logits_to_keep=torch.tensor(trained, device=device) - 1)
    logits: Tensor = out.logits[0]
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return -F.cross_entropy(logits.to(kind), ids[trained], reduction="none")


def plain_value(model: Any, head: Head, row: Row, device: torch.device) -> Tensor:
    """(outputs,) what a head reads at a row's last token, by one plain call of the model; the graph is kept."""
    ids = torch.tensor((*virtual_ids(model), *row.ids), device=device)
    value: Tensor = head(model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0, -1])
    return value


@torch.no_grad()
def scored_alone(loaded: LoadedModel, rows: Sequence[Row]) -> list[Tensor]:
    """`plain_logprobs` of each row in float32, without dropout, on the CPU."""
    with evaluating(loaded.model), in_float32():
        return [plain_logprobs(loaded.model, row, loaded.device).cpu() for row in rows]


@torch.no_grad()
def scored(scorer: Scorer, batch: Batch) -> list[Tensor]:
    """The log-probabilities of each row of the batch, as the engine computes them, on the CPU."""
    logprobs_K = scorer.token_logprobs(batch).detach().cpu()
    rows = batch.row_K.cpu()
    return [logprobs_K[rows == index] for index in range(batch.row_count)]


@dataclass(frozen=True)
class Scored:
    """The probe rows, the batch they make, and each row's log-probabilities by the engine's path, in float32."""

    rows: list[Row]
    batch: Batch
    logprobs: list[Tensor]


def score_probe(subject: Subject) -> Scored | None:
    """Score the probe rows once for all gates; None if there is no row with a trained token."""
    rows, cast = probe_rows(subject), subject.need_models()
    if not rows:
        return None
    key = (id(cast.policy), id(subject.batches), id(subject.loaded))
    if key not in subject.memo:
        loaded = subject.need_model()
        batch = subject.batches.build(rows).to(loaded.device)
        with evaluating(loaded.model), in_float32():
            subject.memo[key] = Scored(rows, batch, scored(cast.policy, batch))
    found: Scored = subject.memo[key]
    return found


def differences(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[float, float]:
    """(largest, mean) absolute difference; infinite where shapes differ or a value is not finite."""
    if any(a.shape != b.shape for a, b in zip(found, wanted, strict=True)):
        return float("inf"), float("inf")
    delta = torch.cat([(a.double() - b.double()).abs() for a, b in zip(found, wanted, strict=True)])
    if not bool(torch.isfinite(delta).all()):
        return float("inf"), float("inf")
    return float(delta.max()), float(delta.mean())


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether the scores of all rows are equal to the last bit; a NaN equals nothing."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@contextmanager
def nudged(injected: Injected) -> Iterator[None]:
    """Move the adapter while open, so that it changes the model; afterwards every bit is as before.

    A fresh adapter does nothing because some of its tensors are all 0 (LoRA's B): those are moved. If there are none
    (full fine-tuning), the smallest tensor is. A head is moved as well: it alone would leave the scores as they are.
    """
    of_head = [] if injected.head is None else list(injected.head.parameters())
    tensors = [p for p in injected.trainable.values() if all(p is not other for other in of_head)]
    chosen = [p for p in tensors if not bool(p.any())] or [min(tensors, key=lambda p: p.numel())]
    chosen += of_head
    before = [p.detach().clone() for p in chosen]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in chosen:
            p.add_((NUDGE * torch.randn(p.shape, generator=generator)).to(p.device, p.dtype))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(chosen, before, strict=True):
                p.copy_(old)
