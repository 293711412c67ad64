"""Quantized bases on a GPU: the numbers themselves, trainings over them, and their speed and memory beside others'."""

import copy
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._gpu import (
    Report,
    forget_peak,
    large_model,
    learn,
    peak_of,
    random_rows,
    rows,
    scored,
    seconds_of,
    tiny,
)
from luthier import registry
from luthier.adapters.lora import LoRA
from luthier.models.forest import build_batch
from luthier.models.kernels.fused import fused
from luthier.models.kernels.low_rank import low_rank_linear
from luthier.models.packed import linear_layers, make_dense, quantizer, replace
from luthier.models.quantize import gguf, nf4
from luthier.recipe import QUANTIZERS


def quantized(report: Report, device: torch.device) -> None:
    """All formats: equal bits, equal trainings, speeds and peaks."""
    numbers(report, device)
    gradients(report, device)
    expanding(report, device)
    layer(report, device)
    trainings(report, device)


def numbers(report: Report, device: torch.device) -> None:
    """What a format expands to on the device against the CPU, by share of other bits."""
    generator = torch.Generator().manual_seed(0)

    def differing(a: Tensor, b: Tensor) -> float:
        return float((a.cpu() != b).float().mean())

    for name in registry.names(QUANTIZERS):
        kind, worst = quantizer(name), 0.0
        for shape in ((70, 96), (33, 640)):
            weight = torch.randn(shape, generator=generator)
            made = kind(shape, kind.pack(weight), None, torch.bfloat16)
            wanted = [made.dense(dtype) for dtype in (torch.float32, torch.bfloat16)]
            there = copy.deepcopy(made).to(device)
            found = [there.dense(dtype) for dtype in (torch.float32, torch.bfloat16)]
            worst = max(worst, *(differing(a, b) for a, b in zip(found, wanted, strict=True)))
            worst = max(worst, differing(there.lent(torch.float32, 5, 9), wanted[0][5:9]))
        report.check(f"{name}: share of numbers with other bits", worst, 0.0)
    for number, (_, size) in gguf.SIZES.items():
        blocks = torch.randint(0, 256, (40, 3 * size), generator=generator, dtype=torch.uint8)
        blocks.view(40, 3, size)[..., [1, 3, size - 1]] &= 0x3F  # where a half-precision number may be, no large one
        wanted_ = torch.empty(40, 3 * gguf.SIZES[number][0])
        gguf.expand_blocks(blocks, number, wanted_)
        run = fused(gguf.expand_plain, device, kind=number, dtype=torch.float32)
        found_ = run(blocks.to(device))
        report.check(f"GGUF format {number}: share of numbers with other bits", differing(found_, wanted_), 0.0)


def gradients(report: Report, device: torch.device) -> None:
    """Log-probabilities and gradients over each format, after an evaluation too, against the dense model's."""
    for name in registry.names(QUANTIZERS):
        for precision, limit in ((torch.float32, 2e-4), (torch.bfloat16, 6e-2)):
            model = over(name, tiny(None).to(device, precision))
            values, direction = scored(model, rows(), device)
            with torch.inference_mode():
                model(torch.arange(50, device=device)[None])
            again, after = scored(model, rows(), device)
            what = f"{name}, {str(precision).removeprefix('torch.')}"
            report.check(f"{what}: moved by an evaluation", float((again - values).abs().max()), 0.0)
            report.check(f"{what}: gradient moved by it", float((after - direction).abs().max()), 1e-3)
            make_dense(model)
            model.requires_grad_(True)
            wanted, _ = scored(model, rows(), device)
            report.check(f"{what}: beside the dense model", float((values - wanted).abs().max()), limit)


def over(name: str, model: Any) -> Any:
    """The model with its linear layers quantized on their device."""
    kind = quantizer(name)
    for place, linear in linear_layers(model).items():
        shape = linear.out_features, linear.in_features
        bias = None if linear.bias is None else linear.bias.detach()
        made = kind(shape, kind.pack(linear.weight.detach()), bias, linear.weight.dtype)
        replace(model, place, made.to(linear.weight.device))
    return model


WIDE = (8960, 1536)


def expanding(report: Report, device: torch.device) -> None:
    """Making one matrix of a 1.5 B model: fused, plain, and by the libraries that are there."""
    shape = WIDE if device.type == "cuda" else (89, 128)
    weight = torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02
    for what, make in ways(weight):
        seconds = seconds_of(make, device, 50)
        moved = weight.numel() * 2.53 if "nf4" in what else weight.numel() * 3.03
        report.say(f"speed  {what}, {shape[0]} x {shape[1]}: {1e6 * seconds:.0f} us, {moved / seconds / 1e9:,.0f} GB/s")


def ways(weight: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    shape = weight.shape[0], weight.shape[1]
    for name in registry.names(QUANTIZERS):
        made = quantizer(name)(shape, quantizer(name).pack(weight), None, weight.dtype).to(weight.device)
        yield f"{name}, fused", partial(made.lent, weight.dtype)
    parts = nf4.NF4Linear.pack(weight)
    codes, levels, scales, offset = (parts[name] for name in ("codes", "levels", "scales", "offset"))

    def plain() -> Tensor:
        return nf4._expand(codes, levels, scales, offset, nf4._book(weight.device), start=0, dtype=weight.dtype)

    yield "nf4, plain", plain
    yield "nf4, compiled for any shape", torch.compile(plain, dynamic=True)
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # type: ignore[import-not-found]
    except ImportError:
        return
    theirs, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    yield "nf4, bitsandbytes", lambda: dequantize_4bit(theirs, state)


def layer(report: Report, device: torch.device) -> None:
    """One layer under LoRA, forward and back, by what holds its matrix; bitsandbytes' as peft joins it with LoRA."""
    shape, tokens = (WIDE, 4096) if device.type == "cuda" else ((89, 128), 64)
    weight = torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02
    x = torch.randn(tokens, shape[1], device=device, dtype=torch.bfloat16, requires_grad=True)
    a = torch.randn(16, shape[1], device=device, requires_grad=True)
    b = torch.randn(shape[0], 16, device=device, requires_grad=True)
    dy = torch.randn(tokens, shape[0], device=device, dtype=torch.bfloat16)

    def once(forward: Callable[[], Tensor]) -> None:
        forward().backward(dy)
        x.grad = a.grad = b.grad = None

    def ours(held: Any) -> Tensor:
        return low_rank_linear(x, held, None, a, b, 2.0)

    for name in ("none", *registry.names(QUANTIZERS)):
        made: Any = weight
        if name != "none":
            made = quantizer(name)(shape, quantizer(name).pack(weight), None, weight.dtype).to(device).lent
        seconds = seconds_of(partial(once, partial(ours, made)), device, 20)
        report.say(f"speed  LoRA over {name}, one layer, {tokens} tokens: {1e6 * seconds:.0f} us")
    try:
        import bitsandbytes as bnb  # type: ignore[import-not-found]
    except ImportError:
        report.say("note   bitsandbytes is not here; nothing to compare with")
        return
    theirs = bnb.nn.Linear4bit(shape[1], shape[0], bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    theirs.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4", compress_statistics=True)
    theirs = theirs.to(device)

    def peft_like() -> Tensor:
        low = torch.nn.functional.linear(x, a.to(x.dtype))
        y: Tensor = theirs(x) + torch.nn.functional.linear(low, b.to(x.dtype)) * 2.0
        return y

    seconds = seconds_of(partial(once, peft_like), device, 20)
    report.say(f"speed  LoRA over bitsandbytes' nf4, one layer, {tokens} tokens: {1e6 * seconds:.0f} us")


def trainings(report: Report, device: torch.device) -> None:
    """LoRA on a model of 1.5 billion weights: speed and peak of memory by what holds them."""
    generator = random.Random(0)
    for checkpointing in (False, True):
        for name in ("none", *registry.names(QUANTIZERS)):
            model = large_model(device)
            if name != "none":
                over(name, model)
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            trained = list(LoRA(rank=16).inject(model, 0).trainable.values())
            shape = (8, 512, 512, 0) if device.type == "cuda" else (2, 16, 16, 0)
            given = [build_batch(random_rows(generator, model.config.vocab_size, *shape)).to(device) for _ in range(8)]
            forget_peak(device)
            times = [seconds_of(partial(learn, model, batch, trained), device, 1) for batch in given]
            tokens = sum(batch.logical_tokens for batch in given[3:])
            held = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
            report.say(
                f"speed  1.5 B over {name}{', checkpointed' if checkpointing else ''}, 8 rows of 512: "
                f"{tokens / sum(times[3:]):,.0f} tokens/s, weights {held / 2**30:.2f} GiB, "
                f"peak {peak_of(device):.2f} GiB"
            )
            del model, trained, given
