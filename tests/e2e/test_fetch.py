"""scripts/fetch with the real huggingface_hub, against a hub on this machine (hub_server.py)."""
# cores: 1

import concurrent.futures
import fcntl
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import helpers
import huggingface_hub
import pytest
from hub_server import Hub

sys.path.insert(0, str(helpers.ROOT / "scripts"))

import fetch_hub  # noqa: E402
import fetch_model  # noqa: E402
import run_config  # noqa: E402

REPO = "org/model"
INDEX = "model.safetensors.index.json"
BIG = 6_000_000  # bytes of the first shard
SHARDS = {"model-00001-of-00003.safetensors": BIG, "model-00002-of-00003.safetensors": 70_001, "other.safetensors": 1}
NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json", INDEX, *SHARDS)


def make_repository(folder, big=BIG):
    """Files of a model, needed and not: nothing looks into the shards."""
    folder.mkdir()
    rng = random.Random(0)
    for name, size in (SHARDS | {next(iter(SHARDS)): big}).items():
        (folder / name).write_bytes(rng.randbytes(size))
    weight_map = {f"tensor.{i}": name for i, name in enumerate(SHARDS)}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "model.py",
        "original/config.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"file": name}))
    for name in ("consolidated.safetensors", "pytorch_model.bin", "original/model.safetensors"):
        (folder / name).write_bytes(rng.randbytes(1000))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("hub") / "model")


@pytest.fixture(scope="module")
def small_source(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("hub") / "small", big=50_000)


@pytest.fixture
def hub():
    with Hub(tokens=["good"]) as running:
        yield running


class Fetch:
    """Calls of scripts/fetch with a home of their own, on one hub."""

    def __init__(self, hub, folder):
        self.hub, self.folder, self.model = hub, folder, folder / "model"
        self.home = folder / "home"
        self.config = self.write_config(REPO, self.model)

    def write_config(self, repo, path, name="run.cfg"):
        return helpers.write_config(self.folder / name, {"model": {"name": repo, "path": path}, "data": {"length": 8}})

    def environment(self, **extra):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        fixed = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.hub.endpoint, "NO_PROXY": "127.0.0.1,127.0.0.2"}
        return kept | fixed | extra

    def start(self, *options, config=None, **extra):
        argv = [sys.executable, "-B", helpers.ROOT / "scripts" / "fetch", config or self.config, *options]
        return subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**extra),
            cwd=self.folder,
        )

    def __call__(self, *options, status=0, **more):
        """stderr of a call that ends with that status; an error is one line."""
        process = self.start(*options, **more)
        self.out, error = process.communicate(timeout=60)
        assert process.returncode == status, error
        if status:
            assert error.splitlines()[-1].startswith("fetch: error: ") and error.count("error:") == 1, error
            assert not self.out
        return error

    def is_whole(self, source, names=NEEDED):
        found = sorted(p.relative_to(self.model).as_posix() for p in self.model.rglob("*"))
        assert found == sorted([*names, "fetched.json"])
        return all((self.model / name).read_bytes() == (source / name).read_bytes() for name in names)


@pytest.fixture
def fetch(hub, tmp_path):
    return Fetch(hub, tmp_path)


def test_configs_are_read_as_libconfig_does(tmp_path):
    (tmp_path / "common.cfg").write_text('engine = { device = "cpu", precision: "fp32" }\n')
    path = tmp_path / "run.cfg"
    path.write_text(
        '@include "common.cfg"\n'
        'model: { name = "org/" "model"; path = "a \\"b\\" \\x41"; } // of "two" strings\n'
        "data = { sequences : 0x10; length = 2048L; /* skip = 3; { */ }; # end\n"
        "output = { activations = ( 1, (2, 3) ); overwrite = TRUE; }; deployment: { max_price = 5.0e-1; };\n"
    )
    assert run_config.read(path, ["data.skip=7", "model.name=007"]) == {
        "model": {"name": "007", "path": 'a "b" A'},
        "data": {"sequences": 16, "length": 2048, "skip": 7},
        "engine": {"device": "cpu", "precision": "fp32"},
        "output": {"activations": [1, [2, 3]], "overwrite": True},
        "deployment": {"max_price": 0.5},
    }
    path.write_text("model: { name = ; };")
    with pytest.raises(run_config.BadInput, match="no valid config"):
        run_config.read(path)
    for path in (helpers.ROOT / "configs").glob("[0-9d]*_*.cfg"):  # those of the study
        config = run_config.read(path)
        assert config["model"]["name"].split("/")[1] == pathlib.Path(config["model"]["path"]).name
        assert config["data"]["tokens"].endswith(".tokens.h5")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record(fetch):
    return json.loads((fetch.model / "fetched.json").read_text())


def test_what_a_run_needs_at_a_revision_that_stays(fetch, hub, small_source, tmp_path):
    commit = hub.add(REPO, small_source)
    fetch(HF_TOKEN="good")
    assert fetch.out.strip() == str(fetch.model)
    assert fetch.is_whole(small_source)
    assert record(fetch)["revision"] == commit and record(fetch)["complete"]
    assert record(fetch)["files"]["other.safetensors"]["sha256"] == sha256(small_source / "other.safetensors")
    assert hub.leaks == []  # the token stays with the hub
    assert all("Bearer good" in r.headers.values() for r in hub.requests(" hub ") if "/resolve/" in r.path)
    assert hub.sent(" storage ") == sum(
        file.stat().st_size for file in map(small_source.joinpath, SHARDS) if file.exists()
    )

    # The hub moves on; the folder stays with its revision, without a request. The lock of a killed call goes, that of
    # one at work stays.
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (moved / name).write_bytes((small_source / name).read_bytes())
    (moved / "model.safetensors").write_bytes(b"one file now")
    later = hub.add(REPO, moved)
    hub.forget()
    lock = fetch.model / ".fetch" / "lock"
    lock.parent.mkdir()
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "all there" in fetch(HF_ENDPOINT="http://127.0.0.1:9") and lock.exists()
    fetch(HF_ENDPOINT="http://127.0.0.1:9")
    assert fetch.is_whole(small_source) and not hub.log

    # Unless it is told to follow: then only what is new comes, and what is gone goes.
    fetch("--revision", "main")
    assert fetch.is_whole(moved, ["config.json", "tokenizer.json", "model.safetensors"])
    assert record(fetch)["revision"] == later
    assert [r.path.split("/")[-1] for r in hub.requests("HEAD hub /org/model/resolve")] == [
        "config.json",
        "model.safetensors",
    ]


def test_a_killed_call_is_continued(fetch, hub, source):
    hub.add(REPO, source)
    stalled = hub.rule("GET storage", stall=4_000_000)
    process = fetch.start(HF_HUB_DOWNLOAD_TIMEOUT="60")
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size >= 3e6 for path in fetch.model.glob(".fetch/model-00001*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    assert "another scripts/fetch is at work" in fetch(status=2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not record(fetch)["complete"]

    stalled.stall, stalled.times = None, 0
    before = hub.sent("GET storage")
    hub.forget()
    fetch()
    assert fetch.is_whole(source)
    assert before >= 3e6 and hub.sent("GET storage") <= BIG - 3e6  # only the rest
    assert hub.requests("GET hub /api/models") == []  # the revision is that of the folder


def test_bad_networks(fetch, hub, source):
    """Too many requests, a server that is down, cut connections, an address that expires: all is there in the end."""
    hub.add(REPO, source)
    hub.rule("GET hub /api/models", times=1, status=429, headers={"Retry-After": "1"})
    hub.rule("HEAD hub /.*other", times=1, status=503)
    big = f"GET storage /blobs/{sha256(source / next(iter(SHARDS)))}"
    for what in ({"cut": 500_000}, {"status": 403}, {"status": 503}):
        hub.rule(big, times=1, **what)
    began = time.monotonic()
    fetch()
    assert time.monotonic() - began >= 1
    assert fetch.is_whole(source)
    assert [r.status for r in hub.requests("GET hub /api/models")] == [429, 200]
    assert [r.status for r in hub.requests(big)] == [200, 403, 503, 206]  # cut, expired, down, the rest
    assert hub.sent(big) < BIG + 1e5  # what came before the cut stays


def test_rate_limit(fetch, hub, small_source):
    hub.add(REPO, small_source)
    hub.limit(requests=12, seconds=3)
    fetch("--jobs", "2")
    assert fetch.is_whole(small_source)
    refused = [r for r in hub.requests(" hub ") if r.status == 429]
    assert 1 <= len(refused) <= 6  # it waits as long as it is told


def test_damaged_files(fetch, hub, small_source):
    hub.add(REPO, small_source)
    hub.rule("GET storage", times=1, corrupt=0)
    assert "has arrived damaged" in fetch("--jobs", "1")
    assert fetch.is_whole(small_source)

    # On the disk: a file that has changed is noticed; one that looks untouched is by --verify.
    for name, touched, option in (("config.json", True, ()), ("other.safetensors", False, ("--verify",))):
        path = fetch.model / name
        state = path.stat()
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
        if not touched:
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        hub.forget()
        assert f"{name} is damaged: fetching it again" in fetch(*option)
        assert fetch.is_whole(small_source)
        assert {r.path.split("/")[-1] for r in hub.requests("HEAD hub /org")} == {name}

    # Of files on their way: a part that is damaged; a server that sends all again in place of the rest.
    damaged, repeated = (fetch.model / name for name in list(SHARDS)[:2])
    whole = repeated.read_bytes()
    parts = fetch.model / ".fetch"
    parts.mkdir()
    for path, start in ((damaged, bytes(1000)), (repeated, whole[:1000])):
        (parts / f"{path.name}.{sha256(path)[:16]}").write_bytes(start)
        path.unlink()
    hub.rule(f"GET storage .*{hashlib.sha256(whole).hexdigest()}", times=1, ignore_range=True)
    assert f"{damaged.name} has arrived damaged" in fetch()
    assert fetch.is_whole(small_source)

    (fetch.model / "config.json").unlink()
    hub.rule("GET hub /api/resolve-cache/.*config.json", corrupt=3)
    assert "config.json of org/model arrives with a wrong checksum" in fetch(status=1)
    assert not (fetch.model / "config.json").exists()


def test_no_space(fetch, hub, source):
    hub.add(REPO, source)
    with helpers.small_disk(fetch.model, "4m"):
        error = fetch(status=1)
        assert f"no room: 6.1 MB are needed and 4.2 MB are free ({fetch.model}): free some" in error
        assert list(fetch.model.iterdir()) == [] and not hub.requests("storage")


def test_errors(fetch, hub, small_source, tmp_path):
    hub.add(REPO, small_source)
    hub.add("org/gated", small_source, gated=True)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    hub.add("org/pickled", tmp_path / "pickled")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        cases = [
            (2, "the hub does not accept the token (HF_TOKEN)", (), {"HF_TOKEN": "wrong"}),
            (2, "access to config.json of org/gated is restricted", ("-s", "model.name=org/gated"), {}),
            (2, "the hub does not know org/none", ("-s", "model.name=org/none"), {}),
            (2, f"no such revision for {REPO}@none", ("--revision", "none"), {}),
            (1, f"the hub cannot be reached for {REPO}", ("--patience", "1"), {"HF_ENDPOINT": nowhere}),
            (2, "HF_HUB_OFFLINE is set", (), {"HF_HUB_OFFLINE": "1"}),
            (2, "has neither model.safetensors.index.json nor model.safetensors", ("-s", "model.name=org/pickled"), {}),
            (2, 'model.name "alone" is no repository', ("-s", "model.name=alone"), {}),
            (2, "model.path is no folder but synthetic:1", ("-s", "model.path=synthetic:1"), {}),
            (2, "wrong override", ("-s", "model.name"), {}),
            (2, 'unknown key "nme" in section "model" (-s model.nme=x)', ("-s", "model.nme=x"), {}),
            (2, "model.path is no folder (run.cfg)", ("-s", "model.path=run.cfg"), {}),
            (2, "the token has blanks or characters beyond ASCII (HF_TOKEN)", (), {"HF_TOKEN": "hf_é"}),
            (2, '"http://[1" is no http(s) address (HF_ENDPOINT)', (), {"HF_ENDPOINT": "http://[1"}),
        ]

        def call(case):
            status, text, options, environment = case
            mine = Fetch(hub, tmp_path / f"case-{cases.index(case)}")
            error = mine(*options, status=status, **environment)
            assert text in error, error
            assert not mine.model.exists()

        for i in range(len(cases)):
            (tmp_path / f"case-{i}").mkdir()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(call, cases))
    fetch("-s", "model.name=org/gated", HF_TOKEN="good")
    assert fetch.is_whole(small_source)
    assert "the folder holds org/gated, not org/model" in fetch(status=2)
    (fetch.model / "fetched.json").unlink()
    (fetch.model / "config.json").write_text("my own")
    assert "config.json is not that of org/model" in fetch(status=2)
    assert (fetch.model / "config.json").read_text() == "my own"


def test_what_is_refused_before_a_request(monkeypatch, capsys):
    for address in ("127.0.0.1:1", "ftp://hub.example", "https://", "http://hub.example:port"):
        monkeypatch.setattr(fetch_hub, "GIVEN_ENDPOINT", address)
        with pytest.raises(fetch_hub.BadInput, match=re.escape(f'"{address}" is no http(s) address (HF_ENDPOINT)')):
            fetch_hub.Hub(None, 1)
    for token in ("hf_a b", "hf_\x7f", "hf_\udce9"):
        monkeypatch.setattr(huggingface_hub, "get_token", lambda token=token: token)
        with pytest.raises(fetch_hub.BadInput, match="the token has blanks or characters beyond ASCII"):
            fetch_hub.checked_token()
    for patience in ("nan", "-1", "long"):
        with pytest.raises(SystemExit, match="2"):
            fetch_model.parse(["run.cfg", "--patience", patience])
        assert "--patience" in capsys.readouterr().err


def test_who_gets_the_token(monkeypatch):
    monkeypatch.setattr(fetch_hub.constants, "ENDPOINT", "https://hub.example")
    hub = fetch_hub.Hub(None, 1)
    assert hub.is_at("https://hub.example/a") and hub.is_at("https://HUB.example:443/a?b")
    for address in ("http://hub.example/a", "http://hub.example:443/a", "https://hub.example:444/a", "https://hub/a"):
        assert not hub.is_at(address)


def test_cache_of_the_hub(fetch, hub, small_source):
    """What the hub's cache has is linked; a snapshot in it is used as it is."""
    commit = hub.add(REPO, small_source)
    cache = fetch.home / "hub"
    snapshot = huggingface_hub.snapshot_download(REPO, cache_dir=cache, endpoint=hub.endpoint, token=False)
    shard = fetch.model / "other.safetensors"
    hub.forget()
    fetch()
    assert fetch.is_whole(small_source)
    assert hub.requests("storage") == []
    assert shard.samefile(os.path.join(snapshot, shard.name))

    # Damage in the cache does not come over.
    fetched = [shard, fetch.model / "fetched.json"]
    with open(shard, "r+b") as file:
        file.write(bytes([file.read(1)[0] ^ 1]))
    for path in fetched:
        path.unlink()
    assert "is damaged: fetching other.safetensors instead" in fetch()
    assert fetch.is_whole(small_source)

    in_cache = fetch.write_config(REPO, snapshot, "snapshot.cfg")
    assert "other.safetensors is damaged" in fetch(config=in_cache, status=2)
    os.unlink(os.path.join(snapshot, shard.name))
    assert f"hf download {REPO} --revision {commit}" in fetch(config=in_cache, status=2)
    huggingface_hub.snapshot_download(REPO, cache_dir=cache, endpoint=hub.endpoint, token=False, force_download=True)
    fetch(config=in_cache)
    assert not os.path.exists(os.path.join(snapshot, "fetched.json"))
