"""A killed process's metrics are logged once; a process is known by its number and its start."""

from types import SimpleNamespace

from mlflow.entities import Metric

from pipeline.history import Log
from pipeline.tracking import open_run, runs


class Kept:
    """An MLflow client that keeps what it is sent."""

    def __init__(self, metrics: list[Metric]):
        self.metrics = metrics

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        return [m for m in self.metrics if m.key == key]

    def get_run(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(metrics={m.key: m.value for m in self.metrics}))

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        self.metrics += metrics


def test_after_a_kill_each_step_is_logged_once_and_none_is_missing(tmp_path):
    """Killed in step 17 with what MLflow has up to step 13; the checkpoint is of step 10."""
    client, log = Kept([]), Log(tmp_path)
    for step in range(18):
        log(step, {"loss": 1.0 / (step + 1), **({"lr": 0.1} if step % 2 else {}), "tokens_per_second": 9.0})
    client.metrics = [Metric(k, v, 0, s) for s, row in log.steps() for k, v in row.items() if s <= 13]
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('\n3e2b1c0d {"step": 18, "lo')
    tracked = open_run.OpenRun(client, "r")
    again = Log(tmp_path, tracked.log_step)
    tracked.catch_up(again.steps())
    assert {m.step for m in client.metrics} == set(range(18))
    for step in range(11, 25):
        again(step, {"loss": 1.0 / (step + 1), **({"lr": 0.1} if step % 2 else {}), "tokens_per_second": 8.0})
    tracked.flush()
    logged = [(m.key, m.step) for m in client.metrics]
    assert len(logged) == len(set(logged)) == 25 + 12 + 25
    assert {m.step: m.value for m in client.metrics if m.key == "loss"} == {s: 1.0 / (s + 1) for s in range(25)}


class Gone(Kept):
    """The server does not answer the first requests."""

    tries = 0

    def get_run(self, run_id: str) -> SimpleNamespace:
        self.tries += 1
        if self.tries < 3:
            raise ConnectionError("gone")
        return super().get_run(run_id)


def test_after_a_kill_a_server_that_does_not_answer_at_first_has_each_step_once_too():
    """It has steps up to 13, of which the new process does not know, and computes those from 11 again."""
    client = Gone([Metric("loss", 1.0, 0, step) for step in range(14)])
    tracked = open_run.OpenRun(client, "r", begun=True)
    tracked.catch_up((step, {"loss": 1.0}) for step in range(18))
    for step in range(11, 25):
        tracked.log_step(step, {"loss": 1.0})
    tracked.flush()
    assert len(client.metrics) == 14, "what it has is not known yet, so nothing is sent"
    tracked.flush()
    assert sorted(m.step for m in client.metrics) == list(range(25))


def test_the_closing_numbers_of_a_process_that_was_killed_at_its_end_are_not_doubled():
    client = Kept([Metric("result.score", 0.5, 0, 0)])
    tracked = open_run.OpenRun(client, "r", begun=True)
    tracked.flush()
    tracked.log_numbers("result", {"score": 0.5, "seconds": 3.0})
    tracked.flush()
    assert sorted(m.key for m in client.metrics) == ["result.score", "result.seconds"]


def test_a_first_process_has_nothing_to_catch_up_with(tmp_path):
    class Silent:
        pass

    open_run.OpenRun(Silent(), "r").catch_up(Log(tmp_path).steps())


def test_a_process_is_told_by_its_number_and_its_start():
    (process,) = (value for key, value in runs.process().items() if key == runs.PROCESS)
    number, _, started = process.partition(" ")
    assert runs._lives(process)
    assert not runs._lives(f"{number} {float(started) - 60}"), "its number was another's a minute ago"
    assert not any(runs._lives(wrong) for wrong in ("", "no number", "4194305 1.0", number))
