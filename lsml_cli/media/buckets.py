"""Files in buckets, with the credentials of this machine, through the drivers of fsspec.

How long a request may take and how often it is tried is up to the driver and its own settings.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from lsml_cli.errors import TransientError
from lsml_cli.media.resolver import abbreviate

# scheme, as Label Studio spells it -> fsspec's protocol, the extra of lsml that brings its driver
DRIVERS = {"s3": ("s3", "s3"), "gs": ("gs", "gcs"), "azure-blob": ("az", "azure")}

# By name, because they are classes of botocore, aiohttp and azure.core, none of which has to be there.
_TRANSIENT_ERROR_NAMES = {
    *("HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError"),
    *("ServiceRequestError", "ServiceResponseError"),
}


class BucketAccessError(ValueError):
    """There is no driver, or no credentials that open this bucket: somebody else may have them."""


def read(uri: str, max_bytes: int) -> bytes:
    """The bytes at "s3://bucket/key" (gs://, azure-blob://).

    Raises NoAccess, ValueError when there is no such file or it is too large, TransientError when it may be had later.
    """
    content = _access_file(uri, max_bytes, "read")
    assert isinstance(content, bytes)
    return content


def check_readable(uri: str, max_bytes: int) -> None:
    """Raises what `read` would raise, without reading."""
    _access_file(uri, max_bytes, "ask")


def missing_driver_message(uri: str) -> str | None:
    """The sentence about the driver that has to be installed first; None when it is there."""
    try:
        _file_system_class(uri)
    except BucketAccessError as error:
        return str(error)
    return None


def _access_file(uri: str, max_bytes: int, mode: str) -> bytes | None:
    path = uri.partition("://")[2]
    file_system_class = _file_system_class(uri)
    try:
        # Not by fsspec's URLs: "s3://bucket/a::file:///etc/passwd" is one, and reads a file of this machine.
        file_system = file_system_class()
        facts = file_system.info(path)
        if facts.get("type") == "directory":
            raise IsADirectoryError
        size = facts.get("size")
        if isinstance(size, int) and size > max_bytes:
            raise _TooLarge
        if mode == "ask":
            return None
        content = bytes(file_system.cat_file(path))
        if len(content) > max_bytes:
            raise _TooLarge
        return content
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
    except Exception as error:  # drivers raise what their libraries raise
        if _is_transient(error):
            raise TransientError(f"{abbreviate(uri)}: {_describe_error(error)}") from None
        raise BucketAccessError(f"{abbreviate(uri)}: {_describe_error(error)}") from None


def _is_transient(error: Exception) -> bool:
    """Whether an exception of a driver's own is about a connection or a server, not about credentials or a bucket."""
    status = getattr(error, "status_code", getattr(error, "code", None))
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    return not _TRANSIENT_ERROR_NAMES.isdisjoint(kind.__name__ for kind in type(error).__mro__)


class _TooLarge(Exception):
    pass


def _file_system_class(uri: str) -> Any:
    scheme = urlsplit(uri).scheme
    protocol, extra = DRIVERS[scheme]
    try:
        import fsspec

        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        if isinstance(missing, ModuleNotFoundError):
            raise BucketAccessError(
                f"{scheme}:// needs a driver that is not installed: pip install 'lsml[{extra}]'"
            ) from None
        raise BucketAccessError(f"the driver for {scheme}:// cannot be imported: {_describe_error(missing)}") from None


def _describe_error(error: BaseException) -> str:
    text = abbreviate(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
