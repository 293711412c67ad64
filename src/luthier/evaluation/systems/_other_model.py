"""Another local model beside the run's: opened only while it is needed, and only if the memory left holds it.

What it will need is predicted from its shape before its weights are read: weights, the activations of one layer, the
keys and values of the rows in flight. Where memory is short fewer rows are in flight; where not even one would fit, the
model is refused.
"""

import gc
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from luthier.config import canonical_hash
from luthier.data.templates import Template, build_template
from luthier.engine.fit import MARGIN
from luthier.errors import EvaluationError
from luthier.evaluation.systems.base import Context
from luthier.evaluation.task import room_for_answers
from luthier.models.catalog import ModelFiles, known, resolve, source_of
from luthier.models.generate import MAX_ROWS, PREFILL_TOKENS
from luthier.models.load import choose_dtype, load, open_without_weights
from luthier.models.memory import (
    Load,
    Memory,
    Shape,
    available_bytes,
    loading_bytes,
    predict_forward,
    shape_of,
    tokens_in_flight,
)
from luthier.models.packed import linear_layers, quantizer
from luthier.models.scorer import require_forest

SAMPLE = 512
"""Rows and columns of the matrix that is packed to see how many bytes a number takes."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and how it is held; every field means what it means in a recipe's `model`."""

    model: str
    precision: str = "auto"
    quantize: str = "none"
    template: str = "model"

    def path_or_name(self, context: Context) -> str:
        """A folder or file beside the recipe, or the name as it is."""
        beside = context.recipe_folder / self.model
        return str(beside) if beside.exists() else self.model

    def identity(self, context: Context) -> str:
        """Changes when the model's files do; nothing is fetched for a model of the catalogue, whose digest is pinned.

        Raises:
            ModelError: there is no such model.
        """
        name = self.path_or_name(context)
        return known()[name].sha256 if source_of(name) == "catalogue" else resolve(name).fingerprint


@dataclass
class Opened:
    """The other model, where the run's stood."""

    context: Context
    """With the other model in it; once it is closed, the run's own."""
    details: dict[str, Any]
    """What it is and what it needed, for the records."""


@contextmanager
def opened(choice: ModelChoice, context: Context, system: str, free: int | None = None) -> Iterator[Opened]:
    """The context with the other model in it, which is freed afterwards.

    Answers may be as long as those of the run's model, counted in tokens of its own.

    Args:
        choice: which model.
        context: of the run.
        system: that asks, for messages.
        free: bytes that may be held beside what is held; None: those of the device.

    Raises:
        EvaluationError: it does not fit beside the run's model.
        ModelError: it cannot be had, or is of a kind that cannot be used.
        TemplateError: it has no template, or the template refuses a training row.
    """
    found = _open(choice, context, system, free_bytes(context.loaded.device) if free is None else free)
    try:
        yield found
    finally:
        found.context = context
        gc.collect()  # models refer to themselves, so counting references does not free them
        if context.loaded.device.type == "cuda":
            torch.cuda.empty_cache()


def _open(choice: ModelChoice, context: Context, system: str, free: int) -> Opened:
    files = resolve(choice.path_or_name(context))
    needed = predict(files, choice, context)
    what = f"{choice.model} ({needed.parameters / 1e6:,.0f} million weights)"
    if int(needed.least.total * MARGIN) > free:
        raise EvaluationError(_too_large(what, needed.least.total, free, choice, system))
    context.say(f"opening {what}, about {_gib(needed.least.total)} beside the run's model; {_gib(free)} are free")
    started = time.perf_counter()
    loaded = load(files, choice.precision, str(context.loaded.device), quantize=choice.quantize)
    require_forest(loaded.model)
    template = build_template(loaded, choice.template)
    longest, looping = _room(template, context)
    more_tokens = int((free / MARGIN - needed.least.total) // needed.cache_bytes_per_token)
    details = {
        "model": choice.model,
        "model_fingerprint": files.fingerprint,
        "parameters": needed.parameters,
        "precision": str(loaded.dtype).removeprefix("torch."),
        "quantize": choice.quantize,
        "predicted_bytes": needed.least.total,
        "loading_seconds": time.perf_counter() - started,
    }
    own = replace(
        context,
        loaded=loaded,
        template=template,
        adapter_disabled=nullcontext,
        max_new_tokens=longest,
        stop_loops=context.stop_loops and not looping,
        batch_tokens=min(tokens_in_flight(loaded.model), needed.least_tokens + more_tokens),
        base_fingerprint=canonical_hash([files.fingerprint, str(loaded.dtype), choice.quantize]),
        tuned_fingerprint=None,
        head=None,  # it would read the hidden states of another model
    )
    return Opened(own, details)


def _room(template: Template, context: Context) -> tuple[int, bool]:
    """The longest answer in tokens of another tokenizer, and whether a training reply loops in them."""
    here, _ = room_for_answers(context.template, context.train)
    there, looping = room_for_answers(template, context.train)
    return (math.ceil(context.max_new_tokens * there / here) if here else context.max_new_tokens), looping


@dataclass(frozen=True)
class Needed:
    """Predicted bytes of answering with a model."""

    least: Memory
    """With as few rows in flight as can be."""
    least_tokens: int
    """Tokens of those."""
    cache_bytes_per_token: int
    parameters: int


def predict(files: ModelFiles, choice: ModelChoice, context: Context) -> Needed:
    """What another model will hold beside what this process holds already; its weights are not read.

    Raises:
        ModelError: the model is of a kind that cannot be used.
        RecipeError: there is no format called `choice.quantize`.
    """
    bare = open_without_weights(files)
    dtype = choose_dtype(choice.precision, context.loaded.device)
    shape = shape_of(bare.model)
    stored = files.stored_bytes
    if choice.quantize != "none":
        shape = _quantized(shape, bare.model, files, choice.quantize)
    weights = loading_bytes(shape, dtype, stored)
    tokens = min(bare.max_tokens, PREFILL_TOKENS)  # one row is at most this long, nearly always
    lean = predict_forward(
        Memory(process=0, weights=weights, optimizer=0, activations=0, logits=0),
        shape,
        dtype,
        Load(PREFILL_TOKENS, MAX_ROWS, cached=tokens),
    )
    return Needed(lean, tokens, shape.cached * dtype.itemsize, shape.parameters)


def _quantized(shape: Shape, model: Any, files: ModelFiles, quantize: str) -> Shape:
    kind = quantizer(quantize)
    numbers = sum(layer.in_features * layer.out_features for layer in linear_layers(model).values())
    if kind.from_file and files.source is not None:
        return replace(shape, quantized=numbers, quantized_bytes=files.source.stat().st_size)
    sample = kind.pack(torch.randn(SAMPLE, SAMPLE, generator=torch.Generator().manual_seed(0)))
    held = sum(part.numel() * part.element_size() for part in sample.values())
    return replace(shape, quantized=numbers, quantized_bytes=math.ceil(numbers * held / SAMPLE**2))


def free_bytes(device: torch.device) -> int:
    """What this process may hold on a device beside what it holds."""
    if device.type == "cuda":
        return available_bytes(device) - torch.cuda.memory_reserved(device)
    return available_bytes(device) - int(psutil.Process().memory_info().rss)


def _too_large(what: str, needed: int, free: int, choice: ModelChoice, system: str) -> str:
    smaller = "" if choice.quantize != "none" else "set quantize = 'nf4', which holds its matrices in 4 bits, "
    return (
        f"the system {system}: {what} needs about {_gib(needed)} beside the run's model, and a prediction may be "
        f"{MARGIN - 1:.0%} too low; {_gib(free)} are free. To mend it, {smaller}name a smaller model, or run "
        "`luthier evaluate` where there is more memory: finished systems are not measured again"
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
