"""The head of a reward alone, over a frozen base: held-out pairs ranked right, and two controls, over many seeds.

    python -m benchmarks.reward_probe --data FOLDER [--model NAME] [--seeds 20]

FOLDER holds `preference`, with `train.jsonl` and `test.jsonl`. What the base makes of each reply's end is computed once
in parts that are kept under `--out`: with `--minutes` the command stops after so many, and the same command goes on.
The head is then trained by the loss of `objectives/reward.py`. A seed draws the pairs that are trained on (`--share`)
and the coin of the controls: chosen and rejected exchanged in training, tested on the true labels and on labels of the
coin. Writes its table into docs/methods.md.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks._methods import pairs_of, write_section
from luthier.assemble import open_base
from luthier.config import canonical_hash
from luthier.data.formats import preference
from luthier.data.read import Record
from luthier.data.source import micro_batches
from luthier.data.templates import build_template
from luthier.examples import Where
from luthier.models.decode import evaluating
from luthier.models.forest import HeadValues, build_batch
from luthier.models.heads import Head, HeadShape
from luthier.models.scorer import Scorer
from luthier.objectives.base import Models
from luthier.objectives.reward import Reward

DECAY = 0.02
"""L2 on the head: some hundred numbers are told by some hundred pairs."""
PAIRS_A_PART = 50


class Known:
    """A policy whose hidden states are known: only its head computes."""

    def __init__(self, hidden_RE: Tensor, head: Head) -> None:
        self.hidden_RE, self.head = hidden_RE, head

    def head_values(self, batch: Any) -> HeadValues:
        """What the head reads at the ends of the rows."""
        return HeadValues(self.head(self.hidden_RE), torch.zeros(0, 1))


class Ends:
    """As much of a batch as the loss looks at."""

    def __init__(self, rows: int) -> None:
        self.row_count, self.values_R = rows, {"margin": torch.zeros(rows)}


def ends_of(asked: argparse.Namespace, split: str, until: float) -> Tensor | None:
    """(2P, width) the hidden state at the end of each reply, chosen and rejected in turn; None: time was up before.

    Parts that are there are kept, each under the digest of its pairs.
    """
    longest = asked.characters if split == "train" else 10**9
    rows = pairs_of(asked.data / f"preference/{split}.jsonl", asked.pairs, longest)
    folder = asked.out / asked.model
    folder.mkdir(parents=True, exist_ok=True)
    parts = [rows[start : start + PAIRS_A_PART] for start in range(0, len(rows), PAIRS_A_PART)]
    paths = [folder / f"{split}_{canonical_hash(part)[:12]}.safetensors" for part in parts]
    left = [(path, part) for path, part in zip(paths, parts, strict=True) if not path.is_file()]
    if left:
        loaded = open_base(asked.model)
        model: Any = loaded.model
        template, width = build_template(loaded, "model"), model.get_output_embeddings().in_features
        through = Head(HeadShape("hidden", outputs=width, bias=False), width, seed=0)
        through.weight.data.copy_(torch.eye(width))
        scorer = Scorer(loaded.model, head=through)
        for path, part in left:
            if time.monotonic() > until:
                return None
            examples = [preference.parse(Record(row, Where(split, i))) for i, row in enumerate(part)]
            units = [Reward().rows(example, template) for example in examples]
            with torch.no_grad(), evaluating(loaded.model):
                read = [scorer.head_values(build_batch(group)).rows_RO for group in micro_batches(units, 4096)]
            save_file({"ends": torch.cat(read)}, path)
            print(f"{path.name} is there", file=sys.stderr, flush=True)
    return torch.cat([load_file(path)["ends"] for path in paths])


def trained(hidden_RE: Tensor, seed: int) -> Head:
    """A head that was trained on these pairs."""
    objective = Reward()
    head = Head(objective.head(), hidden_RE.shape[1], seed)
    batch: Any = Ends(len(hidden_RE))
    policy: Any = Known(hidden_RE, head)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = objective.loss(Models(policy), batch).total / objective.weight(batch)
        total = total + DECAY * (head.weight**2).sum()
        total.backward()
        return total

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return head


def tossed(hidden_RE: Tensor, generator: torch.Generator) -> Tensor:
    """The pairs, each in the order that a coin says."""
    pairs_P2E = hidden_RE.view(-1, 2, hidden_RE.shape[1])
    coin_P = torch.rand(len(pairs_P2E), generator=generator) < 0.5
    return torch.where(coin_P[:, None, None], pairs_P2E.flip(1), pairs_P2E).reshape(hidden_RE.shape)


@torch.no_grad()
def accuracy(head: Head, hidden_RE: Tensor) -> float:
    """Share of pairs that are ranked right."""
    reward_R = head(hidden_RE)[:, 0]
    return float((reward_R[0::2] > reward_R[1::2]).float().mean())


def rows_of(train_RE: Tensor, test_RE: Tensor, asked: argparse.Namespace) -> Iterator[tuple[float, float, float]]:
    """By seed: trained on true labels; on a coin's, tested on true ones; on a coin's, tested on a coin's."""
    pairs_P2E = train_RE.view(-1, 2, train_RE.shape[1])
    for seed in range(asked.seeds):
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(pairs_P2E), generator=generator)[: round(asked.share * len(pairs_P2E))]
        some_RE = pairs_P2E[chosen].reshape(-1, train_RE.shape[1])
        by_coin = trained(tossed(some_RE, generator), seed)
        yield (
            accuracy(trained(some_RE, seed), test_RE),
            accuracy(by_coin, test_RE),
            accuracy(by_coin, tossed(test_RE, generator)),
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with preference/train.jsonl and test.jsonl")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=500, help="most of each file")
    parser.add_argument("--share", type=float, default=0.8)
    parser.add_argument("--characters", type=int, default=600)
    parser.add_argument("--minutes", type=float, help="stop after so many; the same command goes on")
    parser.add_argument("--out", type=Path, default=Path("runs/methods/reward_probe"))
    asked = parser.parse_args()
    started = time.perf_counter()
    until = math.inf if asked.minutes is None else time.monotonic() + 60 * asked.minutes
    train_RE, test_RE = ends_of(asked, "train", until), ends_of(asked, "test", until)
    if train_RE is None or test_RE is None:
        print("stopped; the same command goes on", file=sys.stderr)
        return 3
    found = np.array(list(rows_of(train_RE, test_RE, asked)))
    pairs, tested = round(asked.share * len(train_RE) / 2), len(test_RE) // 2
    lines = [
        "| model | pairs | tested | seeds | true labels | a coin's, on true labels | a coin's, on those of the coin |",
        "|---|---|---|---|---|---|---|",
        f"| {asked.model} | {pairs} | {tested} | {asked.seeds} | " + " | ".join(map(told, found.T)) + " |",
        "",
        "Mean over seeds, and the range that holds 95 % of them.",
    ]
    write_section("reward_probe", lines)
    (asked.out / "found.json").write_text(json.dumps(found.tolist()), encoding="utf-8")
    print("\n".join(lines))
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return 0


def told(values: Any) -> str:
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
