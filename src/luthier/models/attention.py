"""Attention over a forest, given to any transformers decoder through its `AttentionInterface`.

A token sees the tokens of its own node up to itself and all tokens of the nodes above. On CPU each node is one call
of scaled dot product attention over the keys of its path. On CUDA it is flash attention, one call for each level of
the trees (`levels_for`); where that does not serve (float32, a sliding window shorter than a row) the whole forest is
one FlexAttention call whose mask tests ancestry with the entry and exit times of a depth-first walk. Model code is
neither forked nor patched: `model(ids, position_ids=..., forest=forest, levels=levels)` reaches `forest_attention` as
keyword arguments.

Shapes: (1, heads, N, head size) queries; keys and values may have fewer heads (grouped queries).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from luthier.errors import ModelError
from luthier.models.forest import Forest
from luthier.models.kernels.levels import Levels, last_descendants, level_attention, levels_of, serves

NAME = "luthier_forest"


def forest_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer; returns ((1, N, heads, head size), None) as transformers expects.

    Raises:
        ModelError: the layer asks for something that is not computed here (soft-capping, sinks, attention dropout).
    """
    forest: Forest | None = kwargs.get("forest")
    levels: Levels | None = kwargs.get("levels")
    if forest is None and levels is None:
        raise ModelError("a model set to forest attention was called without `forest=`; use Scorer")
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None or kwargs.get("dropout"):
        raise ModelError("this model's attention uses soft-capping, sinks or dropout, which forests do not compute")
    scale, window = kwargs.get("scaling"), kwargs.get("sliding_window")
    if levels is not None:
        return _by_levels(query, key, value, levels, scale), None
    assert forest is not None
    if query.device.type == "cuda":
        out = _flex(query, key, value, forest, scale, window)
    else:
        out = _node_by_node(query, key, value, forest, scale, window)
    return out.transpose(1, 2), None


def levels_for(config: Any, forest: Forest, dtype: torch.dtype) -> Levels | None:
    """The calls of flash attention for this forest, or None where a model of this configuration needs another way."""
    device = forest.ids_N.device
    said = vars(config)
    size = said.get("head_dim") or config.hidden_size // config.num_attention_heads
    if not serves(device, dtype, size) or "v_head_dim" in said:
        return None
    window = said.get("sliding_window")
    if window is not None and window <= int(forest.positions_N.max()):
        return None
    return levels_of(forest.starts, forest.ends, forest.parents, device)


def _by_levels(query: Tensor, key: Tensor, value: Tensor, levels: Levels, scale: float | None) -> Tensor:
    """(1, N, heads, head size)"""
    device = query.device.type
    # under autocast rotary positions leave queries and keys wide
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    return level_attention(q, k, v, levels, scale or query.shape[-1] ** -0.5)[None]


def _node_by_node(
    query: Tensor, key: Tensor, value: Tensor, forest: Forest, scale: float | None, window: int | None
) -> Tensor:
    """(1, heads, N, head size), one call for each node."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    # split, not slices: the backward pass of a slice fills and adds a tensor as large as the whole
    lengths = [end - start for start, end in zip(forest.starts, forest.ends, strict=True)]
    spans = [x.split(lengths, dim=2) for x in (query, key, value)]
    outputs = []
    for node, q in enumerate(spans[0]):
        path = forest.path(node)
        k, v = (x[node] if len(path) == 1 else torch.cat([x[n] for n in path], dim=2) for x in spans[1:])
        depth = k.shape[2]
        if len(path) == 1 and (window is None or window >= depth):
            outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale))
        else:
            mask = _path_mask(lengths[node], depth, window, q.device)
            outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))
    return torch.cat(outputs, dim=2)


_MaskKey: TypeAlias = tuple[int, int, int | None, torch.device]
_PATH_MASKS: dict[_MaskKey, Tensor] = {}  # oldest first; they serve the layers of one step
PATH_MASK_BYTES = 64 * 2**20
"""Most bytes that the kept masks take together; a mask of a long row is megabytes."""


def _path_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) bool: the last `queries` positions of a path of `keys` tokens, causal, within the window."""
    key = (queries, keys, window, device)
    mask = _PATH_MASKS.get(key)
    if mask is None:
        mask = _make_path_mask(*key)
        _PATH_MASKS[key] = mask
        while sum(held.nbytes for held in _PATH_MASKS.values()) > PATH_MASK_BYTES:
            del _PATH_MASKS[next(iter(_PATH_MASKS))]
    return mask


def _make_path_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    position = torch.arange(keys - queries, keys, device=device)[:, None]
    other = torch.arange(keys, device=device)[None, :]
    allowed = other <= position
    return allowed if window is None else allowed & (other > position - window)


def _flex(query: Tensor, key: Tensor, value: Tensor, forest: Forest, scale: float | None, window: int | None) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    block_mask = _block_mask(forest, window, str(query.device))
    out: Tensor = _compiled_flex(flex_attention)(query, key, value, block_mask=block_mask, scale=scale, enable_gqa=True)
    return out


@lru_cache(maxsize=1)
def _compiled_flex(flex_attention: Any) -> Any:
    return torch.compile(flex_attention, dynamic=True)


_MASKS: dict[int | None, tuple[Forest, Any]] = {}  # one mask a window, for the forest that was used last


def _block_mask(forest: Forest, window: int | None, device: str) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    held = _MASKS.get(window)
    if held is not None and held[0] is forest:
        return held[1]
    enter_N, leave_N = (t.to(device) for t in ancestry(forest))
    positions_N = forest.positions_N.to(device)

    def visible(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        above = (enter_N[k] <= enter_N[q]) & (leave_N[q] <= leave_N[k]) & (positions_N[k] <= positions_N[q])
        return above if window is None else above & (positions_N[k] > positions_N[q] - window)

    count = len(forest.ids_N)
    mask = create_block_mask(visible, B=None, H=None, Q_LEN=count, KV_LEN=count, device=device)
    _MASKS[window] = (forest, mask)
    return mask


def ancestry(forest: Forest) -> tuple[Tensor, Tensor]:
    """(N,) entry and exit time of each token's node: a is above or equal to b iff a enters first and leaves last."""
    count, last = len(forest.starts), last_descendants(forest.parents)
    lengths = torch.tensor([e - s for s, e in zip(forest.starts, forest.ends, strict=True)])
    return torch.arange(count).repeat_interleave(lengths), torch.tensor(last).repeat_interleave(lengths)


@contextmanager
def attending(model: Any, name: str) -> Iterator[None]:
    """Let the model use the attention registered as `name` while open; afterwards the one it had."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def register(name: str, function: Callable[..., tuple[Tensor, None]]) -> None:
    """Make an attention that finds what it needs in a keyword argument known to transformers; it is given no mask."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, _no_mask)


def _no_mask(*_args: Any, **_kwargs: Any) -> None:
    return None


register(NAME, forest_attention)
