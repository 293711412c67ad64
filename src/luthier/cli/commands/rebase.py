"""Do a run again on another base model, on the very same rows, and say whether to move to it.

The recipe, the rows and their split are those of the old run; each base has its own chat template unless the recipe
names one. Ends with both runs compared on the same test rows, and with "keep" or "move". A rebase that was stopped
goes on when the same command is given again.

examples:
  luthier rebase runs/demo --model smollm2-360m-instruct
  luthier rebase runs/demo --model ./new-base --out runs/new --set optimizer.learning_rate=1e-4
"""

import argparse
import re
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier rebase`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run that is trained and measured")
    parser.add_argument("--model", required=True, metavar="NEW", help="the new base, as model.name of a recipe")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the new run's folder (default: RUN-NEW)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting that is not of the rows"
    )


def run(args: argparse.Namespace) -> int:
    """Run it all on the new base, and print the comparison and the verdict.

    Raises:
        LuthierError: the old run cannot be done again, a setting is wrong, or a stage failed.
    """
    from luthier.cli.commands.report import summary
    from luthier.cli.show_runs import comparison_text
    from luthier.comparison import compare_runs, read_side, require_same_rows
    from luthier.complete import complete
    from luthier.data_stage import prepare_data
    from luthier.models.catalog import source_of
    from luthier.models.load import choose_device
    from luthier.progress import Terminal
    from luthier.rebase import decide, plan_rebase
    from luthier.run_folder import RunFolder
    from luthier.tracking import require_answers

    plan = plan_rebase(args.run, args.model, args.set)
    source_of(plan.recipe.model.name)
    choose_device(plan.recipe.model.device)
    folder, progress = RunFolder(args.out or default_out(args.run, args.model)), Terminal()
    with folder.locked():
        folder.begin(plan.recipe, plan.source, plan.home, [plan.parent])
        require_answers(plan.recipe, folder)
        folder.record(held={**plan.held, **(folder.read("manifest.json").get("held") or {})})
        progress.say("  " + plan.learning_rate)
        data = prepare_data(plan.recipe, folder, progress)
        require_same_rows(args.run, folder.path)
        report = complete(plan.recipe, folder, data, progress)
        old, new = read_side(args.run), read_side(folder.path)
        comparison = compare_runs(old, new)
        verdict = decide(old, new, comparison)
        found = {"decision": verdict.decision, "sentence": verdict.sentence, "notes": verdict.notes}
        folder.write("rebase.json", {**found, "learning_rate": plan.learning_rate, "comparison": comparison.dump()})
    print(summary(report, folder / "report.html"))
    print()
    print(comparison_text(comparison))
    print()
    print("\n".join([verdict.sentence, *(f"  ! {note}" for note in verdict.notes)]))
    return 0


def default_out(run: Path, model: str) -> Path:
    """Beside the old run: its name and the last part of the new base's."""
    run, base = run.resolve(), re.sub(r"[^\w.-]+", "-", Path(model).name.removesuffix(".gguf")).strip("-")
    return run.with_name(f"{run.name}-{base}")
