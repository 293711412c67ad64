"""10,000 requests that schemathesis makes of our OpenAPI document, to a real service: run by `make fuzz`.

It also follows what the document lets it see of resources: what one route answers with is asked for at another.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.jobs_attack import EVAL, FORM, Peer, form
from tests.jobs_service import MODEL, rows, start

from luthier.jobs.service import Options, open_service

REQUESTS = 10_000
EXAMPLES = 180
"""Of a round, for each route, beside those of the coverage phase and of sequences."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "ignored_auth",
    "use_after_free",
    "unsupported_method",
    "documented_is_taken",
)
SECRET, ROW, PROMPT = "canary-secret-7d20aa", "canary-row-61f3be", "canary-prompt-c90412"
ROUNDS = 3


@pytest.mark.fuzz
@pytest.mark.timeout(7200)
def test_ten_thousand_requests_of_any_kind(tmp_path: Path, tiny_model_folder: Path) -> None:
    folder, log = tmp_path / "s", tmp_path / "log"
    process, url = start(
        folder, tiny_model_folder, log, ["--set", "log_format=json"], {"AWS_SECRET_ACCESS_KEY": SECRET}
    )
    try:
        with open_service(Options(folder, bases=(str(tiny_model_folder),))) as service:
            key = service.tenants.add_key("fuzz", "fuzz", "admin")
            friend = service.tenants.project("friend")
        caller = Peer(int(url.rsplit(":", 1)[1].split("/")[0]), key)
        known = _settle(caller, friend)
        _require_answer(caller, known["model"][1])
        engines = _engines(process.pid)
        counts: Counter[str] = Counter()
        for seed in range(1, ROUNDS + 1):
            counts += _round(tmp_path / f"round-{seed}", url.removesuffix("/v1"), key, known, seed)
            if counts.total() >= REQUESTS:
                break
        print(_table(counts))
        assert counts.total() >= REQUESTS
        assert not [one for one in counts if one.rsplit(" ", 1)[1].startswith("5")]
        assert process.poll() is None and Peer(caller.port).get("/readyz").status == 200
        _require_answer(caller, MODEL)
        assert engines <= _engines(process.pid), "an engine died and was started again"
    finally:
        process.terminate()
        ended = process.wait(120)
    assert ended == 0, log.read_text()[-3000:]
    logs = [log, *folder.rglob("log.txt"), *folder.rglob("serve-*.log")]
    assert len(logs) > 2
    for path in logs:
        for canary in (SECRET, ROW, PROMPT, key):
            assert canary not in path.read_text(), path
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert "Traceback" not in log.read_text() and not [one for one in lines if "failed" in one]
    assert len([one for one in lines if "route" in one]) >= REQUESTS


def _settle(caller: Peer, friend: str) -> dict[str, list[str]]:
    """One of everything, with a job that really trained; ids by the name under which the document asks for them."""
    content = b"".join(line.replace(b"It is", ROW.encode()) + b"\n" for line in rows(40).splitlines())
    file = caller.upload(content).values["id"]
    upload = _made(caller, "/v1/uploads", {"bytes": 3, "filename": "a", "mime_type": "text/plain", "purpose": "batch"})
    caller.send("POST", f"/v1/uploads/{upload}/parts", form([], "data", "a", b"abc"), FORM)
    asked = {"model": MODEL, "training_file": file, "hyperparameters": {"n_epochs": 1, "batch_size": 8}}
    job = _made(caller, "/v1/fine_tuning/jobs", asked)
    model = _ended(caller, f"/v1/fine_tuning/jobs/{job}", "succeeded")["fine_tuned_model"]
    grants = f"/v1/fine_tuning/checkpoints/{model}/permissions"
    permission = caller.post(grants, {"project_ids": [friend]}).values["data"][0]["id"]
    eval_ = _made(caller, "/v1/evals", EVAL)
    content_ = [{"item": {"a": "x"}}, {"item": {"a": ROW}}]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": content_}}
    run = _made(caller, f"/v1/evals/{eval_}/runs", {"data_source": source})
    _ended(caller, f"/v1/evals/{eval_}/runs/{run}", "completed")
    item = caller.get(f"/v1/evals/{eval_}/runs/{run}/output_items").values["data"][0]["id"]
    return {
        "file_id": [file],
        "upload_id": [upload],
        "job_id": [job],
        "model": [MODEL, model],
        "name": [model],
        "permission_id": [permission],
        "eval_id": [eval_],
        "run_id": [run],
        "item_id": [item],
        "project_ids": [friend],
    }


def _made(caller: Peer, path: str, values: Any) -> str:
    answer = caller.post(path, values)
    assert answer.status in (200, 201), answer.body
    return str(answer.values["id"])


def _ended(caller: Peer, path: str, wanted: str) -> dict[str, Any]:
    until = time.monotonic() + 300
    while (found := caller.get(path).values)["status"] != wanted:
        assert time.monotonic() < until and found["status"] not in ("failed", "cancelled"), found
        time.sleep(0.2)
    return found


def _require_answer(caller: Peer, model: str) -> None:
    asked = {"model": model, "max_tokens": 3, "messages": [{"role": "user", "content": PROMPT}]}
    answer = caller.post("/v1/chat/completions", asked)
    assert answer.status == 200, answer.body


def _engines(parent: int) -> set[int]:
    found = set()
    for one in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.Error):  # the process of a job that has just ended
            if "engine_process" in " ".join(one.cmdline()):
                found.add(one.pid)
    return found


def _round(place: Path, url: str, key: str, known: Mapping[str, list[str]], seed: int) -> Counter[str]:
    """Let schemathesis run once; it fails with what it found."""
    place.mkdir()
    (place / "schemathesis.toml").write_text(_config(known))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(place / "schemathesis.toml")]
    command += ["run", f"{url}/openapi.json", "--url", url, "--header", f"Authorization: Bearer {key}"]
    command += ["--checks", ",".join(CHECKS), "--max-examples", str(EXAMPLES), "--seed", str(seed), "--workers", "4"]
    command += [
        "--continue-on-failure",
        "--suppress-health-check",
        "all",
        "--warnings",
        "off",
        "--request-timeout",
        "120",
    ]
    environment = {
        **os.environ,
        "SCHEMATHESIS_HOOKS": "tests.fuzz.hooks",
        "FUZZ_COUNTS": str(place / "counts.json"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    lines = [line[:600] for line in done.stdout.splitlines()]  # bodies can be long
    print(*(line for line in lines if re.search("Scenarios:|API Links:| generated,", line)), sep="\n")
    told = "\n".join(lines)
    assert done.returncode == 0, f"{told[-20_000:]}{done.stderr[-5000:]}"
    return Counter(json.loads((place / "counts.json").read_text()))


def _config(known: Mapping[str, list[str]]) -> str:
    """Settings of schemathesis: most ids that it sends are such as there are, but what would remove them."""
    made = {name: f"known_{name}" for name in known}
    lines = [f"[dictionaries.{made[name]}]\nvalues = {json.dumps(values)}" for name, values in known.items()]
    paths = [name for name in known if name not in ("model", "project_ids")]
    bound = {f"path.{name}": name for name in paths}
    bound |= {"body.model": "model", "body.training_file": "file_id", "body.data_source.source.id": "file_id"}
    bound |= {"body.data_source.model": "model", "body.project_ids[*]": "project_ids"}
    refused = '"400", "401", "403", "404", "405", "408", "409", "413", "415"'  # a body too large is refused as one
    lines.append(f"[checks.negative_data_rejection]\nexpected-statuses = [{refused}]")
    lines.append('[[operations]]\ninclude-method = ["GET", "POST"]\n[operations.parameters]')
    lines += [f'"{where}" = {{ dictionary = "{made[name]}", probability = 0.7 }}' for where, name in bound.items()]
    return "\n".join(lines) + "\n"


def _table(counts: Mapping[str, int]) -> str:
    """How many by route and class of status."""
    by_route: dict[str, Counter[str]] = defaultdict(Counter)
    for one, count in counts.items():
        route, status = one.rsplit(" ", 1)
        by_route[route][f"{status[0]}xx"] += count
    head = f"{'route':70} {'2xx':>6} {'4xx':>6} {'5xx':>6}"
    body = [f"{re.sub(' +', ' ', r):70} {c['2xx']:6} {c['4xx']:6} {c['5xx']:6}" for r, c in sorted(by_route.items())]
    whole: Counter[str] = sum(by_route.values(), Counter())
    return "\n".join(["", head, *body, f"{'all':70} {whole['2xx']:6} {whole['4xx']:6} {whole['5xx']:6}"])
