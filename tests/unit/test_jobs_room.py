"""What jobs may take: memory, disk, places in the queue; and the order of the queue."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.jobs_service import rows
from tests.postgres import database_url

from luthier import system_memory
from luthier.cli.job_process import NoRoom, TooLarge, require_room, train
from luthier.cli.main import main
from luthier.errors import RecipeError, ServeError, StorageError
from luthier.jobs.blobs import Blobs
from luthier.jobs.database import Database, sqlite_url
from luthier.jobs.disk import Disk
from luthier.jobs.file_store import FileStore, Quota
from luthier.jobs.gateway import _link as link_to
from luthier.jobs.job_store import Asked, JobStore
from luthier.jobs.room import CPU, STARTING_BYTES, Beside, Claim
from luthier.jobs.service import Options, open_service
from luthier.jobs.settings import read_settings
from luthier.jobs.tenants import Tenants
from luthier.jobs.translate import write_recipe
from luthier.serve.api_error import ApiError

GIB = 2**30


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    found = Database(database_url(tmp_path) or sqlite_url(tmp_path / "service.sqlite"))
    yield found
    found.close()


def asked() -> Asked:
    return Asked(model="m", base="b", training_file="f", validation_file=None, seed=1, body={"model": "m"})


# memory


def test_claims_count_whole_and_not_what_is_held_so_far() -> None:
    claim = Claim(CPU, 3 * GIB, 100 * GIB)
    for held, claimed, takes in ((0, 0, True), (GIB // 8, 2 * GIB, True), (GIB // 8, 3 * GIB, False)):
        beside = Beside(held, {CPU: claimed}, most=5 * GIB)
        assert beside.takes(claim) is takes
    free = system_memory.free_bytes()
    assert not Beside(0, {}).takes(Claim(CPU, 2 * free, 4 * free))
    assert Beside(2 * free, {}).takes(Claim(CPU, 2 * free, 4 * free)), "what jobs hold is theirs to claim"


def test_a_device_is_full_of_its_own_claims_alone() -> None:
    claim = Claim("cuda", 40 * GIB, 80 * GIB)
    assert Beside(0, {"cuda": 40 * GIB, CPU: 200 * GIB}).takes(claim)
    assert not Beside(0, {"cuda": 41 * GIB}).takes(claim)


def test_what_is_not_known_yet_is_tried_where_a_process_can_start() -> None:
    assert Beside(0, {}, most=1).takes(None), "alone, to be told what it lacks"
    assert Beside(0, {CPU: GIB}, most=GIB + STARTING_BYTES).takes(None)
    assert not Beside(0, {CPU: GIB}, most=GIB + STARTING_BYTES - 1).takes(None)


def test_of_jobs_their_claims_are_added_up(tmp_path: Path) -> None:
    import os

    found = Beside.of([os.getpid(), 2**22 + 1], [Claim(CPU, 1, 9), Claim("cuda", 2, 9), Claim(CPU, 4, 9)], 7)
    assert found.claimed == {CPU: 5, "cuda": 2} and found.most == 7
    assert 2**20 < found.held < system_memory.total_bytes()
    found.write(tmp_path)
    assert Beside.read(tmp_path) == found and Claim.read(tmp_path) is None
    assert Beside.read(tmp_path / "none") == Beside()


@pytest.fixture
def job(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """The folder of a job that is ready to be trained."""
    (tmp_path / "train.jsonl").write_bytes(rows(20))
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
    write_recipe(tmp_path, str(tiny_model_folder), {"method": method}, 1)
    return tmp_path


def test_a_job_claims_before_its_first_step_and_leaves_what_others_claimed(job: Path) -> None:
    Beside(0, {CPU: system_memory.total_bytes()}).write(job)
    with pytest.raises(NoRoom):
        train(job)
    least = Claim.read(job)
    assert least is not None and least.is_least and 0 < least.needed < 2**21, "the model was not loaded in vain"
    with pytest.raises(NoRoom):
        train(job)
    claim = Claim.read(job)
    assert claim is not None and not claim.is_least and claim.device == CPU
    assert 600 * 2**20 < claim.needed < claim.total == system_memory.total_bytes()
    assert not (job / "run/metrics.jsonl").exists()
    Beside().write(job)
    train(job)
    assert (job / "run/adapter").is_dir()


def test_a_job_that_never_fits_is_refused_with_both_numbers(job: Path) -> None:
    Beside(most=2**20).write(job)
    Claim(CPU, 1, 1).write(job)
    with pytest.raises(TooLarge, match=r"needs \d\.\d GiB of memory \(cpu\), and jobs can have 0\.0 GiB"):
        train(job)
    import torch

    with pytest.raises(TooLarge):
        require_room(job, Beside(), Claim(CPU, 11, 10), torch.device("cpu"))


# places in the queue


def test_a_project_has_so_many_places_and_a_repeated_request_takes_none(database: Database) -> None:
    store, tenants = JobStore(database, most_waiting=2), Tenants(database)
    one, other = tenants.project("one"), tenants.project("other")
    first = store.create(one, asked(), ("key", "digest"))["id"]
    second = store.create(one, asked())["id"]
    store.move(second, "paused", [])
    with pytest.raises(ApiError, match="has 2 jobs that wait or are paused, and may have 2") as refused:
        store.create(one, asked())
    assert (refused.value.status, refused.value.kind, refused.value.code) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
    )
    assert store.create(one, asked(), ("key", "digest"))["id"] == first
    store.create(other, asked())
    store.move(first, "cancelled", [])
    store.create(one, asked())


def test_the_operator_decides_who_goes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_service(Options(tmp_path / "s")) as service:
        project = service.tenants.project("default")
        made = [service.jobs.create(project, asked())["id"] for _ in range(4)]
        for job_id in made[:3]:
            service.jobs.move(job_id, "queued", [])
        service.jobs.move(made[3], "cancelled", [])
    base = ["service", "--data", str(tmp_path / "s")]
    for job_id, number in ((made[2], "5"), (made[0], "-1")):
        assert main([*base, "priority", job_id, number]) == 0
    capsys.readouterr()
    assert main([*base, "jobs"]) == 0
    assert [line.split()[:3] for line in capsys.readouterr().out.splitlines()] == [
        [made[2], "queued", "5"],
        [made[1], "queued", "0"],
        [made[0], "queued", "-1"],
    ]
    for job_id, number, message in (
        (made[3], "1", "is cancelled, and waits for nothing"),
        ("ftjob-none", "1", "no such job"),
        (made[0], "1001", "expected -1000 to 1000"),
    ):
        assert main([*base, "priority", job_id, number]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", ["hours=0", "hours=nan", "waiting_jobs=0", "jobs_at_once=65", "free_disk_gib=-1", "memory_gib=-1"]
)
def test_a_limit_that_is_none_is_refused(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--data", str(tmp_path / "s"), "--set", f"limits.{wrong}"]) == 2
    assert f"limits.{wrong.partition('=')[0]} = " in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_settings_are_read_from_the_services_folder(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    (folder / "exports").mkdir()
    (folder / "exports/a.gguf").touch()
    (folder / "service.toml").write_text(
        """
        log_format = "json"
        models = { ggufs = { small = "exports/a.gguf" } }
        webhook = { url = "https://example.org/hook", secret_env = "HOOK" }
        [limits]
        jobs_at_once = 2
        memory_gib = 1.5
        """
    )
    settings, base = read_settings(folder, None, ["limits.jobs_at_once=3"])
    options = settings.options(folder, base, {"HOOK": "whsec_" + "A" * 32})
    assert (settings.log_format, options.at_once, options.memory_bytes) == ("json", 3, 3 * 2**29)
    assert options.ggufs == {"small": folder / "exports/a.gguf"} and options.webhook is not None
    with pytest.raises(ServeError, match=r"webhook.secret_env = 'HOOK': this environment variable is not set"):
        settings.options(folder, base, {})
    with pytest.raises(ServeError, match=r"no\.toml: there is no such file"):
        read_settings(folder, folder / "no.toml")
    with pytest.raises(RecipeError, match=r"unknown key .limits\.jobs.; known here: .*jobs_at_once"):
        read_settings(folder, None, ["limits.jobs=3"])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "expected a URL"),
        ("mysql://user:hidden@host/name", "is of another kind; expected one of sqlite, postgresql"),
        ("postgresql+pg8000://user:hidden@host/name", r"install luthier\[postgres\]"),
    ],
)
def test_a_database_that_is_none_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as refused:
        Database(url)
    assert "hidden" not in str(refused.value)


# the disk


def test_a_disk_that_is_nearly_full_takes_no_file_and_says_so_in_time(database: Database, tmp_path: Path) -> None:
    import shutil

    project = Tenants(database).project("one")
    full = FileStore(database, Blobs(tmp_path / "files"), Quota(), Disk(tmp_path, 2**60))
    upload = {"purpose": "fine-tune", "filename": "a", "mime_type": "t", "file_seconds": None}
    for call in (lambda: full.receiver(project), lambda: full.create_upload(project, {**upload, "bytes": 1})):
        with pytest.raises(ApiError, match="nearly full") as refused:
            call()
        assert (refused.value.status, refused.value.code) == (507, "insufficient_storage")
        assert refused.value.headers["x-should-retry"] == "false"
    free = shutil.disk_usage(tmp_path).free
    roomy = FileStore(database, Blobs(tmp_path / "files"), Quota(upload_bytes=2**60), Disk(tmp_path, 0))
    with pytest.raises(ApiError, match="nearly full"):
        roomy.create_upload(project, {**upload, "bytes": 2 * free})


def test_a_disk_that_is_full_is_no_mistake_of_the_program(tmp_path: Path) -> None:
    """/dev/full refuses every byte, as a full disk does."""
    blobs = Blobs(tmp_path)
    writer = blobs.writer(2**20)
    with open("/dev/full", "wb", buffering=0) as full:
        writer._file.close()
        writer._file = full
        with pytest.raises(ApiError) as refused:
            writer.write(b"x")
    assert refused.value.status == 507


def test_a_folder_that_was_moved_is_served_from_its_new_place(tmp_path: Path) -> None:
    for place in ("old", "new"):
        (tmp_path / place / "run").mkdir(parents=True)
        (link_to(tmp_path, "ftjob.run", tmp_path / place / "run") / "x").touch()
        assert (tmp_path / place / "run/x").exists()
