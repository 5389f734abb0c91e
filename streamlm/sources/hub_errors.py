"""Explain errors of a hub's clients in one line: what failed and what to do about it."""

import errno
import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import huggingface_hub
from huggingface_hub import constants, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from streamlm.characters import without_steering

# The client whose errors huggingface_hub lets through; from 2.0 on another one.
http = importlib.import_module("httpx" if huggingface_hub.__version__.startswith("1.") else "httpx2")

_DEFAULT = "or run the packaged default experiment (config.yaml), which needs no hub"
OTHERWISE = f"use a mirror (HF_ENDPOINT) or a filled cache (HF_HOME with HF_HUB_OFFLINE=1), {_DEFAULT}"


class HubUnreachable(ValueError):
    """No hub answers, and its files are not in the cache."""


class UntrustedAnswer(ValueError):
    """A hub answers what no honest hub does, or more than is taken."""

    def __init__(self, reason: str, remedy: str = "do not trust this hub: correct HF_ENDPOINT") -> None:
        super().__init__(reason)
        self.remedy = remedy


def is_unreachable(error: Exception) -> bool:
    """Return whether an error of the clients says that there is no hub, rather than what is wrong on it."""
    causes = list(_causes(error))
    refused = any(isinstance(cause, HfHubHTTPError) or "SSL" in str(cause) for cause in causes)
    silent = any(isinstance(cause, (http.ConnectError, http.TimeoutException)) for cause in causes)
    missing = any(isinstance(cause, (LocalEntryNotFoundError, OfflineModeIsEnabled)) for cause in causes)
    return not refused and (silent or (missing and is_offline_mode()))


def explain(error: Exception) -> str:
    """Return "ENDPOINT: what failed; remedy" for an error of huggingface_hub or its client."""
    for cause in _causes(error):
        if found := _known(cause):
            reason, remedy = found
            return f"{shown(constants.ENDPOINT)}: {shown(reason)}; {remedy}, {OTHERWISE}"
    if is_offline_mode():
        return (
            f"the cache in HF_HOME ({constants.HF_HOME}), as HF_HUB_OFFLINE is set: it is not there; fill a "
            "cache with `hf download` where there is a network and copy it here, unset HF_HUB_OFFLINE "
            f"(and set HF_ENDPOINT to a mirror), {_DEFAULT}"
        )
    reason = shown(str(error)) or type(error).__name__
    return f"{shown(constants.ENDPOINT)}: {reason}; correct the source and try again, {OTHERWISE}"


def shown(text: str) -> str:
    """Return text as one line that is safe to show: short, without secrets and what steers a terminal."""
    if token := get_token():
        text = text.replace(token, "[HF_TOKEN]")
    text = re.sub(r"(?<=://)[^/\s]+@", "", text)  # user and password in an address
    return without_steering(" ".join(text.split()))[:300]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes, the innermost last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _known(error: BaseException) -> tuple[str, str] | None:
    """Return reason and remedy of a known error."""
    match error:
        case LocalEntryNotFoundError():
            return None  # the local copy is missing too; the cause says why it was needed
        case UntrustedAnswer():
            return str(error), error.remedy
        case HfHubHTTPError():
            return _status(error.response)
        case http.TimeoutException():
            return (
                f"it sent nothing for {constants.HF_HUB_DOWNLOAD_TIMEOUT} s",
                "try again, or wait longer with HF_HUB_DOWNLOAD_TIMEOUT",
            )
        case http.UnsupportedProtocol():
            return "this is not an address", "start HF_ENDPOINT with https://"
        case http.ConnectError() if "SSL" in str(error):
            return f"its certificate is refused ({error})", "set SSL_CERT_FILE to the one to trust"
        case http.ConnectError():
            return "no server answers there", "check the network and HF_ENDPOINT, and try again"
        case OSError(errno=errno.ENOSPC):
            return "the disk of this machine is full", "free some space, and try again"
        case http.HTTPError():
            return f"the connection broke off ({error})", "try again: complete files are kept"
        case OSError() if "Consistency check failed" in str(error):
            return "a file has another size than announced", "try again"
    return None


def _status(response: Any) -> tuple[str, str]:
    what = f"{response.status_code} {response.reason_phrase} for {response.url.path}"
    match response.status_code:
        case 401 | 403:
            return what, "correct the name, or set HF_TOKEN to a token that may read it"
        case 404:
            return what, "correct the name and the revision"
        case 429:
            return (
                what,
                "too many requests: wait some minutes, or set HF_TOKEN to a token with a higher limit",
            )
        case _:
            return what, "try again later"


@contextmanager
def one_line() -> Iterator[None]:
    """End the process with the line of a ValueError instead of its traceback."""
    try:
        yield
    except ValueError as error:
        sys.exit(str(error))
