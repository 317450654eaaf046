"""The steps that a stage keeps in its scratch folder, and their CSV."""

import pytest

from pipeline.history import Log


def test_the_csv_has_every_fifth_step_and_no_speed(tmp_path):
    log = Log(tmp_path / "scratch")
    for step in range(12):
        log(step, {"loss": 1 / 3 + step, "tokens_per_second": 1e6, **({"held_out": 2.0} if step == 10 else {})})
    log.write_history(tmp_path / "one.csv")
    Log(tmp_path / "scratch").write_history(tmp_path / "resumed.csv")
    expected = "step,loss,held_out\n0,0.333333,\n5,5.33333,\n10,10.3333,2\n"
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "resumed.csv").read_text() == expected
    assert [step for step, _ in log.steps()] == list(range(12)), "every step is kept for MLflow"


@pytest.mark.parametrize(
    "damage",
    [
        lambda said: said.replace(b'"loss": 7.0', b'"loss": 9.0'),
        lambda said: said.replace(b'"step": 7', b'"step": 6'),
        lambda said: said[: len(said) // 2] + b"\xff" + said[len(said) // 2 + 1 :],
        lambda said: said[: len(said) // 3] + said[len(said) // 2 :],
        lambda said: said[len(said) // 3 :],
        lambda said: b"\0" * len(said),
    ],
    ids=["a value", "a step", "a byte", "a hole", "no beginning", "zeros"],
)
def test_damaged_steps_are_seen_and_never_told(tmp_path, damage):
    log = Log(tmp_path)
    for step in range(20):
        log(step, {"loss": float(step)})
    (tmp_path / "state-00000010.safetensors").touch()
    assert log.whole()
    right = dict(log.steps())
    log.file.write_bytes(damage(log.file.read_bytes()))
    assert all(right[step] == row for step, row in log.steps())
    assert not log.whole()


def test_a_line_that_a_kill_cut_short_takes_no_other_with_it(tmp_path):
    log = Log(tmp_path)
    for step in range(5):
        log(step, {"loss": 1.0})
    log.file.write_bytes(log.file.read_bytes()[:-4])
    assert log.whole()
    for step in range(4, 8):
        Log(tmp_path)(step, {"loss": 1.0})
    assert [step for step, _ in log.steps()] == list(range(8))


def test_a_full_disk_ends_no_training(tmp_path, monkeypatch):
    log = Log(tmp_path / "scratch")
    (tmp_path / "scratch").write_text("in the way of a folder")
    for step in range(6):
        log(step, {"loss": 1.0})
    assert set(log.rows) == {0, 5}
