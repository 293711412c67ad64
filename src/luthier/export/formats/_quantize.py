"""Number formats of GGUF tensors: which tensor gets which, and the rounding both ways.

f16, bf16 and q8_0 are those of the `gguf` package. q4_k_m is llama.cpp's mix of that name: 4-bit blocks of 256 (Q4_K),
6-bit ones (Q6_K) for the head and, in the first, the last and every third layer between, for the values and the last
matrix of the feed-forward. Rows that blocks of 256 do not divide get what llama.cpp gives them: Q5_0 and Q8_0. The
K-blocks are computed by `libgguf`, ggml's own reference code as a wheel.
"""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, QK_K, GGMLQuantizationType as Kind, LlamaFileType, quants
from torch import Tensor

FILE_TYPES = {
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
}
K_QUANTS = frozenset({"q4_k_m"})
_MATRICES = {"f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
_INSTEAD = {Kind.Q4_K: Kind.Q5_0, Kind.Q6_K: Kind.Q8_0, Kind.Q8_0: Kind.F16, Kind.Q5_0: Kind.F16}
_WHOLE = frozenset({Kind.F32, Kind.F16, Kind.BF16})
_BY_GGML = frozenset({Kind.Q4_K, Kind.Q6_K})
_LAYER = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight")


def kind_of(type: str, name: str, shape: tuple[int, ...], layers: int) -> Kind:
    """The number format of the tensor that GGUF calls `name`, in a file of this type; vectors stay float32."""
    if len(shape) < 2:
        return Kind.F32
    kind = _mixed(name, layers) if type == "q4_k_m" else _MATRICES[type]
    while shape[-1] % GGML_QUANT_SIZES[kind][0]:
        kind = _INSTEAD[kind]
    return kind


def _mixed(name: str, layers: int) -> Kind:
    if name in ("token_embd.weight", "output.weight"):
        return Kind.Q6_K
    found = _LAYER.fullmatch(name)
    return Kind.Q6_K if found and _gets_more_bits(int(found[1]), layers) else Kind.Q4_K


def _gets_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's choice of layers (`use_more_bits` in llama-quant.cpp)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def quantize(weight: Tensor, kind: Kind) -> npt.NDArray[Any]:
    """The bytes of a float32 weight in a number format, as rows."""
    values = weight.detach().numpy()
    if kind in _BY_GGML:
        import libgguf

        rows: npt.NDArray[Any] = libgguf.quantize_rows(values, kind)
        return rows
    stored: npt.NDArray[Any] = quants.quantize(np.ascontiguousarray(values), kind)
    return stored


def like_other_side(weight: Tensor, kind: Kind) -> Tensor:
    """`weight` rounded as llama.cpp rounds what it multiplies with weights of this kind: to 16 bits if they have 16,
    else to 8-bit blocks, which are of 256 numbers for the K-kinds (Q8_K) and of 32 for the others (Q8_0)."""
    if kind not in _BY_GGML:
        return rounded(weight, kind if kind in _WHOLE else Kind.Q8_0)
    blocks = weight.reshape(-1, QK_K)
    step = blocks.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return ((blocks / step).round() * step).view(weight.shape)


def rounded(weight: Tensor, kind: Kind) -> Tensor:
    """What a number format keeps of a float32 weight."""
    if kind == Kind.F32:
        return weight
    return torch.from_numpy(np.ascontiguousarray(quants.dequantize(quantize(weight, kind), kind))).view(weight.shape)
