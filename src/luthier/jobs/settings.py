"""What the operator of a job service decides: a TOML file, by default `service.toml` in the service's folder.

Read by `luthier up` and by `luthier service`, which must open the same database.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from luthier.config import Settings, build, override, read_toml
from luthier.errors import ServeError
from luthier.jobs.disk import FREE_BYTES
from luthier.jobs.job_store import MOST_WAITING
from luthier.jobs.service import SETTINGS, Options
from luthier.jobs.supervisor import Limits
from luthier.jobs.vllm import Address
from luthier.jobs.webhooks import Target

MOST_HOURS, MOST_GIB = 24 * 365, 2**20


def _http(url: str) -> str:
    found = urlsplit(url)
    if found.scheme not in ("http", "https") or not found.hostname:
        raise ValueError("expected a URL, such as http://127.0.0.1:8001/v1")
    return url


HttpUrl: TypeAlias = Annotated[str, AfterValidator(_http)]


class VllmServer(Settings):
    """A vLLM that answers for one base."""

    url: HttpUrl
    """Such as `http://127.0.0.1:8001/v1`; `/v1` may be left out."""
    key_env: str | None = None
    """Environment variable that holds its key."""


class ServedModels(Settings):
    """Which models there are, and what answers for them."""

    bases: tuple[str, ...] = ()
    """That jobs may train from, as `model.name` of a recipe; empty: the default model, and what aliases name."""
    aliases: Mapping[str, str] = Field(default_factory=dict)
    """Further names of bases, such as `"gpt-4o-mini" = "smollm2-135m-instruct"`."""
    embedders: Mapping[str, str] = Field(default_factory=dict)
    """Encoders for `/v1/embeddings` by the names that clients use: `"text-embedding-3-small" = "all-minilm-l6-v2"`."""
    ggufs: Mapping[str, str] = Field(default_factory=dict)
    """GGUF files that llama.cpp answers for, by name; read from the folder of the settings file."""
    vllm: Mapping[str, VllmServer] = Field(default_factory=dict)
    """vLLM servers, by the base (or its alias) whose chats, and those of what jobs made of it, they answer."""


class JobLimits(Settings):
    """What jobs may take."""

    jobs_at_once: int = Field(1, ge=0, le=64)
    """At most so many train at a time, as far as memory lets them; 0: all wait."""
    memory_gib: float | None = Field(None, ge=0, le=MOST_GIB)
    """Of this machine, for all jobs together; absent: what is free when a job is to begin."""
    hours: float = Field(Limits.seconds / 3600, gt=0, le=MOST_HOURS)
    """Longest time of a job, over all its restarts; then it fails (`time_limit`)."""
    waiting_jobs: int = Field(MOST_WAITING, ge=1)
    """Jobs of a project that may wait or be paused; one more is a 429."""
    free_disk_gib: float = Field(FREE_BYTES / 2**30, ge=0, le=MOST_GIB)
    """Stays free: below it no job begins and uploads get a 507."""


class Webhook(Settings):
    """Who is told, signed, when a job ends."""

    url: HttpUrl
    """Where to."""
    secret_env: str
    """Environment variable that holds the secret: `whsec_` and base64."""


class ServiceSettings(Settings):
    """All of it."""

    database: str | None = None
    """A database URL as SQLAlchemy spells it; absent: SQLite in the service's folder. Its password by `PGPASSWORD`."""
    allow_hosts: tuple[str, ...] = ()
    """Further names that may stand in `Host` headers."""
    log_format: Literal["text", "json"] = "text"
    """Of its lines, one a request."""
    traces: bool = False
    """Whether spans of requests and jobs go to OTEL_EXPORTER_OTLP_ENDPOINT (OpenTelemetry; extra `otel`)."""
    models: ServedModels = ServedModels()
    """Which models there are, and what answers for them."""
    limits: JobLimits = JobLimits()
    """What jobs may take."""
    webhook: Webhook | None = None
    """Who is told, signed, when a job ends; absent: nobody."""

    def options(self, folder: Path, base: Path, environment: Mapping[str, str]) -> Options:
        """What the service is opened with.

        Args:
            folder: the service's.
            base: from which paths are read.
            environment: has the secrets.

        Raises:
            ServeError: a file or a variable is not there.
        """
        models, limits = self.models, self.limits
        return Options(
            folder=folder,
            database=self.database,
            bases=models.bases,
            aliases=models.aliases,
            vllm=_servers(models, environment),
            ggufs={name: _gguf(name, base / place) for name, place in models.ggufs.items()},
            embedders=models.embedders,
            at_once=limits.jobs_at_once,
            hours=limits.hours,
            most_waiting=limits.waiting_jobs,
            free_bytes=int(limits.free_disk_gib * 2**30),
            memory_bytes=Limits.memory_bytes if limits.memory_gib is None else int(limits.memory_gib * 2**30),
            webhook=None if self.webhook is None else _target(self.webhook, environment),
        )


def read_settings(folder: Path, file: Path | None, assignments: Iterable[str] = ()) -> tuple[ServiceSettings, Path]:
    """The settings of a service, and the folder from which their paths are read.

    Args:
        folder: the service's.
        file: None: the one in the folder, if there is one.
        assignments: `key=value`, applied on top.

    Raises:
        ServeError: a file was named that is not there.
        RecipeError: it is no TOML, or a key is unknown or its value is wrong.
    """
    if file is not None and not file.is_file():
        raise ServeError(f"--settings {file}: there is no such file")
    place = file or folder / SETTINGS
    found = read_toml(place) if place.is_file() else {}
    base = place.parent if found else Path.cwd()
    return build(ServiceSettings, override(found, assignments)), base


def _gguf(name: str, path: Path) -> Path:
    if path.suffix != ".gguf" or not path.is_file():
        raise ServeError(f"models.ggufs.{name} = {path}: there is no such GGUF file")
    return path.resolve()


def _servers(models: ServedModels, environment: Mapping[str, str]) -> dict[str, Address]:
    found: dict[str, Address] = {}
    for name, server in models.vllm.items():
        base = models.aliases.get(name, name)
        if base in found:
            raise ServeError(f"models.vllm.{name}: {base} has a server already")
        found[base] = _address(name, server, environment)
    return found


def _address(name: str, server: VllmServer, environment: Mapping[str, str]) -> Address:
    url = server.url.rstrip("/")
    key = None if server.key_env is None else _secret(f"models.vllm.{name}.key_env", server.key_env, environment)
    return Address(url if url.endswith("/v1") else f"{url}/v1", key)


def _target(webhook: Webhook, environment: Mapping[str, str]) -> Target:
    return Target(webhook.url, _secret("webhook.secret_env", webhook.secret_env, environment))


def _secret(key: str, variable: str, environment: Mapping[str, str]) -> str:
    """The value of a variable, without the white space around it."""
    found = environment.get(variable, "").strip()
    if not found:
        raise ServeError(f"{key} = {variable!r}: this environment variable is not set; it holds the secret")
    return found
