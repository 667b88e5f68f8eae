"""Tell errors that may go away from those that stay, also where a model's own HTTP client raised them.

Models call services through any client. None of these libraries is imported here: their errors are recognized by the
name of the class and of its package.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Any

from lsml_cli.errors import TransientError

TRANSIENT_STATUSES = frozenset({408, 425, 429})  # and every 5xx
MAX_CAUSES = 10  # errors that are looked at, from the one that was raised to its first cause

_TRANSIENT_ERRNOS = frozenset(
    {
        *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH),
    }
)
# Package -> base classes of the errors of a connection. What names a URL, a certificate or an answer is not here.
_CONNECTION_ERRORS: Mapping[str, frozenset[str]] = {
    "socket": frozenset({"gaierror"}),  # the resolver cannot be reached, or does not know the name now
    "http": frozenset({"IncompleteRead", "BadStatusLine"}),
    "urllib": frozenset({"ContentTooShortError"}),
    "urllib3": frozenset({"ProtocolError", "TimeoutError", "NewConnectionError", "MaxRetryError", "ProxyError"}),
    "requests": frozenset({"ConnectionError", "Timeout", "ChunkedEncodingError"}),
    "httpx": frozenset({"TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError"}),
    "httpcore": frozenset({"TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError"}),
    "aiohttp": frozenset({"ClientConnectionError", "ClientPayloadError"}),
    "botocore": frozenset({"HTTPClientError", "ConnectionError"}),
}
_HTTP_PACKAGES = frozenset(_CONNECTION_ERRORS) - {"socket"}
_CERTIFICATE_PROBLEM = "CERTIFICATE_VERIFY_FAILED"  # in the text of every library, since OpenSSL wrote it
_INVALID_URLS = frozenset({"InvalidProxyURL", "InvalidURL", "LocationValueError"})
# Amazon asks to slow down with status 400.
_THROTTLING_CODES = frozenset({"Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException"})


def is_transient(error: BaseException) -> bool:
    """Return whether another try of what raised this error may succeed.

    An error of a connection may; so does a response 429 or 5xx, and no other 4xx. An error that says nothing about
    itself is as good as the one it was raised from.
    """
    for cause in _causes(error):
        verdict = _judge(cause)
        if verdict is not None:
            return verdict
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, then what it was raised from."""
    current: Any = error
    for _ in range(MAX_CAUSES):
        if not isinstance(current, BaseException):
            return
        yield current
        reason = getattr(current, "reason", None) if _package(type(current)) == "urllib" else None
        current = reason if isinstance(reason, BaseException) else current.__cause__


def _judge(error: BaseException) -> bool | None:
    """Return whether an error is transient by itself; None if it does not tell."""
    if _is_certificate_problem(error):
        return False
    if isinstance(error, TransientError | ConnectionError | TimeoutError):
        return True
    if (status := _http_status(error)) is not None:
        return status in TRANSIENT_STATUSES or status >= 500 or _error_code(error) in _THROTTLING_CODES
    classes = type(error).__mro__
    if any(cls.__name__ in _INVALID_URLS and _package(cls) in _HTTP_PACKAGES for cls in classes):
        return False
    if any(cls.__name__ in _CONNECTION_ERRORS.get(_package(cls), ()) for cls in classes):
        return True
    return True if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS else None


def _is_certificate_problem(error: BaseException) -> bool:
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"SSLCertVerificationError", "ClientConnectorCertificateError"}:
        return True
    try:
        return _package(type(error)) in _HTTP_PACKAGES and _CERTIFICATE_PROBLEM in str(error)
    except Exception:  # a foreign exception may fail to format itself
        return False


def _http_status(error: BaseException) -> int | None:
    """Return the status of the response that an error of an HTTP client is about, None if it is about none."""
    if not any(_package(cls) in _HTTP_PACKAGES for cls in type(error).__mro__):
        return None
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        metadata = response.get("ResponseMetadata")
        candidates = [metadata.get("HTTPStatusCode")] if isinstance(metadata, Mapping) else []
    else:
        candidates = [getattr(response, "status_code", None), getattr(error, "status", None)]
        if _package(type(error)) == "urllib":
            candidates.append(getattr(error, "code", None))
    return next((value for value in candidates if isinstance(value, int) and 100 <= value < 600), None)


def _error_code(error: BaseException) -> object:
    response = getattr(error, "response", None)
    details = response.get("Error") if isinstance(response, Mapping) else None
    return details.get("Code") if isinstance(details, Mapping) else None


def _package(cls: type) -> str:
    return str(cls.__module__).partition(".")[0]
