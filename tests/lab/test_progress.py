from __future__ import annotations

import io
import threading

import pytest

from lab.progress import Progress, format_elapsed, is_live_terminal


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_name_who_what_and_how_long():
    clock, out = Clock(), io.StringIO()
    with Progress("up", stream=out, clock=clock) as progress:
        with progress.task("client", "boot") as task:
            clock.now += 12.5
            task.detail("kernel started")
            assert task.elapsed == 12.5
        with progress.task("client", "agent") as task:
            task.skip("runs already")
        progress.note("hello")
    assert out.getvalue().splitlines() == [
        "[up 0.0s] client: boot ...",
        "[up 12.5s] client: boot done (12.5s): kernel started",
        "[up 12.5s] client: agent ...",
        "[up 12.5s] client: agent skipped (0.0s): runs already",
        "[up 12.5s] hello",
    ]


def test_a_failed_task_says_why_and_raises():
    out = io.StringIO()
    with (
        pytest.raises(ValueError, match="no kernel"),
        Progress("up", stream=out, clock=Clock()) as progress,
        progress.task("client", "boot"),
    ):
        raise ValueError("no kernel\nsecond line")
    assert out.getvalue().splitlines()[-1] == "[up 0.0s] client: boot failed (0.0s): no kernel"


def test_silent_says_nothing(capsys):
    with Progress.silent() as progress, progress.task("client", "boot"):
        progress.note("x")
    assert capsys.readouterr() == ("", "")


def test_progress_goes_to_stderr(capsys):
    with Progress("up") as progress:
        progress.note("x")
    out, err = capsys.readouterr()
    assert out == ""
    assert "x" in err


def test_threads_may_report_at_once():
    out = io.StringIO()
    with Progress("up", stream=out) as progress:

        def work(number):
            for phase in range(20):
                with progress.task(f"g{number}", f"p{phase}") as task:
                    task.detail("x")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = out.getvalue().splitlines()
    assert len(lines) == 8 * 20 * 2
    assert all(line.startswith("[up ") for line in lines)


def test_a_terminal_gets_a_table(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Progress("up", stream=out) as progress:
        for number in range(60):
            with progress.task(f"g{number}", "boot"):
                pass
        with progress.task("client", "[boot]"):
            progress.note("a [note]")
    text = out.getvalue()
    assert "client" in text
    assert "[boot]" in text
    assert "a [note]" in text
    assert "\x1b[?25h" in text  # the cursor is back


@pytest.mark.parametrize("term", ["dumb", "", "unknown"])
def test_a_dumb_terminal_gets_plain_lines(monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    out = Terminal()
    assert not is_live_terminal(out)
    with Progress("up", stream=out) as progress:
        progress.note("x")
    assert out.getvalue().endswith("x\n")
    assert "\x1b" not in out.getvalue()


def test_a_reader_that_went_away_does_not_stop_the_work():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with Progress("up", stream=Gone()) as progress, progress.task("a", "b"):
        pass


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0s"), (99.94, "99.9s"), (99.96, "1m40s"), (125.4, "2m05s"), (3725, "1h02m")]
)
def test_elapsed(seconds, text):
    assert format_elapsed(seconds) == text
