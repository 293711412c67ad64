"""A run in, an artifact out: write, reopen in a fresh process, compare, and only then give the folder its name."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from luthier import registry
from luthier.assemble import Trained, open_trained
from luthier.errors import ExportError, StorageError
from luthier.export.card import write_card
from luthier.export.formats._head import head_of
from luthier.export.formats.base import HEADS, Exporter
from luthier.export.head_parity import check_head_parity, questions_of
from luthier.export.parity import Parity, check_parity, own_replies
from luthier.export.probes import ROWS, Probes, probes_of
from luthier.files import sha256_of, sync
from luthier.progress import Progress

FORMATS = "luthier.export.formats"
PARITY = "parity.json"


def build_exporter(format: str, type: str | None = None, least_kept: float | None = None) -> Exporter:
    """The exporter of a format; `type` and `least_kept` as `Exporter` has them.

    Raises:
        RecipeError: there is no such format.
        ExportError: it has no such type, or does not measure what is kept.
    """
    exporter = registry.load_class(FORMATS, format, Exporter)(type)  # type: ignore[type-abstract]
    return exporter if least_kept is None else exporter.keeping(least_kept)


def export(
    run: Path, exporter: Exporter, out: Path, progress: Progress, keep_failed: bool = False, rows: int = ROWS
) -> Parity:
    """Write the trained model of a run to the folder `out`, which must be empty or absent, and prove it.

    Raises:
        ExportError: the run cannot be written so, or the artifact is not the trained model; then there is no `out`, and
            with `keep_failed` what was written lies beside it as `<out>.failed`.
        ModelError: the run has no trained model, or its base is another one than it was.
        StorageError: the disk is full, or the folder cannot be written.
    """
    require_free(out)
    made = out.with_name(f".{out.name}.exporting")
    shutil.rmtree(made, ignore_errors=True)
    try:
        made.mkdir(parents=True)
        with progress.stage("write", "writing"):
            trained = open_float32(run)
            _require_whole(trained, exporter)
            exporter.require(trained)
            exporter.write(trained, made)
            del trained  # the proof opens its own: it must not see what writing did to this one
        parity = prove(run, exporter, made, progress, rows)
        record = {**parity.dump(), **exporter.measured(), "files": _digests(made)}
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        (made / PARITY).write_text(text + "\n", encoding="utf-8")
        if parity.failed:
            lines = "".join(f"\n  {check}" for check in parity.failed)
            raise ExportError(f"{out}: the artifact is not the trained model:{lines}")
        write_card(run, made, record)
        _finish(made, out)
    except ExportError as error:
        if keep_failed and any(made.iterdir()):
            raise ExportError(f"{error}\n{_keep(made, out)} has what was written") from None
        raise
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{out}: the export could not be written: {error}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return parity


def _require_whole(trained: Trained, exporter: Exporter) -> None:
    """Check that nothing of the trained model is left out.

    Raises:
        ExportError: it needs its head, which the format does not hold.
    """
    head = trained.injected.head
    if head is None or not head.shape.after_training or head.shape.kind in exporter.heads:
        return
    raise ExportError(
        f"{trained.folder} answers by a head of kind {head.shape.kind!r}, which an export of this format does not "
        "hold; `luthier serve` and `open_trained` use it"
    )


def require_free(out: Path) -> None:
    """Check that nothing would be overwritten.

    Raises:
        ExportError: there is a file, or a folder that holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not empty; name another folder with --out, or remove it")


def open_float32(run: Path) -> Trained:
    """The trained model as it was trained, its weights widened to float32 and on the CPU: arithmetic is then exact
    enough that what differs is the artifact. `loaded.dtype` stays the number format of the training.
    """
    trained = open_trained(run, "cpu")
    trained.loaded.model.float()
    return trained


def prove(run: Path, exporter: Exporter, folder: Path, progress: Progress, rows: int = ROWS) -> Parity:
    """Open the artifact in a fresh process, let it answer the run's test rows, and compare it with the trained model.

    Raises:
        ExportError: it cannot be opened.
    """
    trained = open_trained(run, "cpu")
    probes = probes_of(run, trained, rows)
    if (head := head_of(trained)) is not None:
        questions = questions_of(trained, head, probes)
        with progress.stage("reload", f"{len(probes.rows)} test rows to the artifact, in a process of its own"):
            job = {**exporter.reload_settings(trained, folder), "questions": questions}
            found = asked_in_a_process(HEADS, job)
        with progress.stage("compare", "comparing with the trained model"):
            return check_head_parity(trained, exporter, probes, found)
    with progress.stage("reload", f"{len(probes.rows)} test rows to the artifact, in a process of its own"):
        found = reload(trained, exporter, folder, probes)
    with progress.stage("answer", "the same rows to the trained model"):
        replies = own_replies(trained, probes)
    with progress.stage("compare", "comparing token by token"):
        trained.loaded.model.float()
        return check_parity(trained, exporter, folder, probes, found, replies)


def reload(trained: Trained, exporter: Exporter, folder: Path, probes: Probes) -> Mapping[str, Any]:
    """What a fresh process, in which Luthier is not loaded, makes of the artifact.

    Raises:
        ExportError: the process failed.
    """
    job = {
        **exporter.reload_settings(trained, folder),
        "questions": probes.asked(trained),
        "max_new_tokens": probes.max_new_tokens,
        "longest_prompt": max(len(trained.template.prompt_ids(row.prompt, row.tools)) for row in probes.rows),
        "threads": torch.get_num_threads(),
    }
    return asked_in_a_process(exporter.reloads_with, job)


def asked_in_a_process(module: str, job: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a module answers to a job in a process of its own.

    Raises:
        ExportError: the process failed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        job_path, answers_path = Path(temporary) / "job.json", Path(temporary) / "answers.json"
        job_path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", module, str(job_path), str(answers_path)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not answers_path.is_file():
            said = " ".join(line.strip() for line in done.stderr.splitlines()[-3:] if line.strip())
            raise ExportError(
                f"the artifact could not be opened in a fresh process ({module}, exit code "
                f"{done.returncode}): {said or 'it said nothing'}"
            )
        found: Mapping[str, Any] = json.loads(answers_path.read_text(encoding="utf-8"))
    return found


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


def _keep(made: Path, out: Path) -> Path:
    """Where a refused artifact may be looked at."""
    failed = out.with_name(f"{out.name}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    made.rename(failed)
    return failed


def _finish(made: Path, out: Path) -> None:
    """Give the folder its name, once every byte is on the disk."""
    for path in (*made.iterdir(), made):
        sync(path)
    if out.exists():  # it is empty, as was checked
        out.rmdir()
    made.rename(out)
    sync(out.parent)
