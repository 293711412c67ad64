"""What objectives over judged replies share: a row for each reply, and whether it was good.

A preference pair is two of them: its chosen reply is good, its rejected one is not.
"""

from dataclasses import replace

from torch import Tensor

from luthier.data.templates import Template
from luthier.errors import DataError
from luthier.examples import Conversation, Example, Judged, Preference, Row
from luthier.models.forest import Batch
from luthier.objectives._pairs import pair_rows
from luthier.objectives.base import Mean

GOOD = "good"


def judged_rows(example: Example, template: Template, objective: str) -> tuple[Row, ...]:
    """Prompt and reply with only the reply trained on, and the value `good`, 1 or 0; of a pair both.

    Raises:
        DataError: nobody has judged the example; `objective` is who says so.
    """
    if isinstance(example, Preference):
        rows = pair_rows(example, template, objective)
        return tuple(replace(row, values={GOOD: good}) for row, good in zip(rows, (1.0, 0.0), strict=True))
    if not isinstance(example, Judged):
        at, wanted = example.where, "judged replies (prompt, completion, label) or preference pairs"
        raise DataError(f"{objective} needs {wanted}", at.path, at.line, at.row)
    chat = Conversation(example.prompt + example.reply, example.tools, example.where, example.id)
    return (replace(template.reply_row(chat, example.reply), values={GOOD: float(example.good)}),)


def weighed(batch: Batch, good: float, bad: float) -> Tensor:
    """(R,) the first number for each good reply, the second for each bad one."""
    is_good_R = batch.values_R[GOOD]
    return good * is_good_R + bad * (1 - is_good_R)


def reward_metrics(batch: Batch, reward_R: Tensor) -> dict[str, Mean]:
    """The implicit rewards of good and of bad replies, of those that there are: a mean of none is no number."""
    is_good_R = batch.values_R[GOOD] > 0
    rewards = {"chosen_reward": reward_R[is_good_R], "rejected_reward": reward_R[~is_good_R]}
    return {name: Mean.of(values) for name, values in rewards.items() if len(values)}
