"""Our divergences against the generalized Jensen-Shannon loss of `trl`, on the same logits: value and gradient."""

import pytest
import torch
from torch import Tensor

from luthier.examples import Row
from luthier.models.forest import Batch, build_batch
from luthier.objectives.base import Models, Told
from luthier.objectives.distill import Distill

pytestmark = pytest.mark.numerics

ROWS, TOKENS, VOCABULARY = 3, 6, 97


class Given:
    """A student whose logits are a table."""

    def __init__(self, logits_HV: Tensor) -> None:
        self.logits_HV = logits_HV

    def logits(self, batch: Batch) -> Tensor:
        return self.logits_HV


class Telling:
    """A teacher that names its whole vocabulary."""

    def __init__(self, logits_HV: Tensor, temperature: float) -> None:
        self.logits_HV, self.temperature = logits_HV, temperature

    def told(self, batch: Batch) -> Told:
        from luthier.models.kernels.buckets import likeliest

        return Told(*likeliest(self.logits_HV / self.temperature, batch.hidden_K, VOCABULARY))


def both(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (ROWS * TOKENS, VOCABULARY)
    student, teacher = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.to(dtype), teacher.to(dtype)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergences_are_those_of_trl(dtype: torch.dtype, beta: float, temperature: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    student, teacher = both(dtype)
    leaf = student.clone().requires_grad_()
    expected = GKDTrainer.generalized_jsd_loss(
        leaf.reshape(ROWS, TOKENS, -1),
        teacher.reshape(ROWS, TOKENS, -1),
        beta=beta,
        temperature=temperature,
        reduction="sum",
    )
    expected.backward()
    wanted = leaf.grad
    kind = {0.0: {"divergence": "forward_kl"}, 1.0: {"divergence": "reverse_kl"}}
    named = kind.get(beta, {"divergence": "js", "beta": beta})
    objective = Distill(temperature=temperature, top_k=VOCABULARY, **named)  # type: ignore[arg-type]
    # each row is a tree of its own, so that its positions are TOKENS rows of the table
    rows = [Row(tuple(range(n, n + TOKENS + 1)), (0.0, *(1.0,) * TOKENS), str(n)) for n in range(0, 30, 10)]
    mine = student.clone().requires_grad_()
    models = Models(Given(mine), teacher=Telling(teacher, temperature))  # type: ignore[arg-type]
    found = objective.loss(models, build_batch(rows))
    (found.total / temperature**2).backward()
    exact = 1e-6 if dtype == torch.float32 else 1e-12
    assert float(found.total.detach()) / temperature**2 == pytest.approx(float(expected.detach()), rel=exact)
    assert mine.grad is not None and wanted is not None
    # both round in float32, each in its own order
    assert (mine.grad - wanted).abs().max() < (5e-6 if dtype == torch.float32 else 1e-12)
