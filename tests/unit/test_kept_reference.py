"""What the reference scores, computed once: the same training, the same bits whether the file was there or not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import make_run

from luthier.engine.kept_reference import FILE, keep, worth_keeping
from luthier.engine.loop import train, validation_metrics
from luthier.engine.run import Run
from luthier.models.forest import Batch, build_batch
from luthier.models.scorer import Scorer
from luthier.progress import Silent


class Told(Silent):
    """Remembers the stages."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    @contextmanager
    def stage(self, name: str, title: str) -> Iterator[None]:
        self.titles.append(title)
        yield


class Counted(Scorer):
    """A reference that counts how many rows it is asked for."""

    asked = 0

    def token_logprobs(self, batch: Batch) -> torch.Tensor:
        self.asked += batch.row_count
        return super().token_logprobs(batch)


def dpo_run(folder: Path, **settings: Any) -> Run:
    run = make_run(folder, objective={"type": "dpo"}, training={"steps": 6, "rows_per_step": 4, **settings})
    assert isinstance(run.models.reference, Scorer)
    reference = Counted(run.models.reference.model)
    run.models = type(run.models)(run.models.policy, reference)
    return run


def test_a_step_that_is_sorted_asks_the_reference_once_for_each_row(tmp_path: Path) -> None:
    run = make_run(tmp_path, objective={"type": "dpo", "penalty": "aot"})
    assert isinstance(run.models.reference, Scorer)
    reference = Counted(run.models.reference.model)
    models = type(run.models)(run.models.policy, reference)
    rows = [row for unit in run.source.step(1) for row in unit]
    with torch.no_grad():
        (batch,) = run.objective.whole_step(models, [build_batch(rows)], {})
        run.objective.loss(models, batch)
    assert reference.asked == len(rows)


def ended(run: Run) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses = [step.metrics["loss"] for step in train(run)]
    return losses, {name: p.detach().clone() for name, p in run.injected.trainable.items()}


def same_bits(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(mine[name], other) for name, other in theirs.items())


def test_training_reads_what_was_kept_and_asks_the_reference_for_nothing(tmp_path: Path) -> None:
    plain, kept = dpo_run(tmp_path / "plain"), dpo_run(tmp_path / "kept")
    said = Told()
    (tmp_path / "kept").mkdir()
    keep(kept, tmp_path / "kept", said)
    assert "10 train and 4 validation rows once" in said.titles[0]
    reference = kept.models.reference
    assert isinstance(reference, Counted) and reference.asked == 2 * 14
    mine, theirs = ended(kept), ended(plain)
    assert reference.asked == 2 * 14
    told = validation_metrics(kept)
    kept.validation = plain.validation  # asked anew, in the same micro-batches
    assert validation_metrics(kept) == told and reference.asked > 2 * 14
    assert mine[0] == pytest.approx(theirs[0], abs=1e-6) and mine[0][-1] < mine[0][0]
    for name, tensor in theirs[1].items():
        torch.testing.assert_close(mine[1][name], tensor, atol=1e-4, rtol=0)


def test_the_bits_do_not_depend_on_whether_the_file_was_there(tmp_path: Path) -> None:
    said = Told()
    first = dpo_run(tmp_path)
    keep(first, tmp_path, said)
    weights = ended(first)[1]
    path, written = tmp_path / FILE, (tmp_path / FILE).read_bytes()
    for damage in (None, b"", written[:-8]):  # read; gone; damaged
        again = dpo_run(tmp_path / f"{damage!r:.9}".replace("\\", ""))
        if damage is not None:
            path.write_bytes(damage) if damage else path.unlink()
        keep(again, tmp_path, said)
        assert same_bits(ended(again)[1], weights)
        assert path.read_bytes() == written
    assert len(said.titles) == 3  # once at first, and once for each file that could not be read


def test_what_another_training_kept_is_not_read(tmp_path: Path) -> None:
    said = Told()
    for fingerprint in ("one", "two"):
        run = dpo_run(tmp_path)
        run.fingerprint = fingerprint
        keep(run, tmp_path, said)
    assert len(said.titles) == 2


def test_only_rows_that_are_seen_again_are_worth_it(tmp_path: Path) -> None:
    assert set(worth_keeping(dpo_run(tmp_path, steps=2))) == {"validation"}  # 8 of 10 rows: each is seen once
    assert set(worth_keeping(dpo_run(tmp_path))) == {"train", "validation"}
    narrow = make_run(tmp_path, torch.bfloat16, objective={"type": "dpo"})
    assert set(worth_keeping(narrow)) == {"validation"}
    for objective in ({"type": "sft"}, {"type": "sft_kl"}, {"type": "dpo", "reference_free": True}):
        assert worth_keeping(make_run(tmp_path, objective=objective)) == {}
