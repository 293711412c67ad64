"""Data files: what is read, what is refused and how it is said, and that writing and reading are inverse."""

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from luthier.data.formats.base import read_examples
from luthier.data.read import MAX_LINE_BYTES, Record, read_records
from luthier.data.strict_json import MAX_DEPTH, loads
from luthier.data.write import atomic_text, write_examples
from luthier.errors import DataError, StorageError
from luthier.examples import NOWHERE, Conversation, Document, Example, Message, Preference, ToolCall, Where


def _write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def _values(path: Path) -> list[dict[str, Any]]:
    return [record.values for record in read_records(path)]


def _refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        _values(path)
    return caught.value


GOOD = '{"text": "a"}\n'


def test_jsonl_gives_values_and_line_numbers_and_skips_blank_lines(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"b": 1, "a": [null, {"x": null}]}\r\n\r\n  \n{"t": "\u2028 stays"}')
    records = list(read_records(path))
    assert records == [
        Record({"b": 1, "a": [None, {"x": None}]}, Where(str(path), 1)),
        Record({"t": "\u2028 stays"}, Where(str(path), 4)),
    ]
    assert list(records[0].values) == ["b", "a"]  # the order of keys is data too: a model learns it


def test_a_byte_order_mark_is_skipped_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _write(tmp_path / "bom.jsonl", b"\xef\xbb\xbf" + GOOD.encode())
    with caplog.at_level(logging.WARNING):
        assert _values(path) == _values(path) == [{"text": "a"}]
    assert [r.getMessage() for r in caplog.records if "byte-order mark" in r.getMessage()] == [
        f"{path} begins with a byte-order mark, which is not part of the first row; it was skipped"
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a"', "broken JSON"),
        ('{"text": "a"} {"text": "b"}', "something follows the JSON value at character 14"),
        ('{"text": NaN}', "NaN is not JSON"),
        ('{"text": 1e999}', "too large"),
        ('{"text": "a", "text": "b"}', "'text' stands twice"),
        ('{"text": "\\ud83d"}', "surrogate"),
        ('"text"', "the row is a string; expected a JSON object"),
        ("[1]", "the row is a list; expected a JSON object"),
        ("null", "the row is null"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "nested too deeply; expected at most 100 levels"),
        ('{"n": ' + "9" * 5000 + "}", "more digits than can be read (4,300 by default); write it as text"),
        (
            '{"n": 12345678901234567.89}',
            "more digits than a 64-bit float holds, which would make it 1.2345678901234568",
        ),
        ('{"n": 1e-400}', "would make it 0.0; write it as text"),
        ('{"n": 1e-99999999999999999999}', "would make it 0.0"),
        ('{"text": "a\0b"}', "the control character U+0000 stands at character 12 of a text; expected it as \\u0000"),
        ("{", "the line ends before its object does"),
        ('{"text": "a', "the line ends before its object does"),
        ('{"text": "a"}\r{"text": "b"}', "end with a carriage return alone"),
    ],
)
def test_a_broken_line_7_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = _write(tmp_path / "a.jsonl", GOOD * 6 + line + "\n" + GOOD)
    error = _refused(path)
    assert (error.path, error.line) == (path, 7)
    assert f"{path}, line 7: " in str(error)
    assert said in str(error)


def test_seventeen_digits_of_another_program_are_no_loss(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"n": [0.10000000000000001, 3.0000000000000000]}\n')
    (record,) = read_records(path)
    assert record.values["n"] == [0.1, 3.0]


def test_reading_goes_on_after_a_broken_row_if_somebody_takes_its_error(tmp_path: Path) -> None:
    bad = '{"text": "caf\udce9"}\n{"text": }\n[1]\n'.encode("utf-8", "surrogateescape")
    jsonl = _write(tmp_path / "a.jsonl", GOOD.encode() + bad + GOOD.encode())
    csv = _write(tmp_path / "a.csv", b'text,label\na,b\ncaf\xe9,b\nc\n"d"e,f\n"g\nh",i\nj,k\n')
    array = _write(tmp_path / "a.json", '[{"text": "a"}, 2, {"text": "\\ud83d"}, {"text": "b"}]')
    parquet = _parquet(tmp_path / "a.parquet", [{"n": 1.0}, {"n": float("nan")}, {"n": 2.0}])
    expected = {
        jsonl: ([1, 5], [2, 3, 4]),
        csv: ([2, 6, 8], [3, 4, 5]),
        array: ([1, 1], [1, 1]),
        parquet: ([1, 3], [2]),
    }
    for path, (good, broken) in expected.items():
        errors: list[DataError] = []
        assert [record.where.line for record in read_records(path, errors.append)] == good, path
        assert [error.line for error in errors] == broken, path
        with pytest.raises(DataError) as caught:
            list(read_records(path))
        assert str(caught.value) == str(errors[0]), "without, the first is raised"


def test_a_file_of_broken_rows_alone_is_named_by_the_first_and_a_run_says_who_lists_them(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"text": 1}\n{"text": "a"}\n{\n')
    with pytest.raises(DataError, match=r"line 1: 'text' is a number; .*\. `luthier check` lists every row like this"):
        list(read_examples(path))
    with pytest.raises(DataError, match=r"line 2: broken JSON"):
        list(read_examples(_write(tmp_path / "b.jsonl", "\n{\n{\n")))


@pytest.mark.parametrize(
    "text", ["0.1", "0.30000000000000004", "1.10", "1E2", "-0.0", "5e-324", "123456789012345.6", "1e22", "0.10e1"]
)
def test_a_number_that_a_float_holds_is_read(text: str) -> None:
    assert loads(text) == float(text)
    assert loads(f"[{text}]") == [float(text)]


def test_a_surrogate_pair_is_one_character(tmp_path: Path) -> None:
    assert _values(_write(tmp_path / "a.jsonl", '{"t": "\\ud83d\\ude00"}')) == [{"t": "😀"}]


def test_bytes_that_are_not_utf8_are_located(tmp_path: Path) -> None:
    error = _refused(_write(tmp_path / "a.jsonl", GOOD.encode() + b'{"text": "caf\xe9"}\n'))
    assert error.line == 2
    assert "byte 0xe9 at byte 14 of the line" in str(error)
    assert "UTF-8" in str(error)
    error = _refused(_write(tmp_path / "a.json", b'[{"text": "a"},\n{"text": "caf\xe9"}]'))
    assert (error.line, "byte 14 of the line" in str(error)) == (2, True)
    assert "UTF-16" in str(_refused(_write(tmp_path / "b.jsonl", GOOD.encode("utf-16"))))


def test_a_file_without_line_breaks_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.truncate(MAX_LINE_BYTES + 2)  # sparse: takes no disk
    assert "longer than 64 MiB" in str(_refused(path))


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_file_is_refused(tmp_path: Path, ending: str, content: str) -> None:
    if ending == ".csv" and content:
        content = "text,label\n\n"
    assert "the file has no rows" in str(_refused(_write(tmp_path / f"a{ending}", content)))


def test_files_that_cannot_be_rows_are_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read_records(tmp_path)
    with pytest.raises(DataError, match=r"unknown kind of file '\.xlsx'; expected one of \.jsonl, .*\.parquet"):
        read_records(_write(tmp_path / "a.xlsx", "x"))
    with pytest.raises(DataError, match="without an ending"):
        read_records(_write(tmp_path / "a", "x"))
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="not a regular file"):
        read_records(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        read_records(tmp_path / f"{'a' * 300}.jsonl")
    with pytest.raises(DataError, match="no such file"):
        read_records(_write(tmp_path / "b.jsonl", GOOD) / "c.jsonl")


def test_a_json_array_keeps_the_line_of_every_object(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.JSON", '\n[\n  {"a": 1}, {"a": 2},\n  {\n   "a": 3}\n]\n')
    assert [(r.values["a"], r.where.line) for r in read_records(path)] == [(1, 3), (2, 3), (3, 4)]


def test_the_rows_of_an_array_on_one_line_have_names_of_their_own(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.json", json.dumps([{"text": str(n)} for n in range(3)]))
    assert [(e.id, e.where.line) for e in read_examples(path)] == [("a:1", 1), ("a:2", 1), ("a:3", 1)]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ('{"a": 1}', 1, "ending .jsonl"),
        ('[{"a": 1},\n 2]', 2, "the row is a number"),
        ('[{"a": 1}\n{"a": 2}]', 2, "expected ',' or ']'"),
        ('[\n{"a": 1},\n{"a": }]', 3, "broken JSON"),
        ('[{"a": 1}]\nx', 2, "something follows"),
        ('[{"a": 1},', 1, "broken JSON"),
        ('[\n\n{"a": 1, "a": 2}]', 3, "twice"),
    ],
)
def test_a_broken_json_array_is_refused_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    error = _refused(_write(tmp_path / "a.json", text))
    assert (error.line, said in str(error)) == (line, True), str(error)


def test_csv_rows_are_named_by_their_first_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", 'text,label\r\n"two\r\nlines, ""quoted""",x\r\n\r\nplain,\r\n')
    assert [(r.values, r.where.line) for r in read_records(path)] == [
        ({"text": 'two\r\nlines, "quoted"', "label": "x"}, 2),
        ({"text": "plain", "label": ""}, 5),
    ]


def test_csv_holds_long_cells_and_tsv_is_separated_by_tabs(tmp_path: Path) -> None:
    long = "x" * 300_000
    assert _values(_write(tmp_path / "a.csv", f"text,label\n{long},y\n")) == [{"text": long, "label": "y"}]
    assert _values(_write(tmp_path / "a.tsv", "text\tlabel\na, b\ty\n")) == [{"text": "a, b", "label": "y"}]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("text,label\na,b\nc\n", 3, "the row has 1 cell; expected 2 (text, label)"),
        ("text,label\na,b,c\n", 2, "the row has 3 cells"),
        ("text,text\na,b\n", 1, "name every column once"),
        ("text;label\na;b\n", 1, "separated by ';'"),
        ('text,label\na,b\n"open,c\nd,e\n', 3, "a quote that opens in this row never closes"),
        ('text,label\na,b\n"x"y,c\n', 3, "is a quote missing its partner?"),
        ("text,label\ra,b\rc,d\r", 1, "end with a carriage return alone"),
    ],
)
def test_a_broken_csv_is_refused_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    error = _refused(_write(tmp_path / "a.csv", text))
    assert (error.line, said in str(error)) == (line, True), str(error)


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_parquet_gives_no_tool_call_an_argument_that_nobody_wrote(tmp_path: Path) -> None:
    def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        asked = {"role": "user", "content": "?"}
        made = {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}
        return {"messages": [asked, made]}

    rows = [call("weather", {"city": "Oslo"}), call("add", {"a": 1, "b": [1, 2]})]
    path = _parquet(tmp_path / "a.parquet", rows)
    first, second = (e for e in read_examples(path) if isinstance(e, Conversation))
    assert first.messages[1].tool_calls == (ToolCall("weather", {"city": "Oslo"}),)
    assert second.messages[1].tool_calls == (ToolCall("add", {"a": 1, "b": [1, 2]}),)
    assert (first.where.line, second.where.line) == (1, 2)


def test_parquet_values_that_json_cannot_hold(tmp_path: Path) -> None:
    from datetime import date

    path = _parquet(
        tmp_path / "a.parquet", [{"text": "a", "day": date(2024, 5, 1), "price": Decimal("1.50"), "n": None}]
    )
    assert _values(path) == [{"text": "a", "day": "2024-05-01", "price": "1.50", "n": None}]
    assert "column 'image' holds bytes" in str(_refused(_parquet(tmp_path / "b.parquet", [{"image": b"x"}])))
    error = _refused(_parquet(tmp_path / "c.parquet", [{"n": 1.0}, {"n": float("nan")}]))
    assert (error.line, "'n' holds nan" in str(error)) == (2, True)
    assert "not a readable Parquet file" in str(_refused(_write(tmp_path / "d.parquet", "x" * 100)))


def test_a_parquet_cell_that_cannot_be_read_is_named_by_row_and_column(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    offsets, data = pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\5\0\0\0"), pyarrow.py_buffer(b"acaf\xe9")
    columns = {
        "text": (pyarrow.StringArray.from_buffers(2, offsets, data), "can't decode byte 0xe9"),
        "time": (pyarrow.array([0, 10**12], pyarrow.timestamp("s")), "out of range"),
        "map": (
            pyarrow.array([[("a", 1)], [("k", 1), ("k", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "'k'",
        ),
    }
    for name, (column, said) in columns.items():
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"label": ["x", "y"], name: column}), path)
        errors: list[DataError] = []
        assert [record.where.line for record in read_records(path, errors.append)] == [1]
        assert [error.line for error in errors] == [2]
        assert f"column {name!r} cannot be read" in str(errors[0]) and said in str(errors[0])


def test_two_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["text", "text", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "two columns are called 'text'" in str(_refused(tmp_path / "a.parquet"))


def test_nulls_mean_in_parquet_what_they_mean_in_jsonl(tmp_path: Path) -> None:
    silent = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    rows = [{"messages": silent}, {"messages": [silent[0], {"role": "assistant", "content": "b"}]}]
    jsonl = _write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_examples(_parquet(tmp_path / "a.parquet", rows))) == [
        replace(example, where=replace(example.where, path=str(tmp_path / "a.parquet")))
        for example in read_examples(jsonl)
    ]
    labels = _parquet(tmp_path / "b.parquet", [{"text": "a", "label": "x"}, {"text": "b", "label": None}])
    with pytest.raises(DataError, match="line 2: 'label' is null"):
        list(read_examples(labels))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells a process its peak memory")
@pytest.mark.slow
def test_a_parquet_file_of_one_row_group_is_not_held(tmp_path: Path) -> None:
    program = (
        "import sys, random; import pyarrow; import pyarrow.parquet as parquet\n"
        "rows = [random.randbytes(400).hex() for _ in range(100_000)]\n"
        "table = pyarrow.table({'prompt': rows, 'completion': ['a'] * len(rows)})\n"
        "parquet.write_table(table, sys.argv[1], row_group_size=len(rows), use_dictionary=False, compression='none')"
    )
    path = tmp_path / "a.parquet"
    subprocess.run([sys.executable, "-c", program, path], check=True)
    assert path.stat().st_size > 75 * 2**20
    program = (
        "import sys; from pathlib import Path; import pyarrow.parquet\n"
        "from luthier.data.read import read_records\n"
        "def peak(): return int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "before = peak(); count = sum(1 for _ in read_records(Path(sys.argv[1]))); print(count, peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    count, grown_kib = map(int, done.stdout.split())
    assert count == 100_000
    assert grown_kib < 50 * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux, which tells a process its peak memory")
def test_a_long_file_streams_in_constant_memory(tmp_path: Path) -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "x" * 4000}, {"role": "assistant", "content": "y"}]})
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        file.writelines(row + "\n" for _ in range(20_000))  # 81 MB
    program = (
        "import sys; from pathlib import Path; from luthier.data.formats.base import read_examples\n"
        "count = sum(1 for _ in read_examples(Path(sys.argv[1])))\n"
        # not ru_maxrss, which a process inherits from the one that started it
        "print(count, Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    count, peak_kib = map(int, done.stdout.split())
    assert count == 20_000
    assert peak_kib < 60 * 1024


def test_loads_is_as_strict_as_a_file() -> None:
    assert loads(' {"a": 1} ') == {"a": 1}
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        loads('"\\udc00"')
    for text in ('{"a": 1} x', '{"a": 1, "a": 2}', '{"a": Infinity}', '"\\udc00"', "[" * 100_000, ""):
        with pytest.raises(ValueError):
            loads(text)


# writing

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
_LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
_JSON = st.recursive(
    _LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3), max_leaves=8
)
_CALL = st.builds(ToolCall, _NAME, st.dictionaries(_TEXT, _JSON, max_size=3), st.none() | _TEXT)
_PLAIN = st.builds(Message, st.sampled_from(["system", "developer", "user"]), _TEXT, name=st.none() | _TEXT)
_TOOL_RESULT = st.builds(
    Message, st.just("tool"), _TEXT
)  # of calls in plain text; tests/unit/test_tool_chats.py has more
_REPLY = st.builds(
    Message,
    st.just("assistant"),
    _TEXT,
    st.lists(_CALL, max_size=2).map(tuple),
    weight=st.none() | st.floats(0, 2),
)
_MESSAGES = st.lists(_PLAIN | _REPLY, max_size=4).map(tuple) | st.tuples(_PLAIN, _TOOL_RESULT, _REPLY)
_TOOLS = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function"), "function": st.fixed_dictionaries({"name": _NAME, "parameters": _JSON})}
    ),
    max_size=2,
).map(tuple)
_EXTRA = st.dictionaries(
    _TEXT | st.sampled_from(["messages", "text", "label", "extra", "prompt", "target"]), _JSON, max_size=3
)
_GROUP = st.none() | _NAME
_CONVERSATION = st.builds(Conversation, _MESSAGES, _TOOLS, st.just(NOWHERE), _NAME, _JSON, _GROUP, _EXTRA)
_PREFERENCE = st.builds(
    Preference,
    st.lists(_PLAIN, max_size=3).map(tuple),
    st.tuples(_REPLY),
    st.tuples(_REPLY, _PLAIN, _REPLY),
    _TOOLS,
    st.just(NOWHERE),
    _NAME,
    _GROUP,
    _EXTRA,
)
_DOCUMENT = st.builds(Document, _TEXT, st.just(NOWHERE), _NAME, _GROUP, _EXTRA)


@pytest.mark.parametrize(
    "strategy", [_CONVERSATION, _PREFERENCE, _DOCUMENT], ids=["conversation", "preference", "document"]
)
def test_what_is_written_reads_back_equal(tmp_path: Path, strategy: st.SearchStrategy[Example]) -> None:
    path = tmp_path / "a.jsonl"

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(st.lists(strategy, min_size=1, max_size=3))
    def check(examples: list[Example]) -> None:
        assert write_examples(path, examples) == len(examples)
        back = list(read_examples(path))
        assert [e.where.line for e in back] == list(range(1, len(examples) + 1))
        assert [replace(e, where=NOWHERE) for e in back] == examples
        again = path.read_bytes()
        write_examples(path, back)
        assert path.read_bytes() == again  # key order included

    check()


def test_text_is_written_as_it_is_and_defaults_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    messages = (Message("user", "Grüße 😀"), Message("assistant", "", (ToolCall("f", {"z": 1, "a": 2}),), weight=0.0))
    write_examples(path, [Conversation(messages, id="1", extra={"label": "x"})])
    assert path.read_text(encoding="utf-8") == (
        '{"id": "1", "messages": [{"role": "user", "content": "Grüße 😀"}, {"role": "assistant", "content": "", '
        '"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": 2}}}], "weight": '
        '0.0}], "extra": {"label": "x"}}\n'
    )


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", "before")

    def rows() -> Iterator[Example]:
        yield Document("a" * 100_000)
        raise DataError("the source broke")

    with pytest.raises(DataError, match="the source broke"):
        write_examples(path, rows())
    with pytest.raises(DataError, match="one file holds one kind"):
        write_examples(path, [Document("a"), Conversation(())])
    with pytest.raises(DataError, match="cannot be written as JSON"):
        write_examples(path, [Document("a", extra={"n": float("nan")})])
    with pytest.raises(DataError, match="cannot be written as JSON"):
        write_examples(path, [Document("\ud83d")])
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_full_disk_is_a_storage_error_and_leaves_no_rubbish(tmp_path: Path) -> None:
    def full() -> None:
        with atomic_text(tmp_path / "a.jsonl") as file:
            file.write("x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="the disk is full"):
        full()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file size limit, as POSIX has")
def test_a_real_limit_while_writing_rows_is_a_storage_error(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond 64 KiB: the write itself fails, as on a full disk."""
    program = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from luthier.data.write import write_examples; from luthier.errors import StorageError\n"
        "from luthier.examples import Document\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try: write_examples(Path(sys.argv[1]), (Document('x' * 1000) for _ in range(1000)))\n"
        "except StorageError as error: print(error)"
    )
    path = _write(tmp_path / "a.jsonl", "before")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert "cannot be written: File too large" in done.stdout
    assert (os.listdir(tmp_path), path.read_text()) == (["a.jsonl"], "before")


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no folder"):
        write_examples(tmp_path / "none" / "a.jsonl", [Document("a")])
    _write(tmp_path / "file", "x")
    with pytest.raises(StorageError, match="cannot be written"):
        write_examples(tmp_path / "file" / "a.jsonl", [Document("a")])
