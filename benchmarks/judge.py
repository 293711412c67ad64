"""How often a judge of style agrees with people, on pairs of answers that three people compared.

Of each pair one answer was preferred by the majority of three annotators (`chosen`); which stands as `a` is drawn. The
judge is asked as a run asks it, in both orders. One line a judge: share of pairs on which it decides, agreement with
people where it decides (Clopper and Pearson 1934) and with ties counted as a half, Cohen's kappa of the decided, how
often it names the first place and the longer answer. The last line is what naming the longer answer alone would reach.

    python -m benchmarks.judge [MODEL ...] [--data ../shared/data/preference_pandalm/test.jsonl] [--rows 170]
                               [--criterion TEXT]
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from luthier.config import build
from luthier.data.templates import build_template
from luthier.evaluation.metrics.rouge_l import RougeL
from luthier.evaluation.significance import clopper_pearson
from luthier.evaluation.style.pairs import ANSWER_TOKENS, Judged, Pair, questions, read_replies
from luthier.evaluation.systems.base import Context
from luthier.evaluation.systems.local_model import LocalModel
from luthier.models.catalog import resolve
from luthier.models.load import load
from luthier.models.memory import tokens_in_flight
from luthier.recipe import ModelSettings, StyleSettings

DATA = Path(__file__).parent.parent.parent / "shared/data/preference_pandalm/test.jsonl"


@dataclass(frozen=True)
class Compared:
    """A pair and whether people preferred `a`."""

    pair: Pair
    people_prefer_a: bool


def read_pairs(path: Path, rows: int) -> list[Compared]:
    """Pairs whose order is drawn by a fixed seed."""
    rng, found = random.Random(0), []
    for line in path.read_text(encoding="utf-8").splitlines()[:rows]:
        row = json.loads(line)
        chosen, rejected = row["chosen"][-1]["content"], row["rejected"][-1]["content"]
        first = rng.random() < 0.5
        a, b = (chosen, rejected) if first else (rejected, chosen)
        found.append(Compared(Pair(row["id"], row["prompt"][-1]["content"], a, b), first))
    return found


def context() -> Context:
    """As a run of the default model gives it to a judge."""
    loaded = load(resolve(ModelSettings().name))
    return Context(
        loaded=loaded,
        template=build_template(loaded),
        adapter_disabled=nullcontext,
        train=(),
        validation=(),
        max_new_tokens=ANSWER_TOKENS,
        task="text",
        primary_metric=RougeL(),
        base_fingerprint="",
        batch_tokens=tokens_in_flight(loaded.model),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the judges that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["qwen2.5-coder-0.5b-instruct"])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--rows", type=int, default=170)
    parser.add_argument("--criterion", default=StyleSettings().criterion)
    args = parser.parse_args(arguments)
    compared = read_pairs(args.data, args.rows)
    print("| judge | decides | agrees, of decided | ties as half | kappa | first place | longer | unreadable | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    here = context()
    for model in args.models:
        started = time.perf_counter()
        asked = [question for one in compared for question in questions(one.pair, args.criterion)]
        given = build(LocalModel, {"model": model}).answer(asked, here).answers
        print(_line(model, compared, read_replies([one.output for one in given]), time.perf_counter() - started))
    longer = [Judged(("first", "second") if len(c.pair.a) > len(c.pair.b) else ("second", "first")) for c in compared]
    print(_line("the longer answer", compared, longer, 0.0))


def _line(name: str, compared: Sequence[Compared], judged: Sequence[Judged], seconds: float) -> str:
    decided = [(c, j.outcome == "a") for c, j in zip(compared, judged, strict=True) if j.outcome != "tie"]
    right = sum(c.people_prefer_a == a for c, a in decided)
    longer = sum((len(c.pair.a) > len(c.pair.b)) == a for c, a in decided)
    named = [choice for j in judged for choice in j.orders if choice in ("first", "second")]
    silent = sum(choice is None for j in judged for choice in j.orders)
    halves = (right + (len(compared) - len(decided)) / 2) / len(compared)
    cells = [
        f"`{name}`",
        f"{len(decided) / len(compared):.2f}",
        _share(right, len(decided)),
        f"{halves:.3f}",
        f"{_kappa([(c.people_prefer_a, a) for c, a in decided]):.2f}" if decided else "",
        _share(sum(choice == "first" for choice in named), len(named)),
        _share(longer, len(decided)),
        f"{silent / (2 * len(compared)):.2f}",
        f"{seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _share(part: int, whole: int) -> str:
    if not whole:
        return ""
    low, high = clopper_pearson(part, whole)
    return f"{part / whole:.3f} [{low:.3f}, {high:.3f}]"


def _kappa(pairs: Sequence[tuple[bool, bool]]) -> float:
    """Cohen 1960: agreement beyond that of two raters who never looked."""
    n = len(pairs)
    agreed = sum(x == y for x, y in pairs) / n
    x, y = sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n
    chance = x * y + (1 - x) * (1 - y)
    return (agreed - chance) / (1 - chance) if chance < 1 else 0.0


if __name__ == "__main__":
    main()
