"""The loop on a network of two linears: what a step does, what stops it, and that a resumed run is the run itself."""

import math
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from pruneonce import quantization
from pruneonce.batch import Batch
from pruneonce.engine import SHARDED, accelerator
from pruneonce.errors import ConfigError, LossNotFinite
from pruneonce.sparsity import gradual, masks, movement
from pruneonce.training import loop, resume
from tests.checkpoints import EverySteps
from tests.conftest import Cpu, cpu_engine


class Interrupted(Exception):
    """What a stopped process looks like from inside."""


def network(wrap=masks.MaskedLinear) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    masks.mask_linears(model, "", wrap)
    return model


def batches(step: int, rows: int = 8) -> Batch:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(step))
    return {"x": x, "labels": (x[:, 0] > x[:, 1]).long(), "attention_mask": torch.ones(rows, 6, dtype=torch.int64)}


def cross_entropy(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    return {"loss": F.cross_entropy(model(batch["x"]), batch["labels"])}


def constant(step: int) -> float:
    return 0.05


def fit(model, engine, loss=cross_entropy, *, batches=batches, learning_rate=constant, steps=12, **changes) -> None:
    settings = {"weight_decay": 0.1, "clip_norm": 1.0, "seed": 3} | changes
    loop.fit(model, batches, loss, engine=engine, learning_rate=learning_rate, steps=steps, **settings)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights, masks, scores and ranges."""
    return {k: v.detach().clone() for k, v in [*model.named_parameters(), *model.named_buffers()]}


def test_the_loss_goes_down_and_is_logged(engine):
    logged = []
    fit(network(), engine, steps=60, log=lambda step, metrics: logged.append((step, metrics)))
    assert [step for step, _ in logged] == list(range(60))
    losses = [metrics["loss"] for _, metrics in logged]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert set(logged[0][1]) == {"loss", "gradient_norm", "learning_rate", "tokens_per_second"}


def test_a_step_is_the_one_of_adamw_with_clipping(engine):
    """Two steps against torch's own optimizer, driven by hand; no dropout."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(6, 2), nn.Linear(6, 2)
    theirs.load_state_dict(ours.state_dict())
    rates = [0.1, 0.02]
    fit(ours, engine, learning_rate=rates.__getitem__, steps=2, clip_norm=0.1)
    optimizer = torch.optim.AdamW(
        [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    )
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        cross_entropy(theirs, batches(step))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_matrices_decay_and_vectors_do_not():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    model[1].bias.requires_grad_(False)
    decayed, rest = loop.adamw(model, 0.3).param_groups
    assert decayed["weight_decay"] == 0.3
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 4), (4, 4)]
    assert rest["weight_decay"] == 0
    assert [tuple(p.shape) for p in rest["params"]] == [(4,), (4,)]


def test_a_model_is_trained_in_training_mode_however_it_came(engine):
    """transformers loads a model in evaluation mode: there is no dropout in it, and no gradient checkpointing."""
    model, modes = network().eval(), []

    def loss(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        modes.append(model.training)
        return cross_entropy(model, batch)

    fit(model, engine, loss, steps=2)
    assert modes == [True, True]


def test_seed_and_step_choose_what_is_dropped(engine):
    def dropped(seed: int) -> list[list[float]]:
        found: list[list[float]] = []

        def loss(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
            found.append(F.dropout(torch.ones(64), 0.5).tolist())
            return cross_entropy(model, batch)

        fit(network(), engine, loss, steps=3, seed=seed)
        return found

    one, again, other = dropped(3), dropped(3), dropped(4)
    assert one == again
    assert len({tuple(mask) for mask in [*one, *other]}) == 6


def test_the_model_leaves_in_evaluation_mode(engine):
    model = network()
    fit(model, engine, steps=1)
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer_steps(engine, bad):
    model, seen = network(), {}

    def loss(model, batch):
        value = cross_entropy(model, batch)["loss"]
        return {"loss": value * bad if seen["step"] == 3 else value}

    def before_step(step):
        seen.update(step=step, weights=state(model))
        return {}

    with pytest.raises(LossNotFinite, match="at step 3 of here"):
        fit(model, engine, loss, before_step=before_step, name="here")
    assert all(torch.equal(v, seen["weights"][k]) for k, v in state(model).items())


def test_a_gradient_that_is_not_finite_stops_as_well(engine):
    model = network()
    before = state(model)

    def loss(model, batch):
        weight = model[0].weight
        return {"loss": cross_entropy(model, batch)["loss"] + (weight * 0).sqrt().sum()}  # 0, with a slope of inf * 0

    with pytest.raises(LossNotFinite, match=r"loss 0\.\d+ and gradient norm nan at step 0"):
        fit(model, engine, loss)
    assert all(torch.equal(v, before[k]) for k, v in state(model).items())


def schedule(model: nn.Module, step: int, *, stop_at: int | None = None) -> dict[str, float]:
    """Prune every second step up to step 8; ranges freeze at step 9."""
    if step == stop_at:
        raise Interrupted
    if step % 2 == 0 and step <= 8:
        score = movement.score if isinstance(model[0], movement.ScoredLinear) and step else masks.magnitude
        masks.prune(model, gradual.cubic_sparsity(step, begin=0, end=8, initial=0.2, target=0.8), score=score)
    for linear in quantization.quantized_linears(model).values():
        linear.observe = step < 9
    return {"sparsity": masks.masked_sparsity(model)}


STOPS = [(4, 0), (6, 5), (11, 10)]


@pytest.mark.parametrize(
    ("wrap", "stop_at", "resumed_at"),
    [
        *((masks.MaskedLinear, *stop) for stop in STOPS),
        *((quantization.FakeQuantLinear, *stop) for stop in STOPS),
        (movement.ScoredLinear, *STOPS[1]),
    ],
)
def test_fault_1_a_resumed_run_ends_with_the_same_bytes(make_engine, tmp_path, wrap, stop_at, resumed_at):
    """Weights, masks, scores, ranges, moments, dropout and the sparsity schedule go on where they were."""
    whole, logged = network(wrap), []
    fit(whole, make_engine(1), before_step=partial(schedule, whole), log=lambda *entry: logged.append(entry))

    states = EverySteps(tmp_path / "scratch", steps=5)
    saved = {"checkpoints": states}
    stopped = network(wrap)
    with pytest.raises(Interrupted):
        fit(stopped, make_engine(1), before_step=partial(schedule, stopped, stop_at=stop_at), **saved)
    assert bool(states.newest_first()) == (resumed_at > 0)

    resumed, again = network(wrap), []
    fit(resumed, make_engine(1), before_step=partial(schedule, resumed), log=lambda *entry: again.append(entry), **saved)
    assert [step for step, _ in again] == list(range(resumed_at, 12))
    for (_, one), (_, two) in zip(logged[resumed_at:], again, strict=True):
        assert {k: v for k, v in one.items() if k != "tokens_per_second"} == {
            k: v for k, v in two.items() if k != "tokens_per_second"
        }
    wanted, found = state(whole), state(resumed)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(v, found[k]) for k, v in wanted.items())
    assert masks.masked_sparsity(resumed) == pytest.approx(0.8, abs=0.01)


def discarded(err: str) -> list[str]:
    return [line for line in err.splitlines() if "It is discarded" in line]


def begun_at(path, model, engine) -> int:
    """The step at which a training with this checkpoint begins."""
    steps = []
    fit(model, engine, log=lambda step, metrics: steps.append(step), checkpoints=Saved([path]))
    return steps[0]


@dataclass
class Saved:
    """States that are there; no other one is saved."""

    paths: list[Path]

    def newest_first(self):
        return self.paths

    def after_step(self, steps, save):
        pass


def saved(path, model, step: int) -> None:
    """What a training of `model` saves at a step."""
    resume.State(model, loop.adamw(model, 0.1), cpu_engine(), pytest.fail).save(path, step)


@pytest.mark.parametrize("step", [-1, 0, 12, 10**6])
def test_a_step_that_the_training_does_not_have_is_not_believed(engine, tmp_path, capsys, step):
    saved(tmp_path / "state", network(), step)
    assert begun_at(tmp_path / "state", network(), engine) == 0
    (line,) = discarded(capsys.readouterr().err)
    assert f"found step {step} of a training of 12" in line


def wider() -> nn.Module:
    model = network()
    model[3] = nn.Linear(16, 3)
    return model


@pytest.mark.parametrize(
    ("make", "differs"),
    [
        (wider, "in 3 tensors, such as buffer.3.mask"),
        (partial(network, quantization.FakeQuantLinear), "in 4 tensors, such as buffer.0."),
        (lambda: network().double(), "in 4 tensors, such as model.0.bias"),
        (lambda: nn.Linear(6, 2), "in 8 tensors, such as buffer.0.mask"),
    ],
    ids=["shape", "buffers", "dtype", "names"],
)
def test_the_state_of_another_model_is_not_believed_and_nothing_of_it_is_taken(engine, tmp_path, capsys, make, differs):
    saved(tmp_path / "state", make(), 5)
    model, untouched = network(), state(network())
    assert resume.State(model, loop.adamw(model, 0.1), engine, print).resume([tmp_path / "state"], 12) == 0
    assert all(torch.equal(v, untouched[k]) for k, v in state(model).items())
    (line,) = discarded(capsys.readouterr().out)
    assert f"found another model's or optimizer's, that differs {differs}" in line
    assert not (tmp_path / "state").exists()


def test_a_state_without_a_checksum_is_not_believed(engine, tmp_path, capsys):
    saved(tmp_path / "state", network(), 5)
    save_file(load_file(tmp_path / "state"), tmp_path / "state")
    assert begun_at(tmp_path / "state", network(), engine) == 0
    assert "found bytes of another sha256 than were saved" in discarded(capsys.readouterr().err)[0]


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", None], ids=["empty", "lfs", "folder"]
)
def test_what_is_no_state_at_all_is_discarded_with_a_line(engine, tmp_path, capsys, content):
    path = tmp_path / "state"
    path.mkdir() if content is None else path.write_bytes(content)
    assert begun_at(path, network(), engine) == 0
    assert len(discarded(capsys.readouterr().err)) == 1


def test_of_processes_that_cannot_read_the_same_state_none_resumes(engine, tmp_path, monkeypatch):
    """Each with a disk of its own: the first process alone saves."""
    saved(tmp_path / "state", network(), 5)
    assert begun_at(tmp_path / "state", network(), engine) == 5
    monkeypatch.setattr(resume, "gather_object", lambda read: [*read, False])
    assert begun_at(tmp_path / "state", network(), engine) == 0


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_of_two_states_the_older_one_is_taken_if_the_newer_is_damaged(engine, tmp_path, capsys, damage):
    """And then the training ends with the same bytes."""
    whole, states = network(), EverySteps(tmp_path, steps=4)
    fit(whole, engine, before_step=partial(schedule, whole))
    stopped = network()
    with pytest.raises(Interrupted):
        fit(stopped, engine, before_step=partial(schedule, stopped, stop_at=9), checkpoints=states)
    newer, older = states.newest_first()
    assert [path.name for path in (newer, older)] == ["state-00000008.safetensors", "state-00000004.safetensors"]
    content = newer.read_bytes()
    changed = {"flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], "cut": content[:-9]}
    newer.write_bytes(changed[damage]) if damage in changed else newer.unlink()
    resumed, steps = network(), []
    fit(
        resumed,
        engine,
        before_step=partial(schedule, resumed),
        checkpoints=states,
        log=lambda step, metrics: steps.append(step),
    )
    assert steps == list(range(4, 12))
    said = [line for line in capsys.readouterr().err.splitlines() if "It is discarded: from step 4 again." in line]
    assert len(said) == (damage != "gone")
    assert all(torch.equal(v, state(resumed)[k]) for k, v in state(whole).items())


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device (os error 28)")]
)
@pytest.mark.parametrize("place", ["save_file", "sync"])
def test_a_disk_that_is_full_is_said_once_and_stops_no_training(engine, tmp_path, monkeypatch, capsys, place, error):
    real, room = getattr(resume, place), [False, False, True]

    def write(*words):
        if not (room.pop(0) if room else True):
            raise error
        real(*words)

    monkeypatch.setattr(resume, place, write)
    model, whole = network(), network()
    fit(whole, engine)
    states = EverySteps(tmp_path, steps=3)
    fit(model, engine, checkpoints=states)
    lines = [line for line in capsys.readouterr().err.splitlines() if "The training goes on." in line]
    assert len(lines) == 1
    assert f"expected room to save a state in {tmp_path}, found" in lines[0]
    assert all(torch.equal(v, state(model)[k]) for k, v in state(whole).items())
    assert [p.name for p in tmp_path.iterdir()] == ["state-00000009.safetensors"]
    assert int(load_file(states.newest_first()[0])["step"]) == 9


def test_a_state_is_on_the_disk_before_its_name_is(engine, tmp_path, monkeypatch):
    """Else a machine that loses its power has the name and not the bytes."""
    path, synced = tmp_path / "state", []
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append((Path(f"/proc/self/fd/{number}").readlink(), path.exists()))
    )
    saved(path, network(), 5)
    assert synced == [(path.with_suffix(".part"), False), (tmp_path, True)]


def test_the_last_two_states_are_kept_and_nothing_else(engine, tmp_path):
    states = EverySteps(tmp_path, steps=3)
    fit(network(), engine, steps=11, checkpoints=states)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state-00000006.safetensors", "state-00000009.safetensors"]
    assert [int(load_file(path)["step"]) for path in states.newest_first()] == [9, 6]


def test_fault_5_the_teacher_is_in_no_checkpoint_and_does_not_move(engine, tmp_path):
    student, teacher = network(), network().eval()
    with torch.no_grad():
        teacher[0].weight.add_(1)
    before = state(teacher)

    def distilled(model, batch):
        return {"loss": F.mse_loss(model(batch["x"]), teacher(batch["x"]))}

    fit(student, engine, distilled, steps=4, checkpoints=EverySteps(tmp_path, steps=2))
    names = ("0.weight", "0.bias", "3.weight", "3.bias")
    wanted = {"step", "buffer.0.mask", "buffer.3.mask"} | {f"model.{n}" for n in names}
    wanted |= {f"optimizer.{i}.{k}" for i in range(4) for k in ("step", "exp_avg", "exp_avg_sq")}
    assert set(load_file(tmp_path / "state-00000002.safetensors")) == wanted
    assert set(student.state_dict()) == set(names)
    assert all(torch.equal(v, before[k]) for k, v in state(teacher).items())


@pytest.mark.parametrize("rows", [8, 7])
def test_micro_batches_cover_the_batch_once(make_engine, rows):
    batch, engine = batches(0, rows), make_engine(2)
    shares = loop._micro_batches(batch, engine)
    assert len(shares) == 2
    found = torch.cat([s["x"] for s in shares])
    assert sorted(found.tolist()) == sorted(batch["x"].tolist())


def test_each_process_has_a_dropout_of_its_own(monkeypatch, engine):
    """Two processes that read equal rows drop other units. The first one drops what a single process does."""

    def dropped(process: int, processes: int) -> list[list[float]]:
        monkeypatch.setattr(type(engine), "num_processes", processes)
        monkeypatch.setattr(type(engine), "process_index", process)
        found: list[list[float]] = []

        def loss(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
            found.append(F.dropout(torch.ones(64), 0.5).tolist())
            return cross_entropy(model, batch)

        fit(network(), engine, loss, batches=lambda step: batches(0), steps=3)
        return found

    alone, first, second = dropped(0, 1), dropped(0, 2), dropped(1, 2)
    assert first == alone
    assert len({tuple(mask) for mask in [*first, *second]}) == 6


def test_buffers_that_every_process_computes_are_not_sent(engine):
    assert engine.ddp_handler.broadcast_buffers is False


def without_dropout() -> nn.Sequential:
    model = network()
    model[2] = nn.Identity()
    return model


@pytest.mark.parametrize("rows", [8, 1])
def test_micro_batches_give_the_gradient_of_the_whole_batch(make_engine, rows):
    """Also where a last batch has fewer rows than there are micro-batches."""
    found = []
    for micro_batches in (1, 2):
        model, losses = without_dropout(), []
        fit(
            model,
            make_engine(micro_batches),
            steps=5,
            batches=partial(batches, rows=rows),
            log=lambda step, m, losses=losses: losses.append(m["loss"]),
        )
        found.append((state(model), losses))
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    for key, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][key], value, atol=1e-4, rtol=1e-3)


@pytest.fixture
def fresh_process():
    """Accelerate fixes the precision once a process; forget it before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "no"), ("bf16", "bf16")])
def test_the_engine_computes_in_the_precision_it_was_given(fresh_process, precision, expected):
    engine = accelerator(Cpu(precision=precision))
    assert engine.mixed_precision == expected
    assert engine.device.type == "cpu"
    linear = nn.Linear(4, 4)
    with engine.autocast():
        assert linear(torch.ones(1, 4)).dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_the_engine_seeds_torch():
    accelerator(Cpu(seed=5))
    one = torch.rand(3)
    accelerator(Cpu(seed=5))
    assert torch.equal(torch.rand(3), one)


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_parameters_are_refused(monkeypatch, name):
    monkeypatch.setenv(name, "true")
    with pytest.raises(ConfigError, match=rf"expected whole parameters on every process \(DDP\), found {name}"):
        accelerator(Cpu())
