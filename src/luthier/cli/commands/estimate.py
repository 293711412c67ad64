"""Memory, time and money of a run, before it begins.

Memory is predicted from the model's shape and the data; time is measured on this machine with one step and a few
answers. Money is that of this machine and of every entry of the price book that could train the same. Nothing is
trained.

example:
  luthier estimate recipe.toml
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.estimate import Room
    from luthier.report.schema import System


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier estimate`."""
    from luthier.cli.run_arguments import add_recipe_arguments

    add_recipe_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the estimate; the run's folder is a temporary one."""
    import tempfile
    from pathlib import Path

    from luthier.data_stage import prepare_data
    from luthier.estimate import estimate
    from luthier.progress import Terminal, duration
    from luthier.recipe import load
    from luthier.report.text import usd, visible
    from luthier.run_folder import RunFolder
    from luthier.stages import open_run

    recipe = load(args.recipe, args.set)
    with tempfile.TemporaryDirectory(prefix="luthier-estimate-") as place:
        folder, progress = RunFolder(Path(place), listed=False), Terminal()
        folder.open(recipe, args.recipe)
        opened = open_run(recipe, folder, prepare_data(recipe, folder, progress), progress)
        found = estimate(opened)
    memory, room = found.memory, found.room
    parts = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in vars(memory).items())
    print(
        f"memory    {memory.total / 2**30:.2f} GiB at most, while {found.memory_stage} ({parts}); "
        f"{room.available / 2**30:.1f} are available"
    )
    print(_fits(room))
    second = f", once more with passages {duration(found.passages_seconds)}" if found.passages_seconds else ""
    print(
        f"time      {duration(found.seconds)}: training {duration(found.training_seconds)} "
        f"({found.steps} steps of {found.step_seconds:.2f} s){second}, answering {duration(found.evaluation_seconds)}"
    )
    print(f"tokens    {found.tokens:,} to train on, in all steps and with their prompts; {_answers(found.systems)}")
    machine = found.machine
    print(f"money     {usd(found.usd)} on this machine at {usd(machine.usd_per_hour)} an hour ({machine.formula})")
    for offer in found.offers:
        print(visible(f"hosted    {offer.line()}"))
    return 0


def _answers(systems: "Sequence[System]") -> str:
    """Tokens of every system's answers, as far as they can be told."""
    known = [f"{s.name} about {s.tokens.prompt:,} + {s.tokens.completion:,}" for s in systems if s.tokens]
    rest = [s.name for s in systems if not s.tokens]
    parts = ([f"to answer {systems[0].n:,} test rows {', '.join(known)}"] if known else []) + (
        [f"unknown before it runs: {', '.join(rest)}"] if rest else []
    )
    return "; ".join(parts)


def _fits(room: "Room") -> str:
    """The line on what else would fit."""
    batch = (
        f"micro-batches of up to {room.tokens:,} tokens, about {room.rows:,} of these rows at once (steps of more are "
        "cut into several)"
        if room.tokens
        else "no micro-batch for certain"
    )
    if room.model is None:
        model = f"no known model (the smallest, {room.beyond}, would hold {room.beyond_bytes / 2**30:.1f} GiB)"
    else:
        model = f"models up to {room.model} ({room.model_bytes / 2**30:.1f} GiB)"
        if room.beyond is not None:
            model += f", not {room.beyond} ({room.beyond_bytes / 2**30:.1f})"
    return f"fits      {batch}; with this recipe, by their shapes, {model}"
