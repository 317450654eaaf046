"""DVC's remote is gone while results are pushed: a disk that is full or read-only, an S3 that stops. Then it is back."""

import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer

from tests.faults.case import Case
from tests.faults.disk import Disk, disk
from tests.faults.ground import TRAINED, Copy, Ground, wait
from tests.faults.proxy import PASS, REFUSE, Proxy

KEYS = {
    "AWS_ACCESS_KEY_ID": "any",
    "AWS_SECRET_ACCESS_KEY": "any",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}


def suite(ground: Ground) -> Iterator[Case]:
    for number, (name, what) in enumerate(CASES.items()):
        copy = ground.copy(f"remote-{number}")
        lost = what(copy)
        yield Case("remote", name, (*lost, *copy.different(*TRAINED)))


def _of_a_folder(spoil: Callable[[Disk], object], mend: Callable[[Disk], object]) -> Callable[[Copy], list[str]]:
    """The remote's disk has room for some files; spoil it while they arrive; push again when it is mended."""

    def what(copy: Copy) -> list[str]:
        store = copy.folder.with_name(f"{copy.folder.name}-store")
        with disk(store) as small:
            copy.run("dvc", "remote", "add", "--default", "store", str(store))
            small.fill(room=150_000)
            pushing = copy.start("dvc", "push")
            wait(lambda: any(store.rglob("files/md5/*/*")) or pushing.poll() is not None, every=0.0)
            spoil(small)
            code = pushing.wait(900)
            lost = [] if code else ["the push ended with success"]
            lost += [] if "ERROR" in copy.said() and "Traceback" not in copy.said() else [f"no line: {copy.said()[-300:]}"]
            mend(small)
            small.free()
            return lost + _pushed_and_pulled(copy)

    return what


def stopped(copy: Copy) -> list[str]:
    """An S3 that answers some requests, then none."""
    with s3(copy) as proxy:
        proxy.limit = 12
        done = copy.run("dvc", "push")
        lost = [] if done.returncode and "ERROR" in done.stdout else [f"no line: {done.stdout[-300:]}"]
        lost += ["a traceback"] if "Traceback" in done.stdout else []
        proxy.limit = 10**9
        return lost + _pushed_and_pulled(copy)


def absent(copy: Copy) -> list[str]:
    with s3(copy) as proxy:
        proxy.mode = REFUSE
        done = copy.run("dvc", "push")
        lost = [] if done.returncode and "ERROR" in done.stdout else [f"no line: {done.stdout[-300:]}"]
        proxy.mode = PASS
        return lost + _pushed_and_pulled(copy)


@contextmanager
def s3(copy: Copy) -> Iterator[Proxy]:
    """An S3 server behind a proxy, with a bucket that is the copy's remote."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it prints every request
    server.start()
    try:
        proxy, name = Proxy(server.get_host_and_port()[1]), copy.folder.name
        copy.environment |= KEYS
        import boto3

        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=proxy.address, **keys).create_bucket(Bucket=name)
        copy.run("dvc", "remote", "add", "--default", "store", f"s3://{name}/dvc")
        copy.run("dvc", "remote", "modify", "store", "endpointurl", proxy.address)
        yield proxy
    finally:
        server.stop()


def _pushed_and_pulled(copy: Copy) -> list[str]:
    """Push to the end; then a copy without a cache and without outs pulls the same bytes."""
    done = copy.run("dvc", "push")
    lost = [_told("push", done)] if done.returncode else []
    for path in (".dvc/cache", ".dvc/tmp", *(out for stage in TRAINED for out in copy.ground.outs(stage)[:1])):
        shutil.rmtree(copy.folder / path, ignore_errors=True)
    done = copy.run("dvc", "pull", *TRAINED)
    return lost + ([_told("pull", done)] if done.returncode else [])


def _told(what: str, done: subprocess.CompletedProcess[str]) -> str:
    return f"the {what} ended with {done.returncode}: {done.stdout[-300:]}"


def _remount(how: str) -> Callable[[Disk], object]:
    return lambda small: subprocess.run(["mount", "-o", f"remount,{how}", str(small.folder)], check=True)


CASES: dict[str, Callable[[Copy], list[str]]] = {
    "its disk is full in the middle": _of_a_folder(lambda small: None, Disk.free),
    "its disk becomes read-only in the middle": _of_a_folder(_remount("ro"), _remount("rw")),
    "an S3 that stops in the middle": stopped,
    "an S3 that is not there at all": absent,
}
