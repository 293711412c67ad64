"""What may go wrong in one request without being a reason to end the server."""

from pathlib import Path

from luthier.errors import LuthierError

# What torch, tokenizers and this package raise when one computation fails. Named one by one, so that a
# KeyboardInterrupt or SystemExit still ends the process.
FAILURES = (
    RuntimeError,  # torch, out of memory included
    MemoryError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AssertionError,
    AttributeError,
    OSError,
    LuthierError,
)


def place_of(error: BaseException) -> str:
    """File, line and function in which an error arose."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown place"
    code = trace.tb_frame.f_code
    return f"{Path(code.co_filename).name}, line {trace.tb_lineno}, {code.co_name}"
