"""Memory, time and money of a run, before it begins.

Memory is predicted from the model's shape and the data; time is measured on this machine with one step and a few
answers. Nothing is trained.

example:
  luthier estimate recipe.toml
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier estimate`."""
    from luthier.cli.run_arguments import add_recipe_arguments

    add_recipe_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the estimate; the run's folder is a temporary one."""
    import tempfile
    from pathlib import Path

    import psutil

    from luthier.estimate import estimate
    from luthier.progress import Terminal, duration
    from luthier.recipe import load
    from luthier.run_folder import RunFolder
    from luthier.stages import open_run, prepare_data

    recipe = load(args.recipe, args.set)
    with tempfile.TemporaryDirectory(prefix="luthier-estimate-") as place:
        folder, progress = RunFolder(Path(place)), Terminal()
        folder.open(recipe, args.recipe)
        opened = open_run(recipe, folder, prepare_data(recipe, folder, progress), progress)
        found = estimate(opened)
    memory, available = found.memory, psutil.virtual_memory().total
    parts = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in vars(memory).items())
    print(
        f"memory    {memory.total / 2**30:.2f} GiB at most, while {found.memory_stage} ({parts}); "
        f"this machine has {available / 2**30:.1f}"
    )
    print(
        f"time      {duration(found.seconds)}: training {duration(found.training_seconds)} "
        f"({found.steps} steps of {found.step_seconds:.2f} s), answering {duration(found.evaluation_seconds)}"
    )
    print(
        f"money     {found.usd:.4f} USD on this machine at {recipe.cost.machine_usd_per_hour} USD an hour; "
        f"hosted training of the same {found.tokens:,} tokens {found.hosted_usd:.2f} USD"
    )
    return 0
