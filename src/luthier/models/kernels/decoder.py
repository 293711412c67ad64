"""Decoder layers of the Llama kind, put together from the kernels of this folder.

transformers' own layers are kept: a layer computes as below only when the scorer or the generator calls it (`forest=`
or `slots=` is there) and the kernels serve its tensors; any other call runs the library's code. That other call is what
the gates compare with, on the run's own model and rows, before every training.
"""

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from luthier.models.forest import Forest
from luthier.models.kernels import native, proof
from luthier.models.kernels.attention import BLOCK, rotary_attention, rotate
from luthier.models.kernels.norm import add_rms_norm, rms_norm
from luthier.models.kernels.recompute import Recomputed, recomputed
from luthier.models.kernels.swiglu import swiglu
from luthier.models.quantize.base import QuantizedLinear
from luthier.models.token_rows import HeadWithRows

# layers whose whole arithmetic is norm, attention, norm, gated feed-forward; Qwen 3 norms each head's q and k, too
LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})
# models whose logits are hidden states times the head's weight, and nothing else
HEADS = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})


def has_plain_head(model: Any) -> bool:
    """Whether `head_scores` computes what the model's head does."""
    if type(model).__name__ not in HEADS:
        return False
    head = model.get_output_embeddings()
    return (type(head) is nn.Linear or isinstance(head, QuantizedLinear | HeadWithRows)) and head.bias is None


def install(model: nn.Module) -> int:
    """Let every layer that is known here compute with the kernels; returns how many there are."""
    layers = _known(model)
    if layers:
        proof.require()
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def computes(model: Any) -> bool:
    """Whether all layers of the model and its head compute with kernels when the engine scores a batch."""
    weight, layers = next(p for p in model.parameters() if p.is_floating_point()), _known(model)
    whole = len(layers) == model.config.get_text_config().num_hidden_layers
    return has_plain_head(model) and whole and all(_can(layer.self_attn, weight) for layer in layers)


def _known(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if type(m).__name__ in LAYERS and _is_gated_silu(m)]


def _is_gated_silu(layer: Any) -> bool:
    return isinstance(layer.mlp.act_fn, nn.SiLU) or type(layer.mlp.act_fn).__name__ == "SiLUActivation"


def _forward(layer: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    forest, slots, rotary = (kwargs.get(name) for name in ("forest", "slots", "position_embeddings"))
    if args or rotary is None or (forest is None and slots is None) or not _can(layer.self_attn, hidden_states):
        out: Tensor = type(layer).forward(layer, hidden_states, *args, **kwargs)
        return out
    hidden_states = hidden_states.to(_computed_in(hidden_states))
    attend = partial(_over_slots, slots) if forest is None else partial(_over_forest, forest)
    if layer.gradient_checkpointing and layer.training:  # the library wraps this around its own code
        again: Tensor = layer._gradient_checkpointing_func(
            partial(_compute, layer, rotary, attend, Recomputed()), hidden_states
        )
        return again
    with recomputed() as known:
        return _compute(layer, rotary, attend, known, hidden_states)


Rotary: TypeAlias = tuple[Tensor, Tensor]
Attend: TypeAlias = Callable[[Any, tuple[Tensor, Tensor, Tensor], Rotary], Tensor]


def _compute(layer: Any, rotary: Rotary, attend: Attend, known: Recomputed, hidden_states: Tensor) -> Tensor:
    """The layer over (N, width) tokens, whatever batch they come from: (1, N) over a forest, (B, 1) while writing."""
    attention = layer.self_attn
    x: Tensor = hidden_states.view(-1, hidden_states.shape[-1])
    cos, sin = (turn.reshape(-1, turn.shape[-1]) for turn in rotary)
    first, second = (
        (norm.weight, norm.variance_epsilon) for norm in (layer.input_layernorm, layer.post_attention_layernorm)
    )
    h: Tensor = known.note(rms_norm(x, *first), rms_norm, x, *first)
    h = attention.o_proj(attend(attention, _heads(attention, h), (cos, sin)).view(len(x), -1))
    x, h = add_rms_norm(x, h, *second)
    known.note(h, rms_norm, x, *second)
    gate, up = layer.mlp.gate_proj(h), layer.mlp.up_proj(h)
    h = layer.mlp.down_proj(known.note(swiglu(gate, up), swiglu, gate, up))
    return (x + h).view(hidden_states.shape)


def _heads(attention: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, heads, size) queries, keys and values."""
    size = attention.head_dim
    q, k, v = (layer(h).view(len(h), -1, size) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    if "q_norm" in dict(attention.named_children()):
        q, k = (_per_head(norm, x) for norm, x in ((attention.q_norm, q), (attention.k_norm, k)))
    return q, k, v


def _over_forest(forest: Forest, attention: Any, heads: tuple[Tensor, Tensor, Tensor], rotary: Rotary) -> Tensor:
    return rotary_attention(*heads, rotary, forest, attention.scaling)


def _over_slots(slots: Any, attention: Any, heads: tuple[Tensor, Tensor, Tensor], rotary: Rotary) -> Tensor:
    q, k, v = heads
    cos, sin = rotary
    out: Tensor = slots.attend_heads(
        attention.layer_idx, (rotate(q, cos, sin), rotate(k, cos, sin), v), attention.scaling
    )
    return out


def _computed_in(x: Tensor) -> torch.dtype:
    """The type of x, or of autocast where it is on: what lies between two products need not be wider than they are."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _can(attention: Any, x: Tensor) -> bool:
    return (
        native.serves(x)
        and _computed_in(x) in native.SUFFIXES
        and vars(attention).get("sliding_window") is None
        and attention.head_dim % BLOCK == 0
    )


def _per_head(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x.reshape(-1, x.shape[-1]), norm.weight, norm.variance_epsilon).view(x.shape)
