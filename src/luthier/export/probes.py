"""What the gate asks: the run's own test rows, never one trained on; and how the trained model scores answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from luthier.assemble import Trained
from luthier.data.asked import conversations
from luthier.data.formats.base import read_examples
from luthier.data_stage import SPLITS, Data
from luthier.errors import DataError, ExportError
from luthier.evaluate import Question, question_of
from luthier.evaluation.answering import SCORED_TOKENS, group_rows
from luthier.evaluation.task import SCORED_TASKS, room_for_answers
from luthier.examples import Conversation, Row
from luthier.files import sha256_of
from luthier.models.decode import evaluating
from luthier.models.forest import build_batch
from luthier.models.scorer import Scorer
from luthier.run_folder import RunFolder
from luthier.stages import Opened

ROWS = 200
"""Test rows that are asked, if there are so many and no other number is given."""


@dataclass(frozen=True)
class Probes:
    """The questions of the gate."""

    rows: tuple[Conversation, ...]
    of: int
    """Test rows in all."""
    left_out: int
    """Rows that hold the text of a control token: other programs read it as one, which no export can mend."""
    question: Question
    max_new_tokens: int

    def asked(self, trained: Trained) -> list[dict[str, Any]]:
        """Messages and tools as a template sees them."""
        return [
            {"messages": trained.template.seen(row.prompt), "tools": trained.template.seen_tools(row.tools)}
            for row in self.rows
        ]


def probes_of(run: Path, trained: Trained, most: int = ROWS) -> Probes:
    """The first test rows of a run, at most so many.

    Raises:
        DataError: the rows in the run's folder are not those that it was split into.
        ExportError: no test row asks anything.
    """
    folder = RunFolder(run)
    opened = Opened(trained.recipe, folder, _data_of(folder), trained.loaded, trained.template, {}, None)
    question = question_of(opened)
    asked = [row for row in conversations(question.test) if row.prompt]
    controls = {token.content for token in trained.loaded.tokenizer.added_tokens_decoder.values()}
    fit = [row for row in asked if not any(c in text for text in _texts(row) for c in controls)]
    if not fit:
        raise ExportError(
            f"{run}: none of its {len(question.test)} test rows asks the model anything (raw text does not), so "
            "nothing could be compared after an export; give the run test rows with prompts (data.test)"
        )
    rows = tuple(fit[:most])
    limit = question.max_new_tokens or room_for_answers(trained.template, rows)[0] or 64
    return Probes(rows, len(question.test), len(asked) - len(fit), question, limit)


def _data_of(folder: RunFolder) -> Data:
    """The rows as split, if they still are what the run wrote."""
    written = (folder.read("data/split.json") or {}).get("written", {})
    for name in SPLITS:
        path = folder / f"data/{name}.jsonl"
        if not path.is_file() or sha256_of(path) != written.get(path.name):
            raise DataError("is missing, or not what the run wrote; `luthier run` makes it anew", path)
    return Data(*(list(read_examples(folder / f"data/{name}.jsonl")) for name in SPLITS))


def _texts(row: Conversation) -> list[str]:
    return [message.content for message in row.prompt]


@dataclass(frozen=True)
class Answer:
    """How a reloaded artifact answered one question."""

    prompt: str
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    """With the token that ended it."""
    logprobs: tuple[float | None, ...]
    """None where the program does not tell one."""
    finished: bool
    text: str

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Answer":
        """From what the fresh process wrote."""
        ids = {name: tuple(values[name]) for name in ("prompt_ids", "ids", "logprobs")}
        return cls(prompt=values["prompt"], finished=values["finished"], text=values["text"], **ids)


@dataclass(frozen=True)
class Scored:
    """Every token of the artifact's answers under another model, in order."""

    logprobs_T: npt.NDArray[np.float64]
    behind_T: npt.NDArray[np.float64]
    """How far the token lies behind that model's first choice, in nats; 0: it is the first choice."""


def score(trained: Trained, answers: Sequence[Answer]) -> Scored:
    """Score the answers under the trained model, in whatever state it is, told each token before it has to predict the
    next."""
    rows = [Row((*a.prompt_ids, *a.ids), (0.0,) * len(a.prompt_ids) + (1.0,) * len(a.ids)) for a in answers if a.ids]
    parts = [_score(trained, group) for group in group_rows(rows, SCORED_TOKENS)]
    chosen, behind = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else (np.zeros(0),) * 2
    return Scored(chosen, behind)


@torch.inference_mode()
def _score(trained: Trained, rows: list[Row]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    batch = build_batch(rows).to(trained.loaded.device)
    with evaluating(trained.loaded.model):
        logits_HV = Scorer(trained.loaded.model).logits(batch)
    normalizer_H = torch.cat([part.float().logsumexp(-1) for part in logits_HV.split(64)])
    best_H = logits_HV.amax(-1).float()
    token_Q = logits_HV[batch.hidden_Q, batch.target_Q].float()
    chosen_K = (token_Q - normalizer_H[batch.hidden_Q])[batch.prediction_K]
    behind_K = (best_H[batch.hidden_Q] - token_Q)[batch.prediction_K]
    return chosen_K.double().cpu().numpy(), behind_K.double().cpu().numpy()


def scored_task(probes: Probes) -> bool:
    """Whether the run's task measures written answers, which every program can give."""
    return probes.question.task not in SCORED_TASKS
