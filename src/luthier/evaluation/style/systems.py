"""How each system writes beside the replies that were wanted, and which answers a judge prefers: `style.json`.

Only rows with a wanted reply are looked at.
"""

import json
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from luthier.config import canonical_hash
from luthier.data.split import group_keys
from luthier.evaluation.metrics.base import Array
from luthier.evaluation.share import Share
from luthier.evaluation.significance import Groups, clopper_pearson, compare, finite, number_groups
from luthier.evaluation.style.distance import distance_to
from luthier.evaluation.style.features import FEATURES, measure_style
from luthier.evaluation.style.pairs import Judged, Pair, questions, read_replies, request_of
from luthier.examples import Conversation

FORMAT = 1
EXAMPLES = 5
"""Pairs of each comparison that are shown."""


@dataclass(frozen=True)
class Options:
    """How intervals are made."""

    confidence: float = 0.95
    seed: int = 0


@dataclass(frozen=True)
class Judge:
    """Whoever says which answer is better."""

    name: str
    identity: str
    """Changes when its replies could."""
    criterion: str
    against: str
    """The system that every other one is compared with."""
    ask: Callable[[Sequence[Conversation]], Sequence[str]]
    """Its reply to each question."""


@dataclass(frozen=True)
class Written:
    """The rows that have a wanted reply, and what every system wrote to them."""

    rows: tuple[Conversation, ...]
    answers: Mapping[str, tuple[str, ...]]
    groups: Groups


def written(folder: Path, rows: Sequence[Conversation], names: Sequence[str]) -> Written:
    """What the systems wrote, by the run's `records/`.

    Args:
        folder: the run's.
        rows: the test rows that were answered, in the records' order.
        names: the systems, the ladder's first rung first.
    """
    wanted = [at for at, row in enumerate(rows) if row.completion is not None and row.completion.content]
    answers = {name: _outputs(folder / "records" / f"{name}.jsonl") for name in names}
    kept = tuple(rows[at] for at in wanted)
    chosen = {name: tuple(outputs[at] for at in wanted) for name, outputs in answers.items()}
    return Written(kept, chosen, number_groups(group_keys(kept)))


def _outputs(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["output"] for line in file]


def measure_systems(found: Written, options: Options) -> dict[str, Any]:
    """Features of what was written and of what was wanted, as `style.json` holds them; `preference` is null."""
    wanted_NF = measure_style([row.completion.content for row in found.rows if row.completion is not None])
    return {
        "format": FORMAT,
        "confidence": options.confidence,
        "rows": len(found.rows),
        "features": {name: what for name, (what, _) in FEATURES.items()},
        "wanted": dict(zip(FEATURES, map(float, wanted_NF.mean(axis=0)), strict=True)),
        "systems": [_system(name, texts, wanted_NF, found, options) for name, texts in found.answers.items()],
        "preference": None,
    }


def _system(name: str, texts: Sequence[str], wanted_NF: Array, found: Written, options: Options) -> dict[str, Any]:
    answers_NF = measure_style(texts)
    distance = distance_to(answers_NF, wanted_NF, found.groups, options.confidence, options.seed)
    off = {} if distance is None else {feature: one.dump() for feature, one in distance.features.items()}
    return {
        "system": name,
        "features": dict(zip(FEATURES, map(float, answers_NF.mean(axis=0)), strict=True)),
        "off": off,
        "distance": None if distance is None else distance.distance.dump(),
        "by_chance": None if distance is None else distance.by_chance,
    }


def judge_systems(
    found: Written, judge: Judge, options: Options, replies: MutableMapping[str, list[str]]
) -> dict[str, Any]:
    """Every system beside `judge.against`, as `preference` of `style.json` holds it.

    Args:
        found: what was written; `judge.against` is among it.
        judge: is asked, about each pair in both orders.
        options: of the intervals.
        replies: of the judge, by comparison; where one that would be the same is in it, nobody is asked again, and new
            ones are put in.

    Raises:
        EvaluationError, ModelError: as the judge's system raises them.
    """
    compared = []
    for name in found.answers:
        if name != judge.against:
            pairs = _pairs(name, judge.against, found)
            compared.append(_compare(name, pairs, _replies(pairs, judge, replies), judge, found.groups, options))
    return {"judge": judge.name, "criterion": judge.criterion, "against": judge.against, "pairs": compared}


def _replies(pairs: Sequence[Pair], judge: Judge, kept: MutableMapping[str, list[str]]) -> list[str]:
    """To both orders of each pair that differs."""
    told = [(pair.id, pair.request, pair.a, pair.b) for pair in pairs]
    key = canonical_hash([judge.identity, judge.criterion, told])
    if key not in kept:
        asked = [question for pair in pairs if not pair.is_equal for question in questions(pair, judge.criterion)]
        kept[key] = list(judge.ask(asked)) if asked else []
    return kept[key]


def _pairs(a: str, b: str, found: Written) -> list[Pair]:
    return [
        Pair(row.id, request_of(row.prompt), x, y)
        for row, x, y in zip(found.rows, found.answers[a], found.answers[b], strict=True)
    ]


def _compare(
    name: str, pairs: Sequence[Pair], replies: Sequence[str], judge: Judge, groups: Groups, options: Options
) -> dict[str, Any]:
    asked = [pair for pair in pairs if not pair.is_equal]
    judged = dict(zip((pair.id for pair in asked), read_replies(replies), strict=True))
    outcomes = [judged[pair.id].outcome if pair.id in judged else "tie" for pair in pairs]
    wins_N, losses_N = (np.array([[float(one == side)] for one in outcomes]) for side in ("a", "b"))
    net = compare(Share(), wins_N, losses_N, options.confidence, options.seed, groups)
    named = [choice for one in judged.values() for choice in one.orders if choice is not None]
    placed = [choice for choice in named if choice != "tie"]
    longer = _longer(pairs, outcomes)
    return {
        "a": name,
        "b": judge.against,
        "n": len(pairs),
        "wins": int(wins_N.sum()),
        "losses": int(losses_N.sum()),
        "ties": sum(one == "tie" for one in outcomes),
        "equal": len(pairs) - len(asked),
        "net": {"value": finite(net.difference), "low": finite(net.low), "high": finite(net.high)},
        "p_value": finite(net.p_value),
        "consistent": _share([_is_consistent(one) for one in judged.values()], options),
        "first_place": _share([choice == "first" for choice in placed], options),
        "longer_wins": _share(longer, options),
        "unreadable": 2 * len(judged) - len(named),
        "examples": _examples(pairs, outcomes),
        "outcomes": {pair.id: outcome for pair, outcome in zip(pairs, outcomes, strict=True)},
    }


def _is_consistent(judged: Judged) -> bool:
    """Whether both orders said the same of the answers, a tie included."""
    return judged.outcome != "tie" or judged.orders == ("tie", "tie")


def _longer(pairs: Sequence[Pair], outcomes: Sequence[str]) -> list[bool]:
    """Of decided pairs with unlike lengths, whether the longer answer won."""
    decided = [
        (len(pair.a) - len(pair.b), outcome)
        for pair, outcome in zip(pairs, outcomes, strict=True)
        if outcome != "tie" and len(pair.a) != len(pair.b)
    ]
    return [(more > 0) == (outcome == "a") for more, outcome in decided]


def _share(counted: Sequence[bool], options: Options) -> dict[str, Any] | None:
    if not counted:
        return None
    low, high = clopper_pearson(sum(counted), len(counted), options.confidence)
    return {"value": sum(counted) / len(counted), "low": low, "high": high}


def _examples(pairs: Sequence[Pair], outcomes: Sequence[str]) -> list[dict[str, str]]:
    """Wins and losses in turn, the first of each."""
    won, lost = (
        [pair for pair, outcome in zip(pairs, outcomes, strict=True) if outcome == side] for side in ("a", "b")
    )
    turns = (zip(two, "ab", strict=True) for two in zip_longest(won, lost))
    mixed = [(pair, side) for turn in turns for pair, side in turn if pair is not None]
    return [
        {"id": pair.id, "request": pair.request, "a": pair.a, "b": pair.b, "won": side}
        for pair, side in mixed[:EXAMPLES]
    ]
