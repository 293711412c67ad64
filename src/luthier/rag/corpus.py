"""A corpus becomes a stream of sources: rows of a data file, a text file, or a folder of both.

A row has a `text` and may have an `id` and a `title`; its other fields are not read. Nothing is repaired: a row without
text, or an id that is there twice, is refused with its file and line.
"""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from luthier.data.formats.base import Fields
from luthier.data.read import READERS, read_records
from luthier.errors import DataError
from luthier.examples import Where
from luthier.rag.passages import Source

TEXT_FILES = (".txt", ".md")


def read_corpus(path: Path, say: Callable[[str], None] = lambda _text: None) -> Iterator[Source]:
    """The sources of a file or folder, in a fixed order.

    Args:
        path: JSONL, JSON, CSV, TSV or Parquet with a field `text`; a .txt or .md file; or a folder with such files at
            any depth, read in the order of their names.
        say: is told of files in the folder that are of another kind and were passed over.

    Raises:
        DataError: there is no such file, nothing to read, a row or file without text, or two sources of one id.
    """
    seen: dict[str, Where] = {}
    for file in corpus_files(path, say):
        name = PurePath(file.name) if file == path else file.relative_to(path)
        for source in _read_text(file, name) if file.suffix.lower() in TEXT_FILES else _read_rows(file, name):
            if not source.text.strip():
                raise DataError("the text is empty; remove it from the corpus", *_place(source.where))
            if source.id in seen:
                raise DataError(
                    f"the id {source.id!r} is also that of {seen[source.id]}; ids tell sources apart",
                    *_place(source.where),
                )
            seen[source.id] = source.where
            yield source
    if not seen:
        raise DataError("the corpus holds no text", path)


def corpus_files(path: Path, say: Callable[[str], None] = lambda _text: None) -> list[Path]:
    """The files of a corpus, in the order in which they are read; arguments are those of `read_corpus`.

    Raises:
        DataError: the file, or every one of the folder, is of a kind that is not read.
    """
    if not path.is_dir():
        if path.suffix.lower() not in (*TEXT_FILES, *READERS):
            raise DataError(f"expected one of {', '.join((*TEXT_FILES, *READERS))}, or a folder of such files", path)
        return [path]
    hidden = (file for file in path.rglob("*") if file.is_file())
    found = sorted(f for f in hidden if not any(part.startswith(".") for part in f.relative_to(path).parts))
    known = [file for file in found if file.suffix.lower() in (*TEXT_FILES, *READERS)]
    if not known:
        raise DataError(f"no file in this folder ends with one of {', '.join((*TEXT_FILES, *READERS))}", path)
    if other := [file for file in found if file.suffix.lower() not in (*TEXT_FILES, *READERS)]:
        kinds = ", ".join(sorted({file.suffix or "no ending" for file in other}))
        say(f"{path}: {len(other)} files that are no text were passed over ({kinds})")
    return known


def _place(where: Where) -> tuple[str, int | None, int]:
    return where.path, where.line or None, where.row


def _read_text(file: Path, name: PurePath) -> Iterator[Source]:
    """A whole file; its title is the first heading of a .md file, else its name."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"not UTF-8 at byte {error.start}; save the file as UTF-8", file, line) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file) from None
    heading = next((line for line in text.splitlines() if line.startswith("# ")), "") if file.suffix == ".md" else ""
    yield Source(name.as_posix(), text, heading.removeprefix("# ").strip() or file.stem, Where(str(file), 0))


def _read_rows(file: Path, name: PurePath) -> Iterator[Source]:
    for record in read_records(file):
        fields = Fields(record)
        text, title = fields.text("text"), fields.optional_text("title") or ""
        own = fields.take("id") not in (None, "")
        where = record.where
        yield Source(fields.id() if own else f"{name.as_posix()}:{where.row or where.line}", text, title, where)
