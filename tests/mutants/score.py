"""The mutation score of the pre-flight: `python -m tests.mutants.score` prints it, `--write` puts it into the docs.

Every mutant of `seeds.py` is run through the gates of its stage; it is caught if the gate that it names refuses it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.mutants import seeds, seeds_trained
from tests.mutants.bench import failed_gates
from tests.mutants.registry import Mutant

MUTANTS = (*seeds.MUTANTS, *seeds_trained.MUTANTS)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "preflight.md"
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"


@dataclass(frozen=True)
class Outcome:
    """Which gates of its stage refused one mutant."""

    mutant: Mutant
    refused_by: tuple[str, ...]

    @property
    def caught(self) -> bool:
        """Whether the named gate did."""
        return self.mutant.gate in self.refused_by


@cache
def measure(mutant: Mutant) -> Outcome:
    """Run the gates of its stage on a mutant; once a process."""
    return Outcome(mutant, tuple(failed_gates(mutant.seed(), mutant.stage)))


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table, with the score above it."""
    caught = sum(o.caught for o in outcomes)
    alone = sum(len(o.refused_by) == 1 and o.caught for o in outcomes)
    lines = [
        f"Mutation score: **{caught} of {len(outcomes)}** ({caught / len(outcomes):.0%}) are caught by the gate that "
        f"should; {alone} of them by that gate alone.",
        "",
        "| failure | seeded | gate expected | caught | other gates that refuse it too |",
        "|---|---|---|---|---|",
    ]
    for o in outcomes:
        others = ", ".join(g for g in o.refused_by if g != o.mutant.gate) or "-"
        words = o.mutant.name.replace("_", " ")
        lines.append(
            f"| {o.mutant.failure} | {words} | {o.mutant.gate} | {'yes' if o.caught else '**no**'} | {others} |"
        )
    return "\n".join(lines)


def write(text: str, page: Path = PAGE) -> None:
    """Replace the table in the page."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> int:
    """Print the table; exit code 1 if a mutant survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"also put the table into {PAGE.name}")
    args = parser.parse_args()
    outcomes = [measure(mutant) for mutant in MUTANTS]
    text = table(outcomes)
    if args.write:
        write(text)
    print(text)
    return 0 if all(o.caught for o in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
