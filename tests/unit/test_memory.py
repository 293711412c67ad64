"""Predicted memory: every setting that costs bytes must cost them, in the right direction."""

from dataclasses import replace

import pytest
import torch
from tests.engine_runs import tiny_llama

from luthier.models.memory import Load, Memory, Shape, peak_memory_bytes, predict, predict_forward, shape_of

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


def test_answering_holds_keys_and_values_and_one_layer_at_a_time() -> None:
    shape = replace(SHAPE, cached=30 * 2 * 192)
    training = memory(shape)
    forward = predict_forward(training, shape, torch.bfloat16, Load(4096, 96, cached=16384))
    assert (forward.weights, forward.optimizer, forward.process) == (training.weights, training.optimizer, 0)
    assert forward.cache == 16384 * 30 * 2 * 192 * 2
    deeper = predict_forward(training, replace(shape, layers=60), torch.bfloat16, Load(4096, 96))
    assert deeper.activations == forward.activations and deeper.cache == 0
    assert predict_forward(training, shape, torch.float32, Load(4096, 96, 16384)).cache == 2 * forward.cache
    assert predict_forward(training, shape, torch.bfloat16, Load(4096, 192)).logits == 2 * forward.logits


def test_the_peak_only_grows() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    held = torch.ones(32 * 2**20)  # 128 MiB
    after = peak_memory_bytes(torch.device("cpu"))
    del held
    assert peak_memory_bytes(torch.device("cpu")) >= after >= before > 2**20


def test_the_total_is_the_sum_of_what_is_listed() -> None:
    assert memory().total == sum(vars(memory()).values())


def test_the_feed_forward_width_is_found_whatever_its_name() -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 61}
    assert shape_of(OPTForCausalLM(OPTConfig(**sizes, ffn_dim=96, word_embed_proj_dim=32))).feed_forward == 96
    config = GPTNeoXConfig(**sizes, intermediate_size=96, bos_token_id=0, eos_token_id=0)
    model = GPTNeoXForCausalLM(config)
    assert shape_of(model).feed_forward == 96
    del model.config.intermediate_size
    assert shape_of(model).feed_forward == 96, "read off the layers"


def test_shape_of_a_model() -> None:
    shape = shape_of(tiny_llama())
    assert (shape.layers, shape.hidden, shape.feed_forward, shape.vocabulary) == (2, 32, 64, 61)
    assert shape.cached == 2 * 2 * 2 * 8, "two layers, keys and values, two heads of 8"
    assert shape.parameters == sum(p.numel() for p in tiny_llama().parameters())
