"""Ids of objects: random, with OpenAI's prefixes, and never a path.

Whatever a client sends as an id is only ever compared with ids in the database; the names of folders and blobs are made
here or are digests.
"""

import secrets
import string

ALPHABET = string.ascii_letters + string.digits
LENGTH = 24
"""Characters after the prefix: 142 bits."""

FILE, JOB, EVENT, CHECKPOINT = "file-", "ftjob-", "ftevent-", "ftckpt_"
UPLOAD, PART, PERMISSION = "upload_", "part_", "cp_"
PROJECT, KEY, WEBHOOK = "proj_", "key_", "evt_"
EDIT, RANKING, PAIR, RATING = "edit_", "rank_", "pair_", "rating_"
EVAL, EVAL_RUN, EVAL_ITEM = "eval_", "evalrun_", "outputitem_"


def new_id(prefix: str, length: int = LENGTH) -> str:
    """A fresh id; it cannot be guessed."""
    return prefix + "".join(secrets.choice(ALPHABET) for _ in range(length))
