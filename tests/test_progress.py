import io
import sys

from streamlm.measure import progress


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self):
        return True


def run(monkeypatch, total, screen):
    """Make `total` steps where the terminal is `screen` and a log stands in its place; return both texts."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", screen)
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress(total, "token") as bar:
        for _ in range(total):
            bar.update()
    return screen.getvalue(), log.getvalue()


def test_lines_go_to_the_log_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SEC", 1e-9)
    screen, log = run(monkeypatch, 3, io.StringIO())
    lines = log.splitlines()
    assert [line.split(",")[0] for line in lines] == ["1 of 3 tokens", "2 of 3 tokens", "3 of 3 tokens"]
    assert all("token/s" in line and "left" in line for line in lines)
    assert "\r" not in log
    assert screen == ""


def test_what_is_soon_over_stays_silent(monkeypatch):
    assert run(monkeypatch, 1000, io.StringIO()) == ("", "")


def test_bar_is_drawn_on_the_terminal_behind_a_log(monkeypatch):
    screen, log = run(monkeypatch, 3, Screen())
    assert "3/3" in screen
    assert log == ""
