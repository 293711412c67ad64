"""What a training holds at most, and the largest micro-batch that fits.

Peak = process + weights + moments + the larger of the passes. What a pass allocates is not derived for each adapter and
model but counted: the run's own pass over a few tokens, at three sizes, says what any size takes (`models.allocated`).
Nothing of the run moves: gradients are thrown away, and random numbers are put back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
import psutil
import torch

from luthier.data.source import micro_batches
from luthier.engine.run import Fit, Run
from luthier.examples import Row
from luthier.models.allocated import Growth, Size, allocations
from luthier.models.forest import Batch, build_batch
from luthier.models.memory import MALLOC, Memory, available_bytes, held_bytes
from luthier.models.scorer import forest_mode

SCANNED_STEPS = 500
PROCESS_BYTES = 600 * 2**20  # Python, torch and transformers at work, without a model
SMALL, MIDDLE = 96, 288  # tokens of the passes that are counted
MARGIN = 1.15  # a prediction may be so far below the truth (benchmarks/memory.py)
MOST_TOKENS = {"cpu": 4096, "cuda": 16384}  # larger micro-batches are no faster (docs/training.md)
LEAST_TOKENS = 64


@dataclass(frozen=True)
class Needs:
    """What a training holds, as a function of its micro-batches."""

    process: int
    weights: int
    """Of the model with its adapter, and of a frozen copy if there is one."""
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

    def memory(self, learned: Iterable[Size], validated: Iterable[Size] = ()) -> Memory:
        """The peak over micro-batches of these sizes."""
        gradients = 4 * self.trained if self.several else 0
        passes = [(self.learning, size) for size in learned] + [(self.validating, size) for size in validated]
        growth, size = max(passes, key=lambda one: one[0].bytes_at(one[1]))
        whole = int(MALLOC * growth.bytes_at(size))
        logits = int(MALLOC * growth.bytes_of_positions(size))
        least = self.updating + 4 * self.trained - gradients
        activations = max(whole, least) - logits
        return Memory(self.process, self.weights, 8 * self.trained + gradients, activations, logits)


def needs_of(run: Run, several: bool, rows: Sequence[Row]) -> Needs:
    """Count the passes of a run; takes about as long as a step over 700 tokens.

    Args:
        run: at step 0 or later; it stays as it is.
        several: as in `Needs`.
        rows: the largest micro-batch, or one like it.
    """
    trained = list(run.injected.trainable.values())
    process, weights = _process_bytes(run), _weights(run)
    sizes, batches = _three(rows)
    batches = [batch.to(run.device) for batch in batches]
    training = {module: module.training for module in run.model.modules()}
    devices = [run.device] if run.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            run.model.train()
            _learn(run, batches[0])  # what is made once and kept, such as noise or memory for a dense matrix
            learning = [allocations(lambda b=b: _learn(run, b), run.device) for b in _held(run, several, batches)]
            run.model.eval()
            validating = [allocations(lambda b=b: _look(run, b), run.device) for b in batches]
    finally:
        for module, was in training.items():
            module.training = was
        run.optimizer.zero_grad(set_to_none=True)
    return Needs(
        process=process,
        weights=weights,
        trained=sum(p.numel() for p in trained),
        several=several,
        updating=2 * 4 * max((p.numel() for p in trained), default=0),
        learning=Growth.of(sizes, learning),
        validating=Growth.of(sizes, validating),
    )


def predict(run: Run) -> Memory:
    """Peak bytes of training with the micro-batches that the run has."""
    steps = _steps(run, run.micro_batch_tokens)
    rows, _ = max((one for step in steps for one in step), key=lambda one: one[1].tokens)
    needs = needs_of(run, any(len(step) > 1 for step in steps), rows)
    return needs.memory([size for step in steps for _, size in step], _validation(run, run.micro_batch_tokens))


def fit(run: Run, most: int, available: int | None = None) -> Fit:
    """The largest micro-batch of at most `most` tokens that fits into the memory of the run's device."""
    given = available_bytes(run.device) if available is None else available
    steps = _steps(run, most)
    flat = [one for step in steps for one in step]
    rows, _ = max(flat, key=lambda one: one[1].tokens)
    share = max(size.positions / size.tokens for _, size in flat)
    needs = needs_of(run, True, rows)

    def needed(tokens: int) -> int:
        size = Size(tokens, round(share * tokens))
        return needs.memory([size], [size]).total

    tokens = max((n for n in _choices(most) if needed(n) * MARGIN <= given), default=LEAST_TOKENS)
    sizes = [size for step in _steps(run, tokens) for _, size in step]
    total = needs.memory(sizes, _validation(run, tokens)).total
    return Fit(tokens, total, given, fits=total * MARGIN <= given)


def most_that_pays(device: torch.device) -> int:
    """Tokens of a micro-batch beyond which a step is no faster."""
    return MOST_TOKENS.get(device.type, MOST_TOKENS["cpu"])


def _choices(most: int) -> Iterable[int]:
    return range(LEAST_TOKENS, most + 1, LEAST_TOKENS)


def _size(batch: Batch) -> Size:
    return Size(len(batch.forest.ids_N), len(batch.hidden_H))


def _steps(run: Run, limit: int) -> list[list[tuple[list[Row], Size]]]:
    """The micro-batches of the first steps; the order of rows is known beforehand."""
    return [
        [(rows, _size(build_batch(rows))) for rows in micro_batches(run.source.step(number), limit)]
        for number in range(1, min(run.steps, SCANNED_STEPS) + 1)
    ]


def _validation(run: Run, limit: int) -> list[Size]:
    return [_size(build_batch(rows)) for rows in micro_batches(run.validation, limit)]


def _three(rows: Sequence[Row]) -> tuple[list[Size], list[Batch]]:
    """Batches like one of these rows, but of a few of their tokens: few, few with half of the positions, and more."""
    tokens = len(build_batch(rows).forest.ids_N)
    more = max(1, tokens // MIDDLE)
    few = max(2 * more, tokens // SMALL)
    small = [_every(row, few) for row in rows]
    batches = [build_batch(made) for made in (small, [_half(row) for row in small], [_every(r, more) for r in rows])]
    return [_size(batch) for batch in batches], batches


def _every(row: Row, stride: int) -> Row:
    """Every so-manieth token of a row, the first and the last trained one among them."""
    trained = [i for i, weight in enumerate(row.loss_mask) if weight and i]
    taken = sorted({*range(0, len(row.ids), stride), *trained[:1], *trained[-1:]})
    return replace(row, ids=tuple(row.ids[i] for i in taken), loss_mask=tuple(row.loss_mask[i] for i in taken))


def _half(row: Row) -> Row:
    """The row with every other trained token."""
    trained = [i for i, weight in enumerate(row.loss_mask) if weight and i]
    left = set(trained[1::2])
    return replace(row, loss_mask=tuple(0.0 if i in left else weight for i, weight in enumerate(row.loss_mask)))


def _held(run: Run, several: bool, batches: Iterable[Batch]) -> Iterable[Batch]:
    """The batches; before each, gradients are what they are when a pass begins: held, or not there."""
    for batch in batches:
        run.optimizer.zero_grad(set_to_none=True)
        for parameter in run.injected.trainable.values() if several else ():
            parameter.grad = torch.zeros_like(parameter)
        yield batch


def _learn(run: Run, batch: Batch) -> None:
    with forest_mode(run.model):
        run.objective.loss(run.models, batch).total.backward()


@torch.no_grad()
def _look(run: Run, batch: Batch) -> None:
    run.objective.loss(run.models, batch)


def _weights(run: Run) -> int:
    """Bytes of the policy and, where the objective was given a frozen copy, of that."""
    copy = vars(run.models.reference).get("model") if run.models.reference is not None else None
    return held_bytes(run.model) + (held_bytes(copy) if copy is not None else 0)


def _process_bytes(run: Run) -> int:
    """What the process holds beside the model, on its device."""
    if run.device.type == "cuda":
        return 0
    # weights that are mapped from a file count as held only once they are touched, hence the floor
    return max(psutil.Process().memory_info().rss - _weights(run), PROCESS_BYTES)
