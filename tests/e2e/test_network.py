"""Weights straight from the network: the results of local files whatever the network does, no byte twice, no token to
strangers, errors that say what to do, the cache."""

# cores: 1

import collections
import concurrent.futures
import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time

import h5py
import pytest

import helpers
import hub_server
import ports
from watched import Watched

MODEL = helpers.REFERENCES / "qwen3_moe_b"
SHARDS = sorted(MODEL.glob("*.safetensors"))
WEIGHTS = sum(path.stat().st_size for path in SHARDS)
DESCRIBING = sum((MODEL / name).stat().st_size for name in ("config.json", "model.safetensors.index.json"))
OF_THE_RUN = {"n_ranks", "started", "finished", "config", "model_name", "device"}
TOKEN = "hf_secret"
EXIT_STOPPED = 75
REFUSED = f"({SHARDS[0].name}|{SHARDS[1].name})"


@pytest.fixture
def hub():
    with hub_server.Hub(tokens=[TOKEN]) as started:
        started.commit = started.add("org/model", MODEL)
        yield started


def variables(hub, token=TOKEN, home="/nonexistent"):
    """Environment of a user of the hub; a token of None: no token anywhere."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token or "", "HF_HOME": home, "no_proxy": "*"}


def config(folder, path="hf://org/model", **changes):
    folder.mkdir(exist_ok=True)
    engine = {"threads": 1, "network_patience": 20.0} | changes.pop("engine", {})
    sections = helpers.run_sections(MODEL, MODEL / "tokens.h5", folder / "r.h5", engine=engine, **changes)
    sections["model"] = {"path": path}
    return helpers.write_config(folder / "r.cfg", sections)


def sent(hub, pattern=""):
    """Content bytes of requests; the server counts them after the client has them."""
    before = -1
    while (now := hub.sent(pattern)) != before:
        before = now
        time.sleep(0.05)
    return now


def lines_of(done):
    """What it says, but for notes that it waits, which depend on the machine."""
    return [line for line in done.stderr.splitlines() if "note: waiting for" not in line]


def run(folder, hub, ranks=None, path="hf://org/model", check=True, token=TOKEN, **engine):
    """(the run, its result's contents)."""
    env = helpers.quick(ranks) | variables(hub, token)
    done = helpers.run(["run", config(folder, path, engine=engine)], ranks, check=check, env=env)
    assert TOKEN not in done.stderr + done.stdout and "Signature" not in done.stderr
    return done, helpers.contents(folder / "r.h5", OF_THE_RUN) if check else None


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Contents of the result from files."""
    folder = tmp_path_factory.mktemp("local")
    helpers.run(["run", config(folder, MODEL)], env=helpers.quick())
    return helpers.contents(folder / "r.h5", OF_THE_RUN)


# --- the same results ---


@pytest.mark.parametrize("ranks, device", ((None, "cpu"), (None, "check"), (2, "cpu"), (4, "cpu")))
def test_same_as_files(tmp_path, hub, local, ranks, device):
    """Also through staging buffers (check). Every byte comes once, whatever the ranks; one rank asks for what describes
    the model; the token goes to the hub alone; nothing but the result is left."""
    done, found = run(tmp_path, hub, ranks, device=device)
    helpers.assert_same(found, local)
    assert WEIGHTS <= sent(hub, "storage") and sent(hub) <= 1.01 * (WEIGHTS + DESCRIBING)
    assert len(hub.requests("/api/models/")) == 1 and len(hub.requests(r"resolve/.*safetensors$")) == len(SHARDS)
    ranges = [request.headers["Range"] for request in hub.requests("storage") if request.status == 206]
    assert ranges.count("bytes=0-7") == len(SHARDS)
    assert all(request.headers["Authorization"] == f"Bearer {TOKEN}" for request in hub.requests(" hub "))
    assert hub.leaks == [] and sorted(os.listdir(tmp_path)) == ["r.cfg", "r.h5"]
    assert f"note: hf://org/model is commit {hub.commit}" in done.stderr


def test_plain_folder(tmp_path, hub, local):
    """An address that is no hub's; its server may be another than the hub, which alone gets the token."""
    path = hub.plain("org/model").replace("127.0.0.1", "localhost")
    _, found = run(tmp_path, hub, 2, path=path + "/")
    helpers.assert_same(found, local)
    assert not [request for request in hub.requests() if "Authorization" in request.headers]
    assert sent(hub) <= 1.01 * (WEIGHTS + DESCRIBING)


def test_ablation(tmp_path, hub):
    """Another pass reads the weights again."""
    found = []
    for path in (MODEL, "hf://org/model"):
        args = ["run", config(tmp_path / str(len(found)), path, analysis={"ablate": "features", "ablate_draws": 1})]
        helpers.run(args, env=helpers.quick() | variables(hub))
        found.append(helpers.contents(tmp_path / str(len(found)) / "r.h5", OF_THE_RUN))
    helpers.assert_same(*found)
    assert 1.8 * WEIGHTS < sent(hub, "storage")


def test_result_names_the_commit(tmp_path, hub):
    run(tmp_path, hub)
    with h5py.File(tmp_path / "r.h5") as file:
        assert f'path = "hf://org/model@{hub.commit}";' in file.attrs["config"]
        assert file.attrs["model_name"] == "org/model"


def test_verify(tmp_path, hub, local):
    """Every byte comes twice; one that differs is an error."""
    done, found = run(tmp_path, hub, verify=True)
    helpers.assert_same(found, local)
    assert "verified" in done.stderr and 1.9 * WEIGHTS < sent(hub, "storage") < 2.05 * WEIGHTS
    hub.forget()
    hub.rule("storage", corrupt=50_000, corrupt_once=True)
    done, _ = run(tmp_path / "wrong", hub, check=False, verify=True, readers=1)
    assert done.returncode == 1 and "differs from its bytes in file hf://org/model/model-0000" in done.stderr


# --- trouble ---


def trouble_of(hub, kind):
    if kind == "latency":
        hub.rule("", latency=0.03)
    elif kind == "cut":
        hub.rule("storage", cut=5000, times=12, after=4)
        hub.rule("resolve-cache.*index.json", cut=2000, times=1)
    elif kind == "busy":
        hub.rule("storage", status=503, times=6)
        hub.rule("storage", status=429, headers={"Retry-After": "1"}, times=3, after=8)
        hub.rule("resolve/.*safetensors", status=429, headers={"Retry-After": "1"}, times=1)
        hub.rule("api/models", status=500, times=1)
    elif kind == "expiring":
        hub.uses = 4
    elif kind == "wrong_ranges":
        hub.rule("storage", ignore_range=True, times=3)
    elif kind == "stalls":
        hub.rule("storage", latency=3, times=2, after=8)


def run_in_trouble(folder, kind, local):
    with hub_server.Hub(tokens=[TOKEN]) as hub:
        hub.add("org/model", MODEL)
        trouble_of(hub, kind)
        ranks = 2 if kind in ("cut", "expiring") else None
        _, found = run(folder, hub, ranks, network_patience=4.0 if kind == "stalls" else 20.0)
        helpers.assert_same(found, local)
        assert hub.leaks == []
        if kind == "cut":
            assert sent(hub, "storage") <= 1.01 * WEIGHTS  # what had come is not asked for again
        if kind == "expiring":
            assert len(hub.requests("resolve/.*safetensors")) > 2 * len(SHARDS)
            refused = [request for request in hub.requests("storage") if request.status == 403]
            assert refused and sent(hub, "storage") - sum(request.content for request in refused) <= 1.01 * WEIGHTS


def test_trouble(tmp_path, local):
    """Side by side, as they mostly wait."""
    kinds = ("latency", "cut", "busy", "expiring", "wrong_ranges", "stalls")
    with concurrent.futures.ThreadPoolExecutor(len(kinds)) as pool:
        list(pool.map(lambda kind: run_in_trouble(tmp_path / kind, kind, local), kinds))


def test_gives_up(tmp_path, hub):
    """One line that names file and range."""
    hub.rule("storage", status=503, after=10)
    done, _ = run(tmp_path, hub, 2, check=False, network_patience=4.0)
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert done.returncode == 1
    expected = rf"cannot read bytes \d+ to \d+ of file hf://org/model/{REFUSED}: the server answers HTTP 503, \d+ times in "
    assert re.search(expected + r"\d+ s: check the network", line), line


def test_file_that_changes(tmp_path, hub):
    """The plain folder's files are replaced while they are read."""
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in MODEL.iterdir():
        data = path.read_bytes()
        (changed / path.name).write_bytes(data[:-1] + b"\x01" if path in SHARDS else data)
    hub.rule("plain.*safetensors", latency=0.2, after=6)
    path = config(tmp_path / "run", hub.plain("org/model"))
    with Watched(["run", path], None, variables(hub)) as watched:
        watched.wait_until(lambda: len(hub.requests("plain.*safetensors")) > 6)
        hub.add("org/model", changed)
        assert watched.wait_for_end(20) == 1
    (line,) = watched.errors()
    assert re.search(rf"file http://\S+/{REFUSED} changed on the server while it was read", line), line


def test_server_without_ranges(tmp_path, hub):
    hub.rule("plain.*safetensors", ignore_range=True)
    done, _ = run(tmp_path, hub, path=hub.plain("org/model"), check=False)
    assert done.returncode == 2 and "the server does not give ranges of bytes" in done.stderr


# --- what is refused ---


@pytest.fixture
def closed_port():
    """One that nobody listens on."""
    with ports.reserved() as kept:
        yield ports.number(kept)


def test_refused(tmp_path, hub, closed_port):
    """Exit status 2, one line, nothing written, before any weights came; all at once, as they mostly wait."""
    hub.add("org/gated", MODEL, gated=True)
    hub.add("org/private", MODEL, private=True)
    (tmp_path / "half").mkdir()
    for name in ("config.json", "model.safetensors.index.json"):
        (tmp_path / "half" / name).write_bytes((MODEL / name).read_bytes())
    hub.add("org/half", tmp_path / "half")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "README.md").write_text("weights elsewhere")
    hub.add("org/none", tmp_path / "none")
    nobody = f"http://127.0.0.1:{closed_port}"
    cases = (
        ("hf://org/model", "hf_wrong", None, "the hub refuses access to org/model, HTTP 401"),
        ("hf://org/gated", None, None, "the hub gives org/gated only to those who accepted its terms, HTTP 401"),
        ("hf://org/private", None, None, "the hub shows no model org/private, HTTP 401"),
        ("hf://org/model@nowhere", TOKEN, None, 'the hub has no revision "nowhere" of org/model, HTTP 404'),
        ("hf://org/absent", TOKEN, None, "the hub shows no model org/absent, HTTP 404"),
        ("hf://org/half", TOKEN, None, f"shard {SHARDS[0].name} is missing (hf://org/half)"),
        ("hf://org/none", TOKEN, None, "there is no config.json (hf://org/none)"),
        ("hf://org", TOKEN, None, 'the hub has no revision "main" of org, HTTP 404'),
        ("hf://org/model/more", TOKEN, None, '"hf://org/model/more" names no model of a hub (model.path)'),
        ("hf://org/model", "two words", None, "the token has a blank"),
        ("hf://org/model", TOKEN, "ftp://hub", '"ftp://hub" is no http(s) address (HF_ENDPOINT)'),
        ("http://user:word@localhost/m", TOKEN, None, "the address has a user, a query or a fragment"),
        (hub.plain("org/absent"), TOKEN, None, "HTTP 404"),
        (nobody + "/m", TOKEN, None, "check the address and the network"),
        ("hf://org/model", TOKEN, nobody, "check the address and the network"),
    )

    def refusal(i):
        path, token, endpoint, _ = cases[i]
        env = helpers.quick() | variables(hub, token) | ({"HF_ENDPOINT": endpoint} if endpoint else {})
        args = ["run", config(tmp_path / f"case{i}", path, engine={"network_patience": 1.0 if nobody in f"{path} {endpoint}" else 20.0})]
        return helpers.run(args, check=False, env=env)

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        for i, done in enumerate(pool.map(refusal, range(len(cases)))):
            (line,) = lines_of(done)
            assert cases[i][3] in line, (cases[i], done.stderr)
            assert done.returncode == 2 and os.listdir(tmp_path / f"case{i}") == ["r.cfg"], cases[i]
            assert TOKEN not in done.stderr and "word" not in done.stderr.replace("two words", ""), done.stderr
    assert sent(hub, "storage") == 0


def test_refused_on_ranks(tmp_path, hub):
    """One of the ranks speaks."""
    done, _ = run(tmp_path, hub, 4, path="hf://org/absent", check=False)
    assert done.returncode == 2 and done.stderr.count("moe-outliers: error: ") == 1


def test_token_in_a_file(tmp_path, hub):
    hub.add("org/private", MODEL, private=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN + "\n")
    env = helpers.quick() | variables(hub, None, str(tmp_path / "home"))
    helpers.run(["run", config(tmp_path / "run", "hf://org/private")], env=env)


def test_missing_files_say_how_to_get_them(tmp_path):
    sections = helpers.run_sections(MODEL, MODEL / "tokens.h5", tmp_path / "r.h5")
    del sections["data"]["tokens"]
    sections["model"] = {"name": "org/model", "path": "nowhere"}
    path = helpers.write_config(tmp_path / "r.cfg", sections)
    for override, expected in (
        (f"data.tokens={MODEL}/tokens.h5", f"(nowhere): get it with scripts/fetch {path}, read it from the hub with -s "),
        ("data.tokens=no.h5", f"(no.h5): make it with scripts/tokens {path}"),
    ):
        more = ["-s", f"model.path={MODEL}"] if "no.h5" in override else []
        done = helpers.run(["run", path, "-s", override, *more], check=False, env=helpers.quick())
        (line,) = lines_of(done)
        assert done.returncode == 2 and expected in line

# --- hopeless, or waiting: said, and soon ---


class Proxy:
    """Answers each CONNECT with the status; after a 200 it is a tunnel."""

    def __init__(self, status):
        self.status, self.server = status, socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.asked = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.serve, args=(self.server.accept()[0],), daemon=True).start()

    def serve(self, client):
        with contextlib.suppress(OSError), client:
            host, port = client.recv(65536).split()[1].decode().split(":")
            self.asked += 1
            client.sendall(f"HTTP/1.1 {self.status} Whatever\r\nX-Error-Code: GatedRepo\r\n\r\n".encode())
            if self.status != 200:
                return
            with socket.create_connection((host, int(port))) as server:
                threading.Thread(target=self.pump, args=(server, client), daemon=True).start()
                self.pump(client, server)

    @staticmethod
    def pump(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def distrusted_server(folder):
    """https://... of a server whose certificate nobody signed."""
    files = [folder / "key.pem", folder / "certificate.pem"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        + ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", files[0], "-out", files[1]],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        server.handle_error = lambda *_: None
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def plan(folder, hub, env=None, patience=600.0):
    """(the plan, its seconds): it asks for config.json alone."""
    begin = time.monotonic()
    args = ["plan", config(folder, engine={"network_patience": patience})]
    done = helpers.run(args, check=False, env=variables(hub) | (env or {}), timeout=60)
    return done, time.monotonic() - begin


@pytest.mark.parametrize("kind", ("no TLS", "proxy", "tunnel"))
def test_hopeless(tmp_path, hub, kind):
    """One line at once, whatever the patience; a proxy's answers are not the server's."""
    secure = hub.endpoint.replace("http:", "https:")
    if kind == "no TLS":
        done, seconds = plan(tmp_path, hub, {"HF_ENDPOINT": secure})
        expected = "check the address and the certificates of this machine"
    elif kind == "proxy":
        proxy = Proxy(403)
        done, seconds = plan(tmp_path, hub, {"HF_ENDPOINT": secure, "https_proxy": proxy.address, "no_proxy": ""})
        expected = "the proxy answers HTTP 403: check the proxy (http_proxy, https_proxy, no_proxy)"
        assert proxy.asked == 1
    else:
        if not shutil.which("openssl"):
            pytest.skip("there is no openssl")
        with distrusted_server(tmp_path) as address:
            proxy = Proxy(200)
            env = {"HF_ENDPOINT": address, "https_proxy": proxy.address, "no_proxy": ""}
            done, seconds = plan(tmp_path / "run", hub, env)
        expected = "check the address and the certificates of this machine"
        assert proxy.asked == 1
    (line,) = lines_of(done)
    assert done.returncode == 2 and expected in line, done.stderr
    assert seconds < 15 * helpers.SLOW and not hub.requests()  # patience is longer


def cut_for_ever(folder):
    """A small file that never comes whole is no progress."""
    with hub_server.Hub(tokens=[TOKEN]) as hub:
        hub.add("org/model", MODEL)
        hub.rule("GET hub .*config.json", cut=100)
        done, seconds = plan(folder, hub, patience=3.0)
        expected = r"cannot read hf://org/model/config.json: .*, \d+ times in [3-9] s: "
        assert done.returncode == 2 and re.search(expected, done.stderr), done.stderr
        assert seconds < 20 * helpers.SLOW and len(hub.requests("config.json")) < 30


def busy_for_long(folder):
    """The wait is told, with what the hub said."""
    with hub_server.Hub(tokens=[TOKEN]) as hub:
        hub.add("org/model", MODEL)
        hub.rule("api/models", status=429, headers={"Retry-After": "12"}, times=1)
        done, _ = plan(folder, hub)
        line = done.stderr.splitlines()[0]
        expected = r"waiting for hf://org/model: the server answers HTTP 429, asked again in \d s"
        assert done.returncode == 0 and re.fullmatch("moe-outliers: note: " + expected, line), line


def silent_for_long(folder):
    with hub_server.Hub(tokens=[TOKEN]) as hub:
        hub.add("org/model", MODEL)
        hub.rule("api/models", latency=6)
        done, _ = plan(folder, hub)
        line = done.stderr.splitlines()[0]
        assert done.returncode == 0
        assert re.fullmatch(r"moe-outliers: note: waiting for hf://org/model: no answer for [5-9] s", line), line


def test_waiting_is_told(tmp_path):
    """Side by side, as they only wait."""
    cases = (cut_for_ever, busy_for_long, silent_for_long)
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        list(pool.map(lambda case: case(tmp_path / case.__name__), cases))


@pytest.mark.parametrize("path", ("HF://org/model", "hf:/org/model", "Https://host/model"))
def test_address_spelt_wrong(tmp_path, path):
    done = helpers.run(["run", config(tmp_path, path)], check=False, env=helpers.quick())
    assert done.returncode == 2 and f"({path}): if that is to be an address, write hf://OWNER/NAME or" in done.stderr


# --- stopped and continued ---


def rows_saved(folder):
    """Whether the rows of all three micro-batches behind a layer are saved: later than the line that says that it is done."""
    names = [path.name for path in (folder / "r.h5.resume").glob("rows-*") if ".tmp" not in path.name]
    stages = collections.Counter(int(name.split("-")[2]) for name in names)
    return any(stage >= 2 and count == 3 for stage, count in stages.items())


def started(tmp_path, hub, ranks, ends):
    """A run of which a layer is done, ended so, while the rest comes slowly; returns the seconds that took."""
    hub.rule("storage", slow=2_000, after=38)
    path = config(tmp_path, engine={"micro_batch": 1, "checkpoint_seconds": 0.0, "readers": 2})
    with Watched(["run", path], ranks, variables(hub)) as watched:
        watched.wait_until(lambda: watched.said("layer 1/3 done") and rows_saved(tmp_path))
        begin = time.monotonic()
        os.kill(watched.process.pid if ranks is None else watched.pid_of(1), ends)
        status = watched.wait_for_end(60)
        seconds = time.monotonic() - begin
    assert status == EXIT_STOPPED if ends == signal.SIGTERM else status != 0, watched.lines
    hub.forget()
    return path, seconds


@pytest.mark.parametrize("ends, ranks", ((signal.SIGTERM, None), (signal.SIGTERM, 2), (signal.SIGKILL, None)))
def test_continues(tmp_path, hub, local, ends, ranks):
    path, seconds = started(tmp_path, hub, ranks, ends)
    assert seconds < 15 * helpers.SLOW  # transfers, which take a minute, do not hold it up
    env = helpers.quick(ranks) | variables(hub)
    done = helpers.run(["run", path], ranks, env=env)
    found = helpers.contents(tmp_path / "r.h5", OF_THE_RUN)
    helpers.assert_same(found, local)
    assert "continu" in done.stderr
    assert sent(hub, "storage") < (0.9 * WEIGHTS if ranks is None else 1.01 * WEIGHTS)


def change_model(folder, hub):
    """The hub's branch gets shards whose last byte is another one."""
    folder.mkdir()
    for file in MODEL.iterdir():
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[:-1] + b"\x01" if file in SHARDS else data)
    hub.add("org/model", folder)


def test_goes_on_with_the_same_commit_only(tmp_path, hub):
    path, _ = started(tmp_path, hub, None, signal.SIGKILL)
    change_model(tmp_path / "changed", hub)
    done = helpers.run(["run", path], check=False, env=helpers.quick() | variables(hub))
    assert done.returncode == 2
    expected = r"checkpoint has changed since the run was interrupted: hf://org/model, commit \w+, now hf://"
    assert re.search(expected, done.stderr), done.stderr
    pinned = ["-s", f"model.path=hf://org/model@{hub.commit}"]
    helpers.run(["run", path, *pinned], env=helpers.quick() | variables(hub))


def test_stopped_while_it_asks(tmp_path, hub):
    """Before any weights came: at once, although the hub takes its time."""
    hub.rule("config.json", latency=60)
    with Watched(["run", config(tmp_path)], 2, variables(hub)) as watched:
        watched.wait_until(lambda: hub.requests("config.json") and watched.ready(0))
        begin = time.monotonic()
        os.kill(watched.wait_until(lambda: watched.ready(1)), signal.SIGTERM)
        assert watched.wait_for_end(50) == EXIT_STOPPED
        assert time.monotonic() - begin < 20 * helpers.SLOW
    assert sorted(os.listdir(tmp_path)) == ["r.cfg"]


# --- the cache ---


def ranges_in(cache):
    return [path for path in cache.rglob("*-*") if path.is_file()]


def test_cache(tmp_path, hub, local):
    """What came once is not asked for again, by other ranks neither; a range that the disk spoilt is; a pinned commit
    needs no hub at all."""
    cache = tmp_path / "cache"
    run(tmp_path / "first", hub, 2, cache=cache)
    assert not [path for path in cache.rglob("new.*")]
    hub.forget()
    done, found = run(tmp_path / "again", hub, cache=cache)
    helpers.assert_same(found, local)
    assert sent(hub, "storage") == 0 and len(hub.requests()) == 1  # which commit it is
    spoilt = max(ranges_in(cache), key=lambda path: path.stat().st_size)
    data = bytearray(spoilt.read_bytes())
    data[len(data) // 2] ^= 1
    spoilt.write_bytes(data)
    short = min((path for path in ranges_in(cache) if path.stat().st_size > 100), key=lambda path: path.stat().st_size)
    short.write_bytes(short.read_bytes()[:-1])
    _, found = run(tmp_path / "spoilt", hub, cache=cache)
    helpers.assert_same(found, local)
    assert 0 < sent(hub, "storage") < 0.3 * WEIGHTS
    hub.__exit__()
    _, found = run(tmp_path / "alone", hub, 4, path=f"hf://org/model@{hub.commit}", cache=cache)
    helpers.assert_same(found, local)


def test_cache_shared_by_runs(tmp_path, hub, local):
    """At the same time, of a plain folder; what changes there is not taken from the cache."""
    cache, path = tmp_path / "cache", hub.plain("org/model")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _, found in pool.map(lambda i: run(tmp_path / str(i), hub, path=path, cache=cache), range(2)):
            helpers.assert_same(found, local)
    hub.forget()
    _, found = run(tmp_path / "again", hub, path=path, cache=cache)
    helpers.assert_same(found, local)
    assert sent(hub, "safetensors") < 100 * len(SHARDS) + DESCRIBING
    change_model(tmp_path / "changed", hub)
    hub.forget()
    run(tmp_path / "other", hub, path=path, cache=cache)
    assert sent(hub, "safetensors") > 0.9 * WEIGHTS


def test_cache_on_a_full_disk(tmp_path, hub, local):
    with helpers.small_disk(tmp_path / "disk", "100k"):
        done, found = run(tmp_path / "run", hub, 2, cache=tmp_path / "disk" / "cache")
    helpers.assert_same(found, local)
    (line,) = [line for line in done.stderr.splitlines() if "engine.cache" in line]
    assert "nothing more is kept" in line


def test_cache_that_cannot_be(tmp_path, hub):
    (tmp_path / "file").write_text("")
    done, _ = run(tmp_path / "run", hub, check=False, cache=tmp_path / "file" / "cache")
    assert done.returncode == 2 and "cannot write to the folder: Not a directory (engine.cache, " in done.stderr

def test_cache_forgets_a_wrong_answer(tmp_path, hub, local):
    """Of a portal on the way, once: neither that a file is missing nor a page stays."""
    cache, path = tmp_path / "cache", f"hf://org/model@{hub.commit}"
    hub.rule("GET hub .*config.json", status=404, times=1)
    hub.rule("GET hub .*index.json", status=404, times=1)
    done, _ = run(tmp_path / "first", hub, path=path, cache=cache, check=False)
    assert done.returncode == 2 and "there is no config.json (hf://org/model" in done.stderr
    done, _ = run(tmp_path / "second", hub, path=path, cache=cache, check=False)
    assert done.returncode == 2 and "there is neither model.safetensors.index.json nor model.safetensors" in done.stderr
    done, found = run(tmp_path / "third", hub, path=path, cache=cache)
    helpers.assert_same(found, local)
    assert " inf " not in done.stderr


def test_cache_says_what_is_missing(tmp_path, hub):
    """What the hub itself said is kept, and the message says where."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_bytes((MODEL / "config.json").read_bytes())
    commit = hub.add("org/none", tmp_path / "none")
    for _ in range(2):
        done, _ = run(tmp_path / "run", hub, path=f"hf://org/none@{commit}", cache=tmp_path / "cache", check=False)
        note = f"{tmp_path}/cache/org-none@{commit}/model.safetensors.index.json.missing (engine.cache) says"
        assert done.returncode == 2 and note in done.stderr, done.stderr
    assert len(hub.requests("index.json")) == 1


def test_cache_that_is_read_only(tmp_path, hub, local):
    """A complete one serves; one without the model is refused."""
    path = f"hf://org/model@{hub.commit}"
    with helpers.small_disk(tmp_path / "disk", "64m"):
        cache = tmp_path / "disk" / "cache"
        run(tmp_path / "first", hub, path=path, cache=cache)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        hub.forget()
        done, found = run(tmp_path / "again", hub, path=path, cache=cache)
        helpers.assert_same(found, local)
        assert not hub.requests() and "note: Read-only file system, nothing more is kept (engine.cache, " in done.stderr
        done, _ = run(tmp_path / "none", hub, path="hf://org/absent@" + 40 * "0", cache=cache, check=False)
        assert done.returncode == 2 and "cannot write to the folder: Read-only file system" in done.stderr


# --- plan and doctor ---


def test_plan_needs_config_only(tmp_path, hub):
    plans = [
        json.loads(helpers.run(["plan", config(tmp_path, path), "--json"], env=variables(hub)).stdout)
        for path in ("hf://org/model", MODEL)
    ]
    plans[0].pop("config"), plans[1].pop("config")
    for key in ("layers", "parameters", "checkpoint_bytes", "blocks"):
        assert plans[0][key] == plans[1][key]
    assert sent(hub, "storage") == 0 and len(hub.requests("resolve/")) == 1
    hub.forget()
    more = ["-s", f"model.config={MODEL}/config.json"]
    assert "without asking hf://org/model" in helpers.run(["plan", config(tmp_path), *more], env=variables(hub)).stdout
    assert not hub.requests()


@pytest.mark.parametrize("path, status", (("hf://org/model", 0), ("hf://org/absent", 1)))
def test_doctor(tmp_path, hub, path, status):
    args = ["doctor", config(tmp_path, path)]
    done = helpers.run(args, 2, check=False, env=helpers.quick(2) | variables(hub))
    (line,) = [line for line in done.stdout.splitlines() if " checkpoint " in line]
    assert ("is complete on every rank" if status == 0 else "the hub shows no model org/absent") in line, done.stdout
    assert not status or line.startswith("fault")
    assert sent(hub, "storage") < 0.1 * WEIGHTS
