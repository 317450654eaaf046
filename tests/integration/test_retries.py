"""What the system ended starts again, by Prefect's retries; what told an error does not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Each command counts its tries. `once` is killed in its first one, `always` in all; `ours` ends as a stage with a message.
PIPELINE = """
stages:
  once:
    cmd: echo >> once.tries; test $(wc -l < once.tries) -gt 1 || kill -9 $$; touch once.out $PRUNEONCE_RAN
    outs: [once.out]
  always:
    cmd: echo >> always.tries; sh -c 'kill -11 $$'; exit $?
    outs: [always.out]
  short:
    cmd: echo >> short.tries; exit 75
    outs: [short.out]
  ours:
    cmd: echo >> ours.tries; echo "an error of ours" >&2; exit 1
    outs: [ours.out]
  hidden:
    cmd: echo >> hidden.tries; echo "7 began" >> $PRUNEONCE_NOTES; (sleep 60; touch late) & exit 1
    outs: [hidden.out]
"""
FLOW = """
import json, sys
from prefect import flow
from flows import repro, trouble

repro.say_errors_once()  # the command does so first
repro.quiet_logs()
trouble.RETRY_SECONDS = 0.0
stage = repro.repro.with_options(retries=2, retry_delay_seconds=0)

@flow(persist_result=False)
def stages():
    told = {}
    for name in ("once", "always", "short", "ours", "hidden"):
        try:
            told[name] = stage(name).result
        except trouble.StageFailed as error:
            told[name] = f"{type(error).__name__}: {error}"
    return told

print("TOLD", json.dumps(stages()))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> tuple[Path, dict[str, str], str]:
    """The project after its flow, what each stage ended with, and what the flow printed. One server for all."""
    folder = tmp_path_factory.mktemp("retries")
    for name, text in (("dvc.yaml", PIPELINE), ("flow.py", FLOW)):
        (folder / name).write_text(text)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "PRUNEONCE_", "DVC_"))}
    env = {**kept, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / "prefect"), "NO_COLOR": "1", "SHELL": "/bin/sh"}
    env |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180"}
    command = [sys.executable, "flow.py"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = re.findall("^TOLD (.*)$", done.stdout, re.MULTILINE)
    return folder, json.loads(told), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("stage", "tries", "ends"),
    [
        ("once", 2, r"^ran$"),
        ("always", 3, r"^StageEnded: always was ended by the system: .*\(SIGSEGV\)\. It was tried 3 times, .*checkpoints"),
        ("short", 3, r"^StageEnded: short was ended by the system: memory or a disk failed under it"),
        ("ours", 1, r"^StageFailed: ours failed \(failed to run: .*, exited with 1\)\. Its own output is above"),
        (
            "hidden",
            3,
            r"^StageEnded: hidden was ended by the system: one of its processes was killed\. It was tried 3 times",
        ),
    ],
)
def test_a_stage_is_tried_as_often_as_the_system_ends_it(stage, tries, ends, said):
    folder, told, output = said
    assert len((folder / f"{stage}.tries").read_text()) == tries
    assert re.search(ends, told[stage])
    lines = re.findall(rf"{stage} was ended by the system: .* It starts again in 0 s, .* checkpoint: try (\d) of 3", output)
    assert lines == [str(number) for number in range(2, tries + 1)]


def test_what_a_try_left_running_is_ended_before_the_next(said):
    folder, _, output = said
    assert not (folder / "late").exists()
    busy = subprocess.run(["pgrep", "-f", "sleep 60; touch late"], capture_output=True, text=True).stdout
    assert busy == ""
    assert "Traceback" not in output
    assert "Task run failed" not in output
