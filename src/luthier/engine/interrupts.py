"""Ctrl-C and SIGTERM between steps instead of within one."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """While open, the first SIGINT or SIGTERM sets the event, looked at between steps; a second one is as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def on_signal(number: int, _frame: Any) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])
        # not print: a handler may come in the middle of another print, which its buffer refuses
        os.write(2, b"\nfinishing this step and saving (once more: stop at once)\n")

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
