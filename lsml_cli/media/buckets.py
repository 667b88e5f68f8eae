"""Files in buckets, with the credentials of this machine, through the drivers of fsspec.

How long a request may take and how often it is tried is up to the driver and its own settings.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from lsml_cli.errors import TransientError
from lsml_cli.media.resolver import shown

# scheme, as Label Studio spells it -> fsspec's protocol, the extra of lsml that brings its driver
DRIVERS = {"s3": ("s3", "s3"), "gs": ("gs", "gcs"), "azure-blob": ("az", "azure")}

# By name, because they are classes of botocore, aiohttp and azure.core, none of which has to be there.
_PASSING = {
    *("HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError"),
    *("ServiceRequestError", "ServiceResponseError"),
}


class NoAccess(ValueError):
    """There is no driver, or no credentials that open this bucket: somebody else may have them."""


def read(uri: str, largest: int) -> bytes:
    """The bytes at "s3://bucket/key" (gs://, azure-blob://).

    Raises NoAccess, ValueError when there is no such file or it is too large, TransientError when it may be had later.
    """
    content = _asked(uri, largest, "read")
    assert isinstance(content, bytes)
    return content


def ask(uri: str, largest: int) -> None:
    """Raises what `read` would raise, without reading."""
    _asked(uri, largest, "ask")


def missing_driver(uri: str) -> str | None:
    """The sentence about the driver that has to be installed first; None when it is there."""
    try:
        _file_system_class(uri)
    except NoAccess as error:
        return str(error)
    return None


def _asked(uri: str, largest: int, how: str) -> bytes | None:
    path = uri.partition("://")[2]
    file_system_class = _file_system_class(uri)
    try:
        # Not by fsspec's URLs: "s3://bucket/a::file:///etc/passwd" is one, and reads a file of this machine.
        file_system = file_system_class()
        facts = file_system.info(path)
        if facts.get("type") == "directory":
            raise IsADirectoryError
        size = facts.get("size")
        if isinstance(size, int) and size > largest:
            raise _TooLarge
        if how == "ask":
            return None
        content = bytes(file_system.cat_file(path))
        if len(content) > largest:
            raise _TooLarge
        return content
    except _TooLarge:
        raise ValueError(f"{shown(uri)} has more than {largest:,} bytes") from None
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"there is no file {shown(uri)}") from None
    except PermissionError as error:
        raise NoAccess(f"{shown(uri)}: the credentials of this machine do not open it ({_text(error)})") from None
    except (OSError, TimeoutError) as error:
        raise TransientError(f"{shown(uri)}: {_text(error)}") from None
    except Exception as error:  # drivers raise what their libraries raise
        if _passes(error):
            raise TransientError(f"{shown(uri)}: {_text(error)}") from None
        raise NoAccess(f"{shown(uri)}: {_text(error)}") from None


def _passes(error: Exception) -> bool:
    """Whether an exception of a driver's own is about a connection or a server, not about credentials or a bucket."""
    status = getattr(error, "status_code", getattr(error, "code", None))
    if isinstance(status, int):
        return status >= 500 or status in (408, 429)
    return not _PASSING.isdisjoint(kind.__name__ for kind in type(error).__mro__)


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
            raise NoAccess(f"{scheme}:// needs a driver that is not installed: pip install 'lsml[{extra}]'") from None
        raise NoAccess(f"the driver for {scheme}:// cannot be imported: {_text(missing)}") from None


def _text(error: BaseException) -> str:
    text = shown(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
