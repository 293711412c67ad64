"""Keys and values of the rows that are being written, and the attention that reads them.

What all prompts share is held and read once for the whole batch; what a row has of its own lies in its slot. The slots
of unfinished rows are always the first ones, so a finished row costs nothing, and a waiting row can take its place.
The attention is registered with transformers' `AttentionInterface` and finds its slots in the keyword argument `slots`.

    softmax([q Kp / sqrt(d), q Ko / sqrt(d)]) [Vp; Vo]        p: shared prefix, o: the row's own tokens

Shapes: B rows in slots, G query heads for each of C key-value heads, D head size, P prefix tokens, T own tokens,
N prompt tokens of one prefill. Splitting the prefix off is as in Hydragen (Juravsky et al. 2024, arXiv:2402.05099), but
with one softmax over both parts. Left out: paging.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.attention import attending, register
from luthier.models.kernels import attention as kernels

NAME = "luthier_decode"
GROW_TOKENS = 64
WASTE = 1.5
"""Slots are read whole, empty places included, as long as they are at most this much wider than the widest row."""


@dataclass
class _Layer:
    """One layer's memory: prefix (C, P, D) and slots (rows, C, capacity, D)."""

    prefix_keys: Tensor
    prefix_values: Tensor
    keys: Tensor
    values: Tensor
    packed: kernels.Prefix | None = None
    """The prefix again, for the kernels."""


@dataclass
class _Prefill:
    """Prompts laid end to end: prompt i is at starts[i]:ends[i] and goes to each slot in slots[i]."""

    starts: Sequence[int]
    ends: Sequence[int]
    slots: Sequence[Sequence[int]]


@dataclass
class _Step:
    """One new token a row: where it goes, and what each row may see, by sliding window."""

    rows: Tensor
    at: Tensor
    width: int
    prefix: int
    masks: dict[int | None, tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def mask(self, window: int | None) -> tuple[Tensor, Tensor | None]:
        """Additive float32 masks (B, 1, 1, T) for own tokens and (B, 1, 1, P) for the prefix (None: all seen)."""
        if window not in self.masks:
            columns = torch.arange(self.width, device=self.at.device)
            own = columns[None] <= self.at[:, None]
            prefix = None
            if window is not None:
                own &= columns[None] > self.at[:, None] - window
                positions = torch.arange(self.prefix, device=self.at.device)
                prefix = _additive(positions[None] > self.prefix + self.at[:, None] - window)
            self.masks[window] = (_additive(own), prefix)
        return self.masks[window]


def _additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None, None]


class Slots:
    """The rows in flight of one model: `prefill` puts prompts into slots, `step` adds a token to each, `drop` frees.

    Every call runs the model in evaluation mode and leaves its settings as they were, so the model can be trained or
    scored between calls.
    """

    def __init__(self, model: nn.Module, device: torch.device, rows: int = 1, tokens: int = 1) -> None:
        """`rows` of `tokens` own tokens are expected; more are taken, at the price of a copy."""
        self.model: Any = model
        self.device = device
        self.expected = rows, tokens
        self._most = rows * _round_up(tokens)
        self.lengths: list[int] = []
        """Own tokens of the row in each slot."""
        self.prefix_tokens = 0
        self._layers: dict[int, _Layer] = {}
        self._call: _Prefill | _Step | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @torch.inference_mode()
    def set_prefix(self, ids: Sequence[int]) -> None:
        """Compute what all prompts begin with; before the first `prefill`, and only once."""
        if self.lengths or self._layers:
            raise ValueError("the prefix is set once, before any prompt")
        if ids:
            self._run(ids, list(range(len(ids))), _Prefill([0], [len(ids)], []), keep=1)
            self.prefix_tokens = len(ids)

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Tensor:
        """Put each prompt, without the prefix, into as many new slots as `copies` says.

        Returns:
            (B', V) logits after the last token, a row for each new slot, in order.
        """
        starts, ends, slots = [], [], []
        ids: list[int] = []
        positions: list[int] = []
        for prompt, count in zip(prompts, copies, strict=True):
            starts.append(len(ids))
            ids.extend(prompt)
            ends.append(len(ids))
            positions.extend(range(self.prefix_tokens, self.prefix_tokens + len(prompt)))
            slots.append(range(len(self.lengths), len(self.lengths) + count))
            self.lengths.extend([len(prompt)] * count)
        self._reserve(len(self.lengths), max(self.lengths))
        last = torch.tensor([end - 1 for end in ends], device=self.device)
        logits_MV = self._run(ids, positions, _Prefill(starts, ends, slots), keep=last)
        return logits_MV[0].repeat_interleave(torch.tensor(copies, device=self.device), dim=0)

    @torch.inference_mode()
    def insert(self, row: Sequence[tuple[Tensor, Tensor]], copies: int = 1) -> None:
        """Put a row that was computed elsewhere, prefix included, into new slots; not together with `set_prefix`.

        Args:
            row: (C, T, D) keys and values of each layer.
            copies: how many slots get it.
        """
        if self.prefix_tokens:
            raise ValueError("a row that holds its whole prompt cannot follow a shared prefix")
        first, length = len(self.lengths), row[0][0].shape[1]
        self.lengths.extend([length] * copies)
        self._reserve(len(self.lengths), max(self.lengths))
        for index, (keys, values) in enumerate(row):
            layer = self._layer(index, keys[None])
            layer.keys[first:, :, :length][:copies] = keys
            layer.values[first:, :, :length][:copies] = values

    @torch.inference_mode()
    def step(self, tokens_B: Tensor) -> Tensor:
        """Add one token to each row; returns the (B, V) logits after it."""
        at = torch.tensor(self.lengths, device=self.device)
        width = max(self.lengths) + 1
        self._reserve(len(self.lengths), width)
        held = next(iter(self._layers.values())).keys.shape[2]
        if held <= WASTE * width:  # products of slices take up to four times as long as those of whole tensors
            width = held
        rows = torch.arange(len(self.lengths), device=self.device)
        call = _Step(rows, at, width, self.prefix_tokens)
        logits = self._forward(tokens_B[:, None], (at + self.prefix_tokens)[:, None], call, keep=1)
        self.lengths = [length + 1 for length in self.lengths]
        return logits[:, 0]

    @torch.inference_mode()
    def drop(self, slots: Sequence[int]) -> list[int]:
        """Free slots. The last rows move into the holes.

        Returns:
            For each slot that is left, the slot that its row was in before.
        """
        order = list(range(len(self.lengths)))
        for hole in sorted(slots, reverse=True):
            order[hole] = order[-1]
            order.pop()
        for slot, source in enumerate(order):
            if slot != source:
                length = self.lengths[source]
                for layer in self._layers.values():
                    layer.keys[slot, :, :length] = layer.keys[source, :, :length]
                    layer.values[slot, :, :length] = layer.values[source, :, :length]
        self.lengths = [self.lengths[source] for source in order]
        return order

    def _run(self, ids: Sequence[int], positions: Sequence[int], call: _Prefill, keep: Any) -> Tensor:
        ids_1N = torch.tensor([list(ids)], device=self.device)
        return self._forward(ids_1N, torch.tensor([list(positions)], device=self.device), call, keep)

    def _forward(self, ids: Tensor, positions: Tensor, call: _Prefill | _Step, keep: Any) -> Tensor:
        self._call = call
        try:
            with attending(self.model, NAME), evaluating(self.model):
                out = self.model(
                    input_ids=ids, position_ids=positions, slots=self, logits_to_keep=keep, use_cache=False
                )
        finally:
            self._call = None
        logits: Tensor = out.logits
        return logits

    def _reserve(self, rows: int, tokens: int) -> None:
        """Make room; memory grows in steps, because few rows need the longest answer that they may have.

        What is not needed any more is kept as long as no more is held than was needed at once at some time: otherwise
        one wide row would make all later ones as wide.
        """
        tokens = _round_up(tokens)
        self._most = max(self._most, rows * tokens)
        for layer in self._layers.values():
            held = layer.keys.shape
            if rows <= held[0] and tokens <= held[2]:
                continue
            roomy = max(rows, held[0]), max(tokens, held[2])
            count, width = roomy if roomy[0] * roomy[1] <= self._most else (rows, tokens)
            shape = (count, held[1], width, held[3])
            layer.keys, layer.values = _grown(layer.keys, shape), _grown(layer.values, shape)

    def _layer(self, index: int, key: Tensor) -> _Layer:
        if index not in self._layers:
            heads, size = key.shape[1], key.shape[3]
            rows = max(len(self.lengths), self.expected[0])
            tokens = _round_up(max(*self.lengths, *self.expected[1:], 0))
            prefix, slots = (heads, 0, size), (rows, heads, tokens, size)
            self._layers[index] = _Layer(
                key.new_zeros(prefix), key.new_zeros(prefix), key.new_zeros(slots), key.new_zeros(slots)
            )
        return self._layers[index]

    def attend(self, index: int, query: Tensor, key: Tensor, value: Tensor, rule: tuple[float, int | None]) -> Tensor:
        """The attention of layer `index`; `rule` is its scale and sliding window. For the attention function only."""
        query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast rotary positions leave them wide
        layer, call = self._layer(index, key), self._call
        if isinstance(call, _Step):
            return _attend_step(layer, call, query, key, value, rule)
        if call is None:
            raise ModelError("a model set to decoding attention was called from outside; use generate or stream")
        return _attend_prompts(layer, call, query, key, value, rule)

    def attend_heads(self, index: int, heads: tuple[Tensor, Tensor, Tensor], scale: float) -> Tensor:
        """As `attend`, with kernels: (N, heads, size) rotated queries and keys, and values; for the layer only."""
        q, k, v = heads
        heads = q.to(v.dtype), k.to(v.dtype), v
        layer, call = self._layer(index, heads[1].transpose(0, 1)[None]), self._call
        if isinstance(call, _Step):
            if layer.packed is None:
                layer.packed = kernels.pack_prefix(layer.prefix_keys, layer.prefix_values)
            return kernels.decode(heads, (layer.keys, layer.values), layer.packed, call.at, scale)
        if call is None:
            raise ModelError("a model set to decoding attention was called from outside; use generate or stream")
        return _attend_prompts_together(layer, call, heads, scale)


def _round_up(tokens: int) -> int:
    return -(-tokens // GROW_TOKENS) * GROW_TOKENS


def _grown(held: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    grown = held.new_zeros(shape)  # zeros, not empty: a masked NaN would still poison a product
    rows, tokens = min(held.shape[0], shape[0]), min(held.shape[2], shape[2])
    grown[:rows, :, :tokens] = held[:rows, :, :tokens]
    return grown


def _attend_prompts(
    layer: _Layer, call: _Prefill, query: Tensor, key: Tensor, value: Tensor, rule: tuple[float, int | None]
) -> Tensor:
    """(1, C*G, N, D): each prompt sees the prefix and, causally, itself; its keys and values go into its slots."""
    if not call.slots:  # this is the prefix itself
        layer.prefix_keys, layer.prefix_values = key[0].clone(), value[0].clone()
        return _prompt_attention(query, key, value, rule)
    _put(layer, call, key[0], value[0])
    outputs = []
    prefix_keys, prefix_values = layer.prefix_keys[None], layer.prefix_values[None]
    for start, end in zip(call.starts, call.ends, strict=True):
        k, v = key[:, :, start:end], value[:, :, start:end]
        if prefix_keys.shape[2]:
            k, v = torch.cat([prefix_keys, k], dim=2), torch.cat([prefix_values, v], dim=2)
        outputs.append(_prompt_attention(query[:, :, start:end], k, v, rule))
    return torch.cat(outputs, dim=2)


def _put(layer: _Layer, call: _Prefill, keys_CND: Tensor, values_CND: Tensor) -> None:
    for start, end, slots in zip(call.starts, call.ends, call.slots, strict=True):
        for slot in slots:
            layer.keys[slot, :, : end - start] = keys_CND[:, start:end]
            layer.values[slot, :, : end - start] = values_CND[:, start:end]


def _attend_prompts_together(
    layer: _Layer, call: _Prefill, heads: tuple[Tensor, Tensor, Tensor], scale: float
) -> Tensor:
    """As `_attend_prompts`, in one call: the prompts are a forest, whose root is the prefix if there is one."""
    q, k, v = heads
    keys_CND, values_CND = k.transpose(0, 1), v.transpose(0, 1)
    if not call.slots:  # this is the prefix itself
        layer.prefix_keys, layer.prefix_values = keys_CND.contiguous(), values_CND.contiguous()
        return kernels.attend(q, k, v, (call.starts, call.ends, [-1]), scale)
    _put(layer, call, keys_CND, values_CND)
    before = layer.prefix_keys.shape[1]
    if not before:
        return kernels.attend(q, k, v, (call.starts, call.ends, [-1] * len(call.starts)), scale)
    starts, ends = [before + start for start in call.starts], [before + end for end in call.ends]
    k = torch.cat([layer.prefix_keys.transpose(0, 1), k])
    v = torch.cat([layer.prefix_values.transpose(0, 1), v])
    spans = ([0, *starts], [before, *ends], [-1] + [0] * len(starts))
    return kernels.attend(q, k, v, spans, scale, first_node=1)


def _prompt_attention(query: Tensor, key: Tensor, value: Tensor, rule: tuple[float, int | None]) -> Tensor:
    scale, window = rule
    groups, queries, keys = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if queries == keys and (window is None or window >= keys):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    position = torch.arange(keys - queries, keys, device=query.device)[:, None]
    other = torch.arange(keys, device=query.device)[None]
    seen = other <= position if window is None else (other <= position) & (other > position - window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale)


def _attend_step(
    layer: _Layer, call: _Step, query: Tensor, key: Tensor, value: Tensor, rule: tuple[float, int | None]
) -> Tensor:
    """(B, C*G, 1, D); own keys and those of the shared prefix under one softmax."""
    rows, heads, size = key.shape[0], key.shape[1], key.shape[3]
    groups = query.shape[1] // heads
    layer.keys[call.rows, :, call.at] = key[:, :, 0]
    layer.values[call.rows, :, call.at] = value[:, :, 0]
    keys, values = layer.keys[:rows, :, : call.width], layer.values[:rows, :, : call.width]
    query = query.view(rows, heads, groups, size) * rule[0]
    own_mask, prefix_mask = call.mask(rule[1])
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ keys.transpose(-1, -2)).to(wide) + own_mask
    prefix = layer.prefix_keys.shape[1]
    if not prefix:
        return (scores.softmax(-1).to(values.dtype) @ values).reshape(rows, heads * groups, 1, size)
    together = query.transpose(0, 1).reshape(heads, rows * groups, size)
    shared = (together @ layer.prefix_keys.transpose(-1, -2)).view(heads, rows, groups, prefix).transpose(0, 1).to(wide)
    if prefix_mask is not None:
        shared = shared + prefix_mask
    weights = torch.cat([shared, scores], dim=-1).softmax(-1).to(values.dtype)
    over_prefix = weights[..., :prefix].transpose(0, 1).reshape(heads, rows * groups, prefix) @ layer.prefix_values
    out = over_prefix.view(heads, rows, groups, size).transpose(0, 1) + weights[..., prefix:] @ values
    return out.reshape(rows, heads * groups, 1, size)


def decode_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention of one layer; returns ((rows, tokens, heads, head size), None) as transformers expects.

    Raises:
        ModelError: the layer asks for something that is not computed here (soft-capping, sinks).
    """
    slots: Slots | None = kwargs.get("slots")
    if slots is None:
        raise ModelError("a model set to decoding attention was called without `slots=`; use generate or stream")
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ModelError("this model's attention uses soft-capping or sinks, which generation does not compute")
    layer: Any = module
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    out = slots.attend(layer.layer_idx, query, key, value, (scale, kwargs.get("sliding_window")))
    return out.transpose(1, 2), None


def computed_in(model: Any) -> torch.dtype | None:
    """The type that a model's products are computed in, where only some of its weights were widened; else None.

    Whoever widens them says so by the model's attribute `computed_in`.
    """
    narrow: torch.dtype | None = vars(model).get("computed_in")
    # once all are widened, as for an export, it computes in that type
    return narrow if narrow is not None and any(p.dtype == narrow for p in model.parameters()) else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) while open; afterwards every module is in the mode it was in.

    A model of which some weights were widened to train computes as it was trained, in the type of the others.
    """
    training = [module for module in model.modules() if module.training] if model.training else []
    for module in training:
        module.training = False
    narrow = computed_in(model)
    try:
        with nullcontext() if narrow is None else torch.autocast(next(model.parameters()).device.type, narrow):
            yield
    finally:
        for module in training:
            module.training = True


register(NAME, decode_attention)
