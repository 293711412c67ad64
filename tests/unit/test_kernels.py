"""Every kernel against its plain reference, values and gradients; and what happens where none can be compiled."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.adapters._low_rank import LoRALinear
from luthier.examples import Row
from luthier.models.forest import Forest, build_batch
from luthier.models.kernels import attention, head, low_rank, native, norm, proof, recompute, swiglu
from luthier.models.scorer import Scorer, forest_mode

needs_native = pytest.mark.skipif(native.library() is None, reason=f"no kernels: {native.trouble()}")
LIMIT = {torch.float32: 5e-6, torch.bfloat16: 1e-2}
"""Largest difference to the reference in float64, as a share of its largest number."""


def draw(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_gradients(function: Callable[..., Any], inputs: list[Tensor], seed: int = 99) -> list[Tensor]:
    """The outputs, and the gradients of every input under a fixed random direction."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    outs = list(out) if isinstance(out, tuple) else [out]
    directions = [draw(*o.shape, seed=seed + i, dtype=torch.float32).to(o.dtype) for i, o in enumerate(outs)]
    return [o.detach() for o in outs] + list(torch.autograd.grad(outs, leaves, directions))


def check(kernel: Callable[..., Any], plain: Callable[..., Any], inputs: list[Tensor]) -> None:
    """The kernel in the inputs' type is as near to the reference in float64 as the type allows."""
    found = with_gradients(kernel, inputs)
    wanted = with_gradients(plain, [x.double() for x in inputs])
    assert len(found) == len(wanted)
    for number, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape and bool(torch.isfinite(a).all()), number
        limit = LIMIT[inputs[0].dtype] * float(b.abs().max().clamp(min=1))
        assert float((a.double() - b).abs().max()) <= limit, number


both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@needs_native
@both_types
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (63, 64), (130, 576), (200, 33)])
def test_norm(dtype: torch.dtype, rows: int, width: int) -> None:
    x, delta, weight = (draw(*s, seed=i, dtype=dtype) for i, s in enumerate([(rows, width), (rows, width), (width,)]))
    check(lambda x, w: norm.rms_norm(x, w, 1e-5), lambda x, w: norm.rms_norm_plain(x, w, 1e-5), [x, weight])

    def plain(x: Tensor, delta: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return x + delta, norm.rms_norm_plain(x + delta, weight, 1e-5)

    check(lambda x, d, w: norm.add_rms_norm(x, d, w, 1e-5), plain, [x, delta, weight])


@needs_native
@both_types
def test_swiglu(dtype: torch.dtype) -> None:
    gate, up = (10 * draw(77, 129, seed=i, dtype=dtype) for i in (1, 2))
    check(swiglu.swiglu, swiglu.swiglu_plain, [gate, up])
    far = torch.tensor([[-200.0, 200.0, 0.0, -88.0]], dtype=dtype)
    assert torch.allclose(swiglu.swiglu(far, far), swiglu.swiglu_plain(far, far), rtol=1e-2, atol=1e-30)


@both_types
@pytest.mark.parametrize("bias", [False, True])
def test_low_rank_linear(dtype: torch.dtype, bias: bool) -> None:
    x, weight = draw(2, 19, 48, seed=1, dtype=dtype), draw(40, 48, seed=2, dtype=dtype)
    offset = draw(40, seed=5, dtype=dtype) if bias else None
    a, b = draw(8, 48, seed=3, dtype=torch.float32), draw(40, 8, seed=4, dtype=torch.float32)

    def plain(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        wide = None if offset is None else offset.double()
        return low_rank.low_rank_linear_plain(x, weight.double(), wide, a, b, 0.5)

    check(lambda x, a, b: low_rank.low_rank_linear(x, weight, offset, a, b, 0.5), plain, [x, a, b])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 1e-9])
def test_a_low_rank_update_smaller_than_the_grid_is_not_lost(bias: bool, dropout: float) -> None:
    """Of y = x W^T + u in bfloat16, u a tenth of y's grid, the mean moves by u; rounded twice it would stay."""
    base = torch.nn.Linear(64, 128, bias=bias, dtype=torch.bfloat16)
    layer = LoRALinear(
        base, 8, 1.0, dropout, draw(8, 64, seed=3, dtype=torch.float32) / 14, torch.zeros(128, 8)
    ).train()
    x = draw(500, 64, seed=1, dtype=torch.bfloat16)
    layer.b.data = draw(128, 8, seed=2, dtype=torch.float32) * 5e-4
    with torch.no_grad():
        wanted = ((x.double() @ layer.a.double().t()) @ layer.b.double().t()).bfloat16().double()
        moved = layer(x).double() - base(x).double()
    assert wanted.abs().mean() < base(x).abs().mean() * 2**-9
    assert (moved * wanted).sum() / (wanted * wanted).sum() == pytest.approx(1, abs=0.1)


@needs_native
@both_types
def test_head_logprobs(dtype: torch.dtype) -> None:
    hidden, weight = draw(5, 32, seed=1, dtype=dtype), draw(301, 32, seed=2, dtype=dtype)
    rows = torch.tensor([0, 0, 0, 1, 3, 4, 4])  # hidden state 2 predicts nothing
    targets = torch.tensor([0, 7, 300, 5, 5, 1, 299])
    check(
        lambda h, w: head.head_scores(h, w, rows, targets)[0],
        lambda h, w: head.head_scores_plain(h, w, rows, targets)[0],
        [hidden, weight],
    )


@needs_native
@both_types
@pytest.mark.parametrize("vocabulary", [5, 256, 700])
def test_the_first_of_the_largest_logits_is_the_choice(dtype: torch.dtype, vocabulary: int) -> None:
    """Few numbers, so that many are equal, as happens in bfloat16; the largest may stand at either end."""
    hidden = torch.eye(8, dtype=dtype)[[0, 1, 2, 3, 4, 5]]
    weight = torch.randint(-2, 3, (vocabulary, 8), generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0, 4], weight[-1, 5] = 9, 9
    rows = torch.arange(6).repeat_interleave(vocabulary)
    targets = torch.arange(vocabulary).repeat(6)
    _, right = head.head_scores(hidden, weight, rows, targets)
    assert torch.equal(right, head.head_scores_plain(hidden, weight, rows, targets)[1])
    assert right.view(6, vocabulary).nonzero().tolist() == [
        [row, column.index(max(column))] for row, column in enumerate(weight[:, :6].t().tolist())
    ]
    assert not head.head_scores(hidden * torch.nan, weight, rows, targets)[1].view(6, -1)[:, 1:].any()


def test_log_probabilities_alone_look_for_no_choice_where_that_is_a_pass_of_its_own() -> None:
    class Asked(TorchDispatchMode):
        choices = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.choices += func.overloadpacket is torch.ops.aten.argmax
            return func(*args, **(kwargs or {}))

    hidden, weight = (draw(*size, seed=1, dtype=torch.float64) for size in ((3, 16), (20, 16)))
    parts = hidden, weight, torch.tensor([0, 0, 2]), torch.tensor([1, 5, 19])
    assert not native.serves(hidden)
    with Asked() as alone:
        logprobs = head.head_logprobs(*parts)
    with Asked() as both:
        scores = head.head_scores(*parts)
    assert torch.equal(logprobs, scores[0]) and (alone.choices, both.choices) == (0, 1)


@needs_native
def test_head_logprobs_of_many_targets_at_one_place_and_a_second_backward_pass() -> None:
    hidden = draw(2, 16, seed=1, dtype=torch.float32).requires_grad_()
    weight = draw(64, 16, seed=2, dtype=torch.float32)
    rows, targets = torch.tensor([0] * 40 + [1]), torch.tensor([*range(40), 3])
    out, _ = head.head_scores(hidden, weight, rows, targets)
    (first,) = torch.autograd.grad(out.sum(), hidden, retain_graph=True)
    (second,) = torch.autograd.grad(out.sum(), hidden)
    (wanted,) = torch.autograd.grad(head.head_scores_plain(hidden, weight, rows, targets)[0].sum(), hidden)
    assert torch.equal(first, second) and torch.allclose(first, wanted, atol=1e-5)


SPANS = {
    "one token": ([1], [-1]),
    "one row": ([100], [-1]),
    "blocks end where rows do": ([64, 48, 128], [-1, -1, -1]),
    "two trees": ([70, 5, 130, 33, 200], [-1, 0, 0, 2, -1]),
}


def spans_of(name: str) -> tuple[list[int], list[int], list[int]]:
    lengths, parents = SPANS[name]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [end - length for end, length in zip(ends, lengths, strict=True)], ends, parents


def forest_of(name: str) -> Forest:
    starts, ends, parents = spans_of(name)
    ids = torch.zeros(ends[-1], dtype=torch.int64)
    return Forest(ids, ids, tuple(starts), tuple(ends), tuple(parents))


def attention_plain(q: Tensor, k: Tensor, v: Tensor, forest: Forest, scale: float) -> Tensor:
    """Node by node, in whatever type is given."""
    groups = q.shape[1] // k.shape[1]
    outputs = []
    for node, (start, end) in enumerate(zip(forest.starts, forest.ends, strict=True)):
        path = forest.path(node)
        keys, values = (
            torch.cat([x[forest.starts[p] : forest.ends[p]] for p in path]).repeat_interleave(groups, 1).transpose(0, 1)
            for x in (k, v)
        )
        seen = torch.ones(end - start, keys.shape[1], dtype=torch.bool).tril(keys.shape[1] - (end - start))
        query = q[start:end].transpose(0, 1)
        outputs.append(F.scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=scale).transpose(0, 1))
    return torch.cat(outputs)


@needs_native
@both_types
@pytest.mark.parametrize("name", SPANS)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(6, 2, 64), (2, 2, 128), (3, 1, 64)])
def test_rotary_attention(dtype: torch.dtype, name: str, heads: int, kv_heads: int, size: int) -> None:
    forest = forest_of(name)
    count = forest.ends[-1]
    q, k, v = (draw(count, h, size, seed=h + i, dtype=dtype) for i, h in enumerate((heads, kv_heads, kv_heads)))
    angles = draw(count, size // 2, seed=7, dtype=torch.float32).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (attention.rotate_plain(x, cos.double(), sin.double()) for x in (q, k))
        return attention_plain(q, k, v, forest, 0.2)

    check(lambda q, k, v: attention.rotary_attention(q, k, v, (cos, sin), forest, 0.2), plain, [q, k, v])


@needs_native
@both_types
def test_attention_keeps_trees_and_later_tokens_apart_to_the_last_bit(dtype: torch.dtype) -> None:
    starts, ends, _ = spans = spans_of("two trees")
    q, k, v = (draw(ends[-1], h, 64, seed=h, dtype=dtype) for h in (4, 2, 2))
    before = attention.attend(q, k, v, spans, 0.3)
    for x in (q, k, v):
        x[starts[4] :] = float("nan")  # the second tree
        x[ends[2] - 10 : ends[3]] = 1e4  # the end of a node, and the node below it
    after = attention.attend(q, k, v, spans, 0.3)
    assert torch.equal(before[: ends[2] - 10], after[: ends[2] - 10])


@needs_native
def test_attention_of_some_nodes_is_that_of_all() -> None:
    starts, ends, _ = spans = spans_of("two trees")
    q, k, v = (draw(ends[-1], h, 64, seed=h, dtype=torch.float32) for h in (4, 2, 2))
    whole = attention.attend(q, k, v, spans, 0.3)
    assert torch.equal(attention.attend(q[starts[1] :], k, v, spans, 0.3, first_node=1), whole[starts[1] :])


@needs_native
@both_types
@pytest.mark.parametrize("shared", [0, 70])
def test_decoding_attends_to_the_prefix_and_the_rows_own_tokens(dtype: torch.dtype, shared: int) -> None:
    lengths, room, size = torch.tensor([0, 5, 63, 64, 130]), 150, 64
    q, k, v = (draw(5, h, size, seed=h, dtype=dtype) for h in (6, 2, 2))
    held = [draw(7, 2, room, size, seed=20 + i, dtype=dtype) for i in range(2)]
    prefix = [draw(2, shared, size, seed=30 + i, dtype=dtype) for i in range(2)]
    before = [x.clone() for x in held]
    out = attention.decode((q, k, v), (held[0], held[1]), attention.pack_prefix(*prefix), lengths, 0.2)
    for row, length in enumerate(lengths.tolist()):
        for kept, old, new in zip(held, before, (k, v), strict=True):
            assert torch.equal(kept[row, :, length], new[row])
            old[row, :, length] = new[row]
        keys, values = (torch.cat([p, x[row, :, : length + 1]], dim=1) for p, x in zip(prefix, before, strict=True))
        keys, values = (x.double().repeat_interleave(3, 0) for x in (keys, values))
        wanted = F.scaled_dot_product_attention(q[row][:, None].double(), keys, values, scale=0.2)[:, 0]
        assert torch.allclose(out[row].double(), wanted, atol=LIMIT[dtype])
    assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True)), "nothing else was written"


@needs_native
def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    forest, threads = forest_of("two trees"), torch.get_num_threads()
    q, k, v = (draw(forest.ends[-1], h, 64, seed=h, dtype=torch.bfloat16) for h in (6, 2, 2))
    cos = torch.ones(forest.ends[-1], 64, dtype=torch.bfloat16)
    x, weight = draw(700, 96, seed=1, dtype=torch.bfloat16), draw(96, seed=2, dtype=torch.bfloat16)
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            attended = with_gradients(
                lambda q, k, v: attention.rotary_attention(q, k, v, (cos, cos), forest, 0.2), [q, k, v]
            )
            found.append([*attended, *with_gradients(lambda x, w: norm.rms_norm(x, w, 1e-5), [x, weight])])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@needs_native
def test_a_wrong_kernel_switches_all_of_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proof.wrong() == ""
    rotate, double = attention._rotate, swiglu._SwiGLU.backward
    monkeypatch.setattr(native, "_refused", [])
    with monkeypatch.context() as patch:  # one wrong value, and one wrong gradient
        patch.setattr(attention, "_rotate", lambda x, *rest, **more: rotate(x, *rest, **more) * 1.1)
        assert proof.wrong() == "attention in float32"
    with monkeypatch.context() as patch:
        patch.setattr(swiglu._SwiGLU, "backward", staticmethod(lambda ctx, d: tuple(1.1 * g for g in double(ctx, d))))
        assert proof.wrong() == "gated middle in float32"
        proof.require.cache_clear()
        proof.require()
    proof.require.cache_clear()
    assert native.library() is None and not native.serves(torch.ones(1)) and native.identity() == "plain"
    assert native.trouble().startswith("the compiled gated middle in float32 computes something else")


def _llama(kernels: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier.models.kernels.decoder import install

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 50}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))
    if kernels:
        assert install(model) == 3
    return model


PROBE = """
from luthier.models.kernels import native
print(native.library() is None, native.trouble())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LUTHIER_NATIVE", "0", "switched off by LUTHIER_NATIVE=0"),
        ("CC", "no-such-compiler", "no-such-compiler"),
        ("CC", "false", "false failed: no message"),
        pytest.param("LUTHIER_CACHE", "/proc/no", "could not be kept", marks=needs_native),
    ],
)
def test_without_a_compiler_everything_goes_on_and_says_why(name: str, value: str, said: str, tmp_path: Path) -> None:
    inherited = {key: given for key, given in os.environ.items() if key != "LUTHIER_NATIVE"}
    environment = {**inherited, "LUTHIER_CACHE": str(tmp_path), name: value}
    command = [sys.executable, "-c", PROBE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("True ") and said in done.stdout, done.stdout + done.stderr


@needs_native
def test_layers_under_autocast_are_as_near_to_float32_as_the_library_s_own() -> None:
    """Full fine-tuning: weights and gradients in float32, products and all between them in bfloat16."""
    batch = build_batch([Row(tuple(range(1, 41)), (0.0,) * 20 + (1.0,) * 20)])

    def computed(kernels: bool, autocast: torch.dtype | None) -> tuple[Tensor, Tensor]:
        model = _llama(kernels)
        with forest_mode(model):
            logprobs = Scorer(model, autocast).token_logprobs(batch)
            gradients = torch.autograd.grad(logprobs.sum(), list(model.parameters()))
        assert {g.dtype for g in gradients} == {torch.float32}
        return logprobs.detach(), torch.cat([g.double().flatten() for g in gradients])

    wanted, wanted_gradient = computed(False, None)

    def distance(kernels: bool) -> tuple[float, float]:
        found, gradient = computed(kernels, torch.bfloat16)
        return float((found - wanted).abs().max()), 1 - float(F.cosine_similarity(gradient, wanted_gradient, dim=0))

    (near, turned), (plain_near, plain_turned) = distance(True), distance(False)
    assert 0 < near <= 3 * plain_near and 0 < turned <= 3 * plain_turned


def _kept_and_gradients(model: Any) -> tuple[int, list[Tensor]]:
    """Bytes that the graph of a loss holds, and what comes of it."""
    batch = build_batch([Row(tuple(range(40)), (0.0,) * 20 + (1.0,) * 20)])
    model.train()
    with forest_mode(model):
        with torch.profiler.profile(profile_memory=True) as seen:
            loss = -Scorer(model).token_logprobs(batch).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        again = torch.autograd.grad(loss, list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    return sum(event.self_cpu_memory_usage for event in seen.key_averages()), list(gradients)


@needs_native
def test_checkpointing_keeps_a_layer_s_input_and_nothing_of_its_inside() -> None:
    """transformers wraps checkpointing around its own code of a layer; the layer's kernels need it, too."""
    model = _llama(kernels=True)
    whole, wanted = _kept_and_gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    little, found = _kept_and_gradients(model)
    assert little < whole / 3
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@needs_native
def test_what_is_made_again_is_not_kept_and_changes_no_bit() -> None:
    x, scale = draw(40, 64, seed=1, dtype=torch.float32), draw(64, seed=2, dtype=torch.float32)
    gate, up = (draw(128, 64, seed=i, dtype=torch.float32) for i in (3, 4))
    down = draw(64, 128, seed=5, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (x, scale, gate, up, down)]

    def kept_and_gradients(context: AbstractContextManager[recompute.Recomputed]) -> tuple[int, list[Tensor]]:
        with torch.profiler.profile(profile_memory=True) as seen, context as known:
            h = known.note(norm.rms_norm(x, scale, 1e-5), norm.rms_norm, x, scale, 1e-5)
            a, b = h @ gate.t(), h @ up.t()
            out = (known.note(swiglu.swiglu(a, b), swiglu.swiglu, a, b) @ down.t()).sum()
            del h, a, b
        bytes_held = sum(event.self_cpu_memory_usage for event in seen.key_averages())
        first = torch.autograd.grad(out, leaves, retain_graph=True)
        assert all(map(torch.equal, first, torch.autograd.grad(out, leaves)))
        return bytes_held, list(first)

    little, found = kept_and_gradients(recompute.recomputed())
    whole, wanted = kept_and_gradients(nullcontext(recompute.Recomputed()))
    assert whole - little == 40 * (64 + 128) * 4, "the norm and the middle"
    assert all(map(torch.equal, found, wanted))
