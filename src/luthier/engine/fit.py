"""What a training holds at most, and the largest micro-batch that fits.

Peak = process + weights + moments + the larger of the passes. What a pass allocates is not derived for each adapter and
model but counted: the run's own pass over a few tokens, at four sizes, says what any size takes (`models.allocated`).
Nothing of the run moves: gradients are thrown away, and random numbers are put back.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import psutil
import torch
from torch import Tensor, nn

from luthier.data.source import micro_batches
from luthier.engine.run import Fit, Run
from luthier.examples import Row
from luthier.models.allocated import Growth, Size, allocations, lasting
from luthier.models.forest import Batch, build_batch
from luthier.models.memory import MALLOC, Memory, Shape, available_bytes, held_bytes, units_of_layers
from luthier.models.scorer import forest_mode, in_mode

SCANNED_STEPS = 500
PROCESS_BYTES = 600 * 2**20  # Python, torch and transformers at work, without a model
COUNTED = {"cpu": 288, "cuda": 2048}
"""Tokens of the largest pass that is counted. A GPU tells peaks alone, and the tensors that make the peak of a pass
over few tokens are not those of a pass over many."""
MARGIN = 1.15  # a prediction may be so far below the truth (benchmarks/memory.py)
MOST_TOKENS = {"cpu": 4096, "cuda": 16384}  # larger micro-batches are no faster (docs/training.md)
LEAST_TOKENS = 64


@dataclass(frozen=True)
class Needs:
    """What a training holds, as a function of its micro-batches."""

    process: int
    weights: int
    """Of the model with its adapter, of a frozen copy if there is one, and of what passes make once and keep."""
    trained: int
    """Numbers that train."""
    several: bool
    """Whether a step has several micro-batches, so that gradients are held during a forward pass."""
    updating: int
    """Bytes that an update of the weights takes for a moment."""
    learning: Growth
    """Of a pass with its backward pass, gradients included where they are not `several`."""
    validating: Growth
    """Of a pass without a graph."""
    micro_batches: tuple[Size, ...]
    """Of the run, over its first steps."""
    kept: int = 2
    """Float32 numbers that the optimizer keeps for each one that trains."""

    def memory_of(self, tokens: int) -> Memory:
        """The peak over micro-batches of so many tokens, each of which brings the most that those of the run bring."""
        positions = max(size.positions / size.tokens for size in self.micro_batches)
        pairs = max(size.pairs / size.tokens for size in self.micro_batches)
        size = Size(tokens, round(positions * tokens), round(pairs * tokens))
        return self.memory([size], [size])

    def memory(self, learned: Iterable[Size], validated: Iterable[Size] = ()) -> Memory:
        """The peak over micro-batches of these sizes."""
        gradients = 4 * self.trained if self.several else 0
        passes = [(self.learning, size) for size in learned] + [(self.validating, size) for size in validated]
        growth, size = max(passes, key=lambda one: one[0].bytes_at(one[1]))
        whole = int(MALLOC * growth.bytes_at(size))
        logits = int(MALLOC * growth.bytes_of_positions(size))
        least = self.updating + 4 * self.trained - gradients
        activations = max(whole, least) - logits
        return Memory(self.process, self.weights, 4 * self.kept * self.trained + gradients, activations, logits)


def needs_of(run: Run, several: bool | None = None, most: int | None = None) -> Needs:
    """Count the passes of a run; takes about as long as a step over a thousand tokens.

    Args:
        run: at any step; it stays as it is.
        several: as in `Needs`; None: what is so with the micro-batches that the run has.
        most: tokens of the largest pass; None: `COUNTED` of the device. Halved where they find no memory.

    Raises:
        torch.OutOfMemoryError: the device has no room for the smallest pass.
    """
    most = COUNTED.get(run.device.type, COUNTED["cpu"]) if most is None else most
    while most > COUNTED["cpu"]:
        try:
            return _counted(run, several, most)
        except torch.OutOfMemoryError:
            most //= 2
    return _counted(run, several, most)


def _counted(run: Run, several: bool | None, most: int) -> Needs:
    """From passes over at most about so many tokens."""
    steps = _steps(run, run.micro_batch_tokens)
    several = any(len(step) > 1 for step in steps) if several is None else several
    micro = [one for step in steps for one in step]
    rows, _ = max(micro, key=lambda one: one[1].tokens)
    sizes, made = _samples(rows, most)
    if run.device.type == "cuda":  # no attention there makes a number for each pair
        sizes = [replace(size, pairs=0) for size in sizes]
    batches = [batch.to(run.device) for batch in made]
    process, weights = _process_bytes(run), _weights(run)
    devices = [run.device] if run.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), in_mode(run.model, training=True):
            once = lasting(partial(_look, run, batches[0]), run.device)
            held = {p: torch.zeros_like(p) if several else None for p in run.injected.trainable.values()}
            learning, validating = [], []
            for batch in batches:  # looked at first: masks of its attention are made once
                validating.append(allocations(partial(_look, run, batch), run.device))
                learning.append(allocations(partial(_learn, run, batch, held), run.device))
    finally:
        run.optimizer.zero_grad(set_to_none=True)
    trained = [p.numel() for p in run.injected.trainable.values()]
    return Needs(
        process=process,
        weights=weights + once,
        trained=sum(trained),
        several=several,
        updating=2 * 4 * max(trained, default=0),
        learning=Growth.of(sizes, learning),
        validating=Growth.of(sizes, validating),
        micro_batches=tuple(size for _, size in micro),
        kept=run.optimizer_numbers,
    )


def predict(run: Run, needs: Needs | None = None) -> Memory:
    """Peak bytes of training with the micro-batches that the run has; `needs` are its own, where they are known."""
    needs = needs or needs_of(run)
    return needs.memory(needs.micro_batches, _validation(run, run.micro_batch_tokens))


def fit(run: Run, most: int, available: int | None = None, needs: Needs | None = None) -> Fit:
    """The largest micro-batch of at most `most` tokens that fits with the margin.

    Args:
        run: whose passes are looked at.
        most: tokens.
        available: bytes; None: those of the run's device.
        needs: of the run, where they are known.
    """
    given = available_bytes(run.device) if available is None else available
    needs = needs or needs_of(run, several=True)
    choices = range(LEAST_TOKENS, max(most, LEAST_TOKENS) + 1, LEAST_TOKENS)
    fitting = bisect_right(choices, given, key=lambda tokens: int(MARGIN * needs.memory_of(tokens).total))
    tokens = choices[max(fitting - 1, 0)]
    sizes = [size for step in _steps(run, tokens) for _, size in step]
    total = needs.memory(sizes, _validation(run, tokens)).total
    return Fit(tokens, total, given, fits=total * MARGIN <= given)


def for_another(needs: Needs, own: Shape, other: Shape, *, overwrites: bool) -> Needs:
    """What a model of another shape would need, with the same recipe, from what this one does.

    Weights are held by the same formats, matrices and embeddings apart. Activations are taken to grow with layers and
    widths, logits with the vocabulary, what is there for any size with the model. That is exact for no model, and near
    for those whose layers are alike.

    Args:
        needs: of this run.
        own: the shape of its base.
        other: the other shape.
        overwrites: whether weights of the base itself train.
    """
    size, layers = other.parameters / own.parameters, units_of_layers(other) / units_of_layers(own)
    grown = size if overwrites else layers
    adapter = 0 if overwrites else 4 * needs.trained
    dense = needs.weights - own.quantized_bytes - adapter
    if own.quantized:
        matrices = other.parameters - (1 if other.tied else 2) * other.vocabulary * other.hidden
        held = matrices * own.quantized_bytes / own.quantized
        held += (other.parameters - matrices) * dense / max(own.parameters - own.quantized, 1)
    else:
        held = dense * size
    scales = (size, layers, other.vocabulary / own.vocabulary, other.layers / own.layers)
    return replace(
        needs,
        weights=int(held + adapter * grown),
        trained=int(needs.trained * grown),
        updating=int(needs.updating * grown),
        learning=needs.learning.scaled(*scales),
        validating=needs.validating.scaled(*scales),
    )


def most_that_pays(device: torch.device) -> int:
    """Tokens of a micro-batch beyond which a step is no faster."""
    return MOST_TOKENS.get(device.type, MOST_TOKENS["cpu"])


def _size(batch: Batch) -> Size:
    forest = batch.forest
    pairs = 0
    depths: list[int] = []
    for start, end, parent in zip(forest.starts, forest.ends, forest.parents, strict=True):
        depths.append(end - start + (depths[parent] if parent >= 0 else 0))
        pairs += (end - start) * depths[-1]
    return Size(len(forest.ids_N), len(batch.hidden_H), pairs)


def _steps(run: Run, limit: int) -> list[list[tuple[list[Row], Size]]]:
    """The micro-batches of the first steps; the order of rows is known beforehand."""
    return [
        [(rows, _size(build_batch(rows))) for rows in micro_batches(run.source.planned(number), limit)]
        for number in range(1, min(run.steps, SCANNED_STEPS) + 1)
    ]


def _validation(run: Run, limit: int) -> list[Size]:
    return [_size(build_batch(rows)) for rows in micro_batches(run.validation, limit)]


def _samples(rows: Sequence[Row], most: int) -> tuple[list[Size], list[Batch]]:
    """Batches like one of these rows, of fewer of their tokens: few, few with half of the positions, some, `most`."""
    tokens = len(build_batch(rows).forest.ids_N)
    more = max(1, tokens // most)
    some, few = (max(times * more, tokens * times // most) for times in (2, 4))
    small, middle, large = ([_every(row, stride) for row in rows] for stride in (few, some, more))
    batches = [build_batch(made) for made in (small, [_half(row) for row in small], middle, large)]
    return [_size(batch) for batch in batches], batches


def _every(row: Row, stride: int) -> Row:
    """Every so-manieth token of a row, the first and the last trained one among them."""
    trained = [i for i, weight in enumerate(row.loss_mask) if weight and i]
    taken = sorted({*range(0, len(row.ids), stride), *trained[:1], *trained[-1:]})
    return row.taken(taken)


def _half(row: Row) -> Row:
    """The row with every other trained token."""
    trained = [i for i, weight in enumerate(row.loss_mask) if weight and i]
    left = set(trained[1::2])
    return replace(row, loss_mask=tuple(0.0 if i in left else weight for i, weight in enumerate(row.loss_mask)))


def _learn(run: Run, batch: Batch, held: Mapping[nn.Parameter, Tensor | None] | None) -> None:
    """One pass, forward and back; `held` are the gradients that it begins with. They are dropped at the end."""
    for parameter, gradient in (held or {}).items():
        parameter.grad = gradient
    batch = _alone(run, batch)
    with forest_mode(run.model):
        loss = run.objective.loss(run.models, batch)
        if len(batch.row_K):
            loss.total.backward()
    del loss
    run.optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _look(run: Run, batch: Batch) -> None:
    run.objective.loss(run.models, _alone(run, batch))


@torch.no_grad()
def _alone(run: Run, batch: Batch) -> Batch:
    """The batch as if it were a step."""
    (told,) = run.objective.whole_step(run.models, [batch], run.state.memory)
    return told


def _weights(run: Run) -> int:
    """Bytes of the policy with its head and, where the objective was given them, of a frozen copy and a teacher."""
    head = 0 if run.injected.head is None else held_bytes(run.injected.head)
    copy = vars(run.models.reference).get("model") if run.models.reference is not None else None
    teacher = 0 if run.models.teacher is None else run.models.teacher.held_bytes()
    return held_bytes(run.model) + head + (held_bytes(copy) if copy is not None else 0) + teacher


def _process_bytes(run: Run) -> int:
    """What the process holds beside the model, on its device."""
    if run.device.type == "cuda":
        return 0
    # weights that are mapped from a file count as held only once they are touched, hence the floor
    return max(psutil.Process().memory_info().rss - _weights(run), PROCESS_BYTES)
