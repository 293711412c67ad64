"""Every adapter on the same task, each at several learning rates.

The task is that of the demo, messy addresses to JSON, with the default model: a short training for each method and
learning rate, and the loss on validation rows.

    python -m benchmarks.adapters search [METHOD ...] [--steps 80] [--workers 1]
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "addresses.toml"


@dataclass(frozen=True)
class Method:
    """One line of the table: an adapter's settings, and learning rates to try."""

    adapter: Mapping[str, Any]
    rates: Sequence[float]


LOW_RANK = (5e-4, 1e-3, 2e-3, 4e-3)
METHODS: Mapping[str, Method] = {
    "lora": Method({"type": "lora"}, LOW_RANK),
    "lora, sqrt_rank, rank 64": Method({"type": "lora", "scaling": "sqrt_rank", "rank": 64}, LOW_RANK[:3]),
    "lora, LoRA+ 16": Method({"type": "lora", "loraplus_ratio": 16.0}, (1e-4, 2e-4, 5e-4)),
    "lora, pissa": Method({"type": "lora", "init": "pissa"}, (2e-4, 5e-4, 1e-3)),
    "lora, olora": Method({"type": "lora", "init": "olora"}, (2e-4, 5e-4, 1e-3)),
    "lora, orthogonal": Method({"type": "lora", "init": "orthogonal"}, LOW_RANK[:3]),
    "dora": Method({"type": "dora"}, LOW_RANK),
    "vera": Method({"type": "vera"}, (3e-3, 1e-2, 3e-2, 1e-1)),
    "ia3": Method({"type": "ia3"}, (1e-2, 3e-2, 1e-1)),
    "bitfit": Method({"type": "bitfit"}, (1e-3, 3e-3, 1e-2, 3e-2)),
    "bottleneck, pfeiffer": Method({"type": "bottleneck"}, (1e-3, 2e-3, 4e-3)),
    "bottleneck, houlsby": Method({"type": "bottleneck", "placement": "houlsby"}, (1e-3, 2e-3, 4e-3)),
    "prompt": Method({"type": "prompt"}, (1e-2, 3e-2, 1e-1, 3e-1)),
    "p_tuning": Method({"type": "p_tuning"}, (3e-4, 1e-3, 3e-3)),
    "prefix": Method({"type": "prefix"}, (3e-3, 1e-2, 3e-2, 1e-1)),
    "prefix, reparametrize": Method({"type": "prefix", "reparametrize": True}, (3e-4, 1e-3, 3e-3)),
    "layer_freeze": Method({"type": "layer_freeze"}, (1e-4, 2e-4, 5e-4, 1e-3)),
    "full": Method({"type": "full"}, (5e-5, 1e-4, 2e-4, 5e-4)),
    "peft, oft": Method({"type": "peft", "method": "oft"}, (1e-3, 4e-3)),
}


def recipe_of(method: Method, rate: float | None, *assignments: str) -> Any:
    """The demo's recipe with another adapter."""
    from luthier.recipe import load

    adapter = ", ".join(f"{key} = {json.dumps(value)}" for key, value in method.adapter.items())
    given = [f"adapter={{ {adapter} }}", f"optimizer.learning_rate={rate or 'none'}", *assignments]
    return load(RECIPE, [a for a in given if not a.endswith("=none")])


@cache
def opened(folder: str, *assignments: str) -> Any:
    """The demo's rows, checked and rendered; once for each process."""
    from luthier.progress import Silent
    from luthier.run_folder import RunFolder
    from luthier.stages import open_run, prepare_data

    recipe = recipe_of(METHODS["lora"], 1e-3, *assignments)
    run_folder = RunFolder(Path(folder) / str(os.getpid()))
    run_folder.open(recipe, RECIPE)
    return open_run(recipe, run_folder, prepare_data(recipe, run_folder, Silent()), Silent())


def validation_loss(job: tuple[str, float, str, tuple[str, ...]]) -> tuple[str, float, float, float]:
    """Method and rate, the loss on validation rows after a training without early stop, and its seconds."""
    from luthier import assemble
    from luthier.engine.loop import train
    from luthier.errors import NonFiniteStep

    name, rate, folder, assignments = job
    shared = opened(folder, *assignments)
    recipe = recipe_of(METHODS[name], rate, *assignments)
    loaded = assemble.open_model(recipe)
    with tempfile.TemporaryDirectory() as place:
        trainable = assemble.make_trainable(recipe, loaded)
        run = assemble.build_run(recipe, loaded, trainable, shared.units, "", Path(place))
        started = time.perf_counter()
        try:
            steps = list(train(run))
        except NonFiniteStep:
            return name, rate, float("inf"), time.perf_counter() - started
    return name, rate, steps[-1].metrics["validation_loss"], time.perf_counter() - started


def search(names: Sequence[str], steps: int, workers: int, assignments: Sequence[str]) -> int:
    """Print the losses as they come, then a table."""
    given = (f"training.steps={steps}", f"training.validate_every={steps}", "training.patience=false", *assignments)
    with tempfile.TemporaryDirectory() as folder:
        turns = range(max(len(METHODS[name].rates) for name in names))  # one rate of each method, then the next
        each = [(name, METHODS[name].rates[turn : turn + 1]) for turn in turns for name in names]
        jobs = [(name, rate, folder, given) for name, rates in each for rate in rates]
        found: dict[str, dict[float, float]] = {}
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for name, rate, loss, seconds in pool.imap_unordered(validation_loss, jobs):
                print(f"    {name} at {rate:g}: {loss:.4f}, {seconds:.0f} s", flush=True)
                found.setdefault(name, {})[rate] = loss
    print("| method | validation loss by learning rate | best |\n|---|---|---|")
    for name in names:
        losses = dict(sorted(found[name].items()))
        said = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in losses.items())
        print(f"| {name} | {said} | {min(losses, key=lambda rate: losses[rate]):g} |")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search"])
    parser.add_argument("methods", nargs="*", help=f"of: {'; '.join(METHODS)}; all if none")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe, as `luthier run`"
    )
    asked = parser.parse_args()
    unknown = sorted(set(asked.methods) - METHODS.keys())
    if unknown:
        parser.error(f"no method {', '.join(unknown)}; there are {'; '.join(METHODS)}")
    names = asked.methods or list(METHODS)
    data = ROOT / "runs" / "addresses-data" / "addresses.jsonl"
    if not data.is_file():
        subprocess.run([sys.executable, "-m", "luthier.cli.main", "data", "addresses"], cwd=ROOT, check=True)
    return search(names, asked.steps, asked.workers, asked.set)


if __name__ == "__main__":
    sys.exit(main())
