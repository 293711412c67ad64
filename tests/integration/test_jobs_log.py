"""`luthier up` with `log_format = "json"`: every line is a JSON object, whoever wrote it."""

import json
import subprocess
import sys
from pathlib import Path

from tests.jobs_attack import Peer
from tests.jobs_service import start

LIBRARIES = """
import logging, warnings
from luthier.serve.server import set_up_log
set_up_log("json")
warnings.warn("a warning\\nof two lines")
logging.getLogger("asyncio").error("an error")
logging.getLogger("luthier.jobs").info("ours")
"""


def test_every_line_of_a_service_is_json(tmp_path: Path, tiny_model_folder: Path) -> None:
    log = tmp_path / "log"
    process, url = start(tmp_path / "s", tiny_model_folder, log, ["--set", "log_format=json"])
    try:
        caller = Peer(int(url.rsplit(":", 1)[1].split("/")[0]))
        assert caller.get("/v1/models").status == 401
        assert b" 400 " in caller.raw(b"no request\r\n\r\n")
    finally:
        process.terminate()
        assert process.wait(60) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    first, studio, asked, wrong, last = lines
    assert studio["message"].startswith("the studio, for people, is at http://")
    assert first["message"] == f"fine-tuning at {url} (ctrl-C ends it)" and last["message"].startswith("stopped; ")
    assert asked["status"] == 401 and (wrong["logger"], wrong["level"]) == ("uvicorn.error", "WARNING")


def test_lines_of_libraries_are_json_and_none_is_written_twice() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARIES], capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [one["logger"] for one in told] == ["py.warnings", "asyncio", "luthier.jobs"]
