"""Who holds a lock, as the process that finds it taken is told."""

import json
import os
import socket
import subprocess
import time
from dataclasses import asdict

import psutil
import pytest

from pipeline import holder, processes
from pruneonce.errors import AlreadyRunning

SINCE = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"


def test_a_holder_is_read_back_and_lives(tmp_path):
    holder.write(tmp_path / "pid")
    found = holder.read(tmp_path / "pid")
    assert (found.pid, found.host, found.here(), found.lives()) == (os.getpid(), socket.gethostname(), True, True)
    assert found.since == time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(psutil.Process().create_time()))
    assert "pytest" in found.command or "-c" in found.command
    assert len(found.command) <= holder.LONGEST + 4


def other(tmp_path, **changes):
    holder.write(tmp_path / "lock.pid")
    document = json.loads((tmp_path / "lock.pid").read_text()) | changes
    (tmp_path / "lock.pid").write_text(json.dumps(document))
    return document


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "elsewhere"},
        {"pid": 2**22 + 1},  # above what Linux gives
        {"started": 1.0},  # another program has the number now
    ],
)
def test_a_holder_that_is_not_seen_here_does_not_live(tmp_path, changes):
    other(tmp_path, **changes)
    assert not holder.read(tmp_path / "lock.pid").lives()


def test_of_another_host_the_command_to_stop_it_names_the_host(tmp_path):
    document = other(tmp_path, host="gpu7", command="python -m flows.compress")
    said = holder.of(tmp_path / "lock.pid")
    assert said == (
        f": process {os.getpid()} on gpu7 since {document['since']}, python -m flows.compress. Wait for it, or stop it with "
        f"kill {os.getpid()} on gpu7."
    )


@pytest.mark.parametrize("text", ["", "12", "[]", "{}", '{"pid": 1}', "\udcff", "null"])
def test_what_is_no_holder_is_unknown(tmp_path, text):
    (tmp_path / "pid").write_bytes(text.encode(errors="surrogateescape"))
    assert holder.read(tmp_path / "pid") is None
    assert holder.of(tmp_path / "pid") == " (process unknown). Wait for it."


def test_what_a_killed_process_left_is_taken_over_with_a_line(tmp_path, capfd):
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "lock").touch()
    other(tmp_path, pid=ended.pid, command="python -m flows.compress")
    with processes.alone(tmp_path / "lock", "run in this folder"):
        assert holder.read(tmp_path / "lock.pid").pid == os.getpid()
    said = capfd.readouterr().out.strip()
    assert said.startswith(f"The run in this folder before did not end by itself: process {ended.pid} since ")
    assert said.endswith(", python -m flows.compress. Its lock is free; this one goes on from there.")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_removed_is_still_its_holders(tmp_path):
    with processes.alone(tmp_path / "lock", "run"):
        (tmp_path / "lock").unlink()
        kept = asdict(holder.read(tmp_path / "lock.pid"))
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()} since"), processes.alone(tmp_path / "lock", "run"):
            pytest.fail("it is begun")
        assert asdict(holder.read(tmp_path / "lock.pid")) == kept
