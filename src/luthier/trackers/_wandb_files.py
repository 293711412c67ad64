"""What W&B's files of a run hold: records of its own protocol in the framing of LevelDB's log.

The client writes a step some seconds after it was told, and loses it if it is killed before; so a run that goes on asks
the files.
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

START, BLOCK = 7, 32 * 1024
"""Bytes before the first record, and of a block, which no part of a record crosses."""
_HEAD = struct.Struct("<IHB")  # checksum, length, kind
_WHOLE, _FIRST, _LAST = 1, 2, 4


def records(path: Path) -> Iterator[Any]:
    """The whole records of a file (`wandb.proto.wandb_internal_pb2.Record`), up to where it was cut off."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, collected = path.read_bytes(), START, b""
    while at + _HEAD.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < _HEAD.size:
            at += left
            continue
        _, length, kind = _HEAD.unpack_from(data, at)
        part = data[at + _HEAD.size : at + _HEAD.size + length]
        if kind == 0 or len(part) < length:
            return
        at += _HEAD.size + length
        collected = part if kind in (_WHOLE, _FIRST) else collected + part
        if kind in (_WHOLE, _LAST):
            yield Record.FromString(collected)


def files_of(folder: Path, run_id: str) -> list[Path]:
    """The files of a run that was kept offline, the oldest first: each process that went on has its own."""
    return sorted(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))


def last_step(files: Sequence[Path]) -> int:
    """The last step that these files hold, 0 if there is none."""
    found = (record for path in files for record in records(path))
    return max((int(record.history.step.num) for record in found if record.HasField("history")), default=0)
