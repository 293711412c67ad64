"""Predicted memory: every setting that costs bytes must cost them, in the right direction."""

from dataclasses import replace

import pytest
import torch
from tests.engine_runs import tiny_llama

from luthier.models.memory import Load, Memory, Shape, predict, shape_of

SHAPE = Shape(layers=30, hidden=576, feed_forward=1536, vocabulary=49152, parameters=134_515_008)
LOAD = Load(tokens=1000, positions=400)


def memory(
    shape: Shape = SHAPE,
    dtype: torch.dtype = torch.bfloat16,
    full: bool = False,
    checkpointing: bool = False,
    load: Load = LOAD,
) -> Memory:
    trainable = shape.parameters if full else 4_884_480
    return predict(shape, dtype, trainable, load, full=full, checkpointing=checkpointing, process=0)


def test_weights_and_optimizer_are_exact() -> None:
    assert memory().weights == SHAPE.parameters * 2 + 4_884_480 * 4
    assert memory().optimizer == 4_884_480 * 12
    assert memory(full=True, dtype=torch.float32).weights == SHAPE.parameters * 4
    assert memory(full=True).optimizer == SHAPE.parameters * 12


def test_activations_grow_with_tokens_layers_and_width_and_logits_with_positions() -> None:
    base = memory()
    assert memory(load=Load(2000, 400)).activations == pytest.approx(2 * base.activations, rel=1e-6)
    assert memory(shape=replace(SHAPE, layers=60)).activations == pytest.approx(2 * base.activations, rel=1e-6)
    assert memory(load=Load(1000, 800)).logits == 2 * base.logits
    assert memory(dtype=torch.float32).activations > 1.5 * base.activations


def test_checkpointing_keeps_about_one_layer() -> None:
    assert memory(checkpointing=True).activations < memory().activations / 8


def test_the_total_is_the_sum_of_what_is_listed() -> None:
    assert memory().total == sum(vars(memory()).values())


def test_shape_of_a_model() -> None:
    shape = shape_of(tiny_llama())
    assert (shape.layers, shape.hidden, shape.feed_forward, shape.vocabulary) == (2, 32, 64, 61)
    assert shape.parameters == sum(p.numel() for p in tiny_llama().parameters())
