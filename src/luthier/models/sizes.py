"""Shapes of well-known models, for predictions without the models: from the config.json that each is published with.

Numbers of parameters follow from the shapes; `test_memory.py` counts them again.
"""

from collections.abc import Mapping

from luthier.models.memory import Shape

_GEMMA, _QWEN, _QWEN_LARGE, _SMOL = 262_144, 151_936, 152_064, 49_152

SIZES: Mapping[str, Shape] = {
    "smollm2-135m-instruct": Shape(30, 576, 1536, _SMOL, 134_515_008),
    "gemma-3-270m": Shape(18, 640, 2048, _GEMMA, 268_098_176),
    "qwen2.5-coder-0.5b-instruct": Shape(24, 896, 4864, _QWEN, 494_032_768),
    "qwen2.5-coder-1.5b-instruct": Shape(28, 1536, 8960, _QWEN, 1_543_714_304),
    "Qwen2.5 3B": Shape(36, 2048, 11008, _QWEN, 3_085_938_688),
    "Qwen2.5 7B": Shape(28, 3584, 18944, _QWEN_LARGE, 7_615_616_512, tied=False),
    "Qwen2.5 14B": Shape(48, 5120, 13824, _QWEN_LARGE, 14_770_033_664, tied=False),
    "Qwen2.5 32B": Shape(64, 5120, 27648, _QWEN_LARGE, 32_763_876_352, tied=False),
    "Qwen2.5 72B": Shape(80, 8192, 29568, _QWEN_LARGE, 72_706_203_648, tied=False),
}
"""By the name of the catalogue, or of the family; from small to large."""
