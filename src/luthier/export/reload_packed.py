"""Opens a quantized folder with Luthier alone, and answers the gate's questions with transformers' own generation.

    python -m luthier.export.reload_packed JOB.json ANSWERS.json

The folder is all that is read: neither the run nor its adapter. Codes are expanded to float32 and computed with in
float32, as the comparison does.
"""

import json
import sys
from pathlib import Path

import transformers

from luthier import __version__
from luthier.export.reload_transformers import answer_all
from luthier.models.catalog import resolve
from luthier.models.load import load


def main(job_path: str, answers_path: str) -> None:
    """Answer every question of the job."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    loaded = load(resolve(job["artifact"]), "float32", "cpu", quantize=job["quantize"])
    program = f"Luthier {__version__}, transformers {transformers.__version__}"
    found = answer_all(job, loaded.model, loaded.tokenizer, program)
    Path(answers_path).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
