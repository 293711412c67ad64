"""Every adapter on the same task: at several learning rates, and at its best one all that it costs and does.

The task is that of the demo, messy addresses to JSON.

    python -m benchmarks.adapters search [METHOD ...] [--steps 80] [--workers 1]

trains shortly with each learning rate and prints the loss on validation rows.

    python -m benchmarks.adapters table [METHOD ...] [--steps 80] [--out FOLDER]

trains each method in a process of its own at the best rate of the search, lets it answer all test rows, measures what
it forgot, and prints the table of docs/adapters.md. What is in FOLDER is used again, so a stopped table goes on.

    python -m benchmarks.adapters speed [METHOD ...]

times a few steps of each method between two times of LoRA, for a machine that does nothing else.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "addresses.toml"


@dataclass(frozen=True)
class Method:
    """One line of the table: an adapter's settings, learning rates to try, and the best one for the default model."""

    adapter: Mapping[str, Any]
    rates: Sequence[float]
    best: float


LOW_RANK = (5e-4, 1e-3, 2e-3, 4e-3)
METHODS: Mapping[str, Method] = {
    "lora": Method({"type": "lora"}, LOW_RANK, 1e-3),
    "lora, sqrt_rank, rank 64": Method({"type": "lora", "scaling": "sqrt_rank", "rank": 64}, LOW_RANK[:3], 5e-4),
    "lora, LoRA+ 16": Method({"type": "lora", "loraplus_ratio": 16.0}, (1e-4, 2e-4, 5e-4), 2e-4),
    "lora, pissa": Method({"type": "lora", "init": "pissa"}, (2e-4, 5e-4, 1e-3), 5e-4),
    "lora, olora": Method({"type": "lora", "init": "olora"}, (2e-4, 5e-4, 1e-3), 2e-4),
    "lora, orthogonal": Method({"type": "lora", "init": "orthogonal"}, LOW_RANK[:3], 5e-4),
    "lora, eva": Method({"type": "lora", "init": "eva"}, (2e-4, 5e-4, 1e-3), 1e-3),
    "dora": Method({"type": "dora"}, LOW_RANK, 1e-3),
    "vera": Method({"type": "vera"}, (3e-3, 1e-2, 3e-2, 1e-1), 3e-2),
    "oft": Method({"type": "oft"}, (5e-4, 1e-3, 3e-3), 1e-3),
    "ia3": Method({"type": "ia3"}, (1e-2, 3e-2, 1e-1), 3e-2),
    "bitfit": Method({"type": "bitfit"}, (1e-3, 3e-3, 1e-2, 3e-2), 3e-3),
    "bottleneck, pfeiffer": Method({"type": "bottleneck"}, (1e-3, 2e-3, 4e-3), 1e-3),
    "bottleneck, houlsby": Method({"type": "bottleneck", "placement": "houlsby"}, (1e-3, 2e-3, 4e-3), 1e-3),
    "prompt": Method({"type": "prompt"}, (1e-2, 3e-2, 1e-1, 3e-1), 1e-1),
    "p_tuning": Method({"type": "p_tuning"}, (3e-4, 1e-3, 3e-3), 1e-2),
    "prefix": Method({"type": "prefix"}, (3e-3, 1e-2, 3e-2, 1e-1), 1e-1),
    "prefix, reparametrize": Method({"type": "prefix", "reparametrize": True}, (3e-2, 1e-1), 1e-1),
    "layer_freeze": Method({"type": "layer_freeze"}, (1e-4, 2e-4, 5e-4, 1e-3), 1e-3),
    "full": Method({"type": "full"}, (5e-5, 1e-4, 2e-4, 5e-4), 2e-4),
    "peft, oft": Method({"type": "peft", "method": "oft"}, (1e-3, 4e-3), 1e-3),
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
    from luthier.data_stage import prepare_data
    from luthier.progress import Silent
    from luthier.run_folder import RunFolder
    from luthier.stages import open_run

    recipe = recipe_of(METHODS["lora"], 1e-3, *assignments)
    run_folder = RunFolder(Path(folder) / str(os.getpid()), listed=False)
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


Rates: TypeAlias = Mapping[str, Sequence[float]]
"""Of some methods, in place of those of `METHODS`."""


def search(names: Sequence[str], steps: int, workers: int, assignments: Sequence[str], rates: Rates) -> int:
    """Print the losses as they come, then a table."""
    tried = {name: rates.get(name, METHODS[name].rates) for name in names}
    given = (f"training.steps={steps}", f"training.validate_every={steps}", "training.patience=false", *assignments)
    with tempfile.TemporaryDirectory() as folder:
        turns = range(max(map(len, tried.values())))  # one rate of each method, then the next
        each = [(name, tried[name][turn : turn + 1]) for turn in turns for name in names]
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


# The table


def measure(name: str, rate: float, folder: Path, base: Path, assignments: Sequence[str]) -> None:
    """Train one method, let it answer, and write `row.json` into `folder`; meant for a process of its own.

    `base` is where the general ability of the base is kept for all methods.
    """
    from luthier import assemble
    from luthier.data_stage import prepare_data
    from luthier.engine.loop import train
    from luthier.evaluate import BASE_ABILITY, measure_tuned, question_of
    from luthier.models.memory import peak_memory_bytes
    from luthier.progress import Terminal
    from luthier.run_folder import RunFolder
    from luthier.stages import open_run

    recipe, progress, run_folder = (
        recipe_of(METHODS[name], rate, *assignments),
        Terminal(),
        RunFolder(folder, listed=False),
    )
    run_folder.open(recipe, RECIPE)
    if (base / BASE_ABILITY).is_file():
        shutil.copy(base / BASE_ABILITY, folder)
    opened = open_run(recipe, run_folder, prepare_data(recipe, run_folder, progress), progress)
    trainable = assemble.make_trainable(recipe, opened.loaded)
    run = assemble.build_run(recipe, opened.loaded, trainable, opened.units, "", folder)
    seconds, loss = [], float("nan")
    for step in train(run):
        seconds.append(step.seconds)
        loss = step.metrics.get("validation_loss", loss)
    peak = peak_memory_bytes(opened.loaded.device)
    adapter = folder / "adapter"
    assemble.save_artifact(adapter, recipe, opened.loaded, trainable.injected, opened.template)
    evaluation = measure_tuned(opened, question_of(opened), trainable.injected, progress)
    shutil.copy(folder / BASE_ABILITY, base)
    found = {
        "method": name,
        "learning_rate": rate,
        "trained": sum(p.numel() for p in trainable.injected.trainable.values()),
        "file_bytes": sum(path.stat().st_size for path in adapter.glob("*.safetensors")),
        "peak_bytes": peak,
        "step_seconds": statistics.median(seconds),
        "validation_loss": loss,
        "evaluation": run_folder.read("evaluation.json"),
        "forgetting": run_folder.read("forgetting.json"),
        "primary": evaluation.primary,
    }
    (folder / "row.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def table(names: Sequence[str], steps: int, out: Path, assignments: Sequence[str], rates: Rates) -> int:
    """Measure what is not in `out` yet, each method in a fresh process, and print all of it."""
    given = [f"training.steps={steps}", f"training.validate_every={steps}", "training.patience=false", *assignments]
    given.append("evaluation.systems={ fine_tuned = {} }")
    rows = []
    for name in names:
        folder = out / name.replace(", ", "-").replace(" ", "_")
        if not (folder / "row.json").is_file():
            rate = rates[name][0] if name in rates else METHODS[name].best
            command = [sys.executable, "-m", "benchmarks.adapters", "_measure", name, str(rate), str(folder), str(out)]
            print(f"{name} at {rate:g}", file=sys.stderr, flush=True)
            done = subprocess.run([*command, *given], cwd=ROOT, check=False)
            if done.returncode:
                print(f"{name}: failed with {done.returncode}", file=sys.stderr, flush=True)
                continue
        rows.append(json.loads((folder / "row.json").read_text(encoding="utf-8")))
    print(
        "| method | learning rate | trained numbers | field F1 on the test rows | validation loss | peak memory "
        "| seconds a step | file | questions right, change | perplexity of text, change |\n" + "|---" * 10 + "|"
    )
    for row in sorted(rows, key=_score, reverse=True):
        print(_line(row))
    return int(len(rows) < len(names))


def _result(row: Mapping[str, Any]) -> Any:
    (system,) = row["evaluation"]["systems"]
    return system["metrics"][row["primary"]]


def _score(row: Mapping[str, Any]) -> float:
    return float(_result(row)["value"])


def _line(row: Mapping[str, Any]) -> str:
    score, changes = _result(row), {m["name"]: m for m in row["forgetting"]["measures"]}
    right, text = changes["multiple_choice_accuracy"]["difference"], changes["text_perplexity"]
    cells = [
        row["method"],
        f"{row['learning_rate']:g}",
        f"{row['trained']:,}",
        f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]",
        f"{row['validation_loss']:.3f}",
        f"{row['peak_bytes'] / 2**30:.2f} GiB",
        f"{row['step_seconds']:.1f}",
        f"{row['file_bytes'] / 1e6:.2f} MB",
        f"{right['value']:+.3f} [{right['low']:+.3f}, {right['high']:+.3f}]",
        f"{text['difference']['value'] / text['before']['value']:+.1%}",
    ]
    return f"| {' | '.join(cells)} |"


# Speed


def speed(names: Sequence[str], assignments: Sequence[str]) -> int:
    """Print the median seconds of a step of each method beside LoRA's before and after it."""
    print("| method | seconds a step | of LoRA's |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        before = _step_seconds("lora", folder, assignments)
        for name in names:
            own, after = (_step_seconds(one, folder, assignments) for one in (name, "lora"))
            print(f"| {name} | {own:.2f} | {2 * own / (before + after):.2f} |", flush=True)
            before = after
    return 0


def _step_seconds(name: str, folder: str, assignments: Sequence[str]) -> float:
    """The median of the last five of seven steps."""
    from luthier import assemble
    from luthier.engine.loop import train

    given = ("training.steps=7", "training.validate_every=1000", "training.patience=false", *assignments)
    shared, recipe = opened(folder, *given), recipe_of(METHODS[name], METHODS[name].best, *given)
    loaded = assemble.open_model(recipe)
    with tempfile.TemporaryDirectory() as place:
        trainable = assemble.make_trainable(recipe, loaded)
        run = assemble.build_run(recipe, loaded, trainable, shared.units, "", Path(place))
        return statistics.median([step.seconds for step in train(run)][2:])


def main() -> int:
    if sys.argv[1:2] == ["_measure"]:
        name, rate, folder, base, *assignments = sys.argv[2:]
        measure(name, float(rate), Path(folder), Path(base), assignments)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["search", "table", "speed"])
    parser.add_argument("methods", nargs="*", help=f"of: {'; '.join(METHODS)}; all if none")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--workers", type=int, default=1, help="of the search")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "adapters", help="where the table's runs are kept")
    parser.add_argument(
        "--rate",
        action="append",
        default=[],
        metavar="METHOD=RATE",
        help="of a search or the table, in place of its own",
    )
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
    rates: dict[str, list[float]] = {}
    for text in asked.rate:
        method, _, rate = text.rpartition("=")
        rates.setdefault(method, []).append(float(rate))
    if asked.what == "table":
        asked.out.mkdir(parents=True, exist_ok=True)
        return table(names, asked.steps, asked.out, asked.set, rates)
    if asked.what == "speed":
        return speed(names, asked.set)
    return search(names, asked.steps, asked.workers, asked.set, rates)


if __name__ == "__main__":
    sys.exit(main())
