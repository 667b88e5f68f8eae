"""Things of this machine that several layers share: cores, retries, atomic writes, and the text of an error."""

from __future__ import annotations

import errno
import os
import secrets
import shlex
import stat
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from lsml_cli.errors import LsmlError, UsageError
from lsml_cli.transient import is_transient

OUTAGE_THRESHOLD = 3  # consecutive steps that failed in spite of retries

DEFAULT_FETCH_THREADS = 16  # threads that fetch media

MAX_INTEGER = 2**63 - 1  # the largest that JSON files, arrays and counters can hold

DISK_FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # the disk, a quota, a limit on file size

MAX_REASON_LENGTH = 4000  # characters of the text of an exception
SAFE_PATH_VARIABLE = "PYTHONSAFEPATH"  # keeps the working folder off the import path of a Python process
ONE_FILE_VARIABLE = "LSML_BINARY"  # the path of the one-file lsml, set by its launcher
_SET_BY_LSML = "lsml"  # a value of that variable: any but the empty one has the effect

T = TypeVar("T")

FetchMedia = Callable[[str, int | None], bytes]  # (value, id of its task) -> content


def error_reason(error: BaseException) -> str:
    """Describe an exception in one line: by its text if that is written for users, with its type otherwise.

    A text that is longer than MAX_REASON_LENGTH, such as one that quotes a whole task, is cut in the middle.
    """
    try:
        text = " ".join(str(error).split()).encode("utf-8", "replace").decode()
    except Exception:  # a foreign exception may fail to format itself
        text = ""
    if len(text) > MAX_REASON_LENGTH:
        text = f"{text[: MAX_REASON_LENGTH // 2]} ... {text[-MAX_REASON_LENGTH // 2 :]}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError | LsmlError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def available_cores() -> int:
    """Return how many cores this process may use: those it is allowed on, or fewer if OMP_NUM_THREADS says so.

    The processes of a run get their share through that variable, because PyTorch and NumPy obey it, too.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(allowed, int(limit)) if limit.isdecimal() and int(limit) else allowed


def install_hint(*requirements: str) -> str:
    """Return the command that installs packages, see `install_command_hint`."""
    return install_command_hint(f"pip install {shlex.join(requirements)}")


def install_command_hint(command: str) -> str:
    """Return a command that installs something; in the one-file lsml, a sentence that says where it has to be run."""
    if not is_one_file():
        return command
    return f"This one-file lsml cannot install packages; an lsml installed with pip can: {command}"


def is_one_file() -> bool:
    """Return whether this is the lsml that is one file: its launcher sets the variable."""
    return bool(os.environ.get(ONE_FILE_VARIABLE))


def python_command(*arguments: str) -> list[str]:
    """Return the command of a Python process with lsml's import path; to be started with `python_environment`.

    Without -P, Python would import from the working folder first, which may hold data, and among them a `torch.py`.

    Args:
        arguments: `-m`, the module, and its arguments; or `-c` and the code.
    """
    return [sys.executable, "-P", *arguments]


def python_environment() -> dict[str, str]:
    """Return the environment for a `python_command`."""
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}  # noqa: PTH109


@contextmanager
def safe_child_import_path() -> Iterator[None]:
    """Start the processes of `multiprocessing` without the working folder on their import path.

    They import a few modules before they take over the import path of this process. `restore_child_environment` removes
    the variable in the child, so that programs that a model starts find the modules beside them.
    """
    previous = os.environ.get(SAFE_PATH_VARIABLE)
    os.environ[SAFE_PATH_VARIABLE] = previous or _SET_BY_LSML
    try:
        yield
    finally:
        if previous is None:
            os.environ.pop(SAFE_PATH_VARIABLE, None)
        else:
            os.environ[SAFE_PATH_VARIABLE] = previous


def restore_child_environment() -> None:
    """Undo in a child process what `safe_child_import_path` has set."""
    if os.environ.get(SAFE_PATH_VARIABLE) == _SET_BY_LSML:
        del os.environ[SAFE_PATH_VARIABLE]


def physical_memory() -> int | None:
    """Return the bytes of memory that this machine has, None if it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def open_own_file(path: Path, flags: int) -> int:
    """Open a file that lsml keeps beside another one, such as `out.json.part`, and return its descriptor.

    Such a name may be planted by whoever made the folder. What stands there is opened only if writing it changes
    nothing else: no link is followed, and no device, pipe or file of somebody else is opened.

    Args:
        path: The file.
        flags: Of `os.open`, without O_TRUNC: truncate when this function has accepted the file.

    Raises:
        UsageError: The name leads elsewhere.
        OSError: The file cannot be opened.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError:
        require_own_file(path)  # for the better message, where a link or a pipe stands there
        raise
    try:
        _require_own_status(path, os.fstat(handle))
    except BaseException:
        os.close(handle)
        raise
    return handle


def require_own_file(path: Path) -> None:
    """Raise what `open_own_file` would raise, without opening the file; a missing file is fine.

    Raises:
        UsageError: The name leads elsewhere.
    """
    try:
        status = path.lstat()
    except OSError:
        return
    _require_own_status(path, status)


def _require_own_status(path: Path, status: os.stat_result) -> None:
    objection = None
    if stat.S_ISLNK(status.st_mode):
        objection = "is a symbolic link"
    elif stat.S_ISDIR(status.st_mode):
        objection = "is a folder"
    elif not stat.S_ISREG(status.st_mode):
        objection = "is a device or a pipe"
    elif status.st_nlink > 1:
        objection = "is a hard link to another file"
    elif status.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
        # The owner of the folder may replace its files anyway; some network file systems show one owner for all.
        objection = "belongs to another user"
    if objection is not None:
        raise UsageError(
            f"{path} {objection}, and lsml needs that name for a file of its own.", "Remove it, or write elsewhere."
        )


def open_for_writing(path: Path) -> BinaryIO:
    """Open a file of lsml's own for writing from its beginning, see `open_own_file`."""
    handle = open_own_file(path, os.O_WRONLY | os.O_CREAT)
    os.ftruncate(handle, 0)
    return os.fdopen(handle, "wb")


def read_small_file(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of a known kind as a whole: a pipe would be waited for, a device may never end.

    Raises:
        OSError: It cannot be read, is something else, or is larger.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        content = b"" if status.st_size > max_bytes else file.read(max_bytes + 1)
    if max(len(content), status.st_size) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes:,} bytes", str(path))
    return content


def write_atomically(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a new file beside `path` and rename it, so that no reader sees half of it.

    Args:
        path: Where the file appears. A link that stands there is replaced, not followed.
        content: What it holds.
        sync: Wait until the content is on the disk.

    Raises:
        OSError: The file cannot be written; nothing is left beside `path`.
    """
    part = path.with_name(f".lsml-{os.getpid()}-{secrets.token_hex(8)}.new")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to a path that the user named.

    A file appears when it is complete; a device or a named pipe is written in place; a link stays, and its target is
    written.

    Raises:
        OSError: It cannot be written.
    """
    if path.exists() and not path.is_file():  # /dev/stderr or a named pipe, which cannot be replaced
        path.write_bytes(content)
    else:
        write_atomically(Path(os.path.realpath(path)) if path.is_symlink() else path, content)


class Retrier:
    """Retry steps that fail with transient errors, until something is known to be down.

    After `OUTAGE_THRESHOLD` consecutive steps of one kind that failed in spite of retries, further ones are tried only
    once, until one succeeds. Otherwise a hundred tasks would wait for a server that is down, one after the other.

    Args:
        delays: Seconds before each retry.
        should_retry: Tells whether another try may succeed after an exception.
    """

    def __init__(self, delays: Sequence[float], should_retry: Callable[[BaseException], bool] = is_transient) -> None:
        self._delays = delays
        self._should_retry = should_retry
        self._consecutive_failures: dict[str, int] = {}
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Stop waiting: a step that fails from now on is not retried."""
        self._cancelled.set()

    def call(self, step: Callable[[], T], kind: str = "") -> T:
        """Call `step`, again after each delay while its error is transient, and return its result.

        Args:
            step: What to do.
            kind: Consecutive failures are counted for each kind.

        Raises:
            Exception: What the last call of `step` raised.
        """
        delays = iter(self._delays if self._consecutive_failures.get(kind, 0) < OUTAGE_THRESHOLD else ())
        while True:
            try:
                result = step()
            except Exception as error:
                if not self._should_retry(error):
                    raise
                delay = next(delays, None)
                if delay is None or self._cancelled.wait(delay):
                    self._consecutive_failures[kind] = self._consecutive_failures.get(kind, 0) + 1
                    raise
            else:
                if self._consecutive_failures:
                    self._consecutive_failures.pop(kind, None)
                return result
