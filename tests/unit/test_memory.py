"""Predicted memory: every setting that costs bytes must cost them, in the right direction."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.engine_runs import tiny_llama

from luthier.models.memory import (
    Load,
    Memory,
    Shape,
    available_bytes,
    peak_memory_bytes,
    predict_forward,
    shape_of,
)
from luthier.models.sizes import SIZES
from luthier.system_memory import left_in_groups

SHAPE = Shape(layers=30, hidden=576, feed_forward=1536, vocabulary=49152, parameters=134_515_008)
TRAINING = Memory(process=0, weights=288_568_320, optimizer=58_613_760, activations=10**9, logits=10**8)


def test_answering_holds_keys_and_values_and_one_layer_at_a_time() -> None:
    shape = replace(SHAPE, cached=30 * 2 * 192)
    training = TRAINING
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
    assert TRAINING.total == sum(vars(TRAINING).values())


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
    assert shape.tied


def test_a_head_of_its_own_is_seen() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=61, tie_word_embeddings=False))
    assert not shape_of(model).tied


def test_known_sizes_stand_from_small_to_large_and_name_the_catalogue() -> None:
    from luthier.models.catalog import known

    parameters = [shape.parameters for shape in SIZES.values()]
    assert parameters == sorted(parameters)
    for name, entry in known().items():
        assert SIZES[name].parameters == entry.parameters


@pytest.mark.parametrize(
    ("name", "keys"),
    [("qwen2.5-coder-0.5b-instruct", 128), ("Qwen2.5 3B", 256), ("Qwen2.5 7B", 512), ("Qwen2.5 72B", 1024)],
)
def test_parameters_of_known_sizes_follow_from_their_shapes(name: str, keys: int) -> None:
    """Qwen 2.5: queries, keys and values with biases, a gated feed-forward, two norms a layer and one behind them."""
    x = SIZES[name]
    attention = 2 * x.hidden**2 + x.hidden + 2 * keys * (x.hidden + 1)
    layer = attention + 3 * x.hidden * x.feed_forward + 2 * x.hidden
    tables = (1 if x.tied else 2) * x.vocabulary * x.hidden
    assert x.parameters == x.layers * layer + tables + x.hidden


def test_limits_of_control_groups_count_and_their_caches_do_not(tmp_path: Path) -> None:
    inner = tmp_path / "slice" / "job"
    inner.mkdir(parents=True)
    for place, limit, used, cached in ((inner, "max", 5, 0), (inner.parent, "1000", 700, 200)):
        (place / "memory.max").write_text(f"{limit}\n")
        (place / "memory.current").write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    assert left_in_groups(inner) == [500]


def test_what_is_available_is_more_than_is_held_and_less_than_the_machine_has() -> None:
    import psutil

    held = psutil.Process().memory_info().rss
    assert held < available_bytes(torch.device("cpu")) < psutil.virtual_memory().total + held
