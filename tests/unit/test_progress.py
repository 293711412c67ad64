"""Progress: what is shown, and the time to finish."""

import io

import pytest

from luthier.progress import Terminal, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10.0 s"),
        (42, "42 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_read_naturally(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_to_finish_is_the_stage_s_own_pace_and_the_plan_of_the_rest() -> None:
    now = [0.0]
    out = io.StringIO()
    terminal = Terminal({"a": 100.0, "b": 50.0}, out, lambda: now[0])
    with terminal.stage("a", "first"):
        now[0] = 20.0
        terminal.update(1, 10, "step 1")  # a tenth in 20 s: 180 s more here, and 50 s to come
        assert out.getvalue().splitlines()[-1] == "  first  10%  step 1  about 3 min 50 s left"
        now[0] = 200.0
    with terminal.stage("b", "second"):  # the first took twice its plan, so the second will
        now[0] = 211.0
        terminal.update(0.01, 1)
        assert out.getvalue().splitlines()[-1].endswith("about 52 s left")  # 50 s times 500 / 400, of which 11 are over
    assert terminal.seconds == {"a": 200.0, "b": 11.0}


def test_a_short_stage_that_took_long_does_not_make_hours_of_the_rest() -> None:
    now = [0.0]
    out = io.StringIO()
    terminal = Terminal({"a": 5.0, "b": 0.0, "c": 600.0}, out, lambda: now[0])
    with terminal.stage("a", "first"):
        now[0] = 205.0  # forty times its plan
    with terminal.stage("b", "second"):
        now[0] = 216.0
        terminal.update(0.01, 1)
        assert out.getvalue().splitlines()[-1].endswith("about 16 min 33 s left")  # 600 s times 505 / 305


def test_what_an_earlier_process_did_does_not_make_this_one_look_fast() -> None:
    now = [0.0]
    out = io.StringIO()
    terminal = Terminal(out=out, clock=lambda: now[0])
    with terminal.stage("a", "training"):
        terminal.resume(50, 100)
        now[0] = 100.0
        terminal.update(60, 100)  # ten of a hundred in 100 s: 400 s more
        assert out.getvalue().splitlines()[-1].endswith("60%  about 6 min 40 s left")


def test_a_stage_of_several_parts_counts_the_pace_of_the_present_one() -> None:
    now = [0.0]
    out = io.StringIO()
    terminal = Terminal(out=out, clock=lambda: now[0])
    with terminal.stage("a", "answers"):
        now[0] = 100.0
        terminal.update(9, 10, "trying prompts")
        terminal.update(0, 10, "answering")
        now[0] = 120.0
        terminal.update(1, 10, "answering")
        assert out.getvalue().splitlines()[-1].endswith("answering  about 3 min 00 s left")


def test_a_stage_of_several_parts_is_not_nearly_done_while_its_plan_is_not() -> None:
    now = [0.0]
    out = io.StringIO()
    terminal = Terminal({"a": 600.0}, out, lambda: now[0])
    with terminal.stage("a", "answers"):
        now[0] = 90.0
        terminal.update(9, 10, "trying prompts")  # 10 s more of this part, and others will come
        assert out.getvalue().splitlines()[-1].endswith("about 8 min 30 s left")


def test_a_stage_over_its_plan_makes_the_rest_look_longer_while_it_lasts() -> None:
    now = [0.0]
    out = io.StringIO()
    terminal = Terminal({"a": 100.0, "b": 600.0}, out, lambda: now[0])
    with terminal.stage("a", "answers"):
        told = []
        for second in (90.0, 500.0, 900.0):
            now[0] = second
            terminal.update(0.5, 1)
            told.append(out.getvalue().splitlines()[-1])
    assert told[0].endswith("about 11 min 30 s left")  # 90 s, and 600 to come
    assert told[1].endswith("about 28 min 20 s left")  # 500 s, and 600 times 800 / 400
    assert told[2].endswith("about 45 min 00 s left")


def test_off_a_terminal_a_line_comes_every_ten_seconds_at_most() -> None:
    now = [0.0]
    out = io.StringIO()
    terminal = Terminal(out=out, clock=lambda: now[0])
    with terminal.stage("a", "work"):
        for second in range(1, 61):
            now[0] = float(second)
            terminal.update(second, 60)
    lines = out.getvalue().splitlines()
    assert 5 <= len(lines) <= 8 and lines[-1] == "  work: 1 min 00 s"
    assert "\x1b" not in out.getvalue()
