"""When a training saves its state: by time, and when Ctrl-C or SIGTERM asks it to stop."""

import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline import checkpoints, stopping
from pipeline.checkpoints import Checkpoints, Follower
from pipeline.history import Log, Quiet
from tests.unit.test_loop import fit, network


@contextmanager
def stoppable(stop):
    """As in a stage, but this process lives on: no kernel timer ends it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        with stopping.stoppable(stop):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def write(path: Path, steps: int) -> bool:
    path.parent.mkdir(exist_ok=True)
    path.write_text(str(steps))
    return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets; the wall clock jumps meanwhile, and must not matter."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 1e9 * (-1) ** len(now))
    return now


def test_a_state_is_saved_when_the_time_has_passed_and_the_last_two_stay(tmp_path, clock):
    states = Checkpoints(tmp_path / "scratch", every_seconds=60.0, last=clock[0])
    saved = []
    for steps in range(1, 13):
        clock[0] += 25.0
        states.after_step(steps, lambda path, steps: saved.append(steps) or write(path, steps))
    assert saved == [3, 6, 9, 12]
    assert [path.read_text() for path in states.newest_first()] == ["12", "9"]


def test_the_time_of_writing_does_not_count(tmp_path, clock):
    """The interval lies between the end of one and the begin of the next."""
    assert saved_at(tmp_path, clock, step_seconds=58.0, save_seconds=3.0, steps=7) == [2, 4, 6]


@pytest.mark.parametrize(("save_seconds", "steps"), [(3.0, [1, 2, 3, 4, 5, 6, 7, 8]), (6.0, [1, 3, 5, 7]), (100.0, [1])])
def test_a_large_state_is_saved_less_often(tmp_path, clock, save_seconds, steps):
    """Saving takes a twentieth of the time at most: after 6 seconds of it, 120 of training."""
    assert saved_at(tmp_path, clock, step_seconds=60.0, save_seconds=save_seconds, steps=8) == steps


def saved_at(folder: Path, clock: list[float], *, step_seconds: float, save_seconds: float, steps: int) -> list[int]:
    """The steps after which a training with an interval of a minute saved its state."""
    states, saved = Checkpoints(folder, every_seconds=60.0, last=clock[0]), []

    def save(path, steps):
        clock[0] += save_seconds
        saved.append(steps)
        return write(path, steps)

    for taken in range(1, steps + 1):
        clock[0] += step_seconds
        states.after_step(taken, save)
    return saved


def test_zero_seconds_is_after_every_step(tmp_path):
    states = Checkpoints(tmp_path, every_seconds=0.0)
    for steps in range(1, 5):
        states.after_step(steps, write)
    assert [path.name for path in states.newest_first()] == ["state-00000004.safetensors", "state-00000003.safetensors"]


def test_what_could_not_be_written_takes_no_older_one_away(tmp_path):
    states = Checkpoints(tmp_path, every_seconds=0.0)
    for steps in range(1, 4):
        states.after_step(steps, write)
    states.after_step(4, lambda path, steps: False)
    assert [path.read_text() for path in states.newest_first()] == ["3", "2"]


def test_trainings_of_one_folder_do_not_see_each_other(tmp_path):
    """`a` and `a-1` would, if the name were compared by its beginning."""
    names = ("a", "a-1", "int8-2")
    for name in names:
        Checkpoints(tmp_path, name, every_seconds=0.0).after_step(7, write)
    for name in names:
        assert [p.name for p in Checkpoints(tmp_path, name).newest_first()] == [f"{name}-00000007.safetensors"]
    Checkpoints(tmp_path, "a").remove()
    assert not Checkpoints(tmp_path, "a").newest_first()
    assert checkpoints.any_in(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_steps_before_a_state_are_on_the_disk_before_it_is(tmp_path, monkeypatch):
    log, order = Log(tmp_path, checkpoint_seconds=0.0), []
    monkeypatch.setattr("pipeline.history.sync", lambda path: order.append(path.name))
    log(0, {"loss": 1.0})
    log.checkpoints().after_step(1, lambda path, steps: order.append(path.name) or write(path, steps))
    assert order == ["history.jsonl", "state-00000001.safetensors"]


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_training_that_is_asked_to_stop_ends_its_step_and_saves_its_state(engine, tmp_path, number, raised):
    log, steps = Log(tmp_path), []

    def before_step(step):
        if step == 7:
            signal.raise_signal(number)
        return {}

    states = log.checkpoints()
    with pytest.raises(raised), stoppable(log.stop):
        fit(network(), engine, before_step=before_step, log=lambda step, _: steps.append(step), checkpoints=states)
    assert steps[-1] == 7, "the step is ended"
    assert [int(load_file(path)["step"]) for path in states.newest_first()] == [8]


def stopped(*signals, then=lambda: pytest.fail("it went on"), stop=None):
    """A training that ended a step just now gets the signals."""
    stop = stop or stopping.Stop()
    with stoppable(stop):
        stop.after_step()
        for number in signals:
            signal.raise_signal(number)
        then()


def test_a_step_that_lasts_too_long_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(stopping, "STEP_SECONDS", 0.1)
    began = time.monotonic()
    with pytest.raises(SystemExit):
        stopped(signal.SIGTERM, then=lambda: time.sleep(20))
    assert time.monotonic() - began < 10


def test_outside_of_a_training_nothing_is_waited_for():
    with pytest.raises(KeyboardInterrupt), stoppable(stopping.Stop()):
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_while_a_state_is_saved_does_not_disturb_it(tmp_path):
    """A flow sends SIGTERM to a stage that does not end soon after Ctrl-C."""
    stop, done = stopping.Stop(), []

    def save(path, steps):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        done.append(steps)
        return write(path, steps)

    with pytest.raises(KeyboardInterrupt):
        stopped(signal.SIGINT, then=lambda: Checkpoints(tmp_path, stop=stop).after_step(5, save), stop=stop)
    assert done == [5]


def test_sigterm_after_ctrl_c_still_waits_for_the_step():
    waited = []
    stopped(signal.SIGINT, signal.SIGTERM, then=lambda: waited.append(True))
    assert waited


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    with pytest.raises(KeyboardInterrupt):
        stopped(signal.SIGINT, signal.SIGINT)


def test_a_process_that_is_not_the_first_saves_nothing_and_does_not_leave_first(tmp_path):
    """The first one could not end its step without it."""
    log = Quiet(tmp_path, checkpoint_seconds=0.0)
    states = log.checkpoints()
    assert isinstance(states, Follower)
    log.stop.error = SystemExit(143)
    states.after_step(1, write)
    write(tmp_path / "state-00000001.safetensors", 1)
    states.remove()
    assert [path.name for path in states.newest_first()] == ["state-00000001.safetensors"]


def test_a_large_state_is_not_begun_when_the_process_is_to_stop(tmp_path, clock):
    """It would be killed while it writes; the state before is the newest."""
    states, saved = Checkpoints(tmp_path, every_seconds=60.0, last=clock[0]), []

    def slow(path, steps):
        clock[0] += 10.0
        saved.append(steps)
        return write(path, steps)

    clock[0] += 61.0
    states.after_step(1, slow)
    states.stop.error = SystemExit(143)
    with pytest.raises(SystemExit):
        states.after_step(2, slow)
    assert saved == [1]


def test_what_killed_processes_half_wrote_is_removed(tmp_path):
    for name in ("state-00000003.part", "state-00000004.part", "other-00000004.part"):
        (tmp_path / name).touch()
    Checkpoints(tmp_path, every_seconds=0.0).after_step(5, write)
    assert {path.name for path in tmp_path.iterdir()} == {"other-00000004.part", "state-00000005.safetensors"}


def test_states_that_this_training_did_not_begin_from_do_not_push_out_its_own(tmp_path):
    """Where a process of a launch cannot read them, the training begins again."""
    for steps in (5000, 5100):
        write(tmp_path / f"state-{steps:08}.safetensors", steps)
    states = Checkpoints(tmp_path, every_seconds=0.0)
    for steps in (1, 2, 3):
        states.after_step(steps, write)
    assert [path.read_text() for path in states.newest_first()] == ["3", "2"]
