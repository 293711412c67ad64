"""The second half of the method: pairs of replies that the supervised model writes, and which one the critic prefers.

    drawn/batch-000001.jsonl         replies of the supervised model, several to each prompt
    compared/batch-000001.jsonl      of each two of them what the critic says, by several principles, in both orders
    calibration/batch-000001.jsonl   the same of pairs that people judged

(Bai et al. 2022, arXiv:2212.08073, section 4.1: the probability that a feedback model gives to one of two letters is
the label.)
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.constitution.batches import Record, in_batches
from luthier.constitution.calibration import Calibration, Vote, calibrate, probability, vote_of
from luthier.constitution.cast import SUPERVISED
from luthier.constitution.principles import KINDS, Kind, Principle, compared_by
from luthier.constitution.prompts import comparison_prompt
from luthier.constitution.revise import Prompt, Workshop, fault_of
from luthier.constitution.voices import Ask, Said
from luthier.data.formats.base import read_examples
from luthier.engine.rollout import seed_of
from luthier.errors import DataError
from luthier.evaluation.share import Number
from luthier.evaluation.significance import Interval, metric_interval
from luthier.evaluation.style.pairs import request_of
from luthier.evaluation.systems.base import message_text
from luthier.examples import Message, Preference

DRAWN_AT_ONCE = 32
COMPARED_AT_ONCE = 16
_DRAWN, _SHOWN = 4, 5
"""What a random stream is of."""
ALIKE = "both replies say the same"
NOT_WHOLE = "one of the two replies is cut off, empty, or too long for a row"
NOT_NAMED = "the critic names neither letter"
EVEN = "the critic prefers neither"
NOT_SURE = "the critic is less sure than constitution.least_probability"


@dataclass(frozen=True)
class Two:
    """Two replies to one prompt."""

    prompt: Prompt
    number: int
    """Among the pairs of the prompt."""
    a: str
    b: str
    fault: str = ""
    """Why they are not compared."""

    @property
    def id(self) -> str:
        """Of the pair."""
        return f"{self.prompt.id}/{self.number}"


def drawn(prompts: Sequence[Prompt], shop: Workshop) -> list[Two]:
    """Pairs of replies of the supervised model."""
    count = 2 * shop.settings.pairs

    def make(batch: Sequence[Prompt]) -> list[Record]:
        asks = [
            Ask(f"{p.id}/{number}", p.messages, seed_of(shop.seed, _DRAWN, KINDS.index(p.kind), p.place, number))
            for p in batch
            for number in range(count)
        ]
        said = shop.cast.writer(SUPERVISED).write(asks, shop.settings.max_new_tokens, shop.settings.temperature)
        groups = [said[at : at + count] for at in range(0, len(said), count)]
        return [
            {**p.values(), "replies": [{"reply": s.text, "fault": _fault(p, s, shop)} for s in group]}
            for p, group in zip(batch, groups, strict=True)
        ]

    with shop.progress.stage("drawn", f"{count} replies of the supervised model to each of {len(prompts):,} prompts"):
        records = in_batches(prompts, DRAWN_AT_ONCE, shop.folder / "drawn", make, shop.progress, "prompts")
    return [two for prompt, record in zip(prompts, records, strict=True) for two in _pairs(prompt, record["replies"])]


def _fault(prompt: Prompt, said: Said, shop: Workshop) -> str:
    return fault_of(said) or shop.cast.unfit(SUPERVISED, prompt.messages, said.text)


def _pairs(prompt: Prompt, replies: Sequence[Record]) -> list[Two]:
    found = []
    for number, (a, b) in enumerate(zip(replies[::2], replies[1::2], strict=True)):
        alike = ALIKE if a["reply"].strip() == b["reply"].strip() else ""
        fault = NOT_WHOLE if a["fault"] or b["fault"] else alike
        found.append(Two(prompt, number, a["reply"], b["reply"], fault))
    return found


def compared(pairs: Sequence[Two], shop: Workshop) -> list[Record]:
    """What the critic says of each pair that it is asked about; none is asked about twice."""
    asked = [two for two in pairs if not two.fault]
    with shop.progress.stage("compared", f"{len(asked):,} pairs compared, in both orders"):
        return in_batches(
            asked, COMPARED_AT_ONCE, shop.folder / "compared", lambda batch: _voted(batch, shop), shop.progress, "pairs"
        )


def _voted(batch: Sequence[Two], shop: Workshop) -> list[Record]:
    """The critic's leaning in both orders by each principle, all questions of a batch at once."""
    by = [_principles(two, shop) for two in batch]
    asks = [
        Ask(
            f"{two.id}/{principle.name}/{order}",
            comparison_prompt(shop.constitution, shop.settings.shots, principle, two.prompt.messages, shown),
        )
        for two, principles in zip(batch, by, strict=True)
        for principle in principles
        for order, shown in (("ab", (two.a, two.b)), ("ba", (two.b, two.a)))
    ]
    told = iter(shop.cast.critic().choose(asks))
    records = []
    for two, principles in zip(batch, by, strict=True):
        votes = [{"principle": p.name, "orders": [asdict(next(told)), asdict(next(told))]} for p in principles]
        records.append({**two.prompt.values(), "id": two.id, "a": two.a, "b": two.b, "votes": votes})
    return records


def _principles(two: Two, shop: Workshop) -> tuple[Principle, ...]:
    """Those of the prompt's pair; another pair of the same prompt has others."""
    place = two.prompt.place * shop.settings.pairs + two.number
    return compared_by(shop.constitution, shop.settings, two.prompt.kind, shop.seed, place)


def votes_of(record: Mapping[str, Any]) -> list[Vote]:
    """The votes of a record; those of which an order named no letter are left out."""
    votes = (vote_of(vote["principle"], *(order["value"] for order in vote["orders"])) for vote in record["votes"])
    return [vote for vote in votes if vote is not None]


# calibration


def calibrated(held_out: Sequence[Prompt], shop: Workshop) -> Calibration | None:
    """The critic beside people's choices; None: no pairs of people's are named, or it names no letter.

    Args:
        held_out: red-team prompts that nothing is chosen on; pairs that ask the same are not used.

    Raises:
        DataError: the file has no pairs, or a row cannot be read.
    """
    settings = shop.settings
    if settings.calibration is None:
        return None
    pairs = _judged_by_people(Path(settings.calibration), settings.calibration_pairs, held_out, shop.seed)

    with shop.progress.stage("calibration", f"the critic compares {len(pairs):,} pairs that people judged"):
        records = in_batches(
            pairs, COMPARED_AT_ONCE, shop.folder / "calibration", lambda b: _voted(b, shop), shop.progress, "pairs"
        )
    # the reply that people chose is `a` or `b` by chance, so that no lean to a place can look like knowledge
    voted = [
        [v if chosen_first else Vote(v.principle, -v.lean, v.bias) for v in votes_of(record)]
        for record, chosen_first in zip(records, map(_chosen_first, pairs), strict=True)
    ]
    voted = [votes for votes in voted if votes]
    return calibrate(voted, shop.seed, shop.confidence) if len(voted) > 1 else None


def _judged_by_people(path: Path, most: int, held_out: Sequence[Prompt], seed: int) -> list[Two]:
    hidden = {request_of(prompt.messages) for prompt in held_out}
    found: list[Two] = []
    for row in read_examples(path):
        if not isinstance(row, Preference):
            raise DataError("is no pair of a chosen and a rejected reply", path, row.where.line, row.where.row)
        if len(found) == most:
            break
        if request_of(row.prompt) in hidden:
            continue
        place = len(found)
        chosen, rejected = ("\n\n".join(message_text(m) for m in side) for side in (row.chosen, row.rejected))
        prompt = Prompt(place, "red_team", row.id, row.prompt)
        two = Two(prompt, 0, chosen, rejected)
        found.append(two if _chosen_first(two) else Two(prompt, 0, rejected, chosen))
    if len(found) < 2:
        raise DataError("has fewer than two pairs that ask what no held-out prompt asks", path)
    return found


def _chosen_first(two: Two) -> bool:
    """By chance, and the same whenever it is asked."""
    return seed_of(_SHOWN, two.prompt.place) % 2 == 0


# pairs


def preferences(
    records: Sequence[Record], temperature: float, shop: Workshop
) -> tuple[list[Preference], list[Record], Counter[str]]:
    """The pairs that are learned from; every record with what came of it; and how many gave no pair, by the reason."""
    pairs: list[Preference] = []
    told: list[Record] = []
    without: Counter[str] = Counter()
    for record in records:
        votes = votes_of(record)
        sure = probability(votes, temperature)
        reason = NOT_NAMED if not votes else EVEN if sure == 0.5 else ""
        if not reason and max(sure, 1 - sure) < shop.settings.least_probability:
            reason = NOT_SURE
        told.append({**record, "probability": sure, "reason": reason})
        if reason:
            without[reason] += 1
        else:
            pairs.append(_pair(record, sure, shop))
    return pairs, told, without


def _pair(record: Record, sure: float, shop: Workshop) -> Preference:
    prompt = tuple(Message(m["role"], m["content"]) for m in record["prompt"])
    sides = [(Message("assistant", record[name]),) for name in ("a", "b")]
    chosen, rejected = sides if sure >= 0.5 else sides[::-1]
    certain = max(sure, 1 - sure)
    label = {"probability": certain} if shop.settings.labels == "soft" else {}
    extra = {"kind": record["kind"], "by": [v["principle"] for v in record["votes"]], **label}
    return Preference(prompt, chosen, rejected, id=record["id"], extra=extra)


@dataclass(frozen=True)
class Places:
    """How the critic treats the first place, over all votes."""

    votes: int
    bias: Interval
    """Mean log-odds for whatever stands first, in nats; over pairs."""
    contradicts: float
    """Share of votes in which both orders name the same place."""
    read: float
    """Share of answers that were read from what was written, for want of log-probabilities."""


def places_of(records: Sequence[Record], seed: int, confidence: float = 0.95) -> Places | None:
    """What all comparisons say of the first place; None: there is no vote."""
    by_pair = [votes for record in records if (votes := votes_of(record))]
    if not by_pair:
        return None
    means = np.array([np.mean([vote.bias for vote in votes]) for votes in by_pair])
    all_votes = [vote for votes in by_pair for vote in votes]
    orders = [order for record in records for vote in record["votes"] for order in vote["orders"]]
    return Places(
        len(all_votes),
        metric_interval(Number(), means[:, None], confidence, seed),
        float(np.mean([vote.names_a_place for vote in all_votes])),
        float(np.mean([order["was_read"] for order in orders])),
    )


def by_kind(records: Sequence[Record]) -> dict[Kind, int]:
    """How many records each kind of prompt has."""
    return {kind: sum(record["kind"] == kind for record in records) for kind in KINDS}
