"""The inference process of a job service: `luthier serve` that ends with the service, however that ends.

It is less urgent than training: where both want a core, most of it is the training's, and answers wait.

python -m luthier.cli.engine_process ARGUMENTS_OF_SERVE
"""

import os
import sys

from luthier.cli.job_process import die_with_parent
from luthier.cli.main import main

NICE = 10

if __name__ == "__main__":
    die_with_parent()
    os.nice(NICE)
    sys.exit(main(["serve", *sys.argv[1:]]))
