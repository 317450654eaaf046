"""Laws of a saved training state: however its file is damaged, the run ends with the bytes of one never interrupted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import EverySteps
from tests.conftest import cpu_engine
from tests.unit.test_loop import Interrupted, fit, network, schedule, state

STEPS, SAVED_AT = 6, 4


def trained(folder=None, *, stop_at=None, said=None):
    """The state after training, or what was reached; `said` gets the step it began at."""
    model, began = network(), []

    def before_step(step):
        began.append(step)
        return schedule(model, step, stop_at=stop_at)

    states = EverySteps(folder, steps=SAVED_AT) if folder else None
    fit(model, cpu_engine(), before_step=before_step, steps=STEPS, checkpoints=states)
    if said is not None:
        said.append(began[0])
    return state(model)


@pytest.fixture(scope="module")
def whole():
    return trained()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a state, and a place for it."""
    path = tmp_path_factory.mktemp("scratch") / f"state-{SAVED_AT:08}.safetensors"
    with pytest.raises(Interrupted):
        trained(path.parent, stop_at=SAVED_AT + 1)
    return path.read_bytes(), path


def flip(content: bytes, place: int, value: int) -> bytes:
    place %= len(content)
    return content[:place] + bytes([content[place] ^ value]) + content[place + 1 :]


def flip_in_header(content: bytes, place: int, value: int) -> bytes:
    return flip(content, place % (8 + int.from_bytes(content[:8], "little")), value)


def blank(content: bytes, place: int, value: int) -> bytes:
    place %= len(content)
    return content[:place] + bytes(len(content[place : place + value])) + content[place + value :]


def cut(content: bytes, place: int, value: int) -> bytes:
    return content[: place % len(content)]


def remove(content: bytes, place: int, value: int) -> bytes:
    place %= len(content)
    return content[:place] + content[place + value :]


def append(content: bytes, place: int, value: int) -> bytes:
    return content + bytes([value]) * (1 + place % 100)


def put(content: bytes, place: int, value: int) -> bytes:
    place %= len(content)
    return content[:place] + bytes([value]) + content[place:]


DAMAGES = [flip, flip_in_header, blank, cut, remove, append, put]


@given(damage=st.sampled_from(DAMAGES), place=st.integers(0, 1 << 20), value=st.integers(1, 255))
def test_a_damaged_state_never_gives_another_model(whole, saved, damage, place, value):
    content, path = saved
    path.write_bytes(damage(content, place, value))
    found = trained(path.parent)
    assert found.keys() == whole.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


def test_the_state_itself_is_believed(whole, saved):
    """Else the law above would hold of a training that always begins again."""
    content, path = saved
    path.write_bytes(content)
    said = []
    found = trained(path.parent, said=said)
    assert said == [SAVED_AT]
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("damage", [flip, blank, cut, remove, append, put], ids=lambda damage: damage.__name__)
def test_each_damage_of_the_weights_is_noticed_and_said_on_one_line(saved, damage, capsys):
    content, path = saved
    path.write_bytes(damage(content, len(content) - 40, 64))
    said = []
    trained(path.parent, said=said)
    lines = [line for line in capsys.readouterr().err.splitlines() if "It is discarded: from step 0 again." in line]
    assert said == [0]
    assert len(lines) == 1
    assert str(path) in lines[0]
