"""Decoder layers of the Llama kind over a forest, put together from the kernels of this folder.

transformers' own layers are kept: a layer computes as below only when the scorer calls it (`forest=` is there) and the
kernels serve its tensors; any other call runs the library's code. That other call is what the gates compare with, on
the run's own model and rows, before every training.
"""

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.forest import Forest
from luthier.models.kernels import native
from luthier.models.kernels.attention import rotary_attention
from luthier.models.kernels.norm import add_rms_norm, rms_norm
from luthier.models.kernels.swiglu import swiglu

# layers whose whole arithmetic is norm, attention, norm, gated feed-forward; the second group norms each head's q and k
LAYERS = frozenset({"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer"})


# models whose logits are hidden states times the head's weight, and nothing else
HEADS = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})


def has_plain_head(model: Any) -> bool:
    """Whether `head_logprobs` computes what the model's head does."""
    if type(model).__name__ not in HEADS:
        return False
    head = model.get_output_embeddings()
    return type(head) is nn.Linear and head.bias is None


def install(model: nn.Module) -> int:
    """Let every layer that is known here compute with the kernels; returns how many there are."""
    layers: list[Any] = [m for m in model.modules() if type(m).__name__ in LAYERS and _is_gated_silu(m)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _is_gated_silu(layer: Any) -> bool:
    return isinstance(layer.mlp.act_fn, nn.SiLU) or type(layer.mlp.act_fn).__name__ == "SiLUActivation"


def _forward(layer: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    forest, rotary = kwargs.get("forest"), kwargs.get("position_embeddings")
    if args or forest is None or rotary is None or not _can(layer.self_attn, hidden_states):
        out: Tensor = type(layer).forward(layer, hidden_states, *args, **kwargs)
        return out
    if layer.gradient_checkpointing and layer.training:  # the library wraps this around its own code
        again: Tensor = layer._gradient_checkpointing_func(partial(_compute, layer, rotary, forest), hidden_states)
        return again
    return _compute(layer, rotary, forest, hidden_states)


def _compute(layer: Any, rotary: tuple[Tensor, Tensor], forest: Forest, hidden_states: Tensor) -> Tensor:
    attention = layer.self_attn
    x: Tensor = hidden_states[0]
    h: Tensor = rms_norm(x, layer.input_layernorm.weight, layer.input_layernorm.variance_epsilon)
    h = attention.o_proj(_attend(attention, h, rotary, forest))
    norm = layer.post_attention_layernorm
    x, h = add_rms_norm(x, h, norm.weight, norm.variance_epsilon)
    h = layer.mlp.down_proj(swiglu(layer.mlp.gate_proj(h), layer.mlp.up_proj(h)))
    return (x + h)[None]


def _can(attention: Any, x: Tensor) -> bool:
    return (
        native.serves(x)
        and not torch.is_autocast_enabled("cpu")
        and vars(attention).get("sliding_window") is None
        and attention.head_dim % 64 == 0
    )


def _attend(attention: Any, h: Tensor, rotary: tuple[Tensor, Tensor], forest: Forest) -> Tensor:
    """(N, heads * size)"""
    size = attention.head_dim
    q, k, v = (layer(h).view(len(h), -1, size) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    if "q_norm" in dict(attention.named_children()):
        q, k = (_per_head(norm, x) for norm, x in ((attention.q_norm, q), (attention.k_norm, k)))
    cos, sin = (x[0] for x in rotary)
    return rotary_attention(q, k, v, (cos, sin), forest, attention.scaling).view(len(h), -1)


def _per_head(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x.reshape(-1, x.shape[-1]), norm.weight, norm.variance_epsilon).view(x.shape)
