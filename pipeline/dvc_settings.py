"""DVC's settings, read without DVC: the system's, the user's, the project's, this clone's. And where its cache lies."""

import configparser
import os
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from pruneonce.errors import ConfigError

Settings = Mapping[str, Mapping[str, str]]


def files(project: Path = Path()) -> list[Path]:
    """The files of settings that may be there. What a later one says counts."""
    system = os.environ.get("DVC_SYSTEM_CONFIG_DIR") or platformdirs.site_config_dir("dvc", "iterative")
    user = os.environ.get("DVC_GLOBAL_CONFIG_DIR") or platformdirs.user_config_dir("dvc", "iterative")
    folders = (Path(system), Path(user), project / ".dvc")
    return [*(folder / "config" for folder in folders), project / ".dvc/config.local"]


def read(*paths: Path) -> Settings:
    """Section -> key -> value of some files. Raises ConfigError for a damaged one."""
    found = configparser.ConfigParser(interpolation=None, strict=False)
    for path in paths:
        try:
            found.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"expected settings of DVC in {path}, found: {error}. Correct the file.") from None
    return {name.strip("'"): dict(found[name]) for name in found.sections()}


def cache(project: Path = Path()) -> Path:
    """The folder in which DVC keeps every version of every out. A relative one begins at the file that names it."""
    named = {file: read(file).get("cache", {}).get("dir") for file in files(project)}
    return [project / ".dvc/cache", *(file.parent / Path(given).expanduser() for file, given in named.items() if given)][-1]
