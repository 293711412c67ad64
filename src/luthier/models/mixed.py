"""One base, many adapters, one batch: each row is written with its own adapter.

    y = rows * (W (cols * x) + B A x) + bias

The product with W is one for all rows, whatever their adapters; what is small is each row's own. An adapter whose layer
is not of that form is asked with its rows alone, at the price of another product. Rows in front of which virtual tokens
stood need nothing here: these lie among the row's keys and values.

Left out: prompts (they are read with the adapter's own model, a `twin` of the base), and gradients.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from luthier.models.kernels.low_rank import low_rank_rows, matrix
from luthier.models.kernels.scaled import scaled_values
from luthier.models.packed import replace
from luthier.models.quantize.base import QuantizedLinear

NO_ADAPTER = 0
"""The place of rows of the base itself."""


@dataclass(frozen=True)
class Form:
    """What an adapter makes of one linear layer; what is None plays no part."""

    low: tuple[Tensor, Tensor] | None = None
    """A (rank, in) and B (out, rank), scaled."""
    rows: Tensor | None = None
    """(out,) what the outputs are multiplied by, before the bias."""
    cols: Tensor | None = None
    """(in,) what the inputs of W are multiplied by; those of A are not."""
    bias: Tensor | None = None
    """(out,) the whole bias; None: that of the base."""


Part: TypeAlias = "Form | nn.Module"
"""A layer of an adapter: its form, or the wrapped layer itself where it has none."""


def twin(model: nn.Module) -> Any:
    """A model of its own structure that shares every tensor with `model`: it can be edited without touching it."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


class Mixture:
    """A model whose rows may have different adapters, which come and go."""

    def __init__(self, model: nn.Module) -> None:
        """`model` is edited from now on; give a `twin` of what others use."""
        self.model = model
        self.places = torch.zeros(0, dtype=torch.int64)
        """(rows,) the place of each row of the next call."""
        self.present: frozenset[int] = frozenset()
        """The places in it."""
        self._layers: dict[str, MixedLinear] = {}
        self._taken: set[int] = {NO_ADAPTER}

    def put(self, parts: Mapping[str, Part]) -> int:
        """Take in an adapter by its layers' names; returns its place."""
        place = next(n for n in range(len(self._taken) + 1) if n not in self._taken)
        self._taken.add(place)
        try:
            for name, part in parts.items():
                if name not in self._layers:
                    self._layers[name] = MixedLinear(self.model.get_submodule(name), self)
                    replace(self.model, name, self._layers[name])
                self._layers[name].put(place, part)
        except BaseException:  # memory ran out, say: half of an adapter must not stay
            self.take_out(place)
            raise
        return place

    def take_out(self, place: int) -> None:
        """Let go of an adapter; no row may be of it any more."""
        self._taken.discard(place)
        for layer in self._layers.values():
            layer.take_out(place)

    def assign(self, places: Sequence[int], device: torch.device) -> None:
        """Say which adapter each row of the next call has."""
        self.present = frozenset(places)
        self.places = torch.tensor(places, dtype=torch.int64, device=device)


class _Bank:
    """Tensors of one shape of several adapters, end to end; the first are for rows of none."""

    def __init__(self, *nothing: Tensor) -> None:
        self.held = tuple(t[None] for t in nothing)
        self.index: dict[int, int] = {}
        """Where the tensors of each place are."""
        self._table: Tensor | None = None

    def put(self, place: int, *tensors: Tensor) -> None:
        """Add those of an adapter; room grows by halves, so that many adapters are not copied for each new one."""
        at = len(self.index) + 1
        if at == len(self.held[0]):
            more = at // 2 + 1
            self.held = tuple(torch.cat([h, h.new_zeros(more, *h.shape[1:])]) for h in self.held)
        for held, tensor in zip(self.held, tensors, strict=True):
            held[at] = tensor
        self.index[place] = at
        self._table = None

    def take_out(self, place: int) -> None:
        """Let go of an adapter's; the last ones move into the gap."""
        gap, last = self.index.pop(place), len(self.index) + 1
        for held in self.held:
            held[gap] = held[last]
        self.index = {p: gap if at == last else at for p, at in self.index.items()}
        self._table = None

    def which(self, places: Tensor) -> Tensor:
        """(rows,) where in `held` each row's tensors are; 0: nothing."""
        if self._table is None:
            self._table = torch.zeros(max(self.index, default=0) + 1, dtype=torch.int64, device=places.device)
            for place, at in self.index.items():
                self._table[place] = at
        return self._table[torch.where(places < len(self._table), places, NO_ADAPTER)]


class MixedLinear(nn.Module):
    """A frozen linear layer and what each adapter makes of it."""

    def __init__(self, base: nn.Module, mixture: Mixture) -> None:
        super().__init__()
        self.base = base
        self._mixture = mixture
        self._low: dict[int, _Bank] = {}  # by rank
        self._vectors: dict[str, _Bank] = {}
        self._asked: dict[int, nn.Module] = {}  # those without a form

    def put(self, place: int, part: Part) -> None:
        """Take in an adapter's layer."""
        if not isinstance(part, Form):
            self._asked[place] = part
            return
        if part.low is not None:
            a, b = part.low
            if len(a) not in self._low:
                self._low[len(a)] = _Bank(self._like(a), self._like(b.t()))
            self._low[len(a)].put(place, a.detach(), b.detach().t())
        for name, vector in (("rows", part.rows), ("cols", part.cols), ("bias", part.bias)):
            if vector is not None:
                if name not in self._vectors:
                    self._vectors[name] = _Bank(self._neutral(name, vector))
                self._vectors[name].put(place, vector.detach())

    def take_out(self, place: int) -> None:
        """Let go of an adapter."""
        self._asked.pop(place, None)
        for banks in (self._low, self._vectors):
            for key in [key for key, bank in banks.items() if place in bank.index]:
                banks[key].take_out(place)  # type: ignore[index]
                if not banks[key].index:  # type: ignore[index]
                    del banks[key]  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(rows, 1, in) or (rows, in) -> the same with out"""
        flat = x.view(-1, x.shape[-1])
        low, vectors = ([*filter(self._is_present, banks.values())] for banks in (self._low, self._vectors))
        y = self._formed(flat, low) if low or vectors else self.base(flat)
        for place in self._mixture.present & self._asked.keys():
            rows = (self._mixture.places == place).nonzero()[:, 0]
            y = y.index_copy(0, rows, self._asked[place](flat[rows]))
        return y.view(*x.shape[:-1], -1)

    def _is_present(self, bank: _Bank) -> bool:
        """Whether a row of the batch has something in it."""
        return not self._mixture.present.isdisjoint(bank.index)

    def _formed(self, x: Tensor, low: Sequence[_Bank]) -> Tensor:
        """All rows as their forms say; those of places without one as the base does."""
        base: Any = self.base
        places = self._mixture.places
        cols, rows, bias = (self._of(name, places) for name in ("cols", "rows", "bias"))
        given = x if cols is None else scaled_values(x, cols)
        weight = matrix(base.lent if isinstance(base, QuantizedLinear) else base.weight, x.dtype)
        added = [low_rank_rows(x, bank.held[0], bank.held[1], bank.which(places)) for bank in low]
        bias = base.bias if bias is None else bias
        if bias is not None and rows is None:
            added.append(bias.to(x.dtype).expand(len(x), -1))
        # what is small first and the wide product added to it, so that the sum is rounded once
        y = torch.addmm(sum(added[1:], added[0]), given, weight.t()) if added else given @ weight.t()
        if rows is None:
            return y
        y = scaled_values(y, rows)
        return y if bias is None else y + bias.to(y.dtype)

    def _of(self, name: str, places: Tensor) -> Tensor | None:
        bank = self._vectors.get(name)
        return bank.held[0][bank.which(places)] if bank is not None and self._is_present(bank) else None

    def _like(self, tensor: Tensor) -> Tensor:
        """Zeros of this shape, in the type that products are computed in."""
        base: Any = self.base
        dtype = base.dtype if isinstance(base, QuantizedLinear) else base.weight.dtype
        return torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)

    def _neutral(self, name: str, vector: Tensor) -> Tensor:
        """What rows of no adapter are scaled by, or get as a bias."""
        base: Any = self.base
        if name != "bias":
            return torch.ones_like(vector, requires_grad=False)
        return torch.zeros_like(vector) if base.bias is None else base.bias.detach().to(vector.dtype)
