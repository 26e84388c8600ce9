"""A hub on loopback: the API and the file links as huggingface_hub uses them, a file server beside it, and faults."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mmap import mmap
from urllib.parse import parse_qs, unquote, urlsplit

Content = bytes | mmap


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request for a file's bytes."""

    status: int | None = None  # answer with this and no bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes after which the connection ends
    chunked: bool = False  # the end cannot be told from a cut: no Content-Length
    flip: int | None = None  # this byte of the file is wrong
    extra: bytes = b""  # bytes beyond the file's end
    ignore_range: bool = False
    shift: int = 0  # the range begins elsewhere
    piece: int = 16 << 10  # bytes that are sent at once
    delay: float = 0.0  # seconds between pieces
    stall: int | None = None  # bytes after which nothing comes, and the connection stays until the client leaves
    at_hub: bool = False  # the hub itself fails, before it redirects


@dataclass
class Repo:
    """A repository, with every commit that it ever had."""

    commits: list[dict[str, Content]]
    hashes: tuple[str, ...] = ()  # the commits' names, where a reference has one
    gated: bool = False  # to all whose token is not "insider"
    private: bool = False
    licence: str = "apache-2.0"
    xet: bool = False
    in_git: bool = False  # small files, kept by git: no SHA-256

    @property
    def files(self) -> dict[str, Content]:
        return self.commits[-1]


@dataclass
class Request:
    """What was asked for, and the bytes of content that were sent."""

    method: str
    at: str  # "hub" or "cdn"
    path: str
    start: int
    sent: int
    authorization: str | None
    host: str


@lru_cache  # a mapped file is large, and its hash is asked for with every request
def sha256(content: Content) -> str:
    return hashlib.sha256(content).hexdigest()


@lru_cache
def git_sha1(content: Content) -> str:
    digest = hashlib.sha1(b"blob %d\0" % len(content))
    digest.update(content)
    return digest.hexdigest()


class HubServer:
    """Two servers on two ports: the hub, and the one that its links lead to."""

    def __init__(self, repos: dict[str, Repo]) -> None:
        self.repos = repos
        self.faults: list[Fault] = []  # one for each of the next requests for bytes
        self.always = Fault()  # for all others
        self.hang_up = threading.Event()  # the next to send a piece of a file closes its connection and clears this
        self.direct = False  # the hub sends bytes itself, as some mirrors do
        self.requests: list[Request] = []
        self.links = 0
        self._lock = threading.Lock()
        self._servers = {name: self._server(name) for name in ("hub", "cdn")}
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers.values())

    def _server(self, name: str) -> ThreadingHTTPServer:
        kind = type("Handler", (_Handler,), {"hub": self, "name": name})
        server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
        server.daemon_threads = True
        # What was sent is to be what has left: systems keep megabytes for a client that is slower, or gone.
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # clients may leave
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    def close(self) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def commit(self, repo: str, number: int = -1) -> str:
        """The name of a repository's commit."""
        hashes = self.repos[repo].hashes
        if hashes:
            return hashes[number]
        return hashlib.sha1(f"{repo}@{number % len(self.repos[repo].commits)}".encode()).hexdigest()

    def next_fault(self) -> Fault:
        with self._lock:
            return self.faults.pop(0) if self.faults else self.always

    def note(self, request: Request) -> Request:
        with self._lock:
            self.requests.append(request)
        return request

    def downloads(self) -> list[Request]:
        """The requests that got bytes of a file."""
        return [request for request in self.requests if request.method == "GET" and request.sent]

    def sent(self) -> int:
        return sum(request.sent for request in self.downloads())


@contextmanager
def serving(repos: dict[str, Repo]) -> Iterator[HubServer]:
    server = HubServer(repos)
    try:
        yield server
    finally:
        server.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer
    name: str

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            address = urlsplit(self.path)  # a proxy is told the host as well
            path = unquote(address.path)
            if self.name == "cdn" or self.hub.cdn.endswith(address.netloc or "?"):
                self._from_cdn(path)
            elif path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/"))
            elif "/resolve/" in path:
                self._resolve(path)
            else:
                self._refuse(404, "not found")

    # The API

    def _api(self, path: str) -> None:
        name, _, rest = path.partition("/revision/")
        found = self._repo(name) and self._commit(name, rest or "main")
        if not found:
            return
        commit, files = found
        repo = self.hub.repos[name]
        siblings = [{"rfilename": file, **self._blob(repo, data)} for file, data in files.items()]
        reported = {
            "id": name,
            "sha": commit,
            "siblings": siblings if "blobs" in parse_qs(urlsplit(self.path).query) else [],
            "gated": "manual" if repo.gated else False,
            "private": repo.private,
            "tags": [],
            "downloads": 0,
            "cardData": {"license": repo.licence},
        }
        self._send(200, json.dumps(reported).encode(), {"Content-Type": "application/json"})

    @staticmethod
    def _blob(repo: Repo, data: Content) -> dict[str, object]:
        reported: dict[str, object] = {"size": len(data), "blobId": git_sha1(data)}
        return (
            reported
            if repo.in_git
            else reported | {"lfs": {"size": len(data), "sha256": sha256(data), "pointerSize": 134}}
        )

    def _repo(self, name: str) -> bool:
        repo = self.hub.repos.get(name)
        if self.headers.get("Authorization") == "Bearer wrong":
            self._refuse(401, "Invalid credentials in Authorization header")
            return False
        if repo is None or (repo.private and self.headers.get("Authorization") != "Bearer insider"):
            code = {"X-Error-Code": "RepoNotFound"} if self.headers.get("Authorization") else {}
            self._refuse(404 if code else 401, "Repository not found", code)
            return False
        return True

    def _commit(self, name: str, revision: str) -> tuple[str, dict[str, Content]] | None:
        commits = self.hub.repos[name].commits
        for number, files in enumerate(commits):
            commit = self.hub.commit(name, number)
            if revision == commit or (revision == "main" and number == len(commits) - 1):
                return commit, files
        self._refuse(404, "Invalid rev id", {"X-Error-Code": "RevisionNotFound"})
        return None

    # Files

    def _resolve(self, path: str) -> None:
        name, _, rest = path[1:].partition("/resolve/")
        revision, _, file = rest.partition("/")
        found = self._repo(name) and self._commit(name, revision)
        if not found:
            return
        commit, files = found
        repo = self.hub.repos[name]
        if repo.gated and self.headers.get("Authorization") != "Bearer insider":
            self._refuse(403, "Access to this repository is restricted", {"X-Error-Code": "GatedRepo"})
            return
        if file not in files:
            self._refuse(404, "Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        if self.command == "GET" and self.hub.faults and self.hub.faults[0].at_hub:
            fault = self.hub.next_fault()
            self._refuse(fault.status or 500, "busy", fault.headers)
            return
        data = files[file]
        headers = {"X-Repo-Commit": commit}
        if self.hub.direct or repo.in_git:
            etag = git_sha1(data) if repo.in_git else sha256(data)
            self._content(data, headers | {"ETag": f'"{etag}"'})
            return
        self.hub.links += 1
        headers |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data)), "ETag": '"of-the-link"'}
        if repo.xet:
            headers |= {"X-Xet-Hash": sha256(data), "X-Xet-Refresh-Route": f"{self.hub.url}/xet"}
        headers["Location"] = f"{self.hub.cdn}/{name}/{commit}/{file}?signed={self.hub.links}"
        self._send(302, b"", headers)

    def _from_cdn(self, path: str) -> None:
        org, repo, commit, file = path[1:].split("/", 3)
        name = f"{org}/{repo}"
        found = self._commit(name, commit)
        assert found is not None, "a link of ours"
        self._content(found[1][file], {"ETag": '"of-the-cdn"'})

    def _content(self, data: Content, headers: dict[str, str]) -> None:
        """Send a file's bytes, or what the next fault makes of them."""
        if self.command == "HEAD":
            self._send(200, b"", headers | {"Content-Length": str(len(data))})
            return
        fault = self.hub.next_fault()
        requested = self.headers.get("Range", "")
        first, _, last = requested.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), int(last or len(data) - 1) + 1
        if fault.status:
            self._send(fault.status, b"no", dict(fault.headers), start=start, is_content=False)
            return
        if requested and start >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, start=start)
            return
        if fault.flip is not None:
            data = data[: fault.flip] + bytes([data[fault.flip] ^ 1]) + data[fault.flip + 1 :]
        if fault.extra:
            data = data[:] + fault.extra
        if requested and not fault.ignore_range:
            shifted, end = start + fault.shift, end + len(fault.extra)
            headers["Content-Range"] = f"bytes {shifted}-{end - 1}/{len(data)}"
            self._send(206, memoryview(data)[shifted:end], headers, fault, start)
        else:
            self._send(200, data, headers, fault, start)

    # Answers

    def _refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {"X-Error-Message": message, **(headers or {})}, is_content=False)

    def _send(
        self,
        status: int,
        body: Content | memoryview,
        headers: Mapping[str, str],
        fault: Fault | None = None,
        start: int = 0,
        is_content: bool = True,
    ) -> None:
        fault = fault or Fault()
        path = urlsplit(self.path).path
        authorization, host = self.headers.get("Authorization"), self.headers["Host"]
        request = self.hub.note(Request(self.command, self.name, path, start, 0, authorization, host))
        self.send_response(status)
        if not fault.chunked:
            self.send_header("Content-Length", headers.get("Content-Length", str(len(body))))
        for key, value in headers.items():
            if key != "Content-Length":
                self.send_header(key, value)
        ends = fault.cut is not None or fault.chunked
        if ends:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        is_content = is_content and status in (200, 206) and "ETag" in headers
        given = memoryview(body)[: fault.stall if fault.cut is None else fault.cut]
        while given and self.command == "GET":
            if is_content and self.hub.hang_up.is_set():
                self.close_connection = True
                self.hub.hang_up.clear()
                break
            piece = given[: fault.piece]
            counted, sent = len(piece) if is_content else 0, 0
            request.sent += counted  # before the client can know of it
            try:
                sent = self.connection.send(piece)
            finally:
                request.sent -= max(0, counted - sent)
            given = given[sent:]
            if fault.delay:
                time.sleep(fault.delay)
        if fault.stall is not None:
            self.rfile.read(1)
