"""Which tests `make check` leaves to `make test`: `python -m tests.slow_tests TIMES.xml > tests/slow.txt`.

A test that is fast today may be slow tomorrow, and nobody marks hundreds by hand; so `make times` measures them all and
writes the list. What is slow by its nature (it needs the default model, or trains) is still marked where it stands.
"""

import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

LIST = Path(__file__).parent / "slow.txt"
SECONDS = 0.5
"""A test function, over all its parameters, that took longer is slow."""


def name_of(nodeid: str) -> str:
    """`tests/unit/test_read.py::test_a_row`, without parameters."""
    return nodeid.partition("[")[0]


def slow_names() -> frozenset[str]:
    """Those of the list."""
    return frozenset(line for line in LIST.read_text(encoding="utf-8").splitlines() if line)


def slow_in(path: Path) -> list[str]:
    """Names that took longer than `SECONDS` by a JUnit file of pytest, sorted."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for case in ElementTree.parse(path).iter("testcase"):
        file = case.attrib["classname"].replace(".", "/") + ".py"
        seconds[name_of(f"{file}::{case.attrib['name']}")] += float(case.attrib["time"])
    return sorted(name for name, total in seconds.items() if total > SECONDS)


if __name__ == "__main__":
    print("\n".join(slow_in(Path(sys.argv[1]))))
