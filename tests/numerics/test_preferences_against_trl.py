"""Every loss over preferences beside TRL's own code, value and gradient, on the same fixed log-probabilities.

TRL computes its losses in methods of its trainers. They are called as they are, on an object that has what they read:
settings, and a model whose log-probabilities are given.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from luthier.examples import Row
from luthier.models.forest import Batch, build_batch
from luthier.objectives.base import Models, Objective
from luthier.objectives.dpo import DPO, PENALTIES

pytestmark = pytest.mark.numerics

PAIRS = 5
SPELLED = {"exo": "exo_pair", "nca": "nca_pair", "bco": "bco_pair", "sppo": "sppo_hard"}
SMOOTHING = {"robust": 0.1, "exo": 0.001}


class Fixed:
    """A model that gives the log-probabilities that it was told."""

    def __init__(self, given: dict[str, Tensor]) -> None:
        self.given = given

    def token_logprobs(self, batch: Batch) -> Tensor:
        return torch.cat([self.given[name] for name in batch.row_ids])


def rows_of(lengths: list[int], values: list[dict[str, float]] | None = None) -> list[Row]:
    """Rows of 3 tokens of prompt and so many of a reply, each with ids of its own."""
    given = values or [{}] * len(lengths)
    return [
        Row((*(10 * n + k for k in range(3)), *(7 + n,) * length), (0.0,) * 3 + (1.0,) * length, str(n), value)
        for n, (length, value) in enumerate(zip(lengths, given, strict=True))
    ]


def logprobs(lengths: list[int], seed: int) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return {
        str(n): (-3 * torch.rand(length, generator=noise)).requires_grad_(seed == 0) for n, length in enumerate(lengths)
    }


class Told(nn.Module):
    """A model as TRL calls it; its outputs are the given log-probabilities, padded."""

    is_gradient_checkpointing = False

    def __init__(self, padded: Tensor) -> None:
        super().__init__()
        self.padded = padded

    def forward(self, **_: Any) -> Any:
        zero = torch.zeros_like(self.padded)
        return SimpleNamespace(
            log_probs=self.padded, entropy=zero, mean_logits=zero, is_top1=zero.bool(), aux_loss=None
        )


def padded(given: dict[str, Tensor], order: list[int], width: int) -> Tensor:
    """(rows, 2 + width) log-probabilities as TRL's fused head gives them: 0 for the prompt and for padding."""
    rows = [nn.functional.pad(given[str(n)], (2, width - len(given[str(n)]))) for n in order]
    return torch.stack(rows)


def inputs_of(lengths: list[int], order: list[int]) -> dict[str, Tensor]:
    width = max(lengths)
    mask = torch.tensor([[0] * 3 + [1] * lengths[n] + [0] * (width - lengths[n]) for n in order])
    return {"input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}


def trainer(model: nn.Module, reference: nn.Module, **settings: Any) -> Any:
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    return SimpleNamespace(
        model=model,
        ref_model=reference,
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        use_weighting=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=settings.pop("tau", 0.05)),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def ours(objective: Objective, models: Models, rows: list[Row], cut: int) -> Tensor:
    """The loss of a step that is cut in two, as the engine computes it."""
    batches = [build_batch(rows[:cut]), build_batch(rows[cut:])]
    weight = sum(objective.weight(batch) for batch in batches)
    with torch.no_grad():
        batches = list(objective.whole_step(models, batches, {}))
    return torch.stack([objective.loss(models, batch).total for batch in batches]).sum() / weight


def compared(mine: Tensor, theirs: Tensor, given: dict[str, Tensor]) -> None:
    tensors = list(given.values())
    found = [torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True) for loss in (mine, theirs)]
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)
    pairs = [
        (torch.zeros_like(t) if a is None else a, torch.zeros_like(t) if b is None else b)
        for t, a, b in zip(tensors, *found, strict=True)
    ]
    assert any(a.abs().max() > 1e-4 for a, _ in pairs)
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


DPO_CASES: list[dict[str, Any]] = [
    *({"penalty": name, "label_smoothing": SMOOTHING.get(name, 0.0)} for name in sorted(PENALTIES) if name != "sft"),
    {"penalty": "aot", "label_smoothing": 0.2},
    {"penalty": "aot_unpaired", "label_smoothing": 0.2},
    {"penalty": "discopop", "tau": 0.4},
    {"penalty": ("sigmoid", "bco"), "weights": (0.8, 0.2)},
    {"penalty": "sigmoid", "ld_alpha": 0.3},
    {"penalty": "ipo", "ld_alpha": 0.0},
    {"penalty": "sigmoid", "f_divergence": "forward_kl"},
    {"penalty": "hinge", "f_divergence": "js_divergence"},
    {"penalty": "ipo", "f_divergence": "alpha_divergence", "f_alpha": 0.3},
    {"penalty": "sigmoid_norm", "f_divergence": "alpha_divergence"},
]


def dpo_of_trl(objective: DPO, lengths: list[int], given: dict[str, Tensor], held: dict[str, Tensor]) -> Tensor:
    from trl import DPOTrainer

    order = [*range(0, len(lengths), 2), *range(1, len(lengths), 2)]  # all chosen replies, then all rejected ones
    model, reference = (Told(padded(values, order, max(lengths))) for values in (given, held))
    asked = trainer(
        model,
        reference,
        beta=objective.beta,
        loss_types=[SPELLED.get(name, name) for name in objective.penalties],
        loss_weights=list(objective.weights or [1.0] * len(objective.penalties)),
        label_smoothing=objective.label_smoothing,
        ld_alpha=None if objective.ld_alpha == 1 else objective.ld_alpha,
        f_divergence_type=objective.f_divergence,
        f_alpha_divergence_coef=objective.f_alpha,
        tau=objective.tau,
    )
    loss: Tensor = DPOTrainer._compute_loss(asked, model, inputs_of(lengths, order), False)
    return loss


@pytest.mark.parametrize("settings", DPO_CASES, ids=lambda s: " ".join(str(v) for v in s.values()))
def test_dpo_family(settings: dict[str, Any]) -> None:
    objective = DPO(beta=0.3, **settings)
    lengths = [4, 7, 5, 5, 9, 2, 3, 6, 8, 4]
    given, held = logprobs(lengths, 0), logprobs(lengths, 1)
    mine = ours(objective, Models(Fixed(given), Fixed(held)), rows_of(lengths), cut=4)
    compared(mine, dpo_of_trl(objective, lengths, given, held), given)


def test_sft_term_where_replies_are_of_one_length() -> None:
    """TRL averages over the tokens of a micro-batch, the papers over those of each reply."""
    objective = DPO(penalty=("sigmoid", "bco", "sft"), weights=(0.8, 0.2, 1.0))
    lengths = [5, 7, 5, 3, 5, 4]
    given, held = logprobs(lengths, 0), logprobs(lengths, 1)
    mine = ours(objective, Models(Fixed(given), Fixed(held)), rows_of(lengths), cut=2)
    compared(mine, dpo_of_trl(objective, lengths, given, held), given)
