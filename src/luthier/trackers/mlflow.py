"""MLflow: a tracking server, told over HTTP; how one signs in stands in MLflow's own environment variables."""

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from luthier.config import nested
from luthier.errors import RecipeError, TrackingError
from luthier.trackers.base import Line, Plain, Session, Status, Subject, Tracker, first_line, require_package

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

URI = "MLFLOW_TRACKING_URI"
ENVIRONMENT: Mapping[str, str] = {
    # MLflow's own patience is four minutes for each request; whoever follows a training asks again anyway
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""What the client is told where the user has not told it."""
MOST_METRICS, MOST_PARAMS, LONGEST_PARAM, LONGEST_TAG = 1000, 100, 500, 5000
"""What one request, one parameter and one tag hold, with servers of all versions that have the present API."""
STATUS: Mapping[Status, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_NOT_IN_NAMES = re.compile(r"[^\w .:/-]")


class MLflow(Tracker):
    """A run of an experiment on a tracking server."""

    uri: str = ""
    """The server, such as http://localhost:5000; empty: as the environment variable MLFLOW_TRACKING_URI says. A user, a
    password or a token stands in MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN."""
    experiment: str = Field("luthier", min_length=1)
    """The experiment; made if it is not there."""
    name: str = ""
    """The run's name there; empty: its folder."""

    @field_validator("uri")
    @classmethod
    def _require_no_secret(cls, uri: str) -> str:
        with nested():
            return uri and _address(uri, "tracking: uri")

    def require(self) -> None:
        """The package `mlflow-skinny` (or `mlflow`), and an address."""
        require_package("mlflow", "mlflow")
        self._uri()

    def reach(self) -> None:
        """Make the experiment, or find it."""
        with _told():
            self._experiment(self._client())

    def open(self, subject: Subject, run_id: str | None) -> "ServerRun":
        """A new run, or the one that was begun, running again."""
        client, uri = self._client(), self._uri()
        with _told():
            if run_id is None:
                run = client.create_run(self._experiment(client), run_name=self.name or subject.title)
            else:
                client.update_run(run_id, status="RUNNING")
                run = client.get_run(run_id)
        place = f"{uri.rstrip('/')}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        return ServerRun(client, run.info.run_id, place)

    def _uri(self) -> str:
        uri = self.uri or os.environ.get(URI, "")
        if not uri:
            raise TrackingError(
                f"MLflow has no address: set `uri` in the table of [tracking], or the environment variable {URI}"
            )
        try:
            return _address(uri, URI)
        except RecipeError as error:
            raise TrackingError(str(error)) from None

    def _client(self) -> "MlflowClient":
        self.require()
        _settle()
        from mlflow.tracking import MlflowClient

        return MlflowClient(tracking_uri=self._uri())

    def _experiment(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(client.create_experiment(self.experiment))
            except MlflowException:  # another run made it meanwhile, or it cannot be made
                found = client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)


class ServerRun(Session):
    """A run on a server. A request is taken as a whole or not at all."""

    def __init__(self, client: "MlflowClient", run_id: str, place: str) -> None:
        self._client = client
        self.id, self.place = run_id, place

    def last_step(self) -> int:
        """By the history of the loss, which every step has."""
        with _told():
            return max((int(metric.step) for metric in self._client.get_metric_history(self.id, "loss")), default=0)

    def describe(self, settings: Mapping[str, Plain]) -> None:
        """As parameters."""
        from mlflow.entities import Param

        params = iter([Param(_name(name), _cut(str(value), LONGEST_PARAM)) for name, value in settings.items()])
        while batch := list(islice(params, MOST_PARAMS)):
            with _told():
                self._client.log_batch(self.id, params=batch)

    def tell(self, lines: Sequence[Line]) -> None:
        """As metrics."""
        at = round(time.time() * 1000)
        metrics: list[Any] = []
        for line in lines:
            own = _metrics({name: value for name, value in line.items() if name != "step"}, at, int(line["step"]))
            if metrics and len(metrics) + len(own) > MOST_METRICS:
                self._send(metrics)
                metrics = []
            metrics += own
        self._send(metrics)

    def conclude(self, step: int, figures: Mapping[str, float], words: Mapping[str, str]) -> None:
        """As metrics and tags."""
        from mlflow.entities import RunTag

        tags = [RunTag(_name(name), _cut(text, LONGEST_TAG)) for name, text in words.items()]
        with _told():
            metrics = _metrics(figures, round(time.time() * 1000), step)
            self._client.log_batch(self.id, metrics=metrics, tags=tags)

    def close(self, status: Status) -> None:
        """Say how it ended."""
        with _told():
            self._client.set_terminated(self.id, STATUS[status])

    def drop(self) -> None:
        """Nothing is held."""

    def _send(self, metrics: Sequence[Any]) -> None:
        with _told():
            self._client.log_batch(self.id, metrics=metrics)


def _address(uri: str, what: str) -> str:
    """The address of a server.

    Raises:
        RecipeError: it is none, or has a place in which people put secrets; the message does not repeat it.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https", "file"):
        raise RecipeError(f"{what}: expected the address of a tracking server, such as http://localhost:5000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RecipeError(
            f"{what}: a user, a password or a token has no place in an address that is shown; give them in "
            "MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_TOKEN"
        )
    return uri


def _metrics(values: Mapping[str, float], at: int, step: int) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(_name(name), value, at, step) for name, value in values.items()]


def _name(name: str) -> str:
    """With only the characters that MLflow takes."""
    return _NOT_IN_NAMES.sub("_", name)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _settle() -> None:
    """Tell the client how to behave, before it is imported: it takes some of this by its environment alone."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def _told() -> Iterator[None]:
    _settle()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingError(f"MLflow: {first_line(error)}") from error
