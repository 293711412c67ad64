"""The formats against what is published of them, and GGUF's blocks against the `gguf` package."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch._dynamo.utils import counters

from luthier.errors import ModelError
from luthier.models.kernels.fused import compiled
from luthier.models.kernels.native import FOLDER
from luthier.models.quantize import gguf as blocks, int8, nf4

NORMAL = torch.randn(2048, 1024, generator=torch.Generator().manual_seed(1))


def made_of(kind: type[nf4.NF4Linear] | type[int8.Int8Linear], weight: Tensor) -> Tensor:
    shape = weight.shape[0], weight.shape[1]
    return kind(shape, kind.pack(weight), None, torch.float32).dense(torch.float32)


def test_the_code_book_is_the_published_construction() -> None:
    """QLoRA, equation 4: quantiles of a normal distribution, eight of one half and nine of the other, about 0."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    above = stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    book = np.sort(np.concatenate([above, [0.0], below]))
    np.testing.assert_allclose(nf4.CODE, book / book.max(), atol=2e-7)


def test_the_compiled_code_book_is_the_same_one() -> None:
    source = (Path(FOLDER) / "dequantize.c").read_text(encoding="utf-8")
    listed = source.partition("NF4[16] = {")[2].partition("}")[0]
    assert tuple(float(text.strip().removesuffix("f")) for text in listed.split(",")) == nf4.CODE


def test_nf4_s_error_on_normal_numbers_is_the_known_one() -> None:
    """bitsandbytes' tests assert 0.072798 and 0.203339 for blocks of 64, within seven times 0.000074 and 0.0015."""
    wrong = (made_of(nf4.NF4Linear, NORMAL) - NORMAL).abs()
    assert float(wrong.mean()) == pytest.approx(0.072798, abs=7 * 0.000074)
    assert float((wrong / NORMAL.abs()).mean()) == pytest.approx(0.203339, rel=0.02)
    tops = NORMAL.view(2048, 16, 64).abs().amax(-1, keepdim=True)
    assert float((wrong.view(2048, 16, 64) / tops).max()) < 0.152 * 1.02  # half of the widest gap between two codes


def test_the_second_quantization_loses_a_hundredth_of_what_the_first_does() -> None:
    parts = nf4.NF4Linear.pack(NORMAL)
    tops = NORMAL.view(2048, 16, 64).abs().amax(-1).view(-1)
    again = parts["offset"] + parts["scales"].repeat_interleave(256) * parts["levels"]
    assert float((again - tops).abs().mean() / tops.mean()) < 0.002
    assert float((again - tops).abs().max() / tops.mean()) < 0.01
    bits = 8 * sum(p.numel() * p.element_size() for p in parts.values()) / NORMAL.numel()
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=0.001)


def test_nf4_takes_the_nearest_code() -> None:
    weight = NORMAL[:64, :320]
    parts = nf4.NF4Linear.pack(weight)
    tops = (parts["offset"] + parts["scales"].repeat_interleave(256)[: 64 * 5] * parts["levels"]).view(64, 5, 1)
    every = torch.tensor(nf4.CODE) * tops[..., None]
    best = (every - weight.view(64, 5, 64, 1)).abs().amin(-1).view(64, 320)
    torch.testing.assert_close((made_of(nf4.NF4Linear, weight) - weight).abs(), best, rtol=1e-5, atol=1e-7)


def test_int8_is_off_by_at_most_half_a_step() -> None:
    weight = NORMAL[:100, :300]
    wrong = (made_of(int8.Int8Linear, weight) - weight).abs()
    for start in (0, 128, 256):
        step = weight[:, start : start + 128].abs().amax(1) / 127
        assert bool((wrong[:, start : start + 128].amax(1) <= step / 2 * 1.001).all())


@pytest.mark.parametrize("kind", sorted(blocks.SIZES), ids=lambda kind: gguf.GGMLQuantizationType(kind).name)
def test_blocks_are_read_as_the_gguf_package_reads_them(kind: int) -> None:
    """Every bit, compiled and plain, for blocks of any content but scales that are no numbers."""
    of_gguf = gguf.GGMLQuantizationType(kind)
    numbers, size = blocks.SIZES[kind]
    assert gguf.GGML_QUANT_SIZES[of_gguf] == (numbers, size)
    data = np.random.default_rng(kind).integers(0, 256, (32, 5, size), dtype=np.uint8)
    for at in {8: (0,), 14: (208,)}.get(kind, (0, 2)):
        data[..., at + 1] &= 0xBF  # exponents below infinity
    wanted = torch.from_numpy(gguf.dequantize(data.reshape(32, -1), of_gguf))
    assert bool(torch.isfinite(wanted).all()) and wanted.shape == (32, 5 * numbers)
    packed = torch.from_numpy(data.reshape(32, -1))
    compiled, brief = torch.empty_like(wanted), torch.empty_like(wanted, dtype=torch.bfloat16)
    blocks.expand_blocks(packed, kind, compiled)
    blocks.expand_blocks(packed, kind, brief)
    plain = [blocks.expand_plain(packed, kind=kind, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    for found, short in ((compiled, brief), plain):
        assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))
        assert torch.equal(short, wanted.bfloat16())


def test_compiled_for_each_shape_the_numbers_are_the_same() -> None:
    """As on a GPU, by torch's compiler without its code; more versions than torch keeps of one function."""
    counters.clear()
    for width in range(32, 32 * 12, 32):
        weight = NORMAL[:9, :width]
        parts = blocks.GGUFLinear.pack(weight)["blocks"]
        numbers = (("kind", 8), ("dtype", torch.bfloat16))
        call = compiled(blocks.expand_plain, numbers, (parts.shape,), backend="aot_eager")
        for given in (parts, parts.flip(0)):
            assert torch.equal(call(given), blocks.expand_plain(given, kind=8, dtype=torch.bfloat16))
    assert counters["stats"]["unique_graphs"] == 11 and not counters["graph_break"]


def test_an_embedding_expands_the_rows_that_are_asked_for() -> None:
    weight = NORMAL[:50, :64]
    parts = blocks.GGUFLinear.pack(weight)
    embedding = blocks.GGUFEmbedding((50, 64), parts, torch.bfloat16)
    ids = torch.tensor([[3, 3, 49], [0, 7, 3]])
    assert torch.equal(embedding(ids), embedding.linear.dense(torch.bfloat16)[ids])


def test_rows_that_fill_no_block_are_refused() -> None:
    with pytest.raises(ModelError, match="rows of 33 numbers"):
        blocks.GGUFLinear.pack(torch.ones(2, 33))


def test_blocks_of_an_unknown_kind_are_refused() -> None:
    parts = blocks.parts_of(torch.zeros(2, 34, dtype=torch.uint8), 10)
    with pytest.raises(ModelError, match="a kind numbered 10"):
        blocks.GGUFLinear((2, 32), parts, None, torch.float32)
