"""The training loop. Every objective and adapter runs through `train`, which reads from top to bottom.

Promises, each with a test: how a step is split into micro-batches cannot change its gradient, because losses are sums
and are divided once by the weight of the whole step; the order inside a step is fixed: learn, validate, save; a run
that is resumed after any checkpoint ends with bit-identical weights.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from luthier.data.source import Unit, micro_batches
from luthier.engine import checkpoint
from luthier.engine.heads import probe
from luthier.engine.run import Run
from luthier.errors import DataError, NonFiniteStep
from luthier.models.forest import Batch, build_batch
from luthier.models.load import wait_for
from luthier.models.memory import peak_memory_bytes
from luthier.models.scorer import forest_mode
from luthier.objectives.base import Mean, merge_metrics


@dataclass(frozen=True)
class Step:
    """What one optimizer step did; the command line, the server and the tests all read these."""

    number: int
    seconds: float
    metrics: Mapping[str, float]


def train(run: Run) -> Iterator[Step]:
    """Yield one `Step` per optimizer step. To stop, stop asking: the run is whole between steps.

    Raises:
        NonFiniteStep: a gradient norm, or the first validation loss, was NaN or infinite; no weight was updated.
        DataError: no row of a step has a token to train on.
        StorageError: a checkpoint could not be written; earlier ones are intact.
    """
    if run.state.step == 0:
        observe(run)
        probe(run)
        run.state.best_loss = run.state.start_loss = validation_loss(run)
        if not math.isfinite(run.state.best_loss):
            raise NonFiniteStep(0, run.state.best_loss, what="validation loss of the untrained model")
        checkpoint.save(run)
    if run.state.stopped_early:  # resumed after its last step: there is nothing more to do
        return
    for number in range(run.state.step + 1, run.steps + 1):
        started = time.perf_counter()
        metrics = _learn(run, number)
        run.state.step = number
        run.state.peak_memory_bytes = max(run.state.peak_memory_bytes, peak_memory_bytes(run.device))
        last = number == run.steps
        if last or number % run.validate_every == 0:
            metrics |= _validate(run)
        wait_for(run.device)
        seconds = time.perf_counter() - started
        run.state.seconds += seconds
        run.state.last = {"step": number, "seconds": round(seconds, 4), **metrics}
        stop = run.state.stopped_early
        if last or stop or number % run.save_every == 0 or run.state.best_step == number:
            checkpoint.save(run)
        yield Step(number, seconds, metrics)
        if stop:
            return


@torch.no_grad()
def observe(run: Run) -> bool:
    """Show the adapter the rows of the first steps, if it begins from them; a second time does nothing.

    Returns:
        Whether it looked.

    Raises:
        ModelError: they do not tell what it needs.
    """
    run.model.eval()
    planned = (run.source.planned(number) for number in range(1, run.steps + 1))
    batches = (batch for units in planned for batch in _batches(run, units))
    return run.injected.observe(batches, run.models.policy.token_logprobs)


def _learn(run: Run, number: int) -> dict[str, float]:
    """One optimizer step: sum over micro-batches, divide once, clip, update."""
    rate = run.learning_rate * run.schedule.factor(number, run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)
    batches = _batches(run, run.source.step(number, run.state.memory))
    weight = _step_weight(run, number, batches)
    run.model.train()
    with torch.no_grad():
        batches = list(run.objective.whole_step(run.models, batches, run.state.memory))
    parts: list[Mapping[str, Mean]] = []
    for batch in batches:
        with forest_mode(run.model):
            loss = run.objective.loss(run.models, batch)
            if loss.total.requires_grad:  # without a token that is learned from there is no graph to go back through
                (loss.total / weight).backward()
        mean = Mean(float(loss.total.detach()), run.objective.weight(batch))
        parts.append({"loss": mean, **loss.metrics})  # every objective has a loss to show, whatever else it reports
    parameters = list(run.injected.trainable.values())
    grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, run.settings.max_grad_norm))
    if not math.isfinite(grad_norm):
        run.optimizer.zero_grad(set_to_none=True)
        raise NonFiniteStep(number, grad_norm, tuple(name for batch in batches for name in batch.row_ids))
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    tokens = sum(batch.logical_tokens for batch in batches)
    trained = sum(len(batch.row_K) for batch in batches)
    run.state.tokens += tokens
    run.state.trained_tokens += trained
    metrics = merge_metrics(parts)
    run.state.memory = dict(run.objective.remember(run.state.memory, metrics))
    averages = {name: mean.value() for name, mean in metrics.items()}
    return {"tokens": tokens, "trained_tokens": trained, **averages, "learning_rate": rate, "grad_norm": grad_norm}


def _step_weight(run: Run, number: int, batches: list[Batch]) -> float:
    """What the summed loss of the step is divided by.

    Raises:
        DataError: it is 0, or no row has a trained token.
    """
    weight = sum(run.objective.weight(batch) for batch in batches)
    if weight > 0 and any(len(batch.row_K) for batch in batches):
        return weight
    rows = ", ".join(name for batch in batches for name in batch.row_ids)
    raise DataError(
        f"step {number}: none of its rows has a token to train on: {rows}. Look at them with `luthier check --show`: "
        "replies may be cut off by training.max_tokens, or have weight 0"
    )


def _batches(run: Run, units: Sequence[Unit]) -> list[Batch]:
    return [build_batch(rows).to(run.device) for rows in micro_batches(units, run.micro_batch_tokens)]


def validation_loss(run: Run, step: int | None = None) -> float:
    """The objective's mean over all validation units, without dropout; `step`: as of `validation_metrics`."""
    return validation_metrics(run, step)["loss"]


@torch.no_grad()
def validation_metrics(run: Run, step: int | None = None) -> dict[str, float]:
    """What the objective tells of all validation units, without dropout; `loss` is its mean.

    `step`: after which the weights are those that the model has; None: the run's last one.
    """
    run.model.eval()
    parts: list[Mapping[str, Mean]] = []
    units = run.source.validating(run.validation, run.state.step if step is None else step)
    batches = (build_batch(rows).to(run.device) for rows in micro_batches(units, run.micro_batch_tokens))
    for batch in run.objective.whole_step(run.models, batches, run.state.memory):
        loss = run.objective.validation(run.models, batch)
        parts.append({**loss.metrics, "loss": Mean(float(loss.total), run.objective.validation_weight(batch))})
    return {name: mean.value() for name, mean in merge_metrics(parts).items()}


def _validate(run: Run) -> dict[str, float]:
    """Measure, remember the best step, and decide whether to stop early; what was measured, as `validation_...`."""
    metrics, state = validation_metrics(run), run.state
    loss = metrics["loss"]
    if state.best_loss is None or loss < state.best_loss:  # NaN is no gain
        state.best_loss, state.best_step, state.validations_without_gain = loss, state.step, 0
    else:
        state.validations_without_gain += 1
    patience = run.settings.patience
    state.stopped_early = patience is not None and state.validations_without_gain >= patience
    return {f"validation_{name}": value for name, value in metrics.items()}
