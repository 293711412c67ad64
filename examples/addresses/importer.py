"""US postal addresses as people write them, to strict JSON: 1,576 rows labeled by hand, out of the usaddress package.

The source distribution of usaddress 0.5.16 (MIT license) carries the training data of its tagger as XML, every word
labeled. Each address becomes a chat row: instruction, address, JSON object. Duplicates and label noise stay in, so that
the data checks have something to find.
"""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from address_labels import FIELDS, to_json, to_object

from luthier.data.sdist import SourceArchive, read_members
from luthier.data.write import atomic_text
from luthier.errors import DataError

ARCHIVE = SourceArchive("usaddress", "0.5.16", "f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6")
FILES = {
    "labeled": "usaddress-0.5.16/training/labeled.xml",
    "messiest": "usaddress-0.5.16/training/us50_messiest_manual_label.xml",
}
LICENSE = "usaddress-0.5.16/LICENSE"
INSTRUCTION = (
    "Split the US postal address into fields. Answer with one JSON object and nothing else. "
    f"Allowed keys, in this order: {', '.join(FIELDS)}. Leave out a key that the address does not state. "
    "Copy each value as it is written, without commas at its ends."
)


def import_rows(out: Path) -> list[str]:
    """Write `addresses.jsonl`, `schema.json` and `LICENSE` into the folder `out`, and say what was written.

    Raises:
        DataError: the archive cannot be had, is not the pinned one, or holds something else than expected.
        StorageError: the folder cannot be written.
    """
    members = read_members(ARCHIVE, [*FILES.values(), LICENSE])
    written = {source: list(rows(source, members[member])) for source, member in FILES.items()}
    out.mkdir(parents=True, exist_ok=True)
    with atomic_text(out / "addresses.jsonl") as file:
        for found in written.values():
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    with atomic_text(out / "schema.json") as file:
        file.write(json.dumps(schema(), indent=1) + "\n")
    with atomic_text(out / "LICENSE") as file:
        file.write(members[LICENSE].decode("utf-8"))
    counts = ", ".join(f"{len(found):,} from {FILES[source].rpartition('/')[2]}" for source, found in written.items())
    return [
        f"{out / 'addresses.jsonl'}: {sum(map(len, written.values())):,} rows ({counts})",
        f"{out / 'schema.json'}: the answer's {len(FIELDS)} fields",
        f"{out / 'LICENSE'}: the license of the data (MIT)",
    ]


def rows(source: str, xml: bytes) -> Iterator[dict[str, Any]]:
    """The chat rows of one XML file; `labels` keeps each word with its label, `source` the file.

    Raises:
        DataError: the XML declares entities or is broken, or a label is unknown.
    """
    for number, address in enumerate(parse(source, xml), start=1):
        labels = [((word.text or "").strip(), word.tag) for word in address]
        labels = [(word, label) for word, label in labels if word]
        try:
            target = to_object(labels)
        except ValueError as error:
            raise DataError(f"address {number}: {error}", source) from None
        yield {
            "id": f"{source}-{number:04d}",
            "messages": [
                {"role": "system", "content": INSTRUCTION},
                {"role": "user", "content": text_of(address)},
                {"role": "assistant", "content": to_json(labels)},
            ],
            "target": target,
            "source": source,
            "labels": labels,
        }


def parse(source: str, xml: bytes) -> list[ET.Element]:
    """The addresses of an XML file; a document type is refused, since entities are declared there."""
    try:
        text = xml.decode("utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise DataError("declares a document type or entities; expected plain elements", source)
        return ET.fromstring(text).findall("AddressString")
    except (UnicodeDecodeError, ET.ParseError) as error:
        raise DataError(f"not the XML that was expected: {error}", source) from None


def text_of(address: ET.Element) -> str:
    """An address as it was written; the indentation of the XML is dropped, line breaks within stay."""
    lines = [line.strip() for line in "".join(address.itertext()).strip().splitlines()]
    return "\n".join(line for line in lines if line)


def schema() -> dict[str, Any]:
    """JSON Schema of an answer: nothing but the known fields, each a string that is not empty."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "properties": {field: {"type": "string", "minLength": 1} for field in FIELDS},
    }
