"""Log how to connect Label Studio to a server that has started."""

from __future__ import annotations

import logging
import socket

from lsml_cli.server.auth import AuthConfig

LOOPBACK_PREFIXES = ("127.", "localhost", "::1")
WILDCARD_ADDRESSES = ("0.0.0.0", "::", "")

log = logging.getLogger("lsml.serve")


def log_connection_help(sock: socket.socket, auth: AuthConfig) -> None:
    """Log the server's URL, where to enter it in Label Studio, and what may keep Label Studio from reaching it.

    The secret path is not logged.
    """
    host, port = sock.getsockname()[:2]
    is_wildcard = host in WILDCARD_ADDRESSES
    path = "/<the secret path>" if auth.secret_path else ""
    url_host = f"[{host}]" if ":" in host else host
    log.info("Serving on http://%s:%d%s (ctrl-C stops).", url_host, port, path)
    netloc = f"<this machine's address>:{port}" if is_wildcard else f"{url_host}:{port}"
    credentials = ", and the user and password" if auth.basic_auth else ""
    log.info(
        "To connect it: Label Studio, your project, Settings, Model, Connect Model; URL http://%s%s%s.",
        netloc,
        path,
        credentials,
    )
    log.info(
        "Label Studio 1.23 and later refuses servers on private addresses such as %s, "
        "unless it was itself started with USE_DEFAULT_BANNED_SUBNETS=false.",
        "localhost and 192.168.x.x" if is_wildcard else url_host,
    )
    if host.startswith(LOOPBACK_PREFIXES):
        log.info("Only this machine can reach it. For a Label Studio elsewhere, or in Docker: --host 0.0.0.0")
    if is_wildcard and not auth.basic_auth:
        log.warning("Anyone who can reach this machine can use it. To require a password: --basic-auth USER:PASS")


def log_training_help(auth: AuthConfig, training_is_on: bool, train_every: int | None) -> None:
    """Log how to turn training on, or why --train-every would have no effect."""
    if not training_is_on:
        log.info("Training is off; --versions DIR and --label-studio-url URL turn it on.")
    elif auth.basic_auth and train_every and not auth.secret_path:
        log.warning(
            "--train-every has no effect: Label Studio sends annotation events without password, and this server "
            "rejects them. --secret-path PATH admits them."
        )
