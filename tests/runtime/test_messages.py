"""Messages of the package: a library user who asks for none gets warnings; the command shows all, in one process."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys

import pytest

from deepcait.runtime import messages
from deepcait.runtime.messages import Bar, progress, shown

LOGGER = logging.getLogger("deepcait.training.trainer")


@pytest.mark.process
@pytest.mark.parametrize(
    ("configured", "lines"),
    [
        ("", ["two"]),  # what a run warns of
        ("logging.basicConfig(level='INFO')", ["INFO:deepcait.training.x:one", "WARNING:deepcait.training.x:two"]),
    ],
)
def test_a_library_user_hears_what_logging_is_configured_for(configured, lines):
    program = (
        f"import logging, deepcait; {configured}\n"
        "logger = logging.getLogger('deepcait.training.x'); logger.info('one'); logger.warning('two')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.splitlines() == lines


@pytest.mark.process
def test_other_processes_of_a_command_print_nothing():
    program = (
        "import logging; from deepcait.runtime.messages import shown\n"
        "with shown(): logging.getLogger('deepcait.training.x').warning('two')"
    )
    environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_the_command_shows_messages_and_only_while_it_runs(capsys):
    for on_stdout in (True, False):
        with shown(on_stdout=on_stdout):
            LOGGER.info("step %d", 3)
            LOGGER.warning("the rate is high")
            LOGGER.debug("too much")
        LOGGER.info("later")
        out, err = capsys.readouterr()
        assert (out if on_stdout else err).splitlines() == ["step 3", "note: the rate is high"]
        assert (err if on_stdout else out) == ""


def test_of_several_processes_the_first_shows(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, expected in (("0", "here\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with shown(on_stdout=True), progress("work") as update:
            LOGGER.info("here")
            update(1, 2)
        assert capsys.readouterr() == (expected, "")


def test_work_continues_after_its_reader_has_gone(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, shown(on_stdout=True):
        monkeypatch.setattr(sys, "stdout", stream)
        LOGGER.info("not shown")
        LOGGER.info("nor this")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    monkeypatch.setattr(messages, "_PLAIN_LINE_EVERY_S", 0.0)
    with shown(), progress("examining") as update:
        update(1, 3)
        update(3, 3)
    assert capsys.readouterr().err == "examining: 1 of 3\n"
    with progress("not asked for") as update:
        update(1, 3)
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with shown(), progress("examining") as update:
        update(1, 3)
    assert "examining" in terminal.getvalue()
    assert "1/3" in terminal.getvalue()


def test_messages_appear_above_a_bar_and_go_to_a_file_where_stdout_is_one(monkeypatch):
    for stdout in (Terminal(), io.StringIO()):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setenv("TERM", "xterm")
        with shown(on_stdout=True):
            bar = Bar(total=2)
            LOGGER.info("a message")
            bar.update(1, text="loss 1.0")
            bar.close()
        assert ("a message" in terminal.getvalue()) == stdout.isatty()
        assert ("a message" in stdout.getvalue()) != stdout.isatty()
