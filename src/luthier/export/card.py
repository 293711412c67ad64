"""The model card."""
from pathlib import Path
from typing import Any
def write_card(run: Path, folder: Path, record: Any) -> None:
    pass
