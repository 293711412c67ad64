"""`metrics.jsonl`: a line for each step, and each step once however often its process was killed."""

import json
from pathlib import Path

from luthier.data.write import atomic_text
from luthier.engine.run import State


def metrics_line(state: State) -> str:
    """The line of the last step."""
    return json.dumps(state.last) + "\n"


def mend_log(path: Path, state: State) -> None:
    """Drop the lines of steps that will be done again and one that was cut off; add one that a kill came before."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in lines if json.loads(line)["step"] < state.step]
    if state.step:
        kept.append(metrics_line(state))
    with atomic_text(path) as file:
        file.writelines(kept)
