"""Each kernel against its plain reference and, where torch has one, its fastest operation: milliseconds and the ratio.

Shapes of the default model (576 wide, feed-forward 1,536, 9 heads of 64, 3 of keys, 49,152 words) in bfloat16, 2,048
tokens; the best of several turns, forward alone and with the backward pass.

    OMP_NUM_THREADS=1 python -m benchmarks.kernels
"""

import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.models.forest import Forest
from luthier.models.kernels import attention, head, low_rank, native, norm, swiglu

TOKENS, WIDTH, MIDDLE, HEADS, KV_HEADS, SIZE, WORDS = 2048, 576, 1536, 9, 3, 64, 49_152
SECONDS = 1.0

Function = Callable[..., Tensor]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16().requires_grad_()


def best(function: Function, inputs: Sequence[Tensor], backward: bool) -> float:
    """Milliseconds of the fastest turn."""
    fastest, end = float("inf"), time.perf_counter() + SECONDS
    leaves = [x for x in inputs if x.requires_grad]
    out = function(*inputs)
    direction = torch.ones_like(out)
    while time.perf_counter() < end:
        start = time.perf_counter()
        if backward:
            torch.autograd.grad(function(*inputs), leaves, direction)
        else:
            with torch.no_grad():
                function(*inputs)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest * 1000


def compare(what: str, kernel: Function, others: Sequence[tuple[str, Function]], inputs: Sequence[Tensor]) -> None:
    """One line for each of the others."""
    ours = [best(kernel, inputs, backward) for backward in (False, True)]
    for name, other in others:
        theirs = [best(other, inputs, backward) for backward in (False, True)]
        pairs = "   ".join(f"{b:7.2f} -> {a:7.2f} ms {b / a:5.1f}x" for a, b in zip(ours, theirs, strict=True))
        print(f"{what:<28} {name:<28} {pairs}", flush=True)


def attentions() -> None:
    """Documents end to end, and completions behind one prompt."""
    cos, sin = (torch.randn(TOKENS, SIZE).bfloat16() for _ in range(2))
    for name, length, shared in (
        ("documents of 64", 64, False),
        ("documents of 256", 256, False),
        ("documents of 1,024", 1024, False),
        ("256 behind a prompt of 256", 256, True),
    ):
        starts = tuple(range(0, TOKENS, length))
        ends = tuple(start + length for start in starts)
        parents = tuple(0 if shared and i else -1 for i in range(len(starts)))
        forest = Forest(torch.zeros(TOKENS, dtype=torch.int64), torch.arange(TOKENS), starts, ends, parents)
        inputs = [draw(TOKENS, HEADS, SIZE), draw(TOKENS, KV_HEADS, SIZE), draw(TOKENS, KV_HEADS, SIZE)]

        def plain(q: Tensor, k: Tensor, v: Tensor, forest: Forest = forest) -> Tensor:
            from luthier.models.attention import _node_by_node

            turned = [attention.rotate_plain(x, cos, sin) for x in (q, k)]
            q, k, v = (x.transpose(0, 1)[None] for x in (*turned, v))
            return _node_by_node(q, k, v, forest, SIZE**-0.5, None)[0].transpose(0, 1)

        def kernel(q: Tensor, k: Tensor, v: Tensor, forest: Forest = forest) -> Tensor:
            return attention.rotary_attention(q, k, v, (cos, sin), forest, SIZE**-0.5)

        compare(name, kernel, [("rotary and torch's attention", plain)], inputs)


def passes() -> None:
    """What only goes over memory."""
    weight = draw(WIDTH)
    compare(
        "sum and norm",
        lambda x, d, w: torch.cat(norm.add_rms_norm(x, d, w, 1e-5)),
        [("plain torch", lambda x, d, w: torch.cat([x + d, norm.rms_norm_plain(x + d, w, 1e-5)]))],
        [draw(TOKENS, WIDTH), draw(TOKENS, WIDTH), weight],
    )
    compare(
        "gated middle",
        swiglu.swiglu,
        [("plain torch", swiglu.swiglu_plain)],
        [draw(TOKENS, MIDDLE), draw(TOKENS, MIDDLE)],
    )


def products() -> None:
    """What multiplies, and does something beside it."""
    frozen = draw(MIDDLE, WIDTH).detach()
    compare(
        "low-rank linear layer",
        lambda x, a, b: low_rank.low_rank_linear(x, frozen, None, a, b, 2.0),
        [("plain torch", lambda x, a, b: low_rank.low_rank_linear_plain(x, frozen, None, a, b, 2.0))],
        [draw(TOKENS, WIDTH), draw(16, WIDTH), draw(MIDDLE, 16)],
    )
    words, rows = draw(WORDS, WIDTH).detach(), torch.arange(512)
    target = torch.randint(0, WORDS, (512,))
    compare(
        "log-probabilities of 512",
        lambda h: head.head_scores(h, words, rows, target)[0],
        [
            ("log_softmax and gather", lambda h: head.head_scores_plain(h, words, rows, target)[0]),
            ("cross_entropy", lambda h: -F.cross_entropy((h @ words.t()).float(), target, reduction="none")),
        ],
        [draw(512, WIDTH)],
    )


def first_choices() -> None:
    """What sums and first choices of 512 places take beside their product; without first choices: the sums by torch."""
    hidden, words, logits = draw(512, WIDTH), draw(WORDS, WIDTH), draw(512, WORDS).detach()
    sums, first = torch.empty(512), torch.empty(512, dtype=torch.int64)

    def kernel(given: Tensor) -> Tensor:
        native.call("log_sum_exp", given.dtype, given, sums, first, *given.shape)
        return sums

    ways: dict[str, Function] = {
        "product": lambda _: hidden @ words.t(),
        "kernel, sums and choices": kernel,
        "torch's logsumexp": lambda given: given.logsumexp(1),
        "torch's argmax": lambda given: given.argmax(1),
    }
    for name, function in ways.items():
        print(f"{'first choices of 512':<28} {name:<28} {best(function, [logits], False):7.2f} ms", flush=True)


def main() -> int:
    if native.library() is None:
        print(f"there are no kernels here: {native.trouble()}")
        return 2
    torch.manual_seed(0)
    print(f"{torch.get_num_threads()} threads, bfloat16, {TOKENS} tokens; forward, then forward and backward")
    attentions()
    passes()
    products()
    first_choices()
    return 0


if __name__ == "__main__":
    sys.exit(main())
