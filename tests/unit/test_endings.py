"""How a stage ended, by the status of its shell and by what its processes noted."""

import contextlib
import os
import signal

import pytest

from pipeline import endings

STATUS = {
    -signal.SIGKILL: True,
    128 + signal.SIGKILL: True,
    -signal.SIGSEGV: True,
    128 + signal.SIGSEGV: True,
    -signal.SIGBUS: True,
    128 + signal.SIGBUS: True,
    -signal.SIGTERM: True,
    128 + signal.SIGTERM: True,
    -signal.SIGABRT: True,
    75: True,
    0: False,
    1: False,
    2: False,
    127: False,  # no such command
    128: False,
    -signal.SIGINT: False,
    130: False,
    -signal.SIGHUP: False,
    255: False,
}


@pytest.mark.parametrize(("status", "system"), STATUS.items())
def test_the_status_of_a_shell(status, system):
    assert bool(endings.by_system(status, "")) == system
    assert bool(endings.by_system(status, "7 began\n7 told\n")) == system, "one process that told an error is over at 1"


@pytest.mark.parametrize(
    ("notes", "said"),
    [
        ("", ""),  # it failed before it could note anything: an import
        ("7 began\n", endings.SILENT),
        ("7 began\n8 began\n8 143\n", endings.SILENT),
        ("7 began\n8 began\n8 raised\n", endings.SILENT),  # the other one lost its connection
        ("7 began\n8 began\n8 told\n", ""),  # the launcher killed the other one
        ("7 began\n8 began\n8 told\n7 143\n", ""),
        ("7 began\n8 began\n8 75\n7 143\n", endings.FAILED),
        ("7 began\n8 began\n8 143\n7 143\n", endings.BY_SYSTEM[signal.SIGTERM]),
        ("7 began\n8 began\n8 raised\n7 143\n", ""),
        ("7 began\n8 began\n8 0\n7 0\n", ""),
        ("7 began\n8 began\n7 130\n8 130\n", ""),
        ("7 began\n7", endings.SILENT),  # a full disk cut it short
    ],
)
def test_behind_a_launcher_notes_say_what_its_status_does_not(notes, said):
    assert endings.by_system(1, notes) == said


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (SystemExit("stage: ConfigError: expected"), "told"),
        (SystemExit(75), "75"),
        (SystemExit(143), "143"),
        (SystemExit(None), "0"),
        (KeyboardInterrupt(), "raised"),
        (RuntimeError("x"), "raised"),
        (None, "0"),
    ],
    ids=repr,
)
def test_a_process_notes_that_it_began_and_how_it_ended(error, word, tmp_path, monkeypatch):
    monkeypatch.setenv(endings.NOTES, str(tmp_path / "notes"))

    @endings.noted()
    def main() -> None:
        if error:
            raise error

    for number in (1, 2):  # each call notes
        with pytest.raises(type(error)) if error else contextlib.nullcontext():
            main()
        lines = (tmp_path / "notes").read_text().splitlines()
        assert lines == [f"{os.getpid()} began", f"{os.getpid()} {word}"] * number


@pytest.mark.parametrize("file", [None, "no/folder/notes"])
def test_without_a_flow_or_a_place_to_write_nothing_is_noted(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(endings.NOTES, raising=False)
    if file:
        monkeypatch.setenv(endings.NOTES, file)
    with endings.noted():
        pass
    assert list(tmp_path.iterdir()) == []
