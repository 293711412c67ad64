"""The address example: labels to fields, XML to rows, the command that finds importers, the archive it comes from."""

import argparse
import hashlib
import http.server
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from luthier.cli.commands import data
from luthier.data.formats.base import read_examples
from luthier.data.sdist import SourceArchive, obtain, read_members
from luthier.errors import DataError, LuthierError
from luthier.examples import Conversation

EXAMPLE = Path(__file__).parents[2] / "examples" / "addresses"

XML = """<AddressCollection>
  <AddressString><Recipient>Acme</Recipient> <Recipient>Inc.,</Recipient> <AddressNumber>12</AddressNumber>
    <StreetNamePreDirectional>N.</StreetNamePreDirectional> <StreetName>Main</StreetName>
    <StreetNamePostType>St,</StreetNamePostType> <OccupancyType>Ste.</OccupancyType>
    <OccupancyIdentifier>4,</OccupancyIdentifier> <PlaceName>San</PlaceName> <PlaceName>José,</PlaceName>
    <StateName>CA</StateName> <ZipCode>95113</ZipCode></AddressString>
  <AddressString><CornerOf>corner of</CornerOf> <StreetName>Oak</StreetName>
    <IntersectionSeparator>&amp;</IntersectionSeparator> <StreetName>5th</StreetName>
    <StreetNamePostType>Ave</StreetNamePostType> <NotAddress>(map)</NotAddress></AddressString>
  <AddressString><USPSBoxType>PO Box</USPSBoxType># <USPSBoxID>63</USPSBoxID>,
    <PlaceName>Cordova</PlaceName></AddressString>
</AddressCollection>""".encode()


def load(name: str) -> ModuleType:
    """A module of the example's folder, imported as its scripts import it."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(EXAMPLE))


@pytest.fixture(scope="module")
def importer() -> ModuleType:
    return load("importer")


def test_labels_become_fields_in_a_fixed_order(importer: ModuleType) -> None:
    first, corner, box = (row["target"] for row in importer.rows("labeled", XML))
    assert list(first.items()) == [
        ("recipient", "Acme Inc."),
        ("house_number", "12"),
        ("direction_before", "N."),
        ("street", "Main"),
        ("street_type", "St"),
        ("unit", "Ste. 4"),
        ("city", "San José"),
        ("state", "CA"),
        ("zip_code", "95113"),
    ]
    assert corner == {"street": "Oak", "cross_street": "5th Ave"}
    assert box == {"po_box": "PO Box 63", "city": "Cordova"}


def test_rows_are_chat_with_compact_json_that_the_schema_allows(importer: ModuleType) -> None:
    rows = list(importer.rows("labeled", XML))
    assert [row["id"] for row in rows] == ["labeled-0001", "labeled-0002", "labeled-0003"]
    for row in rows:
        assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
        reply = row["messages"][2]["content"]
        assert json.loads(reply) == row["target"]
        assert reply == json.dumps(row["target"], ensure_ascii=False, separators=(",", ":"))
        jsonschema.validate(row["target"], importer.schema())
    assert rows[2]["messages"][1]["content"] == "PO Box# 63,\nCordova"
    assert rows[0]["messages"][1]["content"].startswith("Acme Inc., 12\nN. Main")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"town": "x"}, importer.schema())


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "document type"),
        (b"<AddressCollection><AddressString>", "not the XML"),
        (b"\xff\xfe", "not the XML"),
        (b"<a><AddressString><Planet>Mars</Planet></AddressString></a>", "unknown label 'Planet'"),
    ],
)
def test_bad_xml_is_refused(importer: ModuleType, xml: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(importer.rows("labeled", xml))


def archive_bytes(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("toy-1.0/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    return out.getvalue()


ARCHIVE = archive_bytes({"toy-1.0/data.txt": b"rows", "../../escaped.txt": b"no"})
TOY = SourceArchive("toy", "1.0", hashlib.sha256(ARCHIVE).hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A package index on this machine, which pip's settings name; yields the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/garbled/"):
                self.wfile.write(b"this is no answer of a web server\n")
                return
            pages = {
                "/simple/toy/": b'<a href="../../files/toy-0.9.tar.gz">old</a>'
                b'<a href="../../files/toy-1.0.tar.gz#sha256=x">toy</a>',
                "/files/toy-1.0.tar.gz": ARCHIVE,
            }
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_archive_is_fetched_once_verified_and_read_in_place(index: list[str], tmp_path: Path) -> None:
    assert read_members(TOY, ["toy-1.0/data.txt"]) == {"toy-1.0/data.txt": b"rows"}
    assert read_members(TOY, ["../../escaped.txt"]) == {"../../escaped.txt": b"no"}
    assert index == ["/simple/toy/", "/files/toy-1.0.tar.gz"]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["toy-1.0.tar.gz"]
    for name in ("toy-1.0/link", "toy-1.0/absent"):
        with pytest.raises(DataError, match=name):
            read_members(TOY, [name])


def test_an_index_that_answers_nonsense_is_passed_over(index: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    good = os.environ["PIP_INDEX_URL"]
    monkeypatch.setenv("PIP_INDEX_URL", good.replace("/simple", "/garbled"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", good)
    assert obtain(TOY).read_bytes() == ARCHIVE
    assert index == ["/garbled/toy/", "/simple/toy/", "/files/toy-1.0.tar.gz"]


def test_a_changed_archive_is_refused_and_a_damaged_cache_mended(index: list[str]) -> None:
    with pytest.raises(DataError, match="expected 0000"):
        obtain(SourceArchive("toy", "1.0", "0000"))
    path = obtain(TOY)
    path.write_bytes(ARCHIVE[:-9])
    assert obtain(TOY).read_bytes() == ARCHIVE


def test_an_archive_that_nobody_has_names_the_index(index: list[str]) -> None:
    with pytest.raises(DataError, match=r"127\.0\.0\.1.*put the file into") as caught:
        obtain(SourceArchive("nobody", "9.9", "0" * 64))
    assert isinstance(caught.value, LuthierError)


def test_a_password_in_the_index_address_is_not_shown(index: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = "pa55" + "word"
    monkeypatch.setenv("PIP_INDEX_URL", f"http://user:{hidden}@127.0.0.1:1/simple")
    with pytest.raises(DataError) as caught:
        obtain(SourceArchive("nobody", "9.9", "0" * 64))
    assert hidden not in str(caught.value)


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    return parser.parse_args(given)


def test_the_command_runs_an_importer_by_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "helper.py").write_text("TEXT = 'made'\n")
    (folder / "importer.py").write_text(
        '"""Mine."""\nfrom helper import TEXT\ndef import_rows(out):\n'
        "    out.mkdir(parents=True)\n    (out / 'a').write_text(TEXT)\n    return [TEXT]\n"
    )
    assert data.run(arguments(str(folder), "--out", str(tmp_path / "out" / "deep"))) == 0
    assert (tmp_path / "out" / "deep" / "a").read_text() == "made"
    assert capsys.readouterr().out == "made\n"
    assert str(folder) not in sys.path


def test_the_command_explains_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did you mean 'addresses'"):
        data.run(arguments("adresses"))
    (tmp_path / "importer.py").write_text("rows = 3\n")
    with pytest.raises(DataError, match="defines no function import_rows"):
        data.run(arguments(str(tmp_path)))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        data.run(arguments("addresses", "--out", str(tmp_path / "file")))


def test_the_command_lists_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert data.run(arguments()) == 0
    assert "addresses    US postal addresses" in capsys.readouterr().out


PROMPTS = [
    {
        "id": "a",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "12 N. Main St, Reno, NV 89501"}],
    },
    {"id": "b", "messages": [{"role": "user", "content": "   "}]},
]


def ask(script: str, train: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"LUTHIER_TRAIN": str(train)} if train else {})}
    prompts = "".join(json.dumps(prompt) + "\n" for prompt in PROMPTS)
    command = [sys.executable, str(EXAMPLE / script)]
    return subprocess.run(command, input=prompts, capture_output=True, text=True, env=environment, check=False)


def test_the_released_tagger_answers_every_prompt() -> None:
    pytest.importorskip("usaddress", reason="the tagger is not installed: pip install 'luthier[demo]'")
    done = ask("usaddress_system.py", None)
    answers = {row["id"]: json.loads(row["output"]) for row in map(json.loads, done.stdout.splitlines())}
    assert answers["a"] == {
        "house_number": "12", "direction_before": "N.", "street": "Main", "street_type": "St", "city": "Reno",
        "state": "NV", "zip_code": "89501",
    }  # fmt: skip
    assert answers["b"] == {}


def test_the_retrained_tagger_learns_from_the_training_rows_alone(importer: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("usaddress", reason="the tagger is not installed: pip install 'luthier[demo]'")
    labels = [["12\u2028", "AddressNumber"], ["Main", "PlaceName"], ["St,", "StateName"], ["Reno,", "Recipient"]]
    train = tmp_path / "train.jsonl"
    # in a field of its own, as Luthier writes what no format claims, and beside the others, as the importer does
    rows = ({"labels": labels}, {"extra": {"labels": labels}}) * 5
    train.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    done = ask("usaddress_retrained.py", train)
    answers = {row["id"]: json.loads(row["output"]) for row in map(json.loads, done.stdout.splitlines())}
    assert answers["a"]["city"].endswith("Main")
    assert answers["a"]["state"].startswith("St,")
    assert answers["b"] == {}
    train.write_text('{"messages": []}\n')
    done = ask("usaddress_retrained.py", train)
    assert done.returncode == 1
    assert "line 1: no 'labels'" in done.stderr
    done = ask("usaddress_retrained.py", None)
    assert "LUTHIER_TRAIN is not set" in done.stderr


@pytest.mark.slow
def test_the_real_data_has_the_counts_that_the_docs_state(tmp_path: Path) -> None:
    """Fetches 0.9 MB from the package index unless it is cached."""
    from luthier.data.checks.base import run_checks

    data.run(arguments("addresses", "--out", str(tmp_path)))
    rows = list(read_examples(tmp_path / "addresses.jsonl"))
    assert len(rows) == 1576
    schema = json.loads((tmp_path / "schema.json").read_text())
    for row in rows:
        assert isinstance(row, Conversation)
        jsonschema.validate(row.target, schema)
    counts = {(finding.check, finding.severity): finding.count for finding in run_checks({"train": rows})}
    assert counts == {
        ("contradictions", "warning"): 12,
        ("exact_duplicates", "warning"): 42,
        ("near_duplicates", "warning"): 22,
        ("contradictions", "note"): 2,
    }
