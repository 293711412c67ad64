"""Names of what jobs make: `ft:BASE:OWNER:SUFFIX:ID`, as OpenAI's clients expect it; a checkpoint's end in its step.

A job that goes on from such a model makes `ft:BASE:...` again: BASE is the base's name as a client first gave it.
"""

from luthier.jobs.database import Row

OWNER = "luthier"
TUNED, STEP = "ft:", ":ckpt-step-"


def model_name(row: Row) -> str:
    """What a job's model is called."""
    suffix = row["asked"].get("suffix") or ""
    return f"{TUNED}{named_base(row['asked']['model'])}:{OWNER}:{suffix}:{row['id'][-8:]}"


def checkpoint_name(row: Row, step: int) -> str:
    """What a job's model of a step is called."""
    return f"{model_name(row)}{STEP}{step}"


def is_tuned(name: str) -> bool:
    """Whether the name is of the form of those that jobs make."""
    return name.startswith(TUNED)


def is_checkpoint(name: str) -> bool:
    """Whether the name is of the form of a job's model of a step."""
    return is_tuned(name) and name.rpartition(STEP)[2].isdigit()


def named_base(name: str) -> str:
    """The base in the name of a model that a job made; any other name is a base's own."""
    return name.removeprefix(TUNED).partition(f":{OWNER}:")[0] if is_tuned(name) else name
