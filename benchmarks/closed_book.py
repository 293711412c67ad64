"""What the check `closed_book` finds in the project's data sets, and how fast it reads.

    python -m benchmarks.closed_book [--data ../shared/data] [--examples N]

`rag_qa` has questions, answers and passages in separate files; here its training questions are rows twice: with their
passage in the prompt, and without it. `--examples` prints so many replies of each kind from each set.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.data.checks._text import trained_replies
from luthier.data.checks.base import run_checks
from luthier.data.checks.closed_book import kind_of
from luthier.data.formats.base import read_examples
from luthier.data.prompts import tools_text
from luthier.examples import Conversation, Example, Message, Where

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
FILES = (
    "json_extraction/train.jsonl",
    "intents/train_chat.jsonl",
    "toolcalls/train.jsonl",
    "gsm8k/train.jsonl",
    "summarize/train.jsonl",
    "instructions/train.jsonl",
    "preference/train.jsonl",
    "preference_pandalm/train.jsonl",
)


def rag_qa(data: Path, with_passages: bool) -> Iterator[Example]:
    """The training questions as rows."""
    folder = data / "rag_qa"
    corpus = {row["id"]: row["text"] for row in _lines(folder / "corpus.jsonl")}
    for line, row in enumerate(_lines(folder / "train.jsonl"), 1):
        passages = [corpus[name] for name in row["gold_passage_ids"]] if with_passages else []
        asked = Message("user", "\n\n".join([*passages, row["question"]]))
        answer = Message("assistant", row["answers"][0])
        yield Conversation((asked, answer), where=Where(str(folder / "train.jsonl"), line), id=row["id"])


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Print a line of shares for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--examples", type=int, default=0)
    options = parser.parse_args()
    sets: dict[str, list[Example]] = {name: list(read_examples(options.data / name)) for name in FILES}
    sets["rag_qa, passage in the prompt"] = list(rag_qa(options.data, with_passages=True))
    sets["rag_qa, question alone"] = list(rag_qa(options.data, with_passages=False))
    for name, examples in sets.items():
        start = time.perf_counter()
        found = run_checks({"train": examples}, only=["closed_book"])
        seconds = time.perf_counter() - start
        print(f"{name}: {len(examples):,} rows, {len(examples) / seconds:,.0f} a second")
        for finding in found:
            print(f"  {finding.severity}: {finding.message}; lines {', '.join(str(w.line) for w in finding.where[:5])}")
        for kind in ("answer", "mention"):
            for reply in _replies(examples, kind)[: options.examples]:
                print(f"    {kind}: {reply[:150]!r}")


def _replies(examples: list[Example], kind: str) -> list[str]:
    return [
        reply
        for example in examples
        for before, reply in trained_replies(example)
        if kind_of(reply, before, tools_text(example.tools) if isinstance(example, Conversation) else "") == kind
    ]


if __name__ == "__main__":
    main()
