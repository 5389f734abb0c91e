"""What a hub's clients raise, said in one line: what failed, and what to do about it."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from huggingface_hub import constants, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

_DEFAULT = "or run the packaged default experiment (config.yaml), which needs no hub"
OTHERWISE = f"use a mirror (HF_ENDPOINT) or a filled cache (HF_HOME with HF_HUB_OFFLINE=1), {_DEFAULT}"


def explain(error: Exception) -> str:
    """Return "ENDPOINT: what failed; remedy" of an error from huggingface_hub, httpx, datasets or pyarrow."""
    for cause in _causes(error):
        if found := _known(cause):
            reason, remedy = found
            return f"{constants.ENDPOINT}: {reason}; {remedy}, {OTHERWISE}"
    if is_offline_mode():
        return (
            f"the cache in HF_HOME ({constants.HF_HOME}), as HF_HUB_OFFLINE asks: it is not there; fill a "
            "HF_HOME with `hf download` where there is a network and bring it here, unset HF_HUB_OFFLINE "
            f"(and name a mirror with HF_ENDPOINT), {_DEFAULT}"
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{constants.ENDPOINT}: {reason[:300]}; correct the source and try again, {OTHERWISE}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from; innermost last."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _known(error: BaseException) -> tuple[str, str] | None:
    """Return reason and remedy of an error that tells what went wrong."""
    match error:
        case LocalEntryNotFoundError():
            return None  # says that a local copy is missing too; its cause says why one was needed
        case HfHubHTTPError():
            return _status(error.response)
        case httpx.TimeoutException():
            return (
                f"it sent nothing for {constants.HF_HUB_DOWNLOAD_TIMEOUT} s",
                "try again, or wait longer with HF_HUB_DOWNLOAD_TIMEOUT",
            )
        case httpx.UnsupportedProtocol():
            return "that is no address", "let HF_ENDPOINT begin with https://"
        case httpx.ConnectError() if "SSL" in str(error):
            return f"its certificate is refused ({error})", "give the one to trust with SSL_CERT_FILE"
        case httpx.ConnectError():
            return "nobody answers there", "check the network and HF_ENDPOINT, and try again"
        case OSError(errno=errno.ENOSPC):
            return "the disk is full here", "free some space, and try again"
        case httpx.HTTPError():
            return f"the connection broke off ({error})", "try again: what came whole is kept"
        case OSError() if "Consistency check failed" in str(error):
            return "a file came with another size than announced", "try again"
    return None


def _status(response: httpx.Response) -> tuple[str, str]:
    what = f"{response.status_code} {response.reason_phrase} for {response.url.path}"
    match response.status_code:
        case 401 | 403:
            return what, "correct the name, or give a token that may read it (HF_TOKEN)"
        case 404:
            return what, "correct the name and the revision"
        case 429:
            return what, "too many requests: wait some minutes, or give a token (HF_TOKEN) for a higher limit"
        case _:
            return what, "try again later"


@contextmanager
def one_line() -> Iterator[None]:
    """End the process with the one line of a ValueError instead of its traceback."""
    try:
        yield
    except ValueError as error:
        sys.exit(str(error))
