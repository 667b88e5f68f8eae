"""What a failed request to Label Studio means: it had no effect, or its outcome is not known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson

from lsml_cli.errors import LsmlError
from lsml_cli.media.credentials import API_KEY_ENV_VAR

if TYPE_CHECKING:
    import httpx

GATEWAY_STATUSES = frozenset({502, 503, 504})  # of a proxy, mostly: Label Studio itself may still be working


class OutcomeUnknown(LsmlError):
    """A mutating request was sent, and its effect is not known.

    Attributes:
        is_server_done: Whether Label Studio has certainly finished it: it answered itself, with an error.
    """

    def __init__(self, message: str, hint: str | None = None, is_server_done: bool = False) -> None:
        super().__init__(message, hint)
        self.is_server_done = is_server_done


class RequestRejected(LsmlError):
    """Label Studio rejected a request and has changed nothing. `status` is the HTTP status."""

    def __init__(self, message: str, hint: str | None = None, status: int = 400) -> None:
        super().__init__(message, hint)
        self.status = status


@contextmanager
def translate_errors(url: str, description: str, is_mutation: bool) -> Iterator[None]:
    """Translate what the SDK and httpx raise in the block to LsmlError; to OutcomeUnknown where there may be an effect.

    Args:
        url: Address of Label Studio.
        description: What is requested, for messages: "project 3".
        is_mutation: Whether the request changes something.
    """
    import httpx
    from label_studio_sdk.core.api_error import ApiError
    from label_studio_sdk.core.parse_error import ParsingError

    try:
        yield
    except httpx.HTTPStatusError as error:
        raise _status_error(url, description, error.response, is_mutation) from error
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        reason = str(error).rstrip(".") or "no answer"
        raise LsmlError(
            f"Label Studio at {url} cannot be reached: {reason}.", "Is that its address, and is it up?"
        ) from error
    except httpx.TimeoutException as error:
        raise OutcomeUnknown(
            f"Label Studio at {url} gave no answer about {description} in time.", "Try again later."
        ) from error
    except httpx.HTTPError as error:
        raise OutcomeUnknown(
            f"The connection to Label Studio at {url} broke off over {description}: {str(error).rstrip('.')}.",
            "Try again.",
        ) from error
    except (ApiError, ParsingError, AttributeError, KeyError, TypeError, ValueError) as error:
        # Of a success. The SDK checks nothing that it reads: what is missing or of another type is found by its user.
        raise unexpected_response_error(url, description) from error


def unexpected_response_error(url: str, description: str) -> LsmlError:
    """Return the error for a success that no Label Studio would send."""
    return LsmlError(
        f"The server at {url} sent an unexpected response about {description}: it may not be a Label Studio.",
        "Is that its address?",
    )


def invalid_key_error(url: str) -> LsmlError:
    """Return the error for a key that Label Studio does not know, or not any more."""
    return RequestRejected(
        f"Label Studio at {url} does not accept the API key.",
        f"Set {API_KEY_ENV_VAR} to a token that is valid there; {url} shows them under Account & Settings.",
        401,
    )


def _status_error(url: str, description: str, response: httpx.Response, is_mutation: bool) -> LsmlError:
    """Return the error for a status of 300 or more."""
    status = response.status_code
    if status == 401:
        return invalid_key_error(url)
    detail = _error_detail(response)
    message = f"Label Studio at {url} answered {status} when asked for {description}{f': {detail}' if detail else ''}."
    hint = "Is that its address?"
    if status == 403:
        message = f"Label Studio at {url} does not allow the user of the API key to access {description}."
        action = "change" if is_mutation else "export"
        hint = f"Set {API_KEY_ENV_VAR} to a token of a user who may {action} the project."
    elif status == 404:
        message = f"Label Studio at {url} knows nothing of {description}."
        hint = "Does the project exist there, and may the user of the API key see it?"
    elif status < 400:
        message = f"{url} redirects {description} to {response.headers.get('Location', 'another address')}."
        hint = "Give the address that Label Studio has itself, https:// included."
    elif status == 400:
        hint = "Correct what it complains about; its log may say more."
    elif status >= 500:
        hint = "Try again later; its log may say more."
        if is_mutation or status in GATEWAY_STATUSES:
            return OutcomeUnknown(message, hint, is_server_done=status not in GATEWAY_STATUSES)
    return RequestRejected(message, hint, status)


def _error_detail(response: httpx.Response) -> str:
    """Return the detail of an error response on one line, "" without one."""
    try:
        body = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return ""  # an HTML page
    detail = body.get("detail") if isinstance(body, dict) else body
    errors = body.get("validation_errors") if isinstance(body, dict) else None
    text = f"{detail}: {errors}" if detail and errors else str(detail or errors or "")
    return " ".join(text.split())[:300].rstrip(".")
