"""A model hub on this machine: a server with the endpoints that huggingface_hub and datasets use, which can misbehave.

    with hub_server.Hub(tokens=["good"]) as hub:
        commit = hub.add("org/model", folder)                 # what the folder holds now is branch main
        hub.add("org/data", folder, kind="dataset")           # at /datasets/org/data
        hub.rule(r"model-0000.*", status=503, times=2)        # faults: see Rule
        ...                                                   # a client with HF_ENDPOINT=hub.endpoint
        assert hub.leaks == [] and hub.sent(r"/blobs/") == size

The hub (127.0.0.1) answers api/models, tree, paths-info and resolve. Small files lie behind a relative redirect on the
same host; large ones (safetensors, Parquet; Git LFS) behind a signed address on another host (127.0.0.2) that expires
and refuses an Authorization header, as the real hub's storage does. hub.plain(repo) is the address of a plain folder
without redirects. By hand:

    python3 tests/e2e/hub_server.py org/model=FOLDER datasets/org/data=FOLDER
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import email.utils
import functools
import hashlib
import hmac
import http.server
import io
import json
import math
import os
import pathlib
import re
import select
import socket
import sys
import threading
import time
import urllib.parse

LARGE = (".safetensors", ".parquet", ".bin", ".h5", ".gz")  # stored by Git LFS, as .gitattributes on the hub says
LARGE_SIZE = 10_000_000  # bytes: others are stored so from here on
BLOCK = 1 << 20


@dataclasses.dataclass
class Rule:
    """What happens to requests whose "METHOD HOST PATH?QUERY" the pattern finds; HOST is hub or storage.

    The first rule with times left applies: `after` requests pass first, then `times` (None: all) are hit. A request can
    be delayed (latency, seconds), refused (status and headers), or have its content sent slowly (bytes per second),
    cut off (cut: the connection ends after so many bytes of content), changed (corrupt: offset in the file of a byte
    that is inverted; corrupt_once: the first time that it is sent), or without its range (ignore_range: 200 and the whole file)."""

    pattern: str
    times: int | None = None
    after: int = 0
    status: int = 0
    headers: dict = dataclasses.field(default_factory=dict)
    latency: float = 0
    slow: float = 0
    cut: int | None = None
    stall: int | None = None
    corrupt: int | None = None
    corrupt_once: bool = False
    ignore_range: bool = False


@dataclasses.dataclass
class Request:
    """One of hub.log: content is the number of content bytes that were sent."""

    method: str
    host: str
    path: str
    headers: dict
    status: int = 0
    content: int = 0


@dataclasses.dataclass
class File:
    path: pathlib.Path
    size: int
    blob: str  # Git's hash of the file, or of the LFS pointer to it
    sha256: str
    large: bool


def git_blob(data):
    """Git's name of a blob of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@functools.cache
def describe(path, size, _modified):
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    sha256 = hasher.hexdigest()
    large = path.suffix in LARGE or size > LARGE_SIZE
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return File(path, size, git_blob(pointer if large else path.read_bytes()), sha256, large)


class Hub:
    """expire: seconds that a signed address is good for; uses: requests that it is good for (None: any number)."""

    def __init__(self, tokens=(), expire=3600.0, uses=None, port=0):
        self.tokens, self.expire, self.uses = set(tokens), expire, uses
        self.lock = threading.Lock()
        self.repos = {}  # (kind, name): {"revisions": {name: commit}, "commits": {commit: {path: File}}, "gated", ...}
        self.blobs = {}  # sha256: File
        self.rules, self.log, self.leaks = [], [], []
        self.window = None  # (requests, seconds) of the rate limit
        self.started, self.counted = 0.0, 0
        self.signed_uses = collections.Counter()
        self.key = os.urandom(16)
        self.servers = [Server(("127.0.0.1", port), self, "hub"), Server(("127.0.0.2", 0), self, "storage")]
        self.endpoint, self.storage = (f"http://{s.server_address[0]}:{s.server_address[1]}" for s in self.servers)

    def __enter__(self):
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()
            server.close_connections()

    def add(self, name, folder, kind="model", branch="main", gated=False, private=False):
        """Make the branch what is in the folder now; returns the commit. Files stay where they are."""
        folder = pathlib.Path(folder)
        files = {}
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                state = path.stat()
                files[relative.as_posix()] = describe(path, state.st_size, state.st_mtime_ns)
        listing = "".join(f"{path} {file.sha256}\n" for path, file in files.items())
        commit = hashlib.sha1(f"{kind} {name}\n{listing}".encode()).hexdigest()
        with self.lock:
            repo = self.repos.setdefault((kind, name), {"revisions": {}, "commits": {}})
            repo |= {"gated": gated, "private": private}
            repo["revisions"] |= {branch: commit, commit: commit}
            repo["commits"][commit] = files
            self.blobs |= {file.sha256: file for file in files.values() if file.large}
        return commit

    def rule(self, pattern, **what):
        """Add a Rule; returns it (rules may be changed, or taken from hub.rules again)."""
        rule = Rule(pattern, **what)
        with self.lock:
            self.rules.append(rule)
        return rule

    def limit(self, requests, seconds):
        """The hub (not the storage) answers so many requests in a window, which the next request begins, others with 429."""
        with self.lock:
            self.window, self.started, self.counted = (requests, seconds), -math.inf, 0

    def plain(self, name, kind="model", branch="main"):
        """Address of the repository as a folder of a plain web server: ranges, no redirects, no authorization."""
        return f"{self.endpoint}/plain/{kind}s/{name}/{branch}"

    def requests(self, pattern=""):
        """Requests so far whose "METHOD HOST PATH" the pattern finds."""
        with self.lock:
            return [r for r in self.log if re.search(pattern, f"{r.method} {r.host} {r.path}")]

    def sent(self, pattern=""):
        """Content bytes of these."""
        return sum(request.content for request in self.requests(pattern))

    def forget(self):
        """Empty the log, the leaks and the rules."""
        with self.lock:
            self.log, self.leaks, self.rules, self.window = [], [], [], None

    # --- for the handlers ---

    def take_rule(self, text):
        with self.lock:
            for rule in self.rules:
                if rule.times != 0 and re.search(rule.pattern, text):
                    if rule.after > 0:
                        rule.after -= 1
                        return None
                    if rule.times is not None:
                        rule.times -= 1
                    return rule
        return None

    def limited(self):
        """Seconds until the next window of the rate limit, None if the request is within this one."""
        with self.lock:
            if not self.window:
                return None
            most, seconds = self.window
            now = time.monotonic()
            if now - self.started >= seconds:
                self.started, self.counted = now, 0
            self.counted += 1
            return None if self.counted <= most else self.started + seconds - now

    def sign(self, sha256):
        """A signed address of a large file."""
        query = {"Expires": f"{time.time() + self.expire:.3f}", "Nonce": os.urandom(6).hex()}
        query["Signature"] = self.signature(sha256, query)
        return f"{self.storage}/blobs/{sha256}?{urllib.parse.urlencode(query)}"

    def signature(self, sha256, query):
        text = f"{sha256} {query.get('Expires')} {query.get('Nonce')}".encode()
        return hmac.new(self.key, text, "sha256").hexdigest()

    def refused(self, sha256, query):
        """Why the storage does not accept a signed address, or None."""
        if not hmac.compare_digest(self.signature(sha256, query), query.get("Signature", "")):
            return "SignatureDoesNotMatch"
        with self.lock:
            self.signed_uses[query["Nonce"]] += 1
            used = self.signed_uses[query["Nonce"]]
        if time.time() > float(query["Expires"]) or (self.uses is not None and used > self.uses):
            return "Request has expired"
        return None


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, hub, name):
        self.hub, self.name, self.open, self.closed = hub, name, set(), False
        super().__init__(address, Handler)

    def close_connections(self):
        self.closed = True
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):  # a client that left
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.open.add(self.connection)

    def finish(self):
        self.server.open.discard(self.connection)
        super().finish()

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def answer(self):
        hub, host = self.server.hub, self.server.name
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.entry = Request(self.command, host, self.path, dict(self.headers.items()))
        with hub.lock:
            hub.log.append(self.entry)
        self.fault = hub.take_rule(f"{self.command} {host} {self.path}") or Rule("")
        time.sleep(self.fault.latency)
        if self.fault.status:
            self.reply(self.fault.status, b"injected", self.fault.headers)
            return
        address = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(address.path)
        query = dict(urllib.parse.parse_qsl(address.query))
        (self.answer_storage if host == "storage" else self.answer_hub)(path, query)

    # --- replies ---

    def begin(self, status, headers):
        self.entry.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def reply(self, status, content=b"", headers=()):
        self.begin(status, {"Content-Length": len(content), "Content-Type": "text/plain"} | dict(headers))
        self.send_content(io.BytesIO(content), 0, len(content))

    def reply_json(self, value):
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def refuse(self, status, code="", message=""):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply(status, json.dumps({"error": message}).encode(), headers | {"Content-Type": "application/json"})

    def range(self, size):
        """(first, end) of the range asked for, None: all of it, () if there is none such."""
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not match or match.group(0) == "bytes=-" or self.fault.ignore_range:
            return None
        first, last = match.groups()
        begin = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        return (begin, end) if begin < end else ()

    def reply_file(self, file, headers):
        wanted = self.range(file.size)
        headers = headers | {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if wanted == ():
            self.reply(416, b"", {"Content-Range": f"bytes */{file.size}"})
            return
        begin, end = wanted or (0, file.size)
        headers["Content-Length"] = end - begin
        if wanted:
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{file.size}"
        with open(file.path, "rb") as content:
            self.begin(206 if wanted else 200, headers)
            self.send_content(content, begin, end)

    def send_content(self, content, begin, end):
        if self.command == "HEAD":
            return
        self.wfile.flush()
        fault, start, at = self.fault, time.monotonic(), begin
        stop = end if fault.cut is None else min(end, begin + fault.cut)
        plain = not fault.slow and fault.corrupt is None and isinstance(content, io.BufferedReader)
        content.seek(at)
        while at < stop:
            pause = stop if fault.stall is None else min(stop, begin + fault.stall)
            if at >= pause:
                time.sleep(0.02)
                if self.server.closed:
                    return
                continue
            if plain:
                sent = os.sendfile(self.connection.fileno(), content.fileno(), at, min(pause - at, 16 * BLOCK))
                if not sent:
                    raise ConnectionResetError
            else:
                block = bytearray(content.read(min(pause - at, 64 << 10 if fault.slow else BLOCK)))
                if fault.corrupt is not None and at <= fault.corrupt < at + len(block):
                    block[fault.corrupt - at] ^= 0xFF
                    fault.corrupt = None if fault.corrupt_once else fault.corrupt
                self.connection.sendall(block)
                sent = len(block)
            at += sent
            self.entry.content += sent
            if fault.slow:
                time.sleep(max(0.0, (at - begin) / fault.slow - (time.monotonic() - start)))
        if stop < end:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    # --- the second host ---

    def answer_storage(self, path, query):
        hub = self.server.hub
        if "Authorization" in self.headers:
            with hub.lock:
                hub.leaks.append(self.path)
            self.reply(400, b"<Error><Code>InvalidArgument</Code></Error>")
            return
        file = hub.blobs.get(path.removeprefix("/blobs/"))
        why = hub.refused(file.sha256, query) if file else "NoSuchKey"
        if why:
            self.reply(403, f"<Error><Code>AccessDenied</Code><Message>{why}</Message></Error>".encode())
        else:
            self.reply_file(
                file, {"ETag": f'"{file.sha256[:32]}"', "Last-Modified": email.utils.formatdate(0, usegmt=True)}
            )

    # --- the hub ---

    def answer_hub(self, path, query):
        hub = self.server.hub
        wait = hub.limited()
        if wait is not None:
            most, seconds = hub.window
            seconds_left = max(1, round(wait))
            headers = {"RateLimit": f'"api";r=0;t={seconds_left}', "Retry-After": seconds_left}
            headers["RateLimit-Policy"] = f'"fixed window";"api";q={most};w={seconds}'
            self.reply(429, b"Too Many Requests", headers)
            return
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        self.known = scheme == "Bearer" and token in hub.tokens
        if scheme and not self.known:
            self.refuse(401, message="Invalid credentials in Authorization header")
            return
        name = r"(?P<name>[\w.-]+/[\w.-]+)"
        for pattern, answer in (
            (rf"/api/(?P<kind>model|dataset)s/{name}(?:/revision/(?P<revision>.+))?", self.answer_info),
            (rf"/api/(?P<kind>model|dataset)s/{name}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", self.answer_tree),
            (rf"/api/(?P<kind>model|dataset)s/{name}/paths-info/(?P<revision>[^/]+)", self.answer_paths),
            (rf"/api/resolve-cache/(?P<kind>model|dataset)s/{name}/(?P<revision>\w+)/(?P<path>.+)", self.answer_cache),
            (rf"/plain/(?P<kind>model|dataset)s/{name}/(?P<revision>[^/]+)/(?P<path>.+)", self.answer_plain),
            (rf"/(?:(?P<kind>dataset)s/)?{name}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.answer_resolve),
        ):
            match = re.fullmatch(pattern, path)
            if match:
                found = match.groupdict()
                commit = self.find(found["kind"] or "model", found["name"], found.get("revision") or "main")
                if commit:
                    answer(found, query, *commit)
                return
        self.refuse(404, message="Sorry, we can't find the page you are looking for.")

    def find(self, kind, name, revision):
        """(repository, commit, its files); None if it was refused."""
        repo = self.server.hub.repos.get((kind, name))
        if not repo or (repo["private"] and not self.known):
            self.refuse(404 if self.known else 401, "RepoNotFound", "Repository not found")
            return None
        commit = repo["revisions"].get(revision)
        if not commit:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, commit, repo["commits"][commit]

    def answer_info(self, found, query, repo, commit, files):
        blobs = query.get("blobs", "").lower() == "true"
        siblings = []
        for path, file in files.items():
            item = {"rfilename": path}
            if blobs:
                item |= {"size": file.size, "blobId": file.blob}
                if file.large:
                    item["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
            siblings.append(item)
        kind = "modelId" if found["kind"] == "model" else "datasetId"
        self.reply_json(
            {"_id": commit[:24], "id": found["name"], kind: found["name"], "sha": commit, "private": repo["private"]}
            | {"gated": "manual" if repo["gated"] else False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
            | {"author": found["name"].split("/")[0], "lastModified": "2026-01-01T00:00:00.000Z", "siblings": siblings}
        )

    @staticmethod
    def entry_of(path, file):
        item = {"type": "file", "oid": file.blob, "size": file.size, "path": path}
        return item | ({"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 134}} if file.large else {})

    def answer_tree(self, found, query, _repo, _commit, files):
        folder = (found["path"] or "").strip("/")
        recursive = query.get("recursive", "").lower() in ("true", "1")
        items, folders = [], set()
        for path, file in files.items():
            if folder and not path.startswith(folder + "/"):
                continue
            parts = path[len(folder) + 1 if folder else 0 :].split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                folders.add("/".join(([folder] if folder else []) + parts[:depth]))
            if recursive or len(parts) == 1:
                items.append(self.entry_of(path, file))
        if folder and not items and not folders:
            self.refuse(404, "EntryNotFound", f"{folder} does not exist")
            return
        self.reply_json(
            [{"type": "directory", "oid": git_blob(p.encode()), "size": 0, "path": p} for p in sorted(folders)] + items
        )

    def answer_paths(self, _found, _query, _repo, _commit, files):
        if "json" in self.headers.get("Content-Type", ""):
            wanted = json.loads(self.body)["paths"]
        else:
            wanted = urllib.parse.parse_qs(self.body.decode()).get("paths", [])
        items = []
        for path in [wanted] if isinstance(wanted, str) else wanted:
            if path in files:
                items.append(self.entry_of(path, files[path]))
            elif any(name.startswith(path.strip("/") + "/") for name in files):
                items.append({"type": "directory", "oid": git_blob(path.encode()), "size": 0, "path": path})
        self.reply_json(items)

    def answer_resolve(self, found, _query, repo, commit, files):
        kind, path = found["kind"] or "model", found["path"]
        if repo["gated"] and not self.known:
            text = f"Access to {kind} {found['name']} is restricted. You must have access to it and be authenticated."
            self.refuse(401, "GatedRepo", text)
            return
        file = files.get(path)
        if not file:
            self.begin(404, {"X-Repo-Commit": commit, "X-Error-Code": "EntryNotFound", "Content-Length": 0})
            return
        headers = {"X-Repo-Commit": commit}
        if file.large:
            headers |= {"X-Linked-Size": file.size, "X-Linked-Etag": f'"{file.sha256}"', "ETag": f'"{file.sha256}"'}
            self.reply(302, b"Found", headers | {"Location": self.server.hub.sign(file.sha256)})
        else:
            headers |= {"X-Linked-Size": file.size, "X-Linked-Etag": f'"{file.blob}"', "ETag": f'"{file.blob}"'}
            location = f"/api/resolve-cache/{kind}s/{found['name']}/{commit}/{urllib.parse.quote(path)}"
            self.reply(307, b"Temporary Redirect", headers | {"Location": location})

    def answer_cache(self, found, _query, _repo, commit, files):
        file = files[found["path"]]
        self.reply_file(file, {"X-Repo-Commit": commit, "ETag": f'"{file.blob}"'})

    def answer_plain(self, found, _query, _repo, _commit, files):
        file = files.get(found["path"])
        if file:
            self.reply_file(file, {"ETag": f'"{file.sha256[:32]}"'})
        else:
            self.reply(404, b"Not Found")


def main(arguments):
    with Hub() as hub:
        for argument in arguments:
            name, folder = argument.split("=", 1)
            kind = "dataset" if name.startswith("datasets/") else "model"
            print(f"{name} at {hub.add(name.removeprefix('datasets/'), folder, kind=kind)}")
        print(f"export HF_ENDPOINT={hub.endpoint}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            select.select([], [], [])


if __name__ == "__main__":
    main(sys.argv[1:])
