"""Every loss over preferences beside TRL's own code, value and gradient, on the same fixed log-probabilities.

TRL computes its losses in methods of its trainers. They are called as they are, on an object that has what they read:
settings, and a model whose log-probabilities are given.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.policies import Unasked
from torch import Tensor, nn

from luthier.examples import Row
from luthier.models.forest import Batch, build_batch
from luthier.objectives.base import Models, Objective
from luthier.objectives.bco import BCO
from luthier.objectives.cpo import CPO
from luthier.objectives.dpo import DPO, PENALTIES
from luthier.objectives.kto import KTO
from luthier.objectives.orpo import ORPO
from luthier.objectives.simpo import SimPO

pytestmark = pytest.mark.numerics

PAIRS = 5
SPELLED = {"exo": "exo_pair", "nca": "nca_pair", "bco": "bco_pair", "sppo": "sppo_hard"}
SMOOTHING = {"robust": 0.1, "exo": 0.001}


def is_mismatched(row: Row) -> bool:
    """Whether a reply stands behind the prompt of another row."""
    return row.ids[-1] != 7 + row.ids[0] // 10


class Fixed(Unasked):
    """A model that gives the log-probabilities that it was told."""

    def __init__(self, given: dict[str, Tensor]) -> None:
        self.given = given

    def token_logprobs(self, batch: Batch) -> Tensor:
        return torch.cat([self.given[f"{row.id}~" if is_mismatched(row) else row.id] for row in batch.rows])


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


def cast(policy: Any, reference: Any = None) -> Models:
    """A cast that is asked for log-probabilities alone."""
    return Models(policy, reference)


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
    mine = ours(objective, cast(Fixed(given), Fixed(held)), rows_of(lengths), cut=4)
    compared(mine, dpo_of_trl(objective, lengths, given, held), given)


def test_sft_term_where_replies_are_of_one_length() -> None:
    """TRL averages over the tokens of a micro-batch, the papers over those of each reply."""
    objective = DPO(penalty=("sigmoid", "bco", "sft"), weights=(0.8, 0.2, 1.0))
    lengths = [5, 7, 5, 3, 5, 4]
    given, held = logprobs(lengths, 0), logprobs(lengths, 1)
    mine = ours(objective, cast(Fixed(given), Fixed(held)), rows_of(lengths), cut=2)
    compared(mine, dpo_of_trl(objective, lengths, given, held), given)


class Forwarded(SimpleNamespace):
    """What the trainers of CPO and ORPO read; their passes give what is told."""

    def concatenated_forward(self, _model: Any, _batch: Any) -> tuple[Tensor, ...]:
        return (*self.logps, *self.logps, self.nll)


def of_pairs(trainer_class: Any, given: dict[str, Tensor], mean: bool, **settings: Any) -> Tensor:
    """The loss of CPO's or ORPO's trainer; the supervised term is the mean over pairs of means over tokens."""
    means = torch.stack([values.mean() for values in given.values()])
    logps = means if mean else torch.stack([values.sum() for values in given.values()])
    asked = Forwarded(
        logps=(logps[0::2], logps[1::2]),
        nll=-means[0::2].mean(),
        aux_loss_enabled=False,
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x),
        **settings,
    )
    for name in ("cpo_loss", "odds_ratio_loss"):
        if name in vars(trainer_class):
            setattr(asked, name, getattr(trainer_class, name).__get__(asked))
    loss: Tensor = trainer_class.get_batch_loss_metrics(asked, None, {})[0]
    return loss


LENGTHS = [4, 7, 5, 5, 9, 2]


@pytest.mark.parametrize(
    ("objective", "theirs"),
    [
        (CPO(beta=0.3), {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 1.0}),
        (CPO(label_smoothing=0.2), {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0, "label_smoothing": 0.2}),
        (CPO(penalty="hinge", sft_weight=0.5), {"loss_type": "hinge", "beta": 0.1, "cpo_alpha": 0.5}),
        (CPO(penalty="ipo", sft_weight=0.0), {"loss_type": "ipo", "beta": 0.1, "cpo_alpha": 0.0}),
        (SimPO(), {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
        (
            SimPO(alpha=0.2, sft_weight=0.3, label_smoothing=0.1),
            {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.3, "alpha": 0.2, "label_smoothing": 0.1},
        ),
    ],
    ids=str,
)
def test_cpo_and_simpo(objective: Objective, theirs: dict[str, Any]) -> None:
    from trl.experimental.cpo import CPOTrainer

    given = logprobs(LENGTHS, 0)
    mine = ours(objective, cast(Fixed(given)), rows_of(LENGTHS), cut=2)
    settings = {"alpha": 0.0, "label_smoothing": 0.0, "simpo_gamma": 1.0, **theirs}
    compared(mine, of_pairs(CPOTrainer, given, theirs["loss_type"] in ("ipo", "simpo"), **settings), given)


def test_cdpo_is_cpo_s_formula_of_gains() -> None:
    """TRL's DPO has no label smoothing for the sigmoid any more; that of its CPO, given gains, is the same formula."""
    from trl.experimental.cpo import CPOTrainer

    given, held = logprobs(LENGTHS, 0), logprobs(LENGTHS, 1)
    objective = DPO(beta=0.3, label_smoothing=0.2)
    mine = ours(objective, cast(Fixed(given), Fixed(held)), rows_of(LENGTHS), cut=2)
    gains = {name: values - held[name] for name, values in given.items()}
    settings = {"loss_type": "sigmoid", "beta": 0.3, "alpha": 0.0, "label_smoothing": 0.2, "cpo_alpha": 0.0}
    compared(mine, of_pairs(CPOTrainer, gains, False, **settings), given)


def test_orpo() -> None:
    from trl.experimental.orpo import ORPOTrainer

    given = logprobs(LENGTHS, 0)
    given["1"] = (-0.05 * torch.ones(7)).requires_grad_()  # a reply that is nearly certain
    mine = ours(ORPO(odds_weight=0.4), cast(Fixed(given)), rows_of(LENGTHS), cut=2)
    compared(mine, of_pairs(ORPOTrainer, given, True, beta=0.4), given)


LABELS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]


def kto_of_trl(
    given: dict[str, Tensor], held: dict[str, Tensor], mismatched: list[dict[str, Tensor]], **settings: Any
) -> Tensor:
    from trl import KTOTrainer

    order, width = list(range(len(LENGTHS))), max(LENGTHS)
    model, reference = (Told(padded(values, order, width)) for values in (given, held))
    sums = {
        m: torch.stack([v.sum() for v in of.values()]) for m, of in zip((model, reference), mismatched, strict=True)
    }
    asked = trainer(model, reference, beta=0.3, **settings)
    asked._compute_kl_logps = lambda asked_model, _batch: sums[asked_model].detach()
    inputs = {**inputs_of(LENGTHS, order), "label": torch.tensor(LABELS).bool()}
    loss: Tensor = KTOTrainer._compute_loss(asked, model, inputs, False)
    return loss


@pytest.mark.parametrize("ahead", [0.4, -0.4])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.7)])
def test_kto(weights: tuple[float, float], ahead: float) -> None:
    """With a baseline above 0, and with one that is held at 0."""
    given, held = logprobs(LENGTHS, 0), logprobs(LENGTHS, 1)
    replies = LENGTHS[1:] + LENGTHS[:1]  # each row takes the reply of the next one
    theirs = logprobs(replies, 2)
    ours_then = {name: values + ahead / len(values) for name, values in theirs.items()}
    models = cast(
        *(
            Fixed({**of, **{f"{name}~": values for name, values in other.items()}})
            for of, other in ((given, ours_then), (held, theirs))
        )
    )
    objective = KTO(beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1])
    rows = rows_of(LENGTHS, [{"good": label} for label in LABELS])
    mine = ours(objective, models, rows, cut=4)
    settings = {"desirable_weight": weights[0], "undesirable_weight": weights[1]}
    wanted = kto_of_trl(given, held, [ours_then, theirs], loss_type="kto", calculate_KL=True, **settings)
    compared(mine, wanted, given)


def test_apo_zero_of_single_replies() -> None:
    given, held = logprobs(LENGTHS, 0), logprobs(LENGTHS, 1)
    rows = rows_of(LENGTHS, [{"good": label} for label in LABELS])
    mine = ours(KTO(beta=0.3, penalty="apo_zero"), cast(Fixed(given), Fixed(held)), rows, cut=1)
    settings: dict[str, Any] = {"loss_type": "apo_zero_unpaired", "calculate_KL": False}
    wanted = kto_of_trl(given, held, [given, held], desirable_weight=1.0, undesirable_weight=1.0, **settings)
    compared(mine, wanted, given)


def test_bco_of_pairs_as_two_judged_replies() -> None:
    """TRL has BCO for pairs alone, without a center: its loss of a pair is the sum of both."""
    given, held = logprobs(LENGTHS, 0), logprobs(LENGTHS, 1)
    rows = rows_of(LENGTHS, [{"good": label} for label in (1.0, 0.0) * 3])
    mine = 2 * ours(BCO(beta=0.3), cast(Fixed(given), Fixed(held)), rows, cut=3)
    compared(mine, dpo_of_trl(DPO(beta=0.3, penalty="bco"), LENGTHS, given, held), given)
