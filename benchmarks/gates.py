"""How long the pre-flight takes on the default model, and how far rounding moves what its gates compare.

1,000 rows of about 160 tokens; for weights held in each number format the gates over rows, then those on the model.
Rows of random words have a high loss, where rounding is largest. No limit is set.
"""

import sys
import tempfile
import time
from pathlib import Path

from benchmarks._rows import write_recipe
from luthier import assemble
from luthier.data_stage import prepare_data
from luthier.preflight.base import run_gates
from luthier.preflight.tensors_moved import checksums
from luthier.progress import Silent
from luthier.recipe import load
from luthier.run_folder import RunFolder
from luthier.stages import row_subject

MESSAGES = ("forest_equivalence", "base_loss", "decode_equivalence", "gradient_equivalence")


def main() -> int:
    for precision in ("bfloat16", "float32"):
        with tempfile.TemporaryDirectory() as place:
            recipe_file = write_recipe(Path(place), words=90, rows=1000)
            recipe = load(recipe_file, [f"model.precision={precision}"])
            folder = RunFolder(Path(place) / "run", listed=False)
            folder.open(recipe, recipe_file)
            data = prepare_data(recipe, folder, Silent())
            loaded = assemble.open_model(recipe)
            template = assemble.template_for(recipe, loaded, assemble.longest_row(recipe, loaded))
            subject = row_subject(recipe, data, loaded, template)
            started = time.perf_counter()
            results = run_gates(subject, "rows")
            rows = time.perf_counter() - started
            trainable = assemble.make_trainable(recipe, loaded)
            subject.injected, subject.models = trainable.injected, trainable.models
            started = time.perf_counter()
            results += run_gates(subject, "model")
            model = time.perf_counter() - started
            started = time.perf_counter()
            checksums(loaded.model, trainable.injected)
            sums = time.perf_counter() - started
        refused = [result.gate for result in results if not result.passed]
        print(
            f"{precision}: {len(data.train):,} rows rendered and checked in {rows:.1f} s, model in {model:.1f} s, ",
            end="",
        )
        print(f"checksums in {sums:.1f} s; refused: {', '.join(refused) or 'nothing'}")
        for result in results:
            if result.gate in MESSAGES:
                print(f"    {result.gate}: {result.message}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
