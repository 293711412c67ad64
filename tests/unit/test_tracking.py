"""Trackers are told of every step once, whatever is killed or away meanwhile, and the training never waits for them."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.trackers_read import (
    MLFLOW,
    Ledger,
    LedgerSession,
    ledger_lines,
    log_steps,
    recipe_with,
    run_folder,
    steps_of_ledger,
    tensorboard,
    wandb_history,
    wandb_records,
    wandb_summary,
)

from luthier import registry
from luthier.config import build
from luthier.errors import RecipeError, TrackingError
from luthier.progress import Silent
from luthier.recipe import TRACKERS, Recipe, load
from luthier.run_folder import TRACKING
from luthier.search.trial import Pruned
from luthier.trackers.base import Line, Session, Status, Subject, first_line, require_package
from luthier.tracking import HIDDEN, described, require_answers, require_trackers, tracked

CANARY = "canary0123456789canary0123456789canary01"


class Said(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def until(wanted: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < end
        time.sleep(0.05)


# What each tracker holds afterwards: (steps, losses, validation losses), settings, figures


def test_tensorboard_s_own_reader_finds_every_step_once(tmp_path: Path) -> None:
    recipe, folder = recipe_with({"tensorboard": {}}, seed=7), run_folder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), tracked(recipe, folder, Silent()):
        log_steps(folder, range(1, 8))
        raise KeyboardInterrupt
    (folder / "metrics.jsonl").unlink()  # it goes on from the checkpoint of step 4, and does 5 to 7 again
    log_steps(folder, range(1, 5))
    with tracked(recipe, folder, Silent()) as tracking:
        log_steps(folder, range(5, 11))
        tracking.conclude({"test/gain": 0.25, "nothing": None}, {"verdict": "Fine-tune."})
    seen = tensorboard(folder / "tensorboard")
    assert [event.step for event in seen.Scalars("loss")] == list(range(1, 11))
    assert [event.value for event in seen.Scalars("loss")] == pytest.approx([1 / n for n in range(1, 11)])
    assert [(event.step, event.value) for event in seen.Scalars("validation_loss")] == [
        (5, pytest.approx(0.4)),
        (10, pytest.approx(0.2)),
    ]
    assert [(event.step, event.value) for event in seen.Scalars("test/gain")] == [(10, 0.25)]
    assert seen.Tensors("verdict")[0].tensor_proto.string_val[0] == b"Fine-tune."
    from tensorboard.plugins.hparams import metadata

    plugin = seen.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    assert metadata.parse_session_start_info_plugin_data(plugin).hparams["seed"].number_value == 7


def test_a_step_that_a_power_cut_took_from_an_event_file_is_told_again(tmp_path: Path) -> None:
    recipe, folder = recipe_with({"tensorboard": {}}), run_folder(tmp_path / "run")
    with tracked(recipe, folder, Silent()):
        log_steps(folder, [1, 2, 3])
    (file,) = (folder / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with tracked(recipe, folder, Silent()):
        pass
    assert [event.step for event in tensorboard(folder / "tensorboard").Scalars("loss")] == [1, 2, 3]


def test_mlflow_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in MLFLOW.items():
        monkeypatch.setenv(name, value)
    uri = f"file://{tmp_path / 'store'}"
    recipe, folder = (
        recipe_with({"mlflow": {"uri": uri, "experiment": "addresses"}}, seed=7),
        run_folder(tmp_path / "run"),
    )
    require_answers(recipe, folder)
    with pytest.raises(ValueError, match="mine"), tracked(recipe, folder, Silent()):
        log_steps(folder, range(1, 151))
        raise ValueError("mine")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    run_id = folder.read(TRACKING)["mlflow"]["id"]
    assert client.get_run(run_id).info.status == "FAILED"
    with tracked(recipe, folder, Silent()) as tracking:
        log_steps(folder, range(151, 156))
        tracking.conclude({"test/fine_tuned/f1": 0.75}, {"verdict": "Fine-tune.", "folder": folder.place})
    run = client.get_run(run_id)
    history = client.get_metric_history(run_id, "loss")
    assert sorted(metric.step for metric in history) == list(range(1, 156))
    assert {metric.step: metric.value for metric in history} == pytest.approx({n: 1 / n for n in range(1, 156)})
    assert sorted(m.step for m in client.get_metric_history(run_id, "validation_loss")) == list(range(5, 156, 5))
    assert run.info.status == "FINISHED" and run.info.run_name == folder.title
    assert run.data.params["seed"] == "7" and run.data.params["adapter.type"] == "lora"
    assert run.data.metrics["test/fine_tuned/f1"] == 0.75
    assert run.data.tags["verdict"] == "Fine-tune." and run.data.tags["folder"] == str(tmp_path / "run")
    assert client.get_experiment(run.info.experiment_id).name == "addresses"
    assert folder.read(TRACKING)["mlflow"]["untold"] == 0


WANDB = {"project": "p", "entity": "team", "name": "first", "tags": ["a", "b"]}


def test_wandb_s_files_have_every_step_once_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", CANARY)
    recipe, folder = recipe_with({"wandb": WANDB}, seed=7), run_folder(tmp_path / "run")
    with tracked(recipe, folder, Silent()):
        log_steps(folder, range(1, 6))
    (folder / "metrics.jsonl").unlink()  # it goes on from the checkpoint of step 3
    log_steps(folder, range(1, 4))
    with tracked(recipe, folder, Silent()) as tracking:
        log_steps(folder, range(4, 13))
        tracking.conclude({"test/gain": 0.25}, {"verdict": "Fine-tune."})
    steps = wandb_history(folder.path)
    assert [step["_step"] for step in steps] == list(range(1, 13))
    assert [step["loss"] for step in steps] == pytest.approx([1 / n for n in range(1, 13)])
    assert [step["validation_loss"] for step in steps if "validation_loss" in step] == [0.4, 0.2]
    summary = wandb_summary(folder.path)
    assert summary["test/gain"] == 0.25 and summary["verdict"] == "Fine-tune."
    runs = wandb_records(folder.path, "run")
    assert {run.run_id for run in runs} == {folder.read(TRACKING)["wandb"]["id"]}
    (run, _) = runs
    assert (run.project, run.entity, run.display_name, list(run.tags)) == ("p", "team", "first", ["a", "b"])
    updates = [update for config in wandb_records(folder.path, "config") for update in config.update]
    config = {(update.key or update.nested_key[0]): json.loads(update.value_json) for update in updates}
    assert config["seed"] == 7 and config["adapter.type"] == "lora"
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if CANARY.encode() in path.read_bytes()]


KILLED = """
import json, sys, time
from pathlib import Path
from tests.trackers_read import log_steps, recipe_with, run_folder
from luthier.progress import Silent
from luthier.tracking import tracked

folder = run_folder(Path(sys.argv[1]))
class Said(Silent):
    def say(self, text):
        print("open", flush=True)

log_steps(folder, range(1, 9))
with tracked(recipe_with({"wandb": json.loads(sys.argv[2])}), folder, Said()):
    time.sleep(60)
"""


@pytest.mark.chaos
def test_what_wandb_lost_when_it_was_killed_is_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, command = run_folder(tmp_path / "run"), [sys.executable, "-c", KILLED, str(tmp_path / "run")]
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # by which a child would share the client's process of this one
    killed = subprocess.Popen([*command, json.dumps(WANDB)], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None and killed.stdout.readline() == "open\n"
    time.sleep(0.3)  # the client is told right after, and writes some seconds later
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not wandb_history(folder.path), "nothing was lost: the test has no point any more"
    with tracked(recipe_with({"wandb": WANDB}), folder, Silent()):
        log_steps(folder, range(9, 13))
    assert [step["_step"] for step in wandb_history(folder.path)] == list(range(1, 13))


@pytest.mark.chaos
def test_a_client_of_wandb_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder, said = run_folder(tmp_path / "run"), Said()
    with tracked(recipe_with({"wandb": WANDB}), folder, said):
        log_steps(folder, range(1, 6))
        until(lambda: said.lines)  # it is open
        for process in psutil.Process().children(recursive=True):
            if "wandb-core" in " ".join(process.cmdline()):
                process.kill()
        log_steps(folder, range(6, 9))
        until(lambda: any("answers again, and was told 8 steps" in line for line in said.lines), 60)
        log_steps(folder, [9])
    assert [step["_step"] for step in wandb_history(folder.path)] == list(range(1, 10))


# A tracker that is away


def test_one_that_is_away_at_the_start_is_refused(tmp_path: Path) -> None:
    (tmp_path / "away").touch()
    recipe, folder = recipe_with({"mine": Ledger(home=str(tmp_path))}), run_folder(tmp_path / "run")
    with pytest.raises(TrackingError, match=r"tracking\.mine: nobody is there"):
        require_answers(recipe, folder)
    # one that goes away between that and the first step stops nothing: a run may have been measured for hours by then
    said = Said()
    with tracked(recipe, folder, said):
        log_steps(folder, [1, 2])
        until(lambda: any("does not answer, and the training goes on" in line for line in said.lines))
        (tmp_path / "away").unlink()
    assert steps_of_ledger(tmp_path) == [1, 2]


def test_one_that_goes_away_stops_nothing_and_is_told_when_it_is_back(tmp_path: Path) -> None:
    recipe, folder, said = recipe_with({"mine": Ledger(home=str(tmp_path))}), run_folder(tmp_path / "run"), Said()
    with tracked(recipe, folder, said):
        log_steps(folder, [1, 2])
        until(lambda: steps_of_ledger(tmp_path) == [1, 2])
        (tmp_path / "away").touch()
        log_steps(folder, [3, 4])
        until(lambda: any("does not answer" in line for line in said.lines))
        log_steps(folder, [5])
        (tmp_path / "away").unlink()
        until(lambda: any("answers again, and was told 3 steps" in line for line in said.lines))
        log_steps(folder, [6])
    assert steps_of_ledger(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert [line["status"] for line in ledger_lines(tmp_path, "status")] == ["finished"]
    assert len(ledger_lines(tmp_path, "settings")) == 1
    assert sum("does not answer" in line for line in said.lines) == 1


def test_what_is_lost_is_counted_and_told_by_the_same_command(tmp_path: Path) -> None:
    recipe, folder, said = recipe_with({"mine": Ledger(home=str(tmp_path))}), run_folder(tmp_path / "run"), Said()
    with tracked(recipe, folder, said) as tracking:
        log_steps(folder, [1, 2])
        until(lambda: steps_of_ledger(tmp_path) == [1, 2])
        (tmp_path / "away").touch()
        log_steps(folder, [3, 4, 5])
        tracking.conclude({"best_step": 5}, {})
    assert "3 steps were lost to it: nobody is there" in said.lines[-1]
    assert folder.read(TRACKING)["mine"]["untold"] == 3
    require_answers(recipe, folder)  # a run that it has goes on without it
    with tracked(recipe, folder, said) as tracking:
        tracking.conclude({"best_step": 5}, {})
    assert "3 steps were lost to it" in said.lines[-1]
    (tmp_path / "away").unlink()
    with tracked(recipe, folder, Silent()) as tracking:
        tracking.conclude({"best_step": 5}, {})
    assert steps_of_ledger(tmp_path) == [1, 2, 3, 4, 5] and folder.read(TRACKING)["mine"]["untold"] == 0
    assert ledger_lines(tmp_path, "end")[0]["best_step"] == 5


def test_a_training_that_stops_or_fails_says_so(tmp_path: Path) -> None:
    recipe, folder = recipe_with({"mine": Ledger(home=str(tmp_path))}), run_folder(tmp_path / "run")
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), tracked(recipe, folder, Silent()):
            raise error
    assert [line["status"] for line in ledger_lines(tmp_path, "status")] == ["stopped", "failed"]


def test_one_that_was_ended_as_planned_is_finished(tmp_path: Path) -> None:
    recipe, folder = recipe_with({"mine": Ledger(home=str(tmp_path))}), run_folder(tmp_path / "run")
    with pytest.raises(Pruned), tracked(recipe, folder, Silent()):
        raise Pruned
    assert [line["status"] for line in ledger_lines(tmp_path, "status")] == ["finished"]


def test_the_error_of_a_training_stays_though_the_disk_is_full(tmp_path: Path) -> None:
    recipe, folder, said = recipe_with({"mine": Ledger(home=str(tmp_path))}), run_folder(tmp_path / "run"), Said()
    (folder / TRACKING / "in the way").mkdir(parents=True)  # it cannot be written
    (tmp_path / "away").touch()
    with pytest.raises(OSError, match="no space"), tracked(recipe, folder, said):
        log_steps(folder, [1, 2])
        with (folder / "metrics.jsonl").open("a") as log:
            log.write('{"step": 3, "lo')
        raise OSError("no space")
    assert "2 steps were lost to it: nobody is there" in said.lines[-1]


class Strange(Ledger):
    """A library that raises what nobody expects."""

    def open(self, subject: Subject, run_id: str | None) -> Session:
        """The same, strange."""
        return StrangeSession(Path(self.home), run_id or "first")


class StrangeSession(LedgerSession):
    def tell(self, lines: Sequence[Line]) -> None:
        """Not even with a message."""
        raise IndexError

    def drop(self) -> None:
        """Once more."""
        raise IndexError


def test_nothing_that_a_tracker_s_library_raises_ends_in_silence(tmp_path: Path) -> None:
    recipe, folder, said = recipe_with({"mine": Strange(home=str(tmp_path))}), run_folder(tmp_path / "run"), Said()
    with tracked(recipe, folder, said):
        log_steps(folder, [1, 2])
        until(lambda: any("does not answer, and the training goes on: IndexError" in line for line in said.lines))
    assert "2 steps were lost to it: IndexError" in said.lines[-1]
    assert folder.read(TRACKING)["mine"]["untold"] == 2
    assert first_line(TimeoutError()) == "TimeoutError" and first_line(OSError(" one\ntwo")) == "one"


class Queueing(Ledger):
    """A client that takes all, and whose server is away when it shall arrive."""

    def open(self, subject: Subject, run_id: str | None) -> Session:
        """The same, queueing."""
        return QueueingSession(Path(self.home), run_id or "first")


class QueueingSession(LedgerSession):
    def confirmed(self, told: int) -> int:
        """Nothing."""
        return 0

    def close(self, status: Status) -> None:
        """It does not arrive."""
        raise TrackingError("it was queued")


def test_what_was_only_queued_counts_as_lost_when_it_does_not_arrive(tmp_path: Path) -> None:
    recipe, folder, said = recipe_with({"mine": Queueing(home=str(tmp_path))}), run_folder(tmp_path / "run"), Said()
    with tracked(recipe, folder, said):
        log_steps(folder, [1, 2])
    assert "2 steps were lost to it: it was queued" in said.lines[-1]
    assert folder.read(TRACKING)["mine"]["untold"] == 2


def test_one_that_takes_too_long_tells_nothing_beside_its_successor(tmp_path: Path) -> None:
    recipe, folder, said = recipe_with({"mine": Ledger(home=str(tmp_path))}), run_folder(tmp_path / "run"), Said()
    (tmp_path / "slow").touch()
    with tracked(recipe, folder, said, patience=0.2):
        log_steps(folder, [1, 2])
        until(lambda: not (tmp_path / "slow").exists())
    assert "2 steps were lost to it: it takes too long" in said.lines[-1]
    with tracked(recipe, folder, said):
        pass
    kept = folder.read(TRACKING)
    assert kept["mine"]["untold"] == 0
    (tmp_path / "go").touch()
    until(lambda: "tracking mine" not in {thread.name for thread in threading.enumerate()})
    assert steps_of_ledger(tmp_path) == [1, 2] and folder.read(TRACKING) == kept


def test_each_run_of_tensorboard_has_a_folder_of_its_own(tmp_path: Path) -> None:
    recipe = recipe_with({"tensorboard": {}, "second": {"type": "tensorboard"}})
    folder = run_folder(tmp_path / "run")
    log_steps(folder, [1, 2])
    with tracked(recipe, folder, Silent()):
        pass
    ids = {name: entry["id"] for name, entry in folder.read(TRACKING).items()}
    assert sorted(ids.values()) == ["tensorboard", "tensorboard-2"]
    kept = folder.read(TRACKING)
    folder.write(TRACKING, {"second": kept["second"]})
    with tracked(recipe, folder, Silent()):
        pass
    assert folder.read(TRACKING)["tensorboard"]["id"] == "tensorboard-3"
    for name in ("tensorboard", "tensorboard-2", "tensorboard-3"):
        assert [event.step for event in tensorboard(folder / name).Scalars("loss")] == [1, 2]


# What is told, and what is refused


def test_settings_are_told_without_secrets_and_places(tmp_path: Path) -> None:
    values = {
        "model": {"name": "/models/base"},
        "data": {"train": str(tmp_path / "rows.jsonl"), "instruction": "token=Zx81kQp9vLm27TbnR4ws"},
        "evaluation": {"metrics": ["exact_match"]},
        "tracking": {"mine": Ledger(home=str(tmp_path))},
    }
    folder = run_folder(tmp_path / "run")
    folder.write("manifest.json", {"recipe_folder": str(tmp_path)})
    told = described(build(Recipe, values), folder)
    assert told["data.train"] == "rows.jsonl" and told["model.name"] == "base"
    assert told["data.instruction"] == HIDDEN
    assert told["evaluation.metrics"] == '["exact_match"]' and told["training.epochs"] == 3.0
    assert not any(str(tmp_path) in str(value) or name.startswith("tracking") for name, value in told.items())


@pytest.mark.parametrize("uri", ["http://me:hunter22@host.test", "http://host.test/?token=hunter22", "hunter22"])
def test_an_address_with_a_secret_is_refused_and_not_repeated(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="uri") as told:
        recipe_with({"mlflow": {"uri": uri}})
    assert "hunter22" not in str(told.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI") as told_later:
        require_trackers(recipe_with({"mlflow": {}}))
    assert "hunter22" not in str(told_later.value)


def test_what_is_missing_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrackingError, match=r"tracking\.mlflow: .*MLFLOW_TRACKING_URI"):
        require_trackers(recipe_with({"mlflow": {}}))
    with pytest.raises(TrackingError, match=r"tracking\.mine: .*WANDB_API_KEY"):
        require_trackers(recipe_with({"mine": {"type": "wandb"}}))
    require_trackers(recipe_with({"mine": {"type": "wandb", "mode": "offline"}, "tensorboard": {}}))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(TrackingError, match="WANDB_MODE is 'disabled'"):
        require_trackers(recipe_with({"wandb": {}}))
    with pytest.raises(TrackingError, match=r"pip install 'luthier\[wandb\]'"):
        require_package("no_such_package", "wandb")


def test_a_wrong_name_is_told_with_the_right_one() -> None:
    with pytest.raises(RecipeError, match="did you mean 'wandb'"):
        recipe_with({"wandbb": {}})
    with pytest.raises(RecipeError, match=r"tracking\.wandb\.projekt"):
        recipe_with({"wandb": {"projekt": "p"}})
    with pytest.raises(RecipeError, match=r"tracking\.wandb\.project"):
        recipe_with({"wandb": {"project": "a/b"}})


@pytest.mark.parametrize("name", registry.names(TRACKERS))
def test_settings_are_written_and_read_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'[data]\ntrain = "rows.jsonl"\n[tracking.mine]\ntype = "{name}"\n', encoding="utf-8")
    recipe = load(path, [f"tracking.other.type={name}"])
    assert recipe.dump()["tracking"].keys() == {"mine", "other"}
    assert build(Recipe, recipe.dump()) == recipe
