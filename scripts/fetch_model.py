"""scripts/fetch: the files of a config's model from the hub to model.path."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import sys

import run_config
from fetch_hub import Hub, RemoteFile, Stopped
from script_messages import BadInput, Failed, Parser, Progress, seconds, size_text, tell_error

RECORD = "fetched.json"  # in the model's folder: the revision, its files, which of them are complete
PARTS = ".fetch"  # folder of unfinished files, in the model's folder
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
# What the program, its tokenizer and readers of the model's facts need.
SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    INDEX,
)
FIRST_PATIENCE = 20.0  # seconds for the first answer: no network is to be told soon
SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)/snapshots/(?P<commit>[0-9a-f]{40})")
DETAILS = """The model is model.name of the config, a repository of the hub, and the folder model.path. Of the
repository these files come: config.json, the tokenizer's, the index of the weights and the *.safetensors that it names.
DIR/fetched.json keeps the revision (commit hash): later calls stay with it, also when the hub has a newer one, unless
--revision says otherwise.

A call that was killed is continued by the same command. Files are checked (sha256, Git's hashes); damaged ones are
fetched again. Files that the hub's cache on this machine holds are linked, not fetched or copied. See docs/data.md.

environment: HF_TOKEN, for models that ask for one; HF_ENDPOINT, another hub or a mirror; HF_HOME, HF_HUB_CACHE

exit status: 0 all is there; 1 failed on the way, e.g. no network or no space; 2 wrong usage, config or input

examples:
  scripts/fetch configs/01_olmoe_1b_7b.cfg
  scripts/fetch configs/0*.cfg
  scripts/fetch configs/06_glm_45_air.cfg --to /scratch/glm --revision main
  HF_TOKEN=hf_... scripts/fetch my.cfg -s model.name=org/restricted -s model.path=models/restricted
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="fetch",
        description="Downloads the files of models from the hub.",
        epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="configs of runs")
    parser.add_argument("--to", metavar="DIR", help="folder of the model instead of model.path; with one config")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: what DIR has, else main)")
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="override a config's key")
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help="files at a time (default 8)")
    parser.add_argument("--verify", action="store_true", help="check all files again, also those checked before")
    parser.add_argument(
        "--patience", type=seconds, default=600, metavar="SECONDS", help="give up after so long without a byte (600)"
    )
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give a number from 1")
    if options.to and len(options.configs) > 1:
        parser.error("--to is for one config")
    return options


def write_json(path: pathlib.Path, value: object) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


class Model:
    """One model: where from, where to, and what is there already."""

    def __init__(self, repo: str, folder: pathlib.Path, revision: str | None):
        self.repo, self.folder, self.revision = repo, folder, revision
        self.commit, self.files = None, {}
        self.good = {}  # {name: mtime_ns} of complete and checked files
        self.outdated = {}  # files of the revision before
        self.lock = None
        match = SNAPSHOT.search(folder.resolve().as_posix())
        self.snapshot = bool(match)  # of a hub cache: looked at, never written to
        if match and f"{match['owner']}/{match['name']}" == repo:
            self.commit = self.revision = match["commit"]

    @property
    def record(self) -> pathlib.Path:
        return self.folder / RECORD

    def path(self, name: str) -> pathlib.Path:
        return self.folder / name

    def part(self, file: RemoteFile) -> pathlib.Path:
        return self.folder / PARTS / f"{file.name}.{file.digest[:16]}"

    def read_record(self) -> None:
        try:
            found = json.loads(self.record.read_text())
            repo, commit = found["model"], found["revision"]
            files = {
                name: (RemoteFile(name, item["size"], item.get("sha256") or item["git_blob"]), item.get("modified"))
                for name, item in found["files"].items()
            }
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise BadInput(f"model.path is no folder ({self.folder}): give another one (model.path or --to)") from None
        except OSError as error:
            raise BadInput(f"cannot be read: {error.strerror} ({self.record}): check the folder") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"not written by scripts/fetch ({self.record}): remove it, or give another folder") from None
        if repo != self.repo:
            raise BadInput(
                f"the folder holds {repo}, not {self.repo} ({self.folder}): give another one (model.path or --to)"
            )
        self.commit = commit
        self.files = {name: file for name, (file, _) in files.items()}
        self.good = {name: modified for name, (_, modified) in files.items() if modified is not None}

    def write_record(self, endpoint: str) -> None:
        files = {}
        for name, file in self.files.items():
            kind = "sha256" if len(file.digest) == 64 else "git_blob"
            files[name] = {"size": file.size, kind: file.digest} | (
                {"modified": self.good[name]} if name in self.good else {}
            )
        complete = len(self.good) == len(self.files)
        head = {"model": self.repo, "revision": self.commit, "endpoint": endpoint, "complete": complete}
        write_json(self.record, head | {"files": files})

    def is_good(self, name: str) -> bool:
        """Whether a file is as it was when it was checked."""
        try:
            state = self.path(name).stat()
        except OSError:
            return False
        return self.good.get(name) == state.st_mtime_ns and state.st_size == self.files[name].size

    def mark_good(self, name: str) -> None:
        self.good[name] = self.path(name).stat().st_mtime_ns

    def hold(self) -> None:
        """Keep other calls away from the folder; the lock goes with the process, however it ends."""
        try:
            (self.folder / PARTS).mkdir(parents=True, exist_ok=True)
            self.lock = open(self.folder / PARTS / "lock", "w")
        except OSError as error:
            raise BadInput(f"cannot write to the model's folder: {error.strerror} ({self.folder}): check it") from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(self.lock.fileno()), os.stat(self.lock.name))
        except (BlockingIOError, FileNotFoundError):
            mine = False
        except OSError:
            mine = True  # a file system without locks
        if not mine:
            self.lock.close()
            self.lock = None
            raise BadInput(f"another scripts/fetch is at work there ({self.folder}): wait for it") from None

    def clear(self) -> None:
        """Of a complete model: remove the lock that a killed call has left."""
        with contextlib.suppress(OSError, BadInput):  # there is none, or another call has it, or nothing can be written
            if set(os.listdir(self.folder / PARTS)) <= {"lock"}:
                self.hold()
                self.let_go()

    def let_go(self) -> None:
        """Also removes the folder of parts if nothing but the lock is left."""
        if not self.lock:
            return
        parts = self.folder / PARTS
        with contextlib.suppress(OSError):
            if os.listdir(parts) == ["lock"]:
                (parts / "lock").unlink()
                parts.rmdir()
                if not os.listdir(self.folder):
                    self.folder.rmdir()
        self.lock.close()
        self.lock = None

    def is_complete(self) -> bool:
        """Whether all that the record names is as it was when it was checked."""
        return bool(self.files) and all(map(self.is_good, self.files))


def model_of(path: str, options: argparse.Namespace) -> Model:
    config = run_config.read(path, options.set)
    run_config.check(path, options.set)
    repo, revision = config["model"]["name"], options.revision
    folder = options.to or run_config.text_of(config, "model", "path", path)
    address = re.fullmatch(r"hf://([^@]+?)/*(?:@(.+))?", str(config["model"].get("path", "")))
    if address and options.to:
        repo, revision = address.group(1), revision or address.group(2)
    elif re.match(r"(hf|https?)://|synthetic:", folder):
        raise BadInput(
            f"model.path is no folder but {folder} ({path}): nothing is to be fetched, unless --to names a folder"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(repo)):
        raise BadInput(
            f'model.name "{repo}" is no repository of the hub ({path}): write owner/name, by -s model.name=...'
        )
    return Model(repo, pathlib.Path(folder), revision)


def choose_files(hub: Hub, model: Model, there: dict[str, RemoteFile]) -> dict[str, RemoteFile]:
    """Of a repository's files, those that a run needs."""
    where = f"{model.repo}@{model.commit[:12]} on {hub.endpoint}"
    if "config.json" not in there:
        raise BadInput(f"the repository has no config.json ({where}): check model.name")
    hub.patiently(
        f"config.json of {model.repo}",
        lambda: hub.locate(model.repo, model.commit, "config.json"),
        min(hub.patience, FIRST_PATIENCE),
    )
    if INDEX in there:
        try:
            shards = set(json.loads(hub.small(model.repo, model.commit, there[INDEX]))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{INDEX} is no index of weights ({where}): tell its authors") from None
        missing = sorted(str(shard) for shard in shards if shard not in there)
        if missing:
            raise BadInput(f"the repository lacks {missing[0]}, which its index names ({where}): tell its authors")
    elif SINGLE in there:
        shards = {SINGLE}
    else:
        raise BadInput(f"the repository has neither {INDEX} nor {SINGLE} ({where}): a model in safetensors is needed")
    chosen = [there[name] for name in SMALL if name in there] + [there[name] for name in sorted(shards)]
    return {file.name: file for file in chosen}


def plan(hub: Hub, model: Model) -> None:
    """Find out what the folder should hold: by its record, else by the hub."""
    wanted = model.revision
    if model.files and (wanted is None or wanted == model.commit):
        return
    commit, there = hub.info(model.repo, wanted, patience=min(hub.patience, FIRST_PATIENCE))
    if model.files and commit == model.commit:
        return
    before, model.commit = model.files, commit
    model.files = choose_files(hub, model, there)
    model.good = {name: at for name, at in model.good.items() if model.files.get(name) == before[name]}
    model.outdated = {name: file for name, file in before.items() if model.files.get(name) != file}


def look(hub: Hub, model: Model, options: argparse.Namespace, pool) -> list[RemoteFile]:
    """Check what is in the folder, link what the hub's cache has; returns the files to fetch."""
    ours = model.record.exists()
    checks = [
        file
        for name, file in model.files.items()
        if name not in model.outdated and model.path(name).exists() and (options.verify or not model.is_good(name))
    ]
    hub.progress.start(f"checking {model.folder}", sum(file.size for file in checks))
    results = dict(run_all(hub, pool, {f.name: (f.is_in, model.path(f.name), hub.progress) for f in checks}))
    missing = []
    for name, file in model.files.items():
        if name in results:
            model.good.pop(name, None)
            if results[name]:
                model.mark_good(name)
                continue
            if model.snapshot:
                continue_by = f"hf download {model.repo} {name} --revision {model.commit} --force-download"
                raise BadInput(f"{name} is damaged ({model.folder}, a hub cache): {continue_by}")
            if not ours:
                raise BadInput(
                    f"{name} is not that of {model.repo}@{model.commit[:12]} ({model.path(name)}): remove it, or give "
                    "another folder (model.path or --to)"
                )
            hub.progress.note(f"note: {model.path(name)} is damaged: fetching it again")
        elif name in model.good and model.is_good(name):
            continue
        model.good.pop(name, None)
        missing.append(file)
    if model.snapshot and missing:
        how = f"hf download {model.repo} --revision {model.commit}"
        raise BadInput(
            f"{missing[0].name} is missing ({model.folder}, a hub cache): {how}, or give another folder (--to)"
        )
    return missing


def link_cached(hub: Hub, model: Model, missing: list[RemoteFile], pool) -> list[RemoteFile]:
    """Link what the hub's cache has; returns the rest."""
    cached = {file.name: (file, hub.cached(model.repo, file)) for file in missing}
    cached = {name: found for name, found in cached.items() if found[1]}
    hub.progress.start("checking the hub's cache", sum(file.size for file, _ in cached.values()))
    right = dict(run_all(hub, pool, {n: (file.is_in, path, hub.progress) for n, (file, path) in cached.items()}))
    for name, (_, source) in cached.items():
        if not right[name]:
            hub.progress.note(f"note: {source} is damaged: fetching {name} instead")
            continue
        path = model.path(name)
        path.unlink(missing_ok=True)
        try:
            os.link(source, path)
        except OSError:  # another file system
            os.symlink(source, path)
        model.mark_good(name)
    return [file for file in missing if not right.get(file.name)]


def run_all(hub: Hub, pool, jobs: dict[str, tuple]):
    """(name, result) of each job (function and arguments), as they end; the first failure ends all."""
    futures = {pool.submit(*job): name for name, job in jobs.items()}
    waiting = set(futures)
    try:
        while waiting:
            done, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_COMPLETED)
            hub.progress.show()
            for future in done:
                yield futures[future], future.result()
    except BaseException:
        hub.stop.set()
        for future in futures:
            future.cancel()
        failures = [f.exception() for f in futures if f.done() and not f.cancelled() and f.exception()]
        for failure in failures:  # not that of a thread that was only stopped
            if not isinstance(failure, Stopped):
                raise failure from None
        raise


def existing(folder: pathlib.Path) -> pathlib.Path:
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder


def check_space(work: list[tuple[Model, list[RemoteFile]]]) -> None:
    """All that is to come must have room, before anything comes."""
    disks = {}
    for model, missing in work:
        needed = 0
        for file in missing:
            with contextlib.suppress(OSError):
                needed -= min(file.size, model.part(file).stat().st_size)
            needed += file.size
        place = existing(model.folder)
        disk = disks.setdefault(place.stat().st_dev, {"free": shutil.disk_usage(place).free, "needed": 0, "for": []})
        disk["needed"] += needed
        if needed:
            disk["for"].append(str(model.folder))
    for disk in disks.values():
        if disk["needed"] > disk["free"]:
            raise Failed(
                f"no room: {size_text(disk['needed'])} are needed and {size_text(disk['free'])} are free "
                f"({', '.join(disk['for'])}): free some, or give a folder on another disk (model.path or --to)"
            )


def fetch(hub: Hub, model: Model, missing: list[RemoteFile], pool) -> None:
    model.write_record(hub.endpoint)
    for name in model.outdated:
        if name not in model.good:
            model.path(name).unlink(missing_ok=True)
    parts = {model.part(file) for file in missing}
    for path in (model.folder / PARTS).iterdir():
        if path.name != "lock" and path not in parts:
            path.unlink()
    hub.progress.start(model.repo, sum(file.size for file in missing))
    jobs = {
        file.name: (hub.download, model.repo, model.commit, file, model.path(file.name), model.part(file))
        for file in missing
    }
    for name, _ in run_all(hub, pool, jobs):
        model.mark_good(name)
        model.write_record(hub.endpoint)
    model.write_record(hub.endpoint)


def tell(progress: Progress, model: Model, came: list[RemoteFile]) -> None:
    size = size_text(sum(file.size for file in model.files.values()))
    now = f"{len(came)} of them fetched now" if came else "all there"
    progress.note(f"{model.repo}@{model.commit[:12]}: {size} in {len(model.files)} files, {now}")
    print(model.folder, flush=True)


def fetch_all(models: list[Model], options: argparse.Namespace, progress: Progress) -> None:
    """All are looked at before anything comes, so that what is wrong with the last is told at once."""
    hub = Hub(progress, options.patience)
    pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
    work = []
    for model in models:
        if not model.snapshot:
            model.read_record()
            same = model.revision in (None, model.commit)
            if same and not options.verify and model.is_complete():  # needs neither network nor a folder to write to
                model.clear()
                work.append((model, []))
                continue
            model.hold()
            model.read_record()
        plan(hub, model)
        missing = look(hub, model, options, pool)
        work.append((model, link_cached(hub, model, missing, pool)))
    check_space(work)
    for model, missing in work:
        if model.lock:
            fetch(hub, model, missing, pool)
        tell(progress, model, missing)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    progress = Progress("fetch")
    models, status = {}, 0
    try:
        for path in options.configs:
            model = model_of(path, options)
            models.setdefault((model.repo, model.folder.resolve()), model)
        fetch_all(list(models.values()), options, progress)
    except (BadInput, Failed) as error:
        status = tell_error(progress, error)
    except OSError as error:
        where = f"{error.strerror} ({error.filename})"
        status = tell_error(progress, Failed(f"{where}: check it; the same command continues"))
    except KeyboardInterrupt:
        progress.clear()
        print("fetch: stopped: the same command continues", file=sys.stderr)
        status = 130
    finally:
        for model in models.values():
            model.let_go()
    if status:  # at once: threads may be waiting for the network
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
