"""A Hugging Face hub on loopback, for the real clients: what they ask of one, and faults it can have."""

import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".parquet", ".gguf", ".bin")  # served after a redirect, under their SHA-256
PAGE = 3  # entries a page of a listing


@dataclass
class Fault:
    """What goes wrong with requests whose path matches: a status, "stall", "cut" or "corrupt".

    A stalled or cut body stops in its middle; a corrupt one has the right size.
    """

    kind: int | str
    path: str = ""
    methods: tuple[str, ...] = ("GET", "HEAD")
    times: int = 10**6

    def takes(self, method, path):
        if self.times and method in self.methods and re.search(self.path, path):
            self.times -= 1
            return True
        return False


@dataclass
class Lie:
    """What a hub says instead of the truth where the path matches: headers, a body, a status.

    A body that can be called yields pieces, which are sent without their length.
    """

    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Callable | None = None
    status: int | None = None
    methods: tuple[str, ...] = ("GET", "HEAD", "POST")

    def takes(self, method, path):
        return method in self.methods and re.search(self.path, path) is not None


@dataclass
class Repo:
    """A repository at one commit, known as one branch too."""

    files: dict[str, bytes]
    commit: str
    branch: str

    def entries(self, folder, recursive):
        """Return what the tree listing of a folder shows."""
        prefix, seen = f"{folder}/" if folder else "", {}
        for name, content in sorted(self.files.items()):
            if not name.startswith(prefix):
                continue
            parts = name[len(prefix) :].split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                path = prefix + "/".join(parts[:depth])
                seen[path] = {"type": "directory", "oid": git_hash(path.encode()), "size": 0, "path": path}
            if recursive or len(parts) == 1:
                seen[name] = file_entry(name, content)
        return list(seen.values())


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def file_entry(name, content):
    entry = {"type": "file", "oid": git_hash(content), "size": len(content), "path": name}
    if name.endswith(LFS):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


@dataclass
class Hub:
    """The repositories of a hub by ("models" or "datasets", id), its faults, and what was asked of it."""

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    lies: list[Lie] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)  # what each request had in Authorization
    sent: int = 0  # bytes of bodies

    def add(self, kind, name, files, commit="c0ffee" + 34 * "0", branch="main"):
        self.repos[kind, name] = Repo(files, commit, branch)

    def find(self, kind, name, revision):
        """Return the repository at a revision, or the error code that a hub gives."""
        repo = self.repos.get((kind, name))
        if repo is None:
            return "RepoNotFound"
        return repo if revision in (repo.branch, repo.commit) else "RevisionNotFound"

    def __enter__(self):
        self.closing = threading.Event()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing of a client that has gone."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing; `Hub.asked` remembers."""

    def do_GET(self):
        self.answer()

    do_HEAD = do_GET

    def answer(self):
        hub, url = self.server.hub, urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = unquote(url.path)
        hub.asked.append((self.command, path))
        hub.tokens.append(self.headers.get("Authorization"))
        fault = next((fault for fault in hub.faults if fault.takes(self.command, path)), None)
        self.fault = fault.kind if fault else None
        if isinstance(self.fault, int):
            return self.refuse(self.fault, "RepoNotFound" if self.fault == 404 else "")
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?", path):
            return self.api(found[1], found[2], found[3] or "", url)
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/(.+)", path):
            return self.resolve("datasets" if found[1] else "models", found[2], url.path)
        if found := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            return self.content(found[1])
        return self.refuse(404)

    def api(self, kind, name, rest, url):
        verb = rest.partition("/")[0]
        # A revision may hold slashes, which clients escape; so it is split before that is undone.
        quoted = url.path.split(f"/{verb}/", 1)[1].split("/") if verb else ["main"]
        revision, folder = unquote(quoted[0]), unquote("/".join(quoted[1:]))
        repo = self.server.hub.find(kind, name, revision)
        if isinstance(repo, str):
            return self.refuse(404, repo)
        if verb in ("", "revision"):
            siblings = [{"rfilename": path} for path in sorted(repo.files)]
            return self.send_json({"id": name, "sha": repo.commit, "private": False, "siblings": siblings})
        if verb == "tree":
            entries = repo.entries(folder, self.query.get("recursive", ["false"])[0].lower() == "true")
            if folder and not entries:
                return self.refuse(404, "EntryNotFound")
            return self.send_page(entries, url)
        return self.refuse(404)

    def send_page(self, entries, url):
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            kept = "&".join(f"{key}={value[0]}" for key, value in self.query.items() if key != "cursor")
            after = f"{self.server.hub.url}{url.path}?{kept}&cursor={start + PAGE}"
            headers["Link"] = f'<{after}>; rel="next"'
        self.send_json(entries[start : start + PAGE], headers)

    def resolve(self, kind, name, quoted_path):
        revision, *parts = quoted_path.split("/resolve/", 1)[1].split("/")
        repo = self.server.hub.find(kind, name, unquote(revision))
        if isinstance(repo, str):
            return self.refuse(404, repo)
        path, headers = unquote("/".join(parts)), {"X-Repo-Commit": repo.commit}
        if path not in repo.files:
            return self.refuse(404, "EntryNotFound", headers)
        content = repo.files[path]
        if not path.endswith(LFS):
            return self.send_body(content, headers | {"ETag": f'"{git_hash(content)}"'})
        digest = hashlib.sha256(content).hexdigest()
        headers |= {
            "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content)),
            "Location": f"http://localhost:{self.server.hub.port}/cdn/{digest}",  # another host, as a CDN is
        }  # fmt: skip
        return self.send_body(b"", headers, status=302)

    def content(self, digest):
        contents = (c for repo in self.server.hub.repos.values() for c in repo.files.values())
        found = next((c for c in contents if hashlib.sha256(c).hexdigest() == digest), None)
        if found is None:
            return self.refuse(404)
        return self.send_body(found, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"})

    def send_json(self, content, headers=()):
        self.send_body(json.dumps(content).encode(), {"Content-Type": "application/json", **dict(headers)})

    def refuse(self, status, code="", headers=()):
        usual = {"Content-Type": "application/json", "X-Error-Code": code, "Retry-After": "0"}
        self.send_body(b'{"error": "no"}', {**usual, **dict(headers)}, status)

    def send_body(self, content, headers, status=200):
        path, body = unquote(urlsplit(self.path).path), None
        for lie in self.server.hub.lies:
            if lie.takes(self.command, path):
                headers, status = {**dict(headers), **lie.headers}, lie.status or status
                body = lie.body if lie.body is not None else body
        if callable(body):
            self.send_pieces(body(), headers, status)
            return
        content = content if body is None else body
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.fault == "corrupt":
            content = bytes(byte ^ 0x55 for byte in content)
        if wanted and status == 200:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
            content, status = content[first : last + 1], 206
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault in ("stall", "cut"):
            self.wfile.write(content[: 0 if wanted else len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
            if self.fault == "stall":
                self.server.hub.closing.wait(60)
            return
        self.server.hub.sent += len(content)
        self.wfile.write(content)

    def send_pieces(self, pieces, headers, status):
        self.send_response(status)
        for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        if self.command == "HEAD":
            return
        for piece in pieces:
            self.server.hub.sent += len(piece)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if self.server.hub.closing.is_set():
                return
        self.wfile.write(b"0\r\n\r\n")
