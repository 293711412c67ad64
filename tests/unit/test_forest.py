"""The forest: exact against rows one by one, and without leaks."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from luthier.errors import ModelError
from luthier.examples import Row
from luthier.models import attention
from luthier.models.attention import ancestry
from luthier.models.forest import build_batch
from luthier.models.scorer import Scorer, require_forest

VOCABULARY = 97
SMALL = dict(
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=VOCABULARY,
    head_dim=16,
)
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=3, **SMALL)),
    # six layers: one in six of Gemma 3 sees everything, the others a window of 8 tokens
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(num_hidden_layers=6, sliding_window=8, **SMALL)),
}


def make_rows(seed: int, count: int = 6) -> list[Row]:
    """Rows that share a 20-token prefix; every second one shares more with the row before it."""
    rng = random.Random(seed)
    system = [rng.randrange(VOCABULARY) for _ in range(20)]
    rows: list[Row] = []
    for index in range(count):
        tokens = system + [rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, 30))]
        if index % 2:
            tokens = list(rows[-1].ids[:25]) + tokens[25:]
        mask = [float(rng.random() < 0.6) for _ in tokens]
        mask[-1] = 0.5
        rows.append(Row(tuple(tokens), tuple(mask), str(index)))
    return rows


def make_model(family: str) -> torch.nn.Module:
    torch.manual_seed(1)
    model: torch.nn.Module = FAMILIES[family]().double().eval()
    return model


def plain_logprobs(model: torch.nn.Module, row: Row) -> torch.Tensor:
    """Log-probabilities of the trained tokens from an ordinary forward pass."""
    logprobs = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return torch.stack([logprobs[i - 1, row.ids[i]] for i in range(1, len(row.ids)) if row.loss_mask[i]])


@pytest.mark.parametrize("min_shared", [1, 16, 10_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_forest_equals_rows_one_by_one_in_values_and_gradients(family: str, min_shared: int) -> None:
    model, rows = make_model(family), make_rows(0)
    batch = build_batch(rows, min_shared)
    together = Scorer(model).token_logprobs(batch) * batch.loss_mask_K
    together.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    weights = [torch.tensor([m for m in row.loss_mask[1:] if m], dtype=torch.float64) for row in rows]
    apart = torch.cat([plain_logprobs(model, row) * w for row, w in zip(rows, weights, strict=True)])
    apart.sum().backward()
    torch.testing.assert_close(together, apart, atol=1e-9, rtol=0)
    for name, parameter in model.named_parameters():
        # transformers computes norms and rotary angles in float32 even in a float64 model: gradients agree to that
        assert parameter.grad is not None
        difference = (gradients[name] - parameter.grad).norm() / parameter.grad.norm()
        assert difference < 1e-6, name


@pytest.mark.parametrize("family", FAMILIES)
def test_changing_one_row_leaves_every_other_row_bit_identical(family: str) -> None:
    model, rows = make_model(family).float(), make_rows(3)
    changed = list(rows)
    last = list(rows[2].ids)
    last[-1] = (last[-1] + 1) % VOCABULARY
    changed[2] = Row(tuple(last), rows[2].loss_mask, rows[2].id)
    with torch.no_grad():
        before, after = (Scorer(model).token_logprobs(build_batch(r)) for r in (rows, changed))
    others = build_batch(rows).row_K != 2
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


def test_a_shared_prefix_is_held_once() -> None:
    prefix = tuple(range(40))
    rows = [Row((*prefix, 50 + i, 60), (0.0,) * 41 + (1.0,), str(i)) for i in range(4)]
    batch = build_batch(rows)
    assert len(batch.forest.ids_N) == 40 + 4 * 2
    assert batch.logical_tokens == 4 * 42
    assert batch.forest.parents == (-1, 0, 0, 0, 0)


def test_equal_rows_cost_nothing_and_count_each() -> None:
    row = Row(tuple(range(20)), (0.0,) + (1.0,) * 19, "a")
    batch = build_batch([row, row, row])
    assert len(batch.forest.ids_N) == 20
    assert batch.row_K.tolist() == [0] * 19 + [1] * 19 + [2] * 19
    model = make_model("llama")
    summed = batch.sum_rows(Scorer(model).token_logprobs(batch))
    assert torch.equal(summed, summed[:1].expand(3))


token_rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=8)


@given(rows=token_rows, min_shared=st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_every_row_can_be_read_back_from_the_forest(rows: list[list[int]], min_shared: int) -> None:
    batch = build_batch([Row(tuple(r), (0.0,) + (1.0,) * (len(r) - 1)) for r in rows], min_shared)
    forest = batch.forest
    # follow each prediction's source position up to the root: it must spell the row before the predicted token
    node_of = ancestry(forest)[0]
    sources = batch.hidden_H[batch.hidden_Q][batch.prediction_K]
    targets = batch.target_Q[batch.prediction_K]
    seen: dict[int, int] = {}
    for k in range(len(batch.row_K)):
        row, position = int(batch.row_K[k]), int(sources[k])
        path = forest.path(int(node_of[position]))
        spelled = [t for n in path for t in forest.ids_N[forest.starts[n] : forest.ends[n]].tolist()]
        spelled = spelled[: int(forest.positions_N[position]) + 1]
        index = seen.get(row, 0) + 1
        assert spelled == rows[row][:index]
        assert int(targets[k]) == rows[row][index]
        seen[row] = index
    assert all(seen.get(i, 0) == len(r) - 1 for i, r in enumerate(rows))


def test_ancestry_times_agree_with_paths() -> None:
    forest = build_batch(make_rows(5, 8), 1).forest
    enter, leave = ancestry(forest)
    node_of = enter.tolist()
    for a in range(len(node_of)):
        for b in range(0, len(node_of), 7):
            above = node_of[a] in forest.path(node_of[b])
            assert above == bool(enter[a] <= enter[b] and leave[b] <= leave[a])


def test_an_empty_row_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        build_batch([Row((), ())])


def decoder(**changes: Any) -> Any:
    """A tiny decoder of the family that `changes` names, with these settings."""
    import transformers

    family = changes.pop("family", "Llama")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    common: dict[str, Any] = {**sizes, **ids, "num_key_value_heads": 2, "vocab_size": 61}
    config = transformers.AutoConfig.for_model(family.lower(), **common, **changes)
    return transformers.AutoModelForCausalLM.from_config(config)


LONG_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}, "dynamic, longrope"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONG_FACTORS}}, "dynamic, longrope"),
        ({"attention_dropout": 0.1}, "dropout in its attention"),
        ({"family": "Gemma2", "head_dim": 8}, "soft-capped attention"),
        ({"family": "gpt_oss", "head_dim": 8, "num_local_experts": 2}, "attention sinks"),
    ],
    ids=["dynamic", "longrope", "dropout", "soft-cap", "sinks"],
)
def test_attention_that_forests_do_not_compute_is_refused_before_anything_runs(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=f"uses .*{message}"):
        require_forest(decoder(**changes))


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}])
def test_other_rotary_positions_are_taken(rope: dict[str, Any]) -> None:
    require_forest(decoder(rope_parameters={"rope_theta": 1e4, **rope}))


def test_kept_masks_are_bounded_in_bytes() -> None:
    device = torch.device("cpu")
    side = int(attention.PATH_MASK_BYTES**0.5) // 2  # four fit
    masks = [attention._path_mask(side, side, window, device) for window in range(1, 7)]
    kept = attention._PATH_MASKS
    assert sum(mask.nbytes for mask in kept.values()) <= attention.PATH_MASK_BYTES
    assert [window for _, _, window, _ in kept] == [3, 4, 5, 6], "the oldest go first"
    assert attention._path_mask(side, side, 6, device) is masks[-1]
    attention._path_mask(3 * side, 3 * side, None, device)
    assert not kept, "a mask that is too large by itself is not kept"


def test_the_values_of_rows_and_of_their_trained_tokens_come_along() -> None:
    prompt = tuple(range(20))
    rows = [
        Row((*prompt, 30, 31), (0.0,) * 20 + (1.0, 1.0), "a", {"liked": 1.0}, {"old": (9.0,) * 20 + (0.25, 0.5)}),
        Row((*prompt, 40), (0.0,) * 20 + (1.0,), "b", {"liked": 0.0}, {"old": (9.0,) * 20 + (0.75,)}),
    ]
    batch = build_batch(rows).behind((1, 2, 3)).to("cpu")
    assert batch.values_R["liked"].tolist() == [1.0, 0.0]
    assert batch.values_K["old"].tolist() == [0.25, 0.5, 0.75]
    assert batch.forest.ids_N[batch.last_R].tolist() == [31, 40]
    shorter = [row.first(21) for row in rows]
    assert build_batch(shorter).values_K["old"].tolist() == [0.25, 0.75]
    with pytest.raises(ValueError, match="values of different names"):
        build_batch([rows[0], Row((1, 2), (0.0, 1.0))])
    with pytest.raises(ValueError, match="2 ids but 1 old"):
        Row((1, 2), (0.0, 1.0), "", {}, {"old": (0.0,)})
