"""Whether a training of many rows costs more than one of few: seconds a step, preparation, and the peak of memory.

Rows of about 160 tokens, the default model, LoRA, ten steps of eight rows, in a fresh process for each number of rows;
what is done once for each row (reading, checks, pre-flight) is told apart from what a step takes.

    python -m benchmarks.rows [1000 10000 100000]
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._rows import write_recipe

FOLDER = Path(__file__).parent.parent
STEPS = 10


def child(recipe_file: str) -> None:
    """Print seconds and bytes."""
    from luthier import assemble
    from luthier.data_stage import prepare_data
    from luthier.engine.loop import train
    from luthier.progress import Silent
    from luthier.recipe import load
    from luthier.run_folder import RunFolder
    from luthier.stages import open_run

    recipe = load(Path(recipe_file), [f"training.steps={STEPS}", "training.validate_every=1000000"])
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder(Path(place), listed=False)
        folder.open(recipe, Path(recipe_file))
        started = time.perf_counter()
        opened = open_run(recipe, folder, prepare_data(recipe, folder, Silent()), Silent())
        prepared = time.perf_counter() - started
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trainable = assemble.make_trainable(recipe, opened.loaded)
        units = {"train": opened.units["train"], "validation": [opened.units["validation"][0]]}
        steps = list(train(assemble.build_run(recipe, opened.loaded, trainable, units, "", folder.path)))[1:]
        tokens, seconds = sum(s.metrics["tokens"] for s in steps), sum(s.seconds for s in steps)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{prepared:.1f} {tokens / seconds:.0f} {before / 2**20:.2f} {after / 2**20:.2f}")


def main(counts: list[int]) -> int:
    print("| rows | preparation s | ms a row | training tokens/s | peak before training GiB | peak GiB |")
    print(f"{'|---' * 6}|")
    for count in counts:
        with tempfile.TemporaryDirectory() as place:
            recipe = write_recipe(Path(place), 90, rows=count)
            command = [sys.executable, "-m", "benchmarks.rows", "child", str(recipe)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=FOLDER)
            if done.returncode:
                sys.exit(done.stderr)
            prepared, speed, before, after = done.stdout.split()
            each = 1000 * float(prepared) / count
            print(f"| {count:,} | {prepared} | {each:.1f} | {speed} | {before} | {after} |", flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2])
    else:
        sys.exit(main([int(text) for text in sys.argv[1:]] or [1000, 10000, 100000]))
