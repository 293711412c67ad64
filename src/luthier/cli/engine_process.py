"""The inference process of a job service: `luthier serve` that ends with the service, however that ends.

python -m luthier.cli.engine_process ARGUMENTS_OF_SERVE
"""

import sys

from luthier.cli.job_process import die_with_parent
from luthier.cli.main import main

if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(["serve", *sys.argv[1:]]))
