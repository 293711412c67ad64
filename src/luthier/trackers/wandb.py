"""Weights & Biases: its server, or files that `wandb sync` sends later; the key stands in WANDB_API_KEY."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.errors import TrackingError
from luthier.trackers._wandb_files import files_of, last_step
from luthier.trackers.base import Line, Plain, Session, Status, Subject, Tracker, first_line, require_package

KEY, MODE = "WANDB_API_KEY", "WANDB_MODE"
MODES: Mapping[str, Literal["online", "offline"]] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
}
"""What the client takes in WANDB_MODE, but for `disabled` and what needs another process."""
ANSWER_SECONDS, FINISH_SECONDS = 10, 30
"""How long the server may take to answer, and to take the rest of a run at its end."""
NAME = r"^[^/\\#?%:\x00-\x1f\x7f]*$"
"""What W&B takes as the name of a project."""
SHOWN = r"^[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"
"""Text without control characters and without what turns its direction."""


class WandB(Tracker):
    """A run of a project. What is sent is the run's settings, steps and figures: no code, no console, no machine."""

    project: str = Field("luthier", min_length=1, max_length=128, pattern=NAME)
    """The project; made if it is not there."""
    entity: str = Field("", max_length=128, pattern=NAME)
    """The user or team that it belongs to; empty: the key's own."""
    name: str = Field("", max_length=128, pattern=SHOWN)
    """The run's name there; empty: its folder."""
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64, pattern=SHOWN)], ...] = Field((), max_length=50)
    """Words by which runs are found."""
    mode: Literal["online", "offline"] | None = None
    """`offline` writes into the run's folder alone, for `wandb sync`; absent: as the environment variable WANDB_MODE
    says, else online."""

    def require(self) -> None:
        """The package `wandb`, and a key unless nothing is sent."""
        require_package("wandb", "wandb")
        if self.mode is None and os.environ.get(MODE, "online") not in MODES:
            raise TrackingError(
                f"the environment variable {MODE} is {os.environ[MODE]!r}: expected online or offline; to track "
                "nothing, take the table out of [tracking]"
            )
        if self._mode() == "online" and not os.environ.get(KEY):
            raise TrackingError(
                f"Weights & Biases wants a key: set the environment variable {KEY}, or {MODE}=offline to keep the run "
                "in files"
            )

    def reach(self) -> None:
        """Make the project, or find it: so the key and the entity are right."""
        self.require()
        if self._mode() == "offline":
            return
        wandb = _client()
        try:
            with _told():
                api = wandb.Api(timeout=ANSWER_SECONDS)
                api.create_project(self.project, self.entity or api.default_entity or "")
        except TrackingError as error:  # the client tells of one and the same trouble in many words
            raise TrackingError(f"{error} (no answer, or a wrong key, entity or project)") from error

    def open(self, subject: Subject, run_id: str | None) -> "WandBRun":
        """A new run, or the one that was begun."""
        self.require()
        wandb = _client()
        home, run_id = subject.folder, run_id or secrets.token_hex(4)
        files = files_of(home, run_id)
        with _told():  # online the server alone says what it has: of files that are there, nobody sent them
            held = last_step(files) if self._mode() == "offline" else 0
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
            host="",
            init_timeout=ANSWER_SECONDS,
            reinit="create_new",  # no other run of this process is touched
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            # folders are named by the second, and what goes on within one would overwrite what was there
            x_sync_dir_suffix=f"part-{len(files) + 1:03d}",
        )
        with _told():
            run = wandb.init(
                project=self.project,
                entity=self.entity or None,
                name=self.name or subject.title,
                tags=list(self.tags),
                id=run_id,
                resume="allow",
                dir=str(home),
                mode=self._mode(),
                settings=settings,
            )
            if self._mode() == "online" and run.resumed:
                held = max(run.step - 1, 0)
        return WandBRun(run, held, home if self._mode() == "offline" else None)

    def _mode(self) -> Literal["online", "offline"]:
        return self.mode or MODES.get(os.environ.get(MODE, "online"), "offline")


class WandBRun(Session):
    """A run that the client of W&B holds open; it sends by itself what it was told."""

    def __init__(self, run: Any, held: int, home: Path | None) -> None:
        self._run, self._held, self._home = run, held, home
        self._before = held
        self.id = str(run.id)
        self.place = f"{home / 'wandb'} (`wandb sync` sends it)" if home else str(run.url)

    def last_step(self) -> int:
        """Of the server, or of the files."""
        return self._held

    def describe(self, settings: Mapping[str, Plain]) -> None:
        """As the run's config."""
        with _told():
            self._run.config.update(dict(settings), allow_val_change=True)

    def tell(self, lines: Sequence[Line]) -> None:
        """As its history."""
        for line in lines:
            with _told():
                self._run.log({k: v for k, v in line.items() if k != "step"}, step=int(line["step"]))
            self._held = int(line["step"])

    def confirmed(self, told: int) -> int:
        """What the files hold; a server confirms nothing before the end, so what it had at the beginning."""
        return self._written() if self._home is not None else self._before

    def conclude(self, step: int, figures: Mapping[str, float], words: Mapping[str, str]) -> None:
        """As its summary."""
        with _told():
            self._run.summary.update({**figures, **words})

    def close(self, status: Status) -> None:
        """Wait until all has arrived, though not for ever."""
        with _told():
            self._run.finish(exit_code=1 if status == "failed" else 0)
        until = time.monotonic() + FINISH_SECONDS
        while self._home is not None and self._written() < self._held:  # written by another process
            if time.monotonic() > until:
                raise TrackingError(f"Weights & Biases: the file of the run in {self._home} lacks its last steps")
            time.sleep(0.5)

    def drop(self) -> None:
        """Let the client write what it has; if its process has ended, the next run gets a new one."""
        import wandb

        try:
            with _told():
                self._run.finish(exit_code=1)
        except TrackingError:
            with _told():
                wandb.teardown()

    def _written(self) -> int:
        """The last step in the files: only the newest can have grown since the session began."""
        assert self._home is not None
        with _told():
            return max(self._before, last_step(files_of(self._home, self.id)[-1:]))


def _client() -> Any:
    """The client's module."""
    # its makers are told of its errors otherwise; it reads this when it is imported
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


@contextmanager
def _told() -> Iterator[None]:
    import wandb
    from wandb.sdk.mailbox import MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import HandleAbandonedError, ServerResponseError

    try:
        yield
    except (MailboxClosedError, HandleAbandonedError) as error:
        raise TrackingError("Weights & Biases: the process of its client has ended") from error
    except (wandb.Error, ServerResponseError, OSError) as error:
        raise TrackingError(f"Weights & Biases: {first_line(error)}") from error
