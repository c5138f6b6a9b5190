"""scripts/report.py: a page that needs nothing else, whose tables are the numbers of `moe-outliers report`.

The page is opened in Debian's chromium where it is installed (apt-get install chromium)."""

# cores: 1

import html.parser
import json
import math
import os
import re
import shutil
import subprocess

import h5py
import pytest

import helpers
import study

import report as html_report  # of scripts/, which study has put in the path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(not BROWSER, reason="chromium is not installed (apt-get install chromium)")
TABLES = 21  # of the page of study.RESULTS
CLICK = "<script>addEventListener('load', () => document.querySelector('{}').click())</script></body>"


class Tables(html.parser.HTMLParser):
    """tables: {id: [{column: cell}]}, a cell being its attributes and "text"; checked: what the page's script noted;
    texts: {id: text} of the paragraphs that have one."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.checked, self.targets, self.texts = {}, None, [], {}
        self.names, self.rows, self.cells, self.paragraph = [], None, None, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.targets += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "html":
            self.checked = attributes.get("data-checked")
        elif tag == "table":
            self.names, self.rows = [], self.tables.setdefault(attributes["id"], [])
        elif tag == "th":
            self.names.append(attributes["data-name"])
        elif tag == "tr":
            self.cells = []
        elif tag == "p":
            self.paragraph = attributes.get("id")
        elif tag == "td":
            self.cells.append(attributes | {"text": ""})

    def handle_endtag(self, tag):
        if tag == "tr" and self.cells:
            self.rows.append(dict(zip(self.names, self.cells, strict=True)))
        if tag in ("tr", "table"):
            self.cells = None
        elif tag == "p":
            self.paragraph = None

    def handle_data(self, data):
        if self.cells:
            self.cells[-1]["text"] += data
        elif self.paragraph:
            self.texts[self.paragraph] = self.texts.get(self.paragraph, "") + data


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return study.make_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def page(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "new" / "sweep.html"
    done = study.run_script("report.py", *files.values(), "-o", path, "--features", 0, "--title", "Six & <more>")
    assert done.stdout == f"{path}\n" and done.stderr == ""
    return path


@pytest.fixture(scope="module")
def reported(files):
    """What the program reports, as JSON."""
    return json.loads(helpers.run(["report", *files.values(), "--format", "json"]).stdout)


@pytest.fixture(scope="module")
def models(reported):
    return reported["models"]


def browse(path, folder):
    """The page's elements as the browser has them in the end, and what it wrote to its console."""
    # As root, as in containers, chromium refuses its sandbox; they may have little shared memory.
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--enable-logging=stderr",
        "--v=0",
    ]
    done = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={folder / 'profile'}", "--timeout=20000", "--dump-dom", f"file://{path}"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"HOME": str(folder)},
    )
    assert done.returncode == 0 and "</html>" in done.stdout, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


# --- tables ---


def assert_number(cell, value):
    if value is None or math.isnan(value):
        assert cell["data-value"] == "" and cell["text"] == "-"
    else:
        assert float(cell["data-value"]) == pytest.approx(value, rel=1e-11, abs=1e-300)


def assert_interval(cell, ends):
    """The report has null where there is no interval, or no members in one that is older."""
    shown = [float(cell[name]) for name in ("data-low", "data-high") if name in cell]
    assert shown == ([] if None in ends else pytest.approx(ends, rel=1e-11, abs=1e-300))


def assert_row(row, values, columns):
    """The columns that the report has too; the text of a cell is its number in the column's way of writing."""
    common = [name for name in row if name in values]
    for name in common:
        if columns[name].is_number:
            assert_number(row[name], values[name])
            assert_interval(row[name], [values.get(f"{name}_{end}") for end in ("low", "high")])
            if row[name]["data-value"]:
                written = columns[name].write(html_report.python_value(values[name]))
                assert row[name]["text"].split()[0] == written, name
        else:
            assert row[name]["data-value"] == row[name]["text"] == values[name]
    return common


def test_models_are_the_report(page, models):
    rows = Tables(page.read_text()).tables["models"]
    for row, model in zip(rows, models, strict=True):
        values = model | model["summary"] | {"layer_agreement": model["agreement"]["layer_agreement"]}
        values |= {"layer_agreement": math.nan} if values["layer_agreement"] is None else {}
        common = assert_row(row, values, html_report.MODEL_COLUMNS)
        assert len(common) >= 14
        assert row["label"]["text"].split()[0] == model["model_name"].rsplit("/", 1)[-1]


def test_features_are_the_report(page, models):
    tables = Tables(page.read_text()).tables
    for number, model in enumerate(models):
        rows = tables.get(f"features-{number}", [])
        for row, feature in zip(rows, model["features"], strict=True):
            common = assert_row(row, feature, html_report.FEATURE_COLUMNS)
            assert len(common) >= 15
    assert "features-5" not in tables and "No value reached the threshold 1e+30" in page.read_text()


def numbers(cell):
    """Of a cell that lists some."""
    return [float(text) for text in cell["data-value"].split(", ")] if cell["data-value"] else []


def test_agreement_is_the_report(page, models):
    rows = Tables(page.read_text()).tables["agreement"]
    for row, model in zip(rows, models, strict=True):
        agreement = model["agreement"]
        assert_number(row["layer_agreement"], agreement["layer_agreement"])
        assert numbers(row["features"]) == agreement["features"]
        layers = {feature["feature"]: feature["block_percentage"] for feature in model["features"]}
        assert numbers(row["layers"]) == pytest.approx([100 * layers[f] for f in agreement["features"]], abs=0.051)
        assert row["classification"]["data-value"] == model["summary"]["classification"]
    assert any(row["features"]["data-value"].count(",") == 4 for row in rows)


def test_ablation_is_the_report(page, models):
    tables = Tables(page.read_text()).tables
    found = 0
    for number, model in enumerate(models):
        assert (f"ablation-{number}" in tables) == ("ablation" in model)
        for row, values in zip(tables.get(f"ablation-{number}", []), model.get("ablation", []), strict=True):
            common = assert_row(row, values | {"features": ", ".join(map(str, values["features"]))},
                                html_report.ABLATION_COLUMNS)  # fmt: skip
            assert common == list(html_report.ABLATION_COLUMNS)
            found += 1
    assert found == 7


def assert_growth(rows, model):
    """Of a table of the page and a model of the report; how many rows."""
    features = model.get("growth", [])
    expected = [row | {"feature": feature["feature"]} for feature in features for row in feature["experts"]]
    for row, values in zip(rows, expected, strict=True):
        values |= {"expert": "shared" if values["expert"] == -1 else str(values["expert"])}
        values |= {name: math.nan for name in values if values[name] is None}
        assert assert_row(row, values, html_report.GROWTH_COLUMNS) == list(html_report.GROWTH_COLUMNS)
    return len(expected)


def test_growth_is_the_report(page, models):
    tables = Tables(page.read_text()).tables
    found = [assert_growth(tables.get(f"growth-{number}", []), model) for number, model in enumerate(models)]
    assert found[-1] >= 3 and not any(found[:-1])


def test_odd_growth(files, tmp_path):
    """A shared expert, growth that is no number, features without growth and such that /features lacks."""
    path = study.extend(files["studied"], tmp_path / "odd.h5")
    with h5py.File(path, "a") as file:
        rows = file["growth"][:]
        features = sorted(set(rows["feature"].tolist()))
        assert len(features) >= 3
        rows["expert"][rows["expert"] == 1] = -1
        rows["growth"][::3] = rows["share"][::4] = math.nan
        rows["growth_of_layer"][rows["feature"] == features[0]] *= -1
        rows["feature"][rows["feature"] == features[1]] = 10**6
        file["growth"][:] = rows
    study.run_script("report.py", path, "-o", tmp_path / "odd.html")
    table = Tables((tmp_path / "odd.html").read_text()).tables["growth-0"]
    model = json.loads(helpers.run(["report", path, "--format", "json"]).stdout)["models"][0]
    assert assert_growth(table, model) == 3 * len(features)
    assert {row["expert"]["text"] for row in table} >= {"shared"} and table[-1]["feature"]["text"] == "1000000"
    assert any(row["share_of_total"]["text"] == "-" for row in table)


def test_dead_experts_are_the_report(page, models):
    tables = Tables(page.read_text()).tables
    assert {bool(model["dead_experts"]) for model in models} == {True, False}
    for number, model in enumerate(models):
        rows = tables.get(f"dead-{number}", [])
        shown = [[int(row["layer"]["data-value"]), int(expert)] for row in rows for expert in numbers(row["experts"])]
        assert shown == (model["dead_experts"] or [])
        assert [int(row["dead"]["data-value"]) for row in rows] == [len(numbers(row["experts"])) for row in rows]


def test_experts_are_the_file_s(files, page):
    tables = Tables(page.read_text()).tables
    for number, path in enumerate(files.values()):
        with h5py.File(path) as file:
            rows = sorted(file["experts"][:], key=lambda row: -row["max_output"]) if "experts" in file else []
        shown = tables.get(f"experts-{number}", [])
        assert len(shown) == min(sum(row["tokens"] > 0 for row in rows), html_report.EXPERTS)
        for cells, row in zip(shown, rows):
            assert cells["expert"]["text"] == ("shared" if row["shared"] else str(row["expert"]))
            for name in html_report.EXPERT_COLUMNS:
                if name != "expert":
                    assert_number(cells[name], float(row[name]))


def test_finding_is_the_report(page, reported):
    assert Tables(page.read_text()).texts["finding"] == reported["finding"]["text"]


# (architecture, class of the model, parameters) of each file
FINDINGS = {
    "shown": (("gpt_oss", 2, 20), ("olmoe", 1, 7), ("mixtral", 1, 47)),
    "not shown by size": (("gpt_oss", 2, 120), ("olmoe", 1, 7)),
    "one architecture in two classes": (("gpt_oss", 2, 20), ("gpt_oss", 1, 120)),
    "another is systematic": (("gpt_oss", 2, 20), ("olmoe", 2, 7), ("mixtral", 1, 47)),
    "one without": (("gpt_oss", 2, 20), ("olmoe", 1, 47), ("mixtral", 0, 47)),
    "no systematic one": (("olmoe", 1, 7), ("mixtral", 1, 47)),
    "no probabilistic one": (("gpt_oss", 2, 20), ("olmoe", 0, 7)),
    "neither": (("olmoe", 0, 7), ("mixtral", 0, 47)),
}


@pytest.mark.parametrize("name", (*FINDINGS, "other criteria"))
def test_findings(files, tmp_path, name):
    """Word for word what the program says of the same files."""
    paths = []
    for number, (architecture, classification, parameters) in enumerate(FINDINGS.get(name, FINDINGS["shown"])):
        path = study.extend(files["gpt_oss"], tmp_path / f"{number}.h5", f"org/{architecture}", parameters * 10**9)
        with h5py.File(path, "a") as file:
            file.attrs["architecture"] = architecture
            file["summary/classification"][()] = classification
            if name == "other criteria" and number == 1:
                file.attrs["systematic_fraction"] = 0.9
        paths.append(path)
    found = json.loads(helpers.run(["report", *paths, "--format", "json"]).stdout)["finding"]
    assert html_report.finding(html_report.read_results(paths)) == found["text"]
    assert found["architecture_matters_more_than_size"] == (name in ("shown", "one without", "another is systematic"))


def test_sizes_and_intervals(files, page):
    """What the made-up file has, beside the numbers in small print."""
    row = Tables(page.read_text()).tables["models"][-1]
    assert (row["parameters"]["data-value"], row["parameters"]["text"]) == ("7000000000", "7B")
    assert (row["active_parameters"]["data-value"], row["active_parameters"]["text"]) == ("1300000000", "1.3B")
    with h5py.File(files["studied"]) as file:
        for name, group, scale in (("perplexity", "perplexity", 1), ("mean_layer_percentage", "summary", 100)):
            low, high = (float(file[group][f"{name}_{end}"][()]) for end in ("low", "high"))
            assert (float(row[name]["data-low"]), float(row[name]["data-high"])) == (low, high)
            shown = [float(text) for text in re.findall(r"[0-9.]+", row[name]["text"])[1:]]
            assert shown == pytest.approx([scale * low, scale * high], rel=1e-2)


def test_fewer_features(files, tmp_path):
    study.run_script("report.py", files["dense"], "-o", tmp_path / "two.html", "--features", 2)
    text = (tmp_path / "two.html").read_text()
    assert len(Tables(text).tables["features-0"]) == 2
    assert re.search(r"first; \d+ more: --features 0 shows all\.", text)


# --- the file ---


def test_needs_nothing_else(page):
    """Nothing is loaded, and the page itself forbids it."""
    text = page.read_text()
    assert all(target.startswith(("data:", "#")) for target in Tables(text).targets)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"data:image/png;base64,[^\"]*", "", text))
    assert "default-src 'none'" in text


def test_same_files_same_page(files, tmp_path):
    for name in ("a.html", "b.html"):
        study.run_script("report.py", files["olmoe"], "-o", tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize("arguments, part", ((["-o", "/dev/null/x"], "/dev/null"), ([], "--output"),
                                             (["-o", "x", "--features", "-1"], "-1")))  # fmt: skip
def test_bad_usage(files, arguments, part):
    study.assert_one_line(study.run_script("report.py", files["olmoe"], *arguments, check=False), "report.py", part)


def test_bad_file(files, tmp_path):
    (tmp_path / "bad.h5").write_text("no result")
    done = study.run_script("report.py", files["olmoe"], tmp_path / "bad.h5", "-o", tmp_path / "x.html", check=False)
    study.assert_one_line(done, "report.py", "bad.h5")
    assert not (tmp_path / "x.html").exists()


# --- in a browser ---


@needs_browser
def test_in_a_browser(page, tmp_path):
    """Its own checks find nothing, and what the browser shows are the tables of the file."""
    text, console = browse(page, tmp_path)
    assert console == []
    found, written = Tables(text), Tables(page.read_text())
    assert found.tables == written.tables and len(found.tables) == TABLES
    figures = page.read_text().count("<figure")
    assert figures >= 20 and found.checked == f"{TABLES} tables, {figures} figures"
    assert found.texts == written.texts and "finding" in found.texts


@needs_browser
@pytest.mark.parametrize(
    "pattern, replacement, part",
    ((r'(<table id="features-0">.*?<tbody>\n)<tr>.*?</tr>', r"\1", "rows"),
     (r'(<td data-value=")[0-9.]+(" class="number">)', r"\1many\2", "no number"),
     (r"base64,iVBOR", "base64,AAAAA", "no picture"),
     (r"</body>", '<img src="http://127.0.0.1:9/x.png"></body>', "Content Security Policy")),
)  # fmt: skip
def test_its_checks_find_damage(page, tmp_path, pattern, replacement, part):
    damaged, count = re.subn(pattern, replacement, page.read_text(), count=1, flags=re.DOTALL)
    assert count == 1
    (tmp_path / "damaged.html").write_text(damaged)
    _, console = browse(tmp_path / "damaged.html", tmp_path)
    assert any(part in line for line in console), console


@needs_browser
@pytest.mark.parametrize("clicks", (1, 2))
def test_a_click_sorts(page, tmp_path, clicks):
    """Numbers fall first, and rise after a second click; rows without one stay last."""
    click = CLICK.format("#models th[data-name=perplexity] button")
    (tmp_path / "sorted.html").write_text(page.read_text().replace("</body>", click * clicks))
    text, console = browse(tmp_path / "sorted.html", tmp_path)
    assert console == []
    shown = [row["perplexity"]["data-value"] for row in Tables(text).tables["models"]]
    assert shown[-1] == "" and shown.count("") == 1
    values = [float(value) for value in shown[:-1]]
    assert values == sorted(values, reverse=clicks == 1) and len(set(values)) > 3


@needs_browser
def test_names_are_text(files, tmp_path):
    """A model's name cannot become part of the page."""
    name = "a/</script><script>console.error('in')</script>\"'<b>& @BODY@"
    odd = study.extend(files["olmoe"], tmp_path / "odd.h5", name=name)
    study.run_script("report.py", odd, "-o", tmp_path / "odd.html", "--title", name)
    text, console = browse(tmp_path / "odd.html", tmp_path)
    assert console == []
    assert Tables(text).tables["models"][0]["label"]["data-value"] == name.rsplit("/", 1)[-1]
