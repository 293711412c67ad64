"""Run the tests that the source distribution of `openai` carries, unmodified, against our server.

    python -m tests.conformance.run [PYTEST OPTIONS]

The client's distribution is fetched, its tests run in an environment of their own, and the database holds the ids that
they name. Jobs are not trained here; `tests/integration/test_jobs_service.py` does that.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from luthier.evaluation.graders.base import Sample
from luthier.jobs.database import (
    checkpoints,
    eval_items,
    eval_runs,
    evals,
    events,
    files,
    jobs,
    models,
    permissions,
    projects,
    upload_parts,
    uploads,
)
from luthier.jobs.eval_grading import sample_body
from luthier.jobs.http.app import Hosts, Service, build_app
from luthier.jobs.service import Options, open_service
from luthier.serve import server

HOME = Path(".conformance")
ROOT = Path(__file__).parents[2]
TESTS = (
    "fine_tuning/test_jobs.py",
    "fine_tuning/jobs/test_checkpoints.py",
    "fine_tuning/checkpoints/test_permissions.py",
    "fine_tuning/alpha/test_graders.py",
    "test_files.py",
    "test_uploads.py",
    "uploads/test_parts.py",
    "test_models.py",
    "test_evals.py",
    "evals/test_runs.py",
    "evals/runs/test_output_items.py",
)
NEEDED = ("pytest", "pytest-asyncio", "pytest-xdist", "rich")
JOB, CHECKPOINT = "ft-AF1WoRqd3aJAHsqc9NY7iL8F", "ft:gpt-4o-mini-2024-07-18:org:weather:B7R9VjQd"
ROWS = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}) + "\n"


def main(options: list[str]) -> int:
    """Fetch, seed, serve and test; pytest's exit code."""
    client = _client()
    os.environ["WANDB_MODE"] = "offline"  # a job of theirs asks for Weights & Biases
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        settings = Options(place, aliases={"gpt-4o-mini": "smollm2-135m-instruct"}, at_once=0)
        with open_service(settings) as service:
            _seed(service)
            live, seed = place / "service.sqlite", place / "seed.sqlite"
            _copy(live, seed)
            bound = server.listen(server.Address(port=0))
            serving = server.server_of(build_app(service, Hosts()), 5.0)
            thread = threading.Thread(target=serving.run, kwargs={"sockets": [bound]}, daemon=True)
            thread.start()
            environment = {
                **os.environ,
                "TEST_API_BASE_URL": server.url_of(bound),
                "LUTHIER_CONFORMANCE_DATABASE": str(live),
                "LUTHIER_CONFORMANCE_SEED": str(seed),
                "PYTHONPATH": str(Path(__file__).parent),
            }
            paths = [f"tests/api_resources/{path}" for path in TESTS]
            command = [_python(), "-m", "pytest", "-p", "reseed", "-n", "0", "--durations", "0", *options, *paths]
            code = subprocess.run(command, cwd=client, env=environment, check=False).returncode
            serving.should_exit = True
            thread.join()
    return code


def _client() -> Path:
    """The client's unpacked source, beside an environment that can run its tests; both are made once."""
    wanted = version("openai")
    place = HOME / f"openai-{wanted}"
    if not place.is_dir():
        HOME.mkdir(exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "-d", str(HOME), f"openai=={wanted}"], check=True)
        with tarfile.open(HOME / f"openai-{wanted}.tar.gz") as archive:
            archive.extractall(HOME, filter="data")
    if not (HOME / "venv/.ready").is_file():
        shutil.rmtree(HOME / "venv", ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(HOME / "venv")], check=True)
        subprocess.run([_python(), "-m", "pip", "install", "-q", f"openai[aiohttp]=={wanted}", *NEEDED], check=True)
        (HOME / "venv/.ready").touch()
    return place


def _python() -> str:
    return str((HOME / "venv/bin/python").absolute())


def _copy(source: Path, target: Path) -> None:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)


def _seed(service: Service) -> None:
    """Everything that the tests name."""
    tenants = service.tenants
    tenants.add_key("tests", "client", "admin", "My API Key")
    tenants.add_key("tests", "admin", "admin", "My Admin API Key")
    project, database = tenants.project("tests"), service.database
    at = 1_750_000_000

    def stored(content: bytes) -> dict[str, Any]:
        with service.files.receiver(project) as received:
            received.write(content)
            digest = received.finish()
        assert digest == sha256(content).hexdigest()
        return {"sha256": digest, "bytes": len(content)}

    own = {"created_at": at, "project_id": project}
    file = {**own, "filename": "a.jsonl", "purpose": "fine-tune", "status": "processed"}
    upload = {**own, "filename": "a", "purpose": "assistants", "mime_type": "text/plain", "status": "pending"}
    job = {
        **own,
        "status": "queued",
        "asked": {"model": "gpt-4o-mini", "training_file": "file-abc123", "metadata": {"foo": "string"}},
        "picked": {"batch_size": 8, "learning_rate_multiplier": 1.0, "n_epochs": 3},
        "base": "smollm2-135m-instruct",
        "training_file": "file-abc123",
        "seed": 42,
        "priority": 0,
        "result_files": ["file-abc123"],
        "attempts": 1,
    }
    model = {**own, "job_id": JOB, "base": "smollm2-135m-instruct", "folder": "nowhere"}
    granted = {"created_at": at, "checkpoint": JOB}
    rows: list[tuple[Any, dict[str, Any]]] = [
        (projects, {"id": "string", "created_at": at, "name": "string"}),
        (projects, {"id": "project_id", "created_at": at, "name": "project_id"}),
        *(
            (files, {"id": name, **file, **stored(b"file_id" if name == "file_id" else ROWS.encode())})
            for name in ("file-abc123", "file_id", "after")
        ),
        # bytes go with the last row that names them, and only rows are put back
        (files, {"id": "same as file_id", **file, **stored(b"file_id")}),
        (files, {"id": "same as the part", **file, **stored(b"part")}),
        (uploads, {"id": "upload_abc123", **upload, "bytes": 4, "expires_at": 2**31 - 1}),
        (upload_parts, {"id": "string", "created_at": at, "upload_id": "upload_abc123", **stored(b"part")}),
        (jobs, {"id": JOB, **job}),
        (jobs, {"id": "after", **job}),
        *_told_of_the_job(at),
        *(
            (models, {"id": name, **model})
            for name in (CHECKPOINT, JOB, "ft:gpt-4o-mini:acemeco:suffix:abc123", "gpt-6-astra")
        ),
        (
            permissions,
            {**granted, "id": "cp_zc4Q7MP6XxulcVzj4MZdwsAB", "checkpoint": CHECKPOINT, "project_id": "string"},
        ),
        (permissions, {"id": "cp_1", **granted, "project_id": "string"}),
        (permissions, {"id": "after", **granted, "project_id": "project_id"}),
        *_eval_rows(own),
    ]
    with database.writing() as connection:
        for table, values in rows:
            connection.execute(table.insert().values(**values))


def _told_of_the_job(at: int) -> list[tuple[Any, dict[str, Any]]]:
    """Events and checkpoints."""
    return [
        *(
            (
                events,
                {
                    "id": name,
                    "created_at": at,
                    "job_id": JOB,
                    "key": name,
                    "level": "info",
                    "type": "message",
                    "message": "Created",
                    "data": None,
                },
            )
            for name in ("ftevent-1", "after", "ftevent-2")
        ),
        *(
            (
                checkpoints,
                {
                    "id": name,
                    "created_at": at,
                    "job_id": JOB,
                    "step_number": number,
                    "name": CHECKPOINT if number == 3 else f"{CHECKPOINT}:ckpt-step-{number}",
                    "metrics": {"step": 1.0, "train_loss": 0.5},
                },
            )
            for number, name in ((1, "ftckpt_1"), (2, "after"), (3, "ftckpt_3"))
        ),
    ]


def _eval_rows(own: dict[str, Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Evals, their runs and items."""
    at = own["created_at"]
    check = {"type": "string_check", "name": "is a bar", "input": "{{item.foo}}", "reference": "bar", "operation": "eq"}
    source = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"foo": "bar"}}]}}
    # canceled: to cancel it once more changes nothing, and nobody works at it while the tests run
    run = {**own, "eval_id": "eval_id", "status": "canceled", "name": "", "data_source": source, "bytes": 0}
    config = {"item_schema": {"foo": "bar"}, "include_sample_schema": False}
    results = [{"name": "is a bar", "type": "string_check", "passed": True, "score": 1.0, "sample": None}]
    item = {"created_at": at, "run_id": "run_id", "item": {"foo": "bar"}, "status": "pass", "results": results}
    item |= {"sample": sample_body(Sample("")), "usage": [], "bytes": 0}
    return [
        *(
            (
                evals,
                {
                    "id": name,
                    **own,
                    "updated_at": at,
                    "name": "",
                    "data_source_config": config,
                    "testing_criteria": [check],
                },
            )
            for name in ("after", "eval_id")
        ),
        *((eval_runs, {"id": name, **run}) for name in ("after", "run_id")),
        *((eval_items, {"id": name, **item, "number": n}) for n, name in enumerate(("after", "output_item_id"))),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
