"""Numbers, texts and axes of the report: one way of rounding, nothing hidden, nobody's folders."""

import pytest

from luthier.report import text as t
from luthier.report.plot import build_axis


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data/someone/secret/a/train.jsonl, line 3", "a/train.jsonl, line 3"),
        ("equal rows: /x/y/z.jsonl:4 and /x/y/w.jsonl:5", "equal rows: y/z.jsonl:4 and y/w.jsonl:5"),
        ("no such file: '/data/some one/my rows/x.jsonl'.", "no such file: 'my rows/x.jsonl'."),
        ("prompt/completion, and/or 3/4 on 1/2/2026", "prompt/completion, and/or 3/4 on 1/2/2026"),
        ("see https://example.invalid/a/b/c.html", "see https://example.invalid/a/b/c.html"),
        ("runs/demo/data/train.jsonl, line 2", "runs/demo/data/train.jsonl, line 2"),
    ],
)
def test_absolute_paths_in_a_text_are_cut(text: str, expected: str) -> None:
    assert t.without_folders(text) == expected


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (t.interval(0.9124, 0.8941, 0.9288), "0.912 [0.894, 0.929]"),
        (t.interval(12.3456, 11.2, 13.9), "12.35 [11.20, 13.90]"),
        (t.interval(0.5, None, None), "0.500"),
        (t.interval(None, 0.1, 0.2), "n/a"),
        (t.difference(0.1234, 0.0812, 0.161), "+0.12 [0.08, 0.16]"),
        (t.difference(0.08, 0.004, 0.16), "+0.080 [0.004, 0.160]"),  # a bound beside zero is never shown as zero
        (t.difference(-0.02, -0.06, 0.02), "\u22120.02 [\u22120.06, 0.02]"),
        (t.difference(0.0, 0.0, 0.0), "0.00 [0.00, 0.00]"),
        (t.difference(-0.0402, -0.0441, -0.0363), "\u22120.040 [\u22120.044, \u22120.036]"),  # ends that differ read so
        (t.difference(0.00001, None, None), "0.0000"),
        (t.number(123456.7), "123,457"),
        (t.number(float("inf")), "n/a"),
        (t.number(2e9), "2e+09"),
        (t.p_value(0.0004), "< 0.001"),
        (t.p_value(0.0124), "0.012"),
        (t.usd(0.0289), "$0.029"),
        (t.usd(0.000012), "$0.000012"),
        (t.usd(3e-9), "under $0.000001"),
        (t.usd(0), "$0"),
        (t.usd(12.5), "$12.50"),
        (t.usd(1234567.8), "$1,234,568"),
        (t.duration(0.0067), "0.0067 s"),
        (t.duration(59.97), "1 min 0 s"),
        (t.duration(3599.9), "1 h 0 min"),
        (t.duration(4000), "1 h 7 min"),
        (t.duration(9e6), "104 d 4 h"),
        (t.memory(3_412_000_000), "3.2 GiB"),
        (t.compact(134_515_008), "134.5 M"),
        (t.percent(0.003), "0.3 %"),
        (t.percent(0.996), "100 %"),
        (t.label("field_f1"), "field F1"),
        (t.label("rouge_l"), "ROUGE-L"),
        (t.first_line("a\n  b"), "a b"),
        (
            t.toml({"a": None, "b": {"c": [1, "x"], "d": {"e": True}}}),
            '# a is not set\n\n[b]\nc = [1, "x"]\n\n[b.d]\ne = true',
        ),
    ],
)
def test_rounding_is_the_same_everywhere(shown: str, expected: str) -> None:
    assert shown == expected


def test_visible_shows_what_acts_and_leaves_what_is_read() -> None:
    assert t.visible("\x1b[31m\x00\x7f\x9b") == "\u241b[31m\u2400\u2421⟨U+009B⟩"
    assert (
        t.visible("\u202eabc\u2066\u200b\ufeff\u2028\U000e0041")
        == "⟨U+202E⟩abc⟨U+2066⟩⟨U+200B⟩⟨U+FEFF⟩⟨U+2028⟩⟨U+E0041⟩"
    )
    kept = "naïve Straße 東京 مرحبا नमस्ते 😀 £ – “”\t\n"
    assert t.visible(kept) == kept


@pytest.mark.parametrize("values", [[0.5], [0.0, 1.0], [1e-9, 2e-9], [1e12, 3e12], [-5.0, -5.0], [0.91, 0.93]])
def test_axes_hold_their_values_and_have_round_ticks(values: list[float]) -> None:
    axis = build_axis(values)
    assert all(0 < axis.at(v) < 100 for v in values)
    assert 1 <= len(axis.ticks) <= 12
    assert len({tick.text for tick in axis.ticks}) == len(axis.ticks)
