"""Every error that a user can cause or meet, as one small tree.

    PruneOnceError
    ├── ConfigError          params.yaml: a key missing, unknown, out of range, out of order
    ├── SourceError          a source cannot be had: no index, no such revision, no such member or file
    │   ├── ChecksumMismatch     it came, but it is not what was pinned
    │   └── UnsafeArchive        a member would land outside its folder
    ├── DataError            what a source holds is not what the task says: column, label, encoding, emptiness
    ├── ModelError           a model without the layers, the weights, the head or the positions that were asked for
    ├── LossNotFinite        training diverged; the optimizer was not stepped
    ├── PatternBroken        a weight that was pruned is no longer zero
    ├── ExportError          the exported graph is not what was trained: parity, kernels, zeros
    ├── PackError            a file that is no ONNX file, or a packed one that is damaged, cut short or foreign
    ├── KernelsError         the sparse kernels cannot be built, or are not there though they were asked for
    ├── NotPromoted          a gate does not hold: no alias was moved
    ├── TrackerUnreachable   the MLflow server does not answer
    ├── PipelineError        what DVC or Prefect work with: a file or folder of theirs damaged, no server
    └── AlreadyRunning       another run is going in this folder

A message says what was expected, what was found and what to do next. It is one line, without a password.
"""

import errno
import re

LONGEST = 2000  # characters of a message; what stands in the middle of a longer one is left out


def plain(text: object) -> str:
    """`text` as one line that may be shown and stored anywhere.

    White space and control characters become one blank, half of a surrogate pair its escape. A URL loses its user and
    password: `http://me:secret@host` is `http://host`, `?password=secret` is `?password=***`. Of more than LONGEST
    characters the middle is left out.
    """
    line = str(text).encode("utf-8", "backslashreplace").decode()
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", line).strip()
    line = re.sub(r"(?<=://)(?:[^\s/'\"]*|[^\s/:'\"]*:(?!\d+/)[^\s'\"]*)@", "", line)  # also of a password with a `/` in it
    line = re.sub(
        r"(?i)([?&](?:[\w-]*(?:password|passwd|pwd|token|secret|api[_-]?key|access[_-]?key)|user)=)[^&\s'\"]+",
        r"\1***",
        line,
    )
    half = LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]} ... {line[-half:]}"


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether the error says that the disk or the quota is full.

    Libraries in Rust (safetensors, hf_xet) raise errors without `errno`: their message holds the number.
    """
    full = (errno.ENOSPC, errno.EDQUOT)
    written = re.search(r"\(os error (\d+)\)", str(error))
    return getattr(error, "errno", None) in full or (written is not None and int(written[1]) in full)


def system_failed(error: BaseException | None) -> bool:
    """Return whether the system failed under a computation that may be right: no memory left, a disk that went away.

    PyTorch has no class of its own for a lack of main memory. A GPU that is too small is not counted: it stays so.
    """
    lost = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.EREMOTEIO)
    no_memory = isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
    return no_memory or (isinstance(error, OSError) and error.errno in lost)


class PruneOnceError(Exception):
    """Base of all: caught once, at the top of a stage or a flow, and shown without a traceback, as one `plain` line."""

    def __init__(self, message: object = ""):
        super().__init__(plain(message))


class ConfigError(PruneOnceError):
    """params.yaml or a profile is not valid."""


class SourceError(PruneOnceError):
    """A source cannot be fetched."""


class ChecksumMismatch(SourceError):
    """The sha256 of what arrived differs from the pinned one; nothing was unpacked."""


class UnsafeArchive(SourceError):
    """An archive member would be written outside its folder."""


class DataError(PruneOnceError):
    """A file does not hold what the task says it holds."""


class ModelError(PruneOnceError):
    """A model lacks the layers, weights, head or positions that were asked for."""


class LossNotFinite(PruneOnceError):
    """Loss or gradient norm became inf or nan; the optimizer was not stepped."""


class PatternBroken(PruneOnceError):
    """A weight that was zero when the stage began is not zero when it ends."""


class ExportError(PruneOnceError):
    """The ONNX file does not compute what the model computes, or not with the kernels it must."""


class PackError(PruneOnceError):
    """A file cannot be packed, unpacked or loaded; nothing was written."""


class KernelsError(PruneOnceError):
    """The library of the sparse kernels cannot be built or loaded; models run without it."""


class NotPromoted(PruneOnceError):
    """A model does not hold what `gates` asks of a champion; its alias stays where it was."""


class TrackerUnreachable(PruneOnceError):
    """The MLflow tracking server does not answer."""


class PipelineError(PruneOnceError):
    """DVC cannot read its files, or write where it must; Prefect has no server."""


class AlreadyRunning(PruneOnceError):
    """Another run is going in this folder."""
