"""EVA: A begins as the directions in which a layer's inputs vary most on the training rows.

    X = U S V^T    X: (tokens, in) inputs of the layer over some batches    A = the first rows of V^T, B = 0

(Paischer et al. 2024, arXiv:2410.07170.) X is never whole: S V^T, cut to twice the rank, is folded with the inputs of
each batch in turn. Inputs of all tokens count, prompts included: what predicts a one-word answer is the same token in
every row, and the first layer would see nothing vary. Layers that get the same input share one computation. Left out:
moving ranks between layers by their explained variance, since a resumed run and a file would have to know ranks that
only the rows tell; and whitening.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.forest import Batch

BATCHES = 16
TOKENS = 256
"""Of each batch, spread evenly; what the fold costs grows with their square."""


class _Seen:
    """The inputs of the layers, folded."""

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self.ranks = ranks
        self.folded: dict[str, Tensor] = {}
        self.like: dict[str, str] = {}
        """Layers that got the very input of one before them."""
        self.places_T = torch.zeros(0, dtype=torch.long)
        self._last: tuple[str, Tensor] | None = None

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """What a layer calls with its input."""

        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if self._last is not None and self._last[1] is x and self.ranks[self._last[0]] >= self.ranks[name]:
                self.like[name] = self._last[0]
                return
            self._last = name, x
            rows = x.detach().reshape(-1, x.shape[-1])[self.places_T].float().cpu()  # not every device has float64
            self.folded[name] = fold(self.folded.get(name), rows, 2 * self.ranks[name])

        return see

    def look_at(self, batch: Batch) -> None:
        """Take so many of the batch's tokens from the next pass."""
        count = len(batch.forest.ids_N)
        self._last, self.places_T = None, torch.arange(0, count, -(-count // TOKENS))


def directions(
    layers: Mapping[str, nn.Module],
    ranks: Mapping[str, int],
    batches: Iterable[Batch],
    score: Callable[[Batch], object],
) -> dict[str, Tensor]:
    """(rank, in) orthonormal rows for each layer, the direction of most of its inputs first.

    Args:
        layers: as they lie in the model.
        ranks: how many directions each gets.
        batches: of training rows; at most `BATCHES` are taken.
        score: runs the model over a batch.

    Raises:
        ModelError: the inputs of a layer vary in fewer directions than its rank.
    """
    seen = _Seen(ranks)
    handles = [layer.register_forward_pre_hook(seen.hook(name)) for name, layer in layers.items()]
    try:
        # compiled code calls no hooks that came after it
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for batch in islice(batches, BATCHES):
                seen.look_at(batch)
                score(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _first(seen.folded.get(seen.like.get(name, name)), ranks[name], name) for name in layers}


def fold(before: Tensor | None, rows: Tensor, most: int) -> Tensor:
    """S V^T of what was folded before and these rows together, of at most so many rows, the largest first."""
    matrix = rows if before is None else torch.cat([before, rows])
    wide = matrix.double()
    _, u = torch.linalg.eigh(wide @ wide.t())  # the left singular vectors, the smallest first
    folded: Tensor = u.flip(1)[:, :most].t() @ wide
    return folded.float()


def _first(folded: Tensor | None, rank: int, name: str) -> Tensor:
    lengths: Tensor = torch.zeros(0) if folded is None else torch.linalg.vector_norm(folded, dim=1)
    found = int((lengths > 1e-5 * lengths.max()).sum()) if len(lengths) else 0
    if folded is None or found < rank:
        raise ModelError(
            f"adapter.init = 'eva': on the first batches the inputs of {name} vary in {found} directions, and its rank "
            f"is {rank}: set adapter.rank to {found} at most, give more rows, or take another init"
        )
    return folded[:rank] / lengths[:rank, None]
