"""Files of the hub through huggingface_hub: patient, resumed, checked. One Hub serves all threads of a program."""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import errno
import hashlib
import io
import logging
import os
import pathlib
import re
import threading
import time
import urllib.parse
from collections.abc import Callable


def origin(address: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: who may see what is sent to an address."""
    parts = urllib.parse.urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def is_address(text: str) -> bool:
    try:
        scheme, host, _ = origin(text)
    except ValueError:
        return False
    return scheme in ("http", "https") and bool(host)


GIVEN_ENDPOINT = os.environ.get("HF_ENDPOINT", "")
if not is_address(GIVEN_ENDPOINT):  # with such a one huggingface_hub cannot be imported: Hub tells of it
    os.environ.pop("HF_ENDPOINT", None)
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when huggingface_hub is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import huggingface_hub  # noqa: E402
from huggingface_hub import constants, errors, file_download  # noqa: E402
from huggingface_hub.utils import build_hf_headers  # noqa: E402
from script_messages import BadInput, Failed, Progress  # noqa: E402

BLOCK = 1 << 20
LONGEST_WAIT = 60.0  # seconds between two attempts, unless the hub asks for more
MOST_PATIENCE = 3600.0  # seconds of doing without a byte while the hub asks for patience
ATTEMPTS = 3  # to get a file whose bytes arrive with the wrong checksum
NETWORK_MODULES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "ssl", "socket", "http")

logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it prints signed addresses
# What http_get writes at a time, else 10 MB: what has come of it is lost when the connection or the call ends.
constants.DOWNLOAD_CHUNK_SIZE = 64 << 10


class Stopped(Exception):
    """Another thread has failed."""


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file of a commit. digest: sha256 of the content if large (Git LFS), else Git's name of the blob."""

    name: str
    size: int
    digest: str

    def hasher(self):
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size)

    def is_in(self, path: pathlib.Path, progress: Progress | None = None) -> bool:
        """Whether the file at the path has this content; progress counts the bytes that were read."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        hasher = self.hasher()
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                hasher.update(block)
                if progress:
                    progress.add(len(block))
        return hasher.hexdigest() == self.digest


class Part:
    """A file on its way: what http_get writes is counted and hashed; what is there already is hashed first."""

    def __init__(self, path: pathlib.Path, file: RemoteFile, progress: Progress, stop: threading.Event):
        self.path, self.wanted, self.progress, self.stop = path, file, progress, stop
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(path, "r+b" if path.exists() else "w+b", buffering=0)
        if os.fstat(self.file.fileno()).st_size > file.size:
            self.file.truncate(0)
        self.rehash()
        self.counted = self.size  # bytes of the part that the progress knows
        progress.found(self.size)

    def rehash(self) -> None:
        self.hasher = self.wanted.hasher()
        self.file.seek(0)
        self.size = 0
        while block := self.file.read(BLOCK):
            self.hasher.update(block)
            self.size += len(block)

    def count(self) -> None:
        self.progress.add(self.size - self.counted)
        self.counted = self.size

    # What http_get does with its file.
    def write(self, data: bytes) -> int:
        if self.stop.is_set():
            raise Stopped
        data = memoryview(data)
        while data:
            n = self.file.write(data)
            self.hasher.update(data[:n])
            self.size += n
            data = data[n:]
            self.count()
        return self.size

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        size = self.file.truncate(size)
        self.rehash()
        self.count()
        return size

    def flush(self) -> None:
        pass

    def restart(self) -> None:
        """Forget all of it."""
        self.truncate(0)

    def finish(self) -> bool:
        """Whether all is there and right; then it is on the disk too."""
        if self.size != self.wanted.size or self.hasher.hexdigest() != self.wanted.digest:
            return False
        os.fsync(self.file.fileno())
        return True

    def close(self) -> None:
        self.file.close()


def seconds_to_wait(response) -> float | None:
    """What a refusal asks for: Retry-After in seconds or as a date, or RateLimit's time to the next window."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    limit = re.search(r"\br=0\s*;\s*t=(\d+)", response.headers.get("RateLimit", "").replace(" ", ""))
    return float(limit.group(1)) if limit else None


def is_network(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return type(error).__module__.split(".")[0] in NETWORK_MODULES


def token_place() -> str:
    return "HF_TOKEN" if os.environ.get("HF_TOKEN") else constants.HF_TOKEN_PATH


def checked_token() -> str | None:
    """The user's token, which must fit in a header."""
    try:
        token = huggingface_hub.get_token()
    except UnicodeDecodeError:
        token = ""
    if token is not None and not re.fullmatch("[!-~]+", token):
        raise BadInput(f"the token has blanks or characters beyond ASCII ({token_place()}): copy it again")
    return token


class Hub:
    """patience: seconds without a byte after which it gives up; the hub can ask for more by Retry-After."""

    def __init__(self, progress: Progress, patience: float):
        self.progress, self.patience = progress, patience
        if GIVEN_ENDPOINT and not is_address(GIVEN_ENDPOINT):
            raise BadInput(
                f'"{GIVEN_ENDPOINT}" is no http(s) address (HF_ENDPOINT): set it to that of the hub, or unset it'
            )
        self.endpoint = constants.ENDPOINT
        self.token = checked_token()
        self.api = huggingface_hub.HfApi(endpoint=self.endpoint, token=self.token)
        self.stop = threading.Event()

    # --- patience ---

    def patiently(self, what: str, act: Callable, patience: float | None = None, moved: Callable = lambda: 0):
        """Result of act(), tried again while it makes sense. what: for notes and errors, e.g. "config.json of REPO";
        moved(): a number that grows as bytes come, after which patience is full again."""
        patience = self.patience if patience is None else patience
        failures, since, before = 0, time.monotonic(), moved()
        while True:
            try:
                return act()
            except (BadInput, Failed, Stopped):
                raise
            except Exception as error:
                if moved() != before:
                    failures, since, before = 0, time.monotonic(), moved()
                failures += 1
                wait, asked, why = self.judge(error, what, failures)
                limit = max(patience, MOST_PATIENCE) if asked else patience
                if time.monotonic() - since + wait > limit:
                    raise self.give_up(error, what, why) from error
                if wait >= 2 or failures > 3:
                    self.progress.note(f"note: {why} ({what}): trying again in {wait:.0f} s", kind="wait")
                if self.stop.wait(wait):
                    raise Stopped from None

    def judge(self, error: Exception, what: str, failures: int) -> tuple[float, bool, str]:
        """(seconds to wait, whether the hub asks for it, why) if it makes sense to try again, else raises."""
        wait = min(LONGEST_WAIT, 0.5 * 2 ** (failures - 1))
        if isinstance(error, errors.HfHubHTTPError):
            status = error.response.status_code
            if status == 429 or status >= 500 or status == 408:
                asked = seconds_to_wait(error.response)
                return (
                    asked + 0.1 if asked is not None else wait,
                    asked is not None or status == 429,
                    f"HTTP {status}",
                )
            if status == 403 and not self.is_at(str(error.response.url)):
                return wait, False, "the address of the file has expired"
            raise self.refusal(error, what) from error
        if isinstance(error, errors.OfflineModeIsEnabled):
            raise BadInput(f"the hub may not be asked for {what} (HF_HUB_OFFLINE is set): unset it") from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Failed(
                f"no space is left for {what} ({error.filename or 'its folder'}): free some; the same command continues"
            ) from error
        if is_network(error):
            return wait, False, str(error).split("\n")[0] or type(error).__name__
        if isinstance(error, OSError) and error.errno is None:  # http_get: not all has come
            return wait, False, "the connection ended early"
        if isinstance(error, OSError):
            raise Failed(f"cannot write {what}: {error.strerror} ({error.filename}): check the folder") from error
        raise error

    def is_at(self, address: str) -> bool:
        """Whether it is the hub that an address leads to, not a storage."""
        return is_address(address) and origin(address) == origin(self.endpoint)

    def give_up(self, error: Exception, what: str, why: str) -> Failed:
        if isinstance(error, errors.HfHubHTTPError):
            return Failed(f"the hub refuses {what}: {why} ({self.endpoint}): try later; the same command continues")
        return Failed(
            f"the hub cannot be reached for {what}: {why} ({self.endpoint}): check the network, proxies and "
            "HF_ENDPOINT; the same command continues"
        )

    def refusal(self, error: errors.HfHubHTTPError, what: str) -> Exception:
        """What the user must do about a refusal that will stay."""
        status, headers = error.response.status_code, error.response.headers
        if status == 401 and "Invalid credentials" in headers.get("X-Error-Message", ""):
            make = f"make one at {self.endpoint}/settings/tokens"
            return BadInput(f"the hub does not accept the token ({token_place()}): {make}")
        if isinstance(error, errors.GatedRepoError) or status == 403:
            token = (
                "has the account of the token (HF_TOKEN) been given access?"
                if self.token
                else ("ask for access on its page, then set HF_TOKEN to a token of that account")
            )
            return BadInput(f"access to {what} is restricted ({self.endpoint}): {token}")
        if isinstance(error, errors.RevisionNotFoundError):
            return BadInput(f"no such revision for {what} ({self.endpoint}): check --revision")
        if isinstance(error, errors.RepositoryNotFoundError):
            hint = "" if self.token else "; if it is private, set HF_TOKEN"
            return BadInput(f"the hub does not know {what} ({self.endpoint}): check the name{hint}")
        if isinstance(error, errors.EntryNotFoundError) or status == 404:
            return BadInput(f"the hub does not have {what} ({self.endpoint}): check name and revision")
        return Failed(
            f"the hub refuses {what}: HTTP {status} ({self.endpoint}): {headers.get('X-Error-Message', 'try later')}"
        )

    # --- what is there ---

    def info(self, repo: str, revision: str | None, kind: str = "model", patience: float | None = None):
        """(commit, {name: RemoteFile}) of a revision of a repository; None: its main branch."""
        what = f"{repo}{'@' + revision if revision else ''}"
        found = self.patiently(
            what,
            lambda: self.api.repo_info(repo, repo_type=kind, revision=revision, files_metadata=True, timeout=30),
            patience,
        )
        files = {}
        for item in found.siblings or ():
            lfs = item.lfs
            sha256 = (lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256) if lfs else None
            files[item.rfilename] = RemoteFile(item.rfilename, item.size, sha256 or item.blob_id)
        return found.sha, files

    def locate(self, repo: str, commit: str, name: str):
        """The hub's metadata of a file: where it lies now, which may be a signed address, and its ETag."""
        url = huggingface_hub.hf_hub_url(repo, name, revision=commit, endpoint=self.endpoint)
        return file_download.get_hf_file_metadata(url, token=self.token, timeout=30)

    def get(self, repo: str, commit: str, file: RemoteFile, out) -> None:
        """The file's bytes from out.tell() on, by one address of it."""
        place = self.locate(repo, commit, file.name)
        checksum = place.etag if len(place.etag or "") == len(file.digest) else None  # mirrors may have other ETags
        if checksum not in (None, file.digest):
            raise Failed(
                f"the hub's {file.name} has another checksum than its list says ({repo}@{commit[:12]}): try later"
            )
        token = self.token if self.is_at(place.location) else False  # it stays with the hub
        headers = build_hf_headers(token=token)
        headers["Accept-Encoding"] = "identity"
        file_download.http_get(
            place.location,
            out,
            resume_size=out.tell(),
            headers=headers,
            expected_size=file.size,
            displayed_filename=file.name,
        )

    def download(self, repo: str, commit: str, file: RemoteFile, path: pathlib.Path, part_path: pathlib.Path) -> None:
        """The file at path, complete and checked; part_path keeps what has come so far."""
        for attempt in range(ATTEMPTS):
            part = Part(part_path, file, self.progress, self.stop)
            with contextlib.closing(part):

                def act(part=part):
                    if part.size > file.size:
                        part.restart()
                    part.seek(part.size)
                    self.get(repo, commit, file, part)

                self.patiently(f"{file.name} of {repo}", act, moved=lambda part=part: part.size)
                if part.finish():
                    os.replace(part_path, path)
                    return
                part.restart()
            if attempt + 1 < ATTEMPTS:
                self.progress.note(f"note: {file.name} has arrived damaged: fetching it again")
        raise Failed(
            f"{file.name} of {repo} arrives with a wrong checksum, {ATTEMPTS} times ({self.endpoint}): try later, or "
            "by another network"
        )

    def small(self, repo: str, commit: str, file: RemoteFile) -> bytes:
        """Content of a small file, checked."""
        out = io.BytesIO()

        def act():
            out.seek(0)
            out.truncate()
            self.get(repo, commit, file, out)

        self.patiently(f"{file.name} of {repo}", act)
        hasher = file.hasher()
        hasher.update(out.getvalue())
        if hasher.hexdigest() != file.digest:
            raise Failed(f"{file.name} of {repo} arrives with a wrong checksum ({self.endpoint}): try later")
        return out.getvalue()

    def cached(self, repo: str, file: RemoteFile) -> pathlib.Path | None:
        """Where the hub's cache on this machine has a file of this name for a content, of any revision."""
        folder = file_download.repo_folder_name(repo_id=repo, repo_type="model")
        path = pathlib.Path(constants.HF_HUB_CACHE) / folder / "blobs" / file.digest
        return path.resolve() if path.is_file() and os.access(path, os.R_OK) else None
