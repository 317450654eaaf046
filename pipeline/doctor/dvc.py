"""DVC's project, and its remotes: whether they answer."""

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pipeline import dvc_settings
from pruneonce.doctor.findings import NOTE, OK, PROBLEM, Finding
from pruneonce.doctor.packages import version
from pruneonce.errors import ConfigError, plain

HOME = Path(".dvc")
# Scheme of a remote -> the package that DVC needs for it.
PLUGINS = {"s3": "dvc-s3", "gs": "dvc-gs", "azure": "dvc-azure", "ssh": "dvc-ssh", "http": "dvc-http", "https": "dvc-http"}
PORTS = {"ssh": 22, "http": 80, "https": 443}
WAIT_SECONDS = 1.0


def project() -> Iterator[Finding]:
    """Whether DVC's folder is there, and can be read."""
    if not (HOME / "config").is_file():
        yield Finding(
            "dvc", PROBLEM, f"expected {HOME / 'config'}, found none: this folder is no project of DVC", "dvc init"
        )
        return
    try:
        dvc_settings.read(*dvc_settings.files())
    except ConfigError as error:
        yield Finding("dvc", PROBLEM, str(error))


def remotes() -> Iterator[Finding]:
    """The remotes: whether there is one, whether each can be reached."""
    said = dvc_settings.read(*dvc_settings.files())
    urls = {name.split('"')[1]: section.get("url", "") for name, section in said.items() if name.startswith("remote ")}
    if not urls:
        advice = "To share or back up results: dvc remote add --default NAME URL (docs/servers.md)."
        yield Finding("remote", NOTE, "none: what was computed lies on this disk alone", advice)
        return
    default = said.get("core", {}).get("remote")
    if default not in urls:
        yield Finding("remote", NOTE, f"no default among {', '.join(urls)}", f"dvc remote default {next(iter(urls))}")
    for name, url in urls.items():
        yield _reached(name, url, said[f'remote "{name}"'])


def _reached(name: str, url: str, section: Mapping[str, str]) -> Finding:
    shown, asked = f"{name} ({plain(url)})", section.get("endpointurl", url)
    try:
        parts, server = urlsplit(url), urlsplit(asked)
        port = server.port or PORTS.get(server.scheme)
    except ValueError:
        return no_address("remote", f"{name} ({plain(asked)})")
    plugin = PLUGINS.get(parts.scheme)
    if plugin and version(plugin) is None:
        return Finding("remote", PROBLEM, f"{shown} needs {plugin}, found none", f"pip install {plugin}")
    if not parts.scheme:
        return _folder(shown, HOME / Path(url).expanduser())
    if server.scheme not in PORTS or not server.hostname or port is None:
        return Finding("remote", OK, f"{shown}: not tried, because that needs its keys")
    if error := refused(server.hostname, port):
        return Finding("remote", PROBLEM, f"{shown} does not answer: {error}", "Check the address and the network.")
    return Finding("remote", OK, f"{shown} answers")


def _folder(shown: str, folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding("remote", PROBLEM, f"{shown}: no folder there", f"Mount it, or make it: mkdir -p {folder}")
    if not os.access(folder, os.R_OK | os.W_OK):
        return Finding("remote", PROBLEM, f"{shown} cannot be read and written", "Change its permissions.")
    return Finding("remote", OK, f"{shown}: {shutil.disk_usage(folder).free / 1e9:.0f} GB are free")


def no_address(about: str, shown: str) -> Finding:
    """The finding for an address without a host or a port. Python's message may hold a part of its password."""
    advice = "A password in it has %2F for /, %23 for #, %3F for ?."
    return Finding(about, PROBLEM, f"expected a host and a port in {shown}, found another address", advice)


def refused(host: str, port: int) -> str:
    """Why no connection to a server is made; empty if one is."""
    try:
        with socket.create_connection((host, port), timeout=WAIT_SECONDS):
            return ""
    except OSError as error:
        return str(error) or type(error).__name__
