"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) and its family.

The reply that people preferred should gain more probability, relative to a frozen reference, than the one they
rejected: one classification loss over pairs, without a reward model and without sampling.

    c = log pi(chosen) - log ref(chosen)      r = log pi(rejected) - log ref(rejected)      margin = c - r

Shapes: P pairs, R = 2P rows that alternate chosen, rejected; K trained-on tokens. At step 0 the policy is the
reference, so c and r are 0 and the sigmoid loss is ln 2. A row whose field `probability` says how sure it is that the
chosen reply is the better one has, with the sigmoid, the cross-entropy with that soft label. `aot` compares all pairs
of a step with one another, and `bco` is centered by earlier steps: both are told by `whole_step`. Left out: WPO's
weights, and references that move (TR-DPO).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from luthier.data.templates import Template
from luthier.errors import DataError, RecipeError, did_you_mean
from luthier.examples import Example, Preference, Row
from luthier.models.forest import Batch
from luthier.objectives._centered import CENTER, centered, with_center
from luthier.objectives._pairs import (
    PROBABILITY,
    lengths,
    margin_metrics,
    pair_rows,
    places,
    probabilities,
    probability_of,
    sides,
    smoothed,
)
from luthier.objectives.base import (
    Loss,
    Mean,
    Memory,
    Models,
    Objective,
    reference_logprobs,
    with_reference,
    with_value,
)

OPPOSITE = "opposite"
MOST_EXPONENT = 80.0  # its exponential is still a float32


@dataclass(frozen=True)
class Pairs:
    """What penalties are made of, (P,) each."""

    margin: Tensor
    """How much more the chosen reply gained, each gain seen through the divergence."""
    margin_per_token: Tensor
    """The same, each gain divided by its tokens."""
    chosen: Tensor
    """c."""
    rejected: Tensor
    """r."""
    policy_margin: Tensor
    """log pi(chosen) - log pi(rejected)."""
    chosen_per_token: Tensor
    """log pi(chosen) / tokens."""
    center: Tensor
    """Half way between the mean rewards of chosen and rejected replies in earlier steps; for `bco` alone."""
    chosen_opposite: Tensor
    """What `aot` compares the chosen reply, or the pair, with."""
    rejected_opposite: Tensor
    """What `aot_unpaired` compares the rejected reply with."""
    flipped: Tensor
    """How probable it is that the label is flipped: `label_smoothing` and the row's own `probability` together."""


def _sigmoid(p: Pairs, o: "DPO") -> Tensor:
    return smoothed(o.beta * p.margin, p.flipped)  # DPO, equation 7; smoothed: cDPO (Mitchell 2023)


def _hinge(p: Pairs, o: "DPO") -> Tensor:
    return torch.relu(1 - o.beta * p.margin)  # SLiC-HF, arXiv:2305.10425


def _ipo(p: Pairs, o: "DPO") -> Tensor:
    # IPO, arXiv:2310.12036, equation 17; its authors averaged over tokens, as TRL's documentation reports
    return (p.margin_per_token - 1 / (2 * o.beta)) ** 2


def _robust(p: Pairs, o: "DPO") -> Tensor:
    # rDPO, arXiv:2403.00409: unbiased if a share `label_smoothing` of the labels is flipped
    right, flipped = -F.logsigmoid(o.beta * p.margin), -F.logsigmoid(-o.beta * p.margin)
    return ((1 - o.label_smoothing) * right - o.label_smoothing * flipped) / (1 - 2 * o.label_smoothing)


def _exo(p: Pairs, o: "DPO") -> Tensor:
    # EXO, arXiv:2402.00856, equation 16: KL of sigmoid(margin) from (1 - label_smoothing, label_smoothing)
    right, wrong = F.logsigmoid(o.beta * p.margin), F.logsigmoid(-o.beta * p.margin)
    return right.exp() * (right - math.log1p(-o.label_smoothing)) + wrong.exp() * (wrong - math.log(o.label_smoothing))


def _nca(p: Pairs, o: "DPO") -> Tensor:
    # NCA, arXiv:2402.05369, for two replies
    chosen, rejected = o.beta * p.chosen, o.beta * p.rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def _bco(p: Pairs, o: "DPO") -> Tensor:
    # BCO, arXiv:2404.04656: each reply by itself is good or bad; the center as in MPO, arXiv:2411.10442
    return -F.logsigmoid(o.beta * p.chosen - p.center) - F.logsigmoid(p.center - o.beta * p.rejected)


def _sppo(p: Pairs, o: "DPO") -> Tensor:
    # SPPO, arXiv:2405.00675, equation 4.7, where the chosen reply wins for certain
    return (p.chosen - 0.5 / o.beta) ** 2 + (p.rejected + 0.5 / o.beta) ** 2


def _aot(p: Pairs, o: "DPO") -> Tensor:
    # AOT, arXiv:2406.05882: the policy's margins, in order of size, against the reference's in theirs
    return smoothed(o.beta * (p.policy_margin - p.chosen_opposite), o.label_smoothing)


def _aot_unpaired(p: Pairs, o: "DPO") -> Tensor:
    # AOT: gains of chosen replies, in order of size, against those of rejected ones in theirs. Each reply stands in its
    # own pair's term and is a constant in that of its opposite: both are added for the gradient, and halved for value
    both = smoothed(o.beta * (p.chosen - p.chosen_opposite), o.label_smoothing)
    both = both + smoothed(o.beta * (p.rejected_opposite - p.rejected), o.label_smoothing)
    return both - 0.5 * both.detach()


def _apo_zero(p: Pairs, o: "DPO") -> Tensor:
    return (
        1 - torch.sigmoid(o.beta * p.chosen) + torch.sigmoid(o.beta * p.rejected)
    )  # APO, arXiv:2408.06266, equation 7


def _apo_down(p: Pairs, o: "DPO") -> Tensor:
    return torch.sigmoid(o.beta * p.chosen) + 1 - torch.sigmoid(o.beta * (p.chosen - p.rejected))  # APO, equation 8


def _discopop(p: Pairs, o: "DPO") -> Tensor:
    # DiscoPOP, arXiv:2406.08414, equation 5: from logistic to exponential as the margin grows
    margin = o.beta * p.margin
    share = torch.sigmoid(margin / o.tau)
    return (1 - share) * -F.logsigmoid(margin) + share * torch.exp(-margin)


def _sigmoid_norm(p: Pairs, o: "DPO") -> Tensor:
    return -F.logsigmoid(o.beta * p.margin_per_token)  # Tulu 3, arXiv:2411.15124


def _sft(p: Pairs, o: "DPO") -> Tensor:
    return -p.chosen_per_token  # RPO, arXiv:2404.19733, and MPO: keeps the chosen reply likely


Penalty: TypeAlias = Literal[
    "sigmoid", "hinge", "ipo", "robust", "exo", "nca", "bco", "sppo", "aot", "aot_unpaired", "apo_zero", "apo_down",
    "discopop", "sigmoid_norm", "sft",
]  # fmt: skip
PENALTIES: Mapping[str, Callable[[Pairs, "DPO"], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "robust": _robust,
    "exo": _exo,
    "nca": _nca,
    "bco": _bco,
    "sppo": _sppo,
    "aot": _aot,
    "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
    "sigmoid_norm": _sigmoid_norm,
    "sft": _sft,
}
SMOOTHED = frozenset({"sigmoid", "robust", "exo", "aot", "aot_unpaired"})
"""Penalties whose formula knows of flipped labels."""
OF_MARGINS = frozenset({"sigmoid", "hinge", "ipo", "robust", "exo", "discopop", "sigmoid_norm"})
"""Penalties of a difference of gains, which another divergence than the reverse KL sees otherwise."""


class DPO(Objective):
    """Learn from pairs of a chosen and a rejected reply to one prompt."""

    accepts: ClassVar[tuple[type, ...]] = (Preference,)
    rate_factor: ClassVar[float] = 0.1

    beta: float = Field(0.1, gt=0)
    """Pull towards the reference model: higher stays closer; 0.1 to 0.5 is usual."""
    penalty: Penalty | tuple[Penalty, ...] = "sigmoid"
    """How a small margin is punished (docs/preferences.md), or several penalties, which are added: ["sigmoid", "bco",
    "sft"] is MPO, ["sigmoid", "sft"] is RPO."""
    weights: tuple[float, ...] = ()
    """Weight of each of several penalties; 1 each where none are given. MPO's are [0.8, 0.2, 1.0]."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels taken to be flipped: makes `sigmoid` cDPO; `robust` and `exo` need it (0.1 and 0.001, say)."""
    ld_alpha: float = Field(1.0, ge=0, le=1)
    """Weight of the tokens by which a reply is longer than the other one of its pair (LD-DPO); 1 counts all alike."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """Which distance from the reference is held small (f-DPO)."""
    f_alpha: float = 0.5
    """The coefficient of `alpha_divergence`; towards 1 it becomes the reverse KL, towards 0 the forward one."""
    tau: float = Field(0.05, gt=0)
    """How soon `discopop` turns from logistic to exponential."""
    reference_free: bool = False
    """Take the reference to give all replies one probability: no pull, and no pass of it."""

    @field_validator("penalty", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        """Name the nearest penalty, where the types would list all of them twice.

        Raises:
            RecipeError: there is no such penalty.
        """
        for name in value if isinstance(value, tuple) else (value,):
            if isinstance(name, str) and name not in PENALTIES:
                known = ", ".join(PENALTIES)
                raise RecipeError(
                    f"objective.penalty = {name!r}{did_you_mean(name, tuple(PENALTIES))}; expected one of {known}"
                )
        return value

    @model_validator(mode="after")
    def _together(self) -> "DPO":
        """Refuse what would be ignored.

        Raises:
            RecipeError: settings that no chosen penalty reads, or that contradict one another.
        """
        for fault in (*self._faults_of_the_mixture(), *self._faults_of_settings()):
            raise RecipeError(f"objective: {fault}")
        return self

    def _faults_of_the_mixture(self) -> Iterator[str]:
        names = self.penalties
        if len(set(names)) != len(names) or set(names) <= {"sft"}:
            yield f"penalty = {list(names)}: expected different ones, and one that compares the pair (not only sft)"
        if {"aot", "aot_unpaired"} <= set(names):
            yield "aot and aot_unpaired sort the same replies in two ways; expected one of them"
        if self.weights and (len(names) == 1 or len(self.weights) != len(names) or min(self.weights) <= 0):
            yield f"weights = {list(self.weights)}: expected a number above 0 for each of several penalties"

    def _faults_of_settings(self) -> Iterator[str]:
        names, defaults = set(self.penalties), {name: field.default for name, field in type(self).model_fields.items()}
        if self.label_smoothing and (odd := names - SMOOTHED - {"sft"}):
            yield f"label_smoothing means nothing for {_listed(odd)}; those that know of it: {_listed(SMOOTHED)}"
        if not self.label_smoothing and (odd := names & {"robust", "exo"}):
            yield f"{_listed(odd)} needs label_smoothing above 0 (robust 0.1, exo 0.001)"
        if self.f_divergence != defaults["f_divergence"] and (odd := names - OF_MARGINS - {"sft"}):
            yield f"f_divergence means nothing for {_listed(odd)}; those that compare gains: {_listed(OF_MARGINS)}"
        if self.f_alpha != defaults["f_alpha"] and self.f_divergence != "alpha_divergence":
            yield 'f_alpha is the coefficient of f_divergence = "alpha_divergence"'
        if abs(self.f_alpha - 1) < 1e-6:
            yield 'f_alpha = 1 is the reverse KL; set f_divergence = "reverse_kl"'
        if self.tau != defaults["tau"] and "discopop" not in names:
            yield 'tau belongs to penalty = "discopop"'

    @property
    def penalties(self) -> tuple[str, ...]:
        """The names of all penalties."""
        return (self.penalty,) if isinstance(self.penalty, str) else self.penalty

    @property
    def uses_reference(self) -> bool:
        """Unless it is taken to be uniform."""
        return not self.reference_free

    @property
    def reads_probability(self) -> bool:
        """With the sigmoid, which is a cross-entropy."""
        return self.penalties == ("sigmoid",)

    def rows(self, example: Example, template: Template) -> tuple[Row, ...]:
        """Two rows: prompt + chosen, prompt + rejected, with only the replies trained on; both carry `probability`.

        Raises:
            DataError: the pair has a soft label, and a penalty is chosen that knows none.
        """
        rows, probability = pair_rows(example, template, "dpo"), probability_of(example)
        if probability < 1 and not self.reads_probability:
            at, names = example.where, _listed(self.penalties)
            raise DataError(
                f"{PROBABILITY!r} = {probability:g} is a soft label, which penalty = 'sigmoid' alone reads, and the "
                f"recipe has {names}; set objective.penalty = 'sigmoid', or take the field out of the rows",
                at.path,
                at.line,
                at.row,
            )
        return tuple(replace(row, values={PROBABILITY: probability}) for row in rows)

    def weight(self, batch: Batch) -> float:
        """Number of pairs."""
        return batch.row_count / 2

    def whole_step(self, models: Models, batches: Iterable[Batch], memory: Memory) -> Iterable[Batch]:
        """For `bco` the center of earlier steps; for `aot` each one's opposite among all pairs of this step."""
        if "bco" in self.penalties:
            batches = with_center(batches, memory)
        if not self._sorts:
            return batches
        batches = [with_reference(models, batch) if self.uses_reference else batch for batch in batches]
        scored = [self._sums(models, batch) for batch in batches]
        policy_R, reference_R = (torch.cat(parts) for parts in zip(*scored, strict=True))
        opposite_R = torch.empty_like(policy_R)
        if "aot" in self.penalties:  # of both rows of a pair it is that of the pair
            ours_P, theirs_P = (chosen - rejected for chosen, rejected in map(sides, (policy_R, reference_R)))
            opposite_R = _in_order_of(ours_P, theirs_P).repeat_interleave(2)
        else:
            chosen_P, rejected_P = sides(policy_R - reference_R)
            opposite_R[0::2], opposite_R[1::2] = _in_order_of(chosen_P, rejected_P), _in_order_of(rejected_P, chosen_P)
        parts = opposite_R.split([batch.row_count for batch in batches])
        return [with_value(batch, OPPOSITE, values_R) for batch, values_R in zip(batches, parts, strict=True)]

    def loss(self, models: Models, batch: Batch) -> Loss:
        """Summed penalties of the pairs."""
        logprobs_K = models.policy.token_logprobs(batch)
        policy_R, reference_R = self._sums(models, batch, logprobs_K)
        length_R, none_R = lengths(batch).to(policy_R.dtype), torch.zeros_like(policy_R)
        opposite_R = batch.values_R[OPPOSITE] if self._sorts else none_R
        gain_R = policy_R - reference_R
        moved_R = self._through_divergence(gain_R)
        chosen_P, rejected_P = sides(gain_R)
        pairs = Pairs(
            margin=_difference(moved_R),
            margin_per_token=_difference(moved_R / length_R),
            chosen=chosen_P,
            rejected=rejected_P,
            policy_margin=_difference(policy_R),
            chosen_per_token=sides(batch.sum_rows(logprobs_K * batch.loss_mask_K) / length_R)[0],
            center=sides(batch.values_R[CENTER] if "bco" in self.penalties else none_R)[0],
            chosen_opposite=sides(opposite_R)[0],
            rejected_opposite=sides(opposite_R)[1],
            flipped=self._flipped(probabilities(batch)),
        )
        losses_P = self._penalized(pairs)
        metrics = margin_metrics(self.beta * chosen_P, self.beta * rejected_P)
        return Loss(losses_P.sum(), {"loss": Mean.of(losses_P), **metrics})

    def remember(self, memory: Memory, metrics: Mapping[str, Mean]) -> Memory:
        """For `bco` the rewards so far."""
        return centered(memory, metrics) if "bco" in self.penalties else memory

    def loss_at_start(self) -> float | None:
        """The penalties of a pair of which neither reply has gained; None where `sft` or no reference is part of it."""
        if self.reference_free or "sft" in self.penalties:
            return None
        zero = torch.zeros(1, dtype=torch.float64)
        return float(self._penalized(Pairs(*[zero] * len(Pairs.__dataclass_fields__))))

    def _flipped(self, probability_P: Tensor) -> Tensor:
        """(P,) a label is flipped where one of two coins says so and the other does not."""
        return self.label_smoothing + (1 - 2 * self.label_smoothing) * (1 - probability_P)

    @property
    def _sorts(self) -> bool:
        return bool({"aot", "aot_unpaired"} & set(self.penalties))

    def _penalized(self, pairs: Pairs) -> Tensor:
        weights = self.weights or (1.0,) * len(self.penalties)
        parts = [weight * PENALTIES[name](pairs, self) for name, weight in zip(self.penalties, weights, strict=True)]
        return torch.stack(parts).sum(0)

    def _sums(self, models: Models, batch: Batch, logprobs_K: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(R,) each: the log-probability of each row under the policy and under the reference."""
        logprobs_K = models.policy.token_logprobs(batch) if logprobs_K is None else logprobs_K
        weight_K = batch.loss_mask_K if self.ld_alpha == 1 else batch.loss_mask_K * self._desensitized(batch)
        policy_R = batch.sum_rows(logprobs_K * weight_K)
        if self.reference_free:
            return policy_R, torch.zeros_like(policy_R)
        return policy_R, batch.sum_rows(reference_logprobs(models, batch).to(logprobs_K.dtype) * weight_K)

    def _desensitized(self, batch: Batch) -> Tensor:
        """(K,) 1 as far as both replies of a pair reach, `ld_alpha` beyond (LD-DPO, arXiv:2409.06411)."""
        counts_R = torch.bincount(batch.row_K, minlength=batch.row_count)
        common_P = torch.minimum(*sides(counts_R))
        is_beyond_K = places(batch) >= common_P.repeat_interleave(2)[batch.row_K]
        return 1 - (1 - self.ld_alpha) * is_beyond_K.to(batch.loss_mask_K.dtype)

    def _through_divergence(self, gain_R: Tensor) -> Tensor:
        """f'(pi / ref) up to a constant (f-DPO, arXiv:2309.16240), from log (pi / ref)."""
        if self.f_divergence == "forward_kl":
            return 1 - torch.exp((-gain_R).clamp(max=MOST_EXPONENT))
        if self.f_divergence == "js_divergence":
            return math.log(2) + F.logsigmoid(gain_R)
        if self.f_divergence == "alpha_divergence":
            power = self.f_alpha - 1
            return torch.expm1((power * gain_R).clamp(max=MOST_EXPONENT)) / power
        return gain_R


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _difference(values_R: Tensor) -> Tensor:
    chosen_P, rejected_P = sides(values_R)
    return chosen_P - rejected_P


def _in_order_of(values_P: Tensor, others_P: Tensor) -> Tensor:
    """(P,) for each value the one of `others_P` that is as great among them as it is among its own."""
    matched_P = torch.empty_like(others_P)
    matched_P[values_P.argsort(stable=True)] = others_P.sort().values
    return matched_P
