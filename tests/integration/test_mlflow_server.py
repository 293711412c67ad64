"""MLflow against its own server, in a process that is killed and started again while a training goes on.

The server comes from an environment of its own: `make trackers`.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.trackers_read import log_steps, recipe_with, run_folder, write_recipe
from tests.unit.test_tracking import Said, until

from luthier.cli.main import main
from luthier.errors import TrackingError
from luthier.progress import Silent
from luthier.run_folder import TRACKING, RunFolder
from luthier.tracking import require_answers, tracked

pytestmark = pytest.mark.trackers

PROGRAM = "LUTHIER_TEST_MLFLOW"
"""Environment variable with the path of the program `mlflow`."""


class Server:
    """A tracking server over one SQLite file, on one port for all of its processes."""

    def __init__(self, home: Path) -> None:
        self._home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Serve, and wait until it does."""
        store = ["--backend-store-uri", f"sqlite:///{self._home}/runs.sqlite"]
        store += ["--artifacts-destination", str(self._home / "artifacts")]
        command = [os.environ[PROGRAM], "server", "--port", str(self._port), "--workers", "1", *store]
        with (self._home / "log").open("ab") as log:
            environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        until(self._answers, 120)

    def kill(self) -> None:
        """End it and its workers at once."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        until(lambda: not self._answers())

    def _answers(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(("127.0.0.1", self._port)) == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.kill()


def steps_told(server: Server, folder: RunFolder) -> list[int]:
    """The steps that the server has of a run that is perhaps not there yet."""
    from mlflow.tracking import MlflowClient

    run_id = (folder.read(TRACKING) or {}).get("mlflow", {}).get("id")
    history = MlflowClient(tracking_uri=server.uri).get_metric_history(run_id, "loss") if run_id else []
    return sorted(metric.step for metric in history)


def test_a_server_that_dies_meanwhile_has_every_step_once(server: Server, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    recipe, folder, said = recipe_with({"mlflow": {"uri": server.uri}}, seed=7), run_folder(tmp_path / "run"), Said()
    require_answers(recipe, folder)
    with tracked(recipe, folder, said) as tracking:
        log_steps(folder, range(1, 101))
        until(lambda: len(steps_told(server, folder)) == 100)
        server.kill()
        log_steps(folder, range(101, 131))
        until(lambda: any("does not answer" in line for line in said.lines), 60)
        server.start()
        until(lambda: any("answers again" in line for line in said.lines), 90)
        log_steps(folder, range(131, 141))
        tracking.conclude({"test/fine_tuned/f1": 0.75}, {"verdict": "Fine-tune."})
    client, run_id = MlflowClient(tracking_uri=server.uri), folder.read(TRACKING)["mlflow"]["id"]
    history = client.get_metric_history(run_id, "loss")
    assert sorted(metric.step for metric in history) == list(range(1, 141))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["seed"] == "7"
    assert run.data.metrics["test/fine_tuned/f1"] == 0.75 and run.data.tags["verdict"] == "Fine-tune."


def test_the_client_does_not_tell_its_makers(server: Server) -> None:
    program = (
        "from luthier.trackers.mlflow import MLflow\n"
        f"MLflow(uri={server.uri!r}).reach()\n"
        "from mlflow.telemetry import get_telemetry_client\n"
        "print(get_telemetry_client())"
    )
    # without the variables by which the client knows a test from a user
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_CURRENT_TEST")}
    environment.pop("MLFLOW_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "None"


def test_a_server_that_stays_away_costs_a_count(server: Server, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    recipe, folder, said = recipe_with({"mlflow": {"uri": server.uri}}), run_folder(tmp_path / "run"), Said()
    with tracked(recipe, folder, said):
        log_steps(folder, [1, 2])
        until(lambda: len(steps_told(server, folder)) == 2)
        server.kill()
        log_steps(folder, [3, 4, 5])
    assert "3 steps were lost to it" in said.lines[-1]
    fresh = run_folder(tmp_path / "fresh")
    with pytest.raises(TrackingError, match=r"tracking\.mlflow: MLflow: "):
        require_answers(recipe, fresh)
    require_answers(recipe, folder)  # what was begun waits for nobody
    server.start()
    with tracked(recipe, folder, Silent()):
        pass
    history = MlflowClient(tracking_uri=server.uri).get_metric_history(folder.read(TRACKING)["mlflow"]["id"], "loss")
    assert sorted(metric.step for metric in history) == [1, 2, 3, 4, 5]


def test_a_training_shows_on_the_server(server: Server, tiny_model_folder: Path, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    out, client = tmp_path / "out", MlflowClient(tracking_uri=server.uri)
    arguments = [
        "train",
        str(write_recipe(tmp_path, tiny_model_folder)),
        "--out",
        str(out),
        "--set",
        f"tracking.mlflow.uri={server.uri}",
    ]
    assert main(arguments) == 0
    run_id = run_folder(out).read(TRACKING)["mlflow"]["id"]
    assert sorted(metric.step for metric in client.get_metric_history(run_id, "loss")) == list(range(1, 7))
    run = client.get_run(run_id)
    assert run.data.metrics["best_validation_loss"] > 0 and run.data.tags["folder"] == str(out)
    assert run.data.params["data.train"] == "rows.jsonl"
