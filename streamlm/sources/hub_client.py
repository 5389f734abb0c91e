"""A client of huggingface_hub that does not trust its hub: every request and answer is checked first.

huggingface_hub 1.33 names files of its cache after what the hub sends (ETag, X-Repo-Commit, `sha` of a
listing), so a hub could write anywhere; it sends the token to whatever address a listing names as its next
page; it reads answers of any size; and it waits as long as a hub asks. hf_xet makes requests of its own,
which cannot be checked, so files come over HTTP instead.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import _http

from streamlm import limits
from streamlm.characters import find_steering
from streamlm.sources.hub_errors import UntrustedAnswer, http

_GB = 10**9
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[A-Za-z0-9_+=-][A-Za-z0-9._+=-]{0,127}")
_LISTING = re.compile(r"/api/(models|datasets)/")  # a path that begins so is of JSON about a repository
_OTHER_API = re.compile(r"/api/(?!resolve-cache/)")  # a path with resolve-cache is that of a file
_ONE_FETCH = threading.RLock()  # a process has one client of huggingface_hub


@contextmanager
def checked_client(max_gb: float) -> Iterator[None]:
    """Check what huggingface_hub asks and gets; afterwards the earlier client is back.

    Args:
        max_gb: how many gigabytes of files may come.
    """
    with _ONE_FETCH:
        earlier, xet_disabled = _http._GLOBAL_CLIENT_FACTORY, constants.HF_HUB_DISABLE_XET
        fetch = _Fetch(max_gb=max_gb, bytes_left=int(max_gb * _GB))
        set_client_factory(lambda: _with_hooks(earlier(), fetch))
        constants.HF_HUB_DISABLE_XET = True
        try:
            yield
        finally:
            set_client_factory(earlier)
            constants.HF_HUB_DISABLE_XET = xet_disabled


def is_inside(path: str) -> bool:
    """Return whether a path or pattern stays inside of its repository, for every system and every client.

    fsspec reads ``a::b`` as a chain of addresses, and Windows ``\\`` and ``C:`` as parts of a path.
    """
    parts = path.split("/")
    return not (
        {"", "..", ".git"} & {*parts}
        or re.search(r"\\|::|://|^[A-Za-z]:|\n", path)
        or find_steering(path)
        or len(path) > limits.HUB_PATH_CHARS
    )


def _with_hooks(client: Any, fetch: "_Fetch") -> Any:
    client.event_hooks["request"].append(fetch.check_request)
    client.event_hooks["response"].append(fetch.check_response)
    return client


@dataclass(kw_only=True)
class _Fetch:
    """What a fetch has taken so far, and the hooks that check its requests and answers."""

    max_gb: float
    bytes_left: int  # of files that may still come
    n_listings: int = 0
    n_entries: int = 0
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of a file as announced, by its address
    waited_s: dict[str, float] = field(default_factory=dict)  # for bodies, by the path of their address
    came: dict[str, int] = field(default_factory=dict)  # bytes of bodies, by the path of their address

    def check_request(self, request: Any) -> None:
        """Keep the token to the endpoint, refuse compression, and set a limit to waiting."""
        if _origin(request.url) != _origin(http.URL(constants.ENDPOINT)):
            request.headers.pop("Authorization", None)
        request.headers["Accept-Encoding"] = "identity"
        # A request after a redirect has the extensions of the first one.
        request.extensions.setdefault("listing", _LISTING.match(_path(request.url)) is not None)
        request.extensions.setdefault("size", self.sizes.get(str(request.url)))
        timeouts: dict[str, Any] = request.extensions.get("timeout", {})
        if timeouts.get("read") is None:  # huggingface_hub sets none for listings
            request.extensions["timeout"] = http.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT).as_dict()
        self.n_listings += request.extensions["listing"]
        if self.n_listings > limits.HUB_LISTING_REQUESTS:
            raise UntrustedAnswer(f"its listing has no end after {limits.HUB_LISTING_REQUESTS:,} requests")

    def check_response(self, response: Any) -> None:
        """Refuse what no honest hub answers, before huggingface_hub reads it."""
        request = response.request
        _check_headers(response)
        response.headers.pop(constants.HUGGINGFACE_HEADER_X_XET_HASH, None)
        response.encoding = "utf-8"  # a charset of the hub's choice could be a decompressor
        if request.method == "HEAD":
            self._note_size(response)
            return
        body = _Body(response.stream, self._checker(request.url.path, *self._bound(response)))
        response.stream = body
        if request.extensions["listing"] and response.is_success:
            response.read()
            self._check_listing(response)

    def _note_size(self, response: Any) -> None:
        """Remember the size that a hub announces for a file; refuse a file that is too large."""
        size = response.headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_SIZE)
        if size is None and not response.has_redirect_location:
            size = response.headers.get("Content-Length")
        if size is None or not re.fullmatch(r"[0-9]{1,18}", size):
            return
        if int(size) > self.bytes_left:
            raise self._too_large(f"{response.request.url.path} has {int(size) / _GB:,.1f} GB")
        address = response.request.url.join(response.headers.get("Location", ""))
        self.sizes[str(address)] = int(size)

    def _bound(self, response: Any) -> tuple[int, bool]:
        """Return how many bytes the body of an answer may have, and whether they are those of a file."""
        request = response.request
        if not response.is_success:
            return limits.HUB_REFUSAL_BYTES, False
        if request.extensions["listing"] or _OTHER_API.match(_path(request.url)):
            return limits.HUB_LISTING_BYTES, False
        if span := re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", request.headers.get("Range", "")):
            return int(span[2]) - int(span[1]) + 1, True
        size = request.extensions["size"]
        return self.bytes_left if size is None else size, True

    def _checker(self, path: str, max_bytes: int, is_file: bool) -> Callable[[int, float], None]:
        """Return what checks each piece of a body: its bytes, and the seconds it was waited for."""
        n_bytes = 0

        def check(more: int, waited_s: float) -> None:
            nonlocal n_bytes
            n_bytes += more
            self.came[path] = self.came.get(path, 0) + more
            self.waited_s[path] = self.waited_s.get(path, 0.0) + waited_s
            if is_file:
                self.bytes_left -= more
            if self.bytes_left < 0:
                raise self._too_large(f"{path} is larger than what may still come")
            if n_bytes > max_bytes:
                raise UntrustedAnswer(f"it sends more than the {max_bytes:,} bytes expected of {path}")
            if self.waited_s[path] > max(limits.HUB_PATIENCE_S, self.came[path] / limits.HUB_SLOWEST_BYTES_S):
                raise UntrustedAnswer(
                    f"{path} came at less than {limits.HUB_SLOWEST_BYTES_S:,} bytes per second",
                    "try again, on a faster network or with another mirror",
                )

        return check

    def _too_large(self, what: str) -> UntrustedAnswer:
        return UntrustedAnswer(
            f"{what}, and at most {self.max_gb:g} GB are fetched",
            "raise max_gb of the source in the config, or fetch it with `hf download`",
        )

    def _check_listing(self, response: Any) -> None:
        """Refuse an answer about a repository that is no JSON of one, or names what git cannot hold."""
        path = response.request.url.path
        try:
            content = json.loads(response.content)
        except (ValueError, RecursionError):
            raise UntrustedAnswer(f"its answer for {path} is not JSON") from None
        entries = content if isinstance(content, list) else [content]
        self.n_entries += len(entries)
        if self.n_entries > limits.HUB_LISTING_ENTRIES:
            raise UntrustedAnswer(f"its listing has more than {limits.HUB_LISTING_ENTRIES:,} entries")
        for entry in entries:
            if fault := _entry_fault(entry):
                raise UntrustedAnswer(f"its answer for {path} {fault}")
        following = response.links.get("next", {}).get("url")
        if following is not None and not _LISTING.match(_path(response.request.url.join(following))):
            raise UntrustedAnswer(f"its listing goes on at {following!r}, which is no listing")


class _Body(http.SyncByteStream):  # type: ignore[misc, name-defined]
    """The body of an answer, each piece of which is checked as it comes."""

    def __init__(self, stream: Any, check: Callable[[int, float], None]) -> None:
        self.stream, self.check = stream, check

    def __iter__(self) -> Iterator[bytes]:
        pieces = iter(self.stream)
        while True:
            start, piece = time.monotonic(), b""
            try:
                piece = next(pieces, b"")
            finally:
                self.check(len(piece), time.monotonic() - start)
            if not piece:
                return
            yield piece

    def close(self) -> None:
        """Close the connection's own stream."""
        self.stream.close()


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _path(url: Any) -> str:
    """Return the path of an address on the hub; that of the endpoint itself may have a path before it."""
    path: str = url.path
    return path.removeprefix(http.URL(constants.ENDPOINT).path.rstrip("/"))


def _check_headers(response: Any) -> None:
    """Refuse headers that would name files outside of the cache, hide sizes, or make us wait for hours."""
    headers = response.headers
    commit = headers.get(constants.HUGGINGFACE_HEADER_X_REPO_COMMIT)
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise UntrustedAnswer(f"it names the commit {commit[:80]!r}, which is not 40 hexadecimal digits")
    etag = headers.get(constants.HUGGINGFACE_HEADER_X_LINKED_ETAG) or headers.get("ETag")
    # Only a HEAD asks for a file's ETag; it is checked as huggingface_hub is going to read it.
    if response.request.method == "HEAD" and etag and not _ETAG.fullmatch(etag.lstrip("W/").strip('"')):
        raise UntrustedAnswer(f"it names the ETag {etag[:80]!r}, which is not plain letters and digits")
    if headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise UntrustedAnswer("it sends a compressed answer, which was not asked for")
    waits = re.findall(
        r"^\s*([0-9]+)\s*$", headers.get("Retry-After", "")
    )  # else a date, which is not obeyed
    waits += re.findall(r"t\s*=\s*([0-9]+)", headers.get("RateLimit", ""))
    if response.is_error and any(len(wait) > 9 or int(wait) > limits.HUB_RETRY_AFTER_S for wait in waits):
        raise UntrustedAnswer(
            f"{response.status_code} {response.reason_phrase}: it asks to wait longer than "
            f"{limits.HUB_RETRY_AFTER_S} s",
            "try again later",
        )


def _entry_fault(entry: Any) -> str | None:
    """Return what is wrong with an entry of an answer about a repository."""
    if not isinstance(entry, dict):
        return "is a listing of something else than files"
    sha = entry.get("sha")
    if sha is not None and not (isinstance(sha, str) and _COMMIT.fullmatch(sha)):
        return f"names the commit {str(sha)[:80]!r}, which is not 40 hexadecimal digits"
    if "path" in entry:
        path = entry["path"]
        if not isinstance(path, str) or "\0" in path or {"", ".", "..", ".git"} & {*path.split("/")}:
            return f"names the file {str(path)[:80]!r}, which git cannot hold"
    if not isinstance(entry.get("size") or 0, int):
        return f"has the size {str(entry['size'])[:80]!r}, which is not a number"
    return None
