"""Read files in buckets with the credentials of this machine, through the drivers of fsspec.

Timeouts and retries are those of the driver and its own settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from lsml_cli.errors import TransientError
from lsml_cli.media.resolver import abbreviate
from lsml_cli.runtime import install_hint

# scheme, as Label Studio spells it -> (protocol of fsspec, extra of lsml that installs its driver)
DRIVERS = {"s3": ("s3", "s3"), "gs": ("gs", "gcs"), "azure-blob": ("az", "azure")}

# Names of classes of botocore, aiohttp and azure.core, none of which has to be installed.
_TRANSIENT_ERROR_NAMES = {
    *("HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError"),
    *("ServiceRequestError", "ServiceResponseError"),
}


class BucketAccessError(ValueError):
    """There is no driver, or the credentials of this machine do not open this bucket; Label Studio's may."""


def read(uri: str, max_bytes: int) -> bytes:
    """Return the bytes at "s3://bucket/key" (gs://, azure-blob://).

    Raises:
        BucketAccessError: There is no driver, or the credentials do not open the bucket.
        ValueError: There is no such file, or it is too large.
        TransientError: The file may be had later.
    """
    with _translate_errors(uri, max_bytes):
        file_system, path = _open_checked(uri, max_bytes)
        content = bytes(file_system.cat_file(path))
        if len(content) > max_bytes:
            raise _TooLarge
        return content


def check_readable(uri: str, max_bytes: int) -> None:
    """Raise what `read` would raise, without reading the file."""
    with _translate_errors(uri, max_bytes):
        _open_checked(uri, max_bytes)


def missing_driver_message(uri: str) -> str | None:
    """Return the message about a driver that has to be installed first, None if it is there."""
    try:
        _file_system_class(uri)
    except BucketAccessError as error:
        return str(error)
    return None


def _open_checked(uri: str, max_bytes: int) -> tuple[Any, str]:
    """Return the file system and the path of a file, after checking that it exists and how large it is."""
    path = uri.partition("://")[2]
    # Not by fsspec's URLs: "s3://bucket/a::file:///etc/passwd" is one, and reads a file of this machine.
    file_system = _file_system_class(uri)()
    info = file_system.info(path)
    if info.get("type") == "directory":
        raise IsADirectoryError
    size = info.get("size")
    if isinstance(size, int) and size > max_bytes:
        raise _TooLarge
    return file_system, path


@contextmanager
def _translate_errors(uri: str, max_bytes: int) -> Iterator[None]:
    """Translate errors of a driver in the block; a driver also raises whatever its own libraries raise."""
    try:
        yield
    except BucketAccessError:
        raise
    except _TooLarge:
        raise ValueError(f"{abbreviate(uri)} has more than {max_bytes:,} bytes") from None
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"there is no file {abbreviate(uri)}") from None
    except PermissionError as error:
        raise BucketAccessError(
            f"{abbreviate(uri)}: the credentials of this machine do not open it ({_describe_error(error)})"
        ) from None
    except (OSError, TimeoutError) as error:
        raise TransientError(f"{abbreviate(uri)}: {_describe_error(error)}") from None
    except Exception as error:
        if _is_transient(error):
            raise TransientError(f"{abbreviate(uri)}: {_describe_error(error)}") from None
        raise BucketAccessError(f"{abbreviate(uri)}: {_describe_error(error)}") from None


def _is_transient(error: Exception) -> bool:
    """Return whether an exception of a driver is about a connection or a server, not credentials or a bucket."""
    status = getattr(error, "status_code", getattr(error, "code", None))
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    return not _TRANSIENT_ERROR_NAMES.isdisjoint(base.__name__ for base in type(error).__mro__)


class _TooLarge(Exception):
    """The file is larger than allowed."""


def _file_system_class(uri: str) -> Any:
    """Return the driver of a URI's scheme; raise BucketAccessError without one."""
    scheme = urlsplit(uri).scheme
    protocol, extra = DRIVERS[scheme]
    try:
        import fsspec

        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        if isinstance(missing, ModuleNotFoundError):
            raise BucketAccessError(
                f"{scheme}:// needs a driver that is not installed: {install_hint(f'lsml[{extra}]')}"
            ) from None
        raise BucketAccessError(f"the driver for {scheme}:// cannot be imported: {_describe_error(missing)}") from None


def _describe_error(error: BaseException) -> str:
    text = abbreviate(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
