"""What a message of ours may be: one line, of a bounded length, without a password."""

import pickle

import pytest

from pruneonce import errors
from pruneonce.errors import LONGEST, PruneOnceError, plain

SHOWN = {
    "postgresql://me:s3cret@db.example.org:5432/mlflow": "postgresql://db.example.org:5432/mlflow",
    "http://token@host/simple": "http://host/simple",
    "http://me:p@ss@host/a and https://u:p@h": "http://host/a and https://h",
    "mysql+pymysql://u:p%40ss@h/db": "mysql+pymysql://h/db",
    "'http://me:s3cret@host'": "'http://host'",
    "postgresql://me:p/s#s?s@host/db": "postgresql://host/db",
    "postgresql://host/db?user=me&password=s3cret&sslmode=require": "postgresql://host/db?user=***&password=***&sslmode=require",
    "https://host/a?x=1&api_key=s3cret&access_key=s3&passwd=s&pwd=t": (
        "https://host/a?x=1&api_key=***&access_key=***&passwd=***&pwd=***"
    ),
    "https://host/?apikey=s3cret&X-API-Key=s3&secret_access_key=s&key=k": (
        "https://host/?apikey=***&X-API-Key=***&secret_access_key=***&key=k"
    ),
    "http://host:5000/a@b": "http://host:5000/a@b",
    "http://host/a@b": "http://host/a@b",
    "http://host/?to=a@b": "http://host/?to=a@b",
    "write to me@example.org": "write to me@example.org",
    "one\n  two\r\n\tthree\x00four\x1b[31m": "one two three four [31m",
    "half a pair \ud800": "half a pair \\ud800",
}


@pytest.mark.parametrize("said", SHOWN)
def test_a_message_is_one_line_without_a_password(said):
    assert plain(said) == SHOWN[said]
    assert str(PruneOnceError(said)) == SHOWN[said]
    assert plain(plain(said)) == plain(said)


def test_of_a_long_message_the_middle_is_left_out():
    shown = plain("expected " + "9" * 50_000 + " do this")
    assert len(shown) < LONGEST + 10
    assert shown.startswith("expected 9")
    assert shown.endswith("9 do this")


def test_every_error_of_the_tree_is_one_line_and_survives_a_pickle():
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PruneOnceError)]
    assert len(found) == 16
    for kind in found:
        error = pickle.loads(pickle.dumps(kind("two\nlines")))
        assert (type(error), str(error)) == (kind, "two lines")
