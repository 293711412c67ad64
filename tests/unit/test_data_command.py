"""`luthier data`: what it lists and runs, and what it says of an importer that is broken."""

from pathlib import Path

import pytest

from luthier.cli.commands.data import load_importer
from luthier.cli.main import main
from luthier.errors import DataError

GOOD = '"""Makes one row."""\ndef import_rows(out):\n    return [f"wrote {out}"]\n'


def importer(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "importer.py").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def import_rows(out:\n", "line 1: cannot be imported: SyntaxError"),
        ("\nimport no_such_module\n", "line 2: cannot be imported: ModuleNotFoundError: No module named 'no_such"),
        ("x = 1\n\ny = x / 0\n", "line 3: cannot be imported: ZeroDivisionError"),
        ("x = '\0'\n", "cannot be imported: "),
        ("import_rows = 3\n", "defines no function import_rows"),
    ],
)
def test_an_importer_that_cannot_be_used_is_one_message(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        load_importer(importer(tmp_path / "x", text))
    assert said in str(caught.value) and str(tmp_path / "x" / "importer.py") in str(caught.value)


def test_the_list_survives_a_broken_importer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    importer(tmp_path / "examples" / "good", GOOD)
    importer(tmp_path / "examples" / "broken", "def (")
    importer(tmp_path / "examples" / "nul", "x = '\0'")
    monkeypatch.chdir(tmp_path)
    assert main(["data"]) == 0
    out = capsys.readouterr().out
    assert "  good         Makes one row.\n" in out
    assert "  broken       (its importer.py cannot be read: " in out and "  nul          (its importer.py" in out
    assert main(["data", "broken"]) == 2
    assert "cannot be imported: SyntaxError" in capsys.readouterr().err
    assert main(["data", "good", "--out", "here"]) == 0
    assert capsys.readouterr().out == "wrote here\n"
