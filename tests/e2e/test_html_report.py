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
CLICK = "<script>addEventListener('load', () => document.querySelector('{}').click())</script></body>"


class Tables(html.parser.HTMLParser):
    """tables: {id: [{column: cell}]}, a cell being its attributes and "text"; checked: what the page's script noted."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.checked, self.targets = {}, None, []
        self.names, self.rows, self.cells = [], None, None
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
        elif tag == "td":
            self.cells.append(attributes | {"text": ""})

    def handle_endtag(self, tag):
        if tag == "tr" and self.cells:
            self.rows.append(dict(zip(self.names, self.cells, strict=True)))
        elif tag in ("tr", "table"):
            self.cells = None

    def handle_data(self, data):
        if self.cells:
            self.cells[-1]["text"] += data


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
def models(files):
    """What the program reports, as JSON."""
    return json.loads(helpers.run(["report", *files.values(), "--format", "json"]).stdout)["models"]


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
        common = assert_row(row, model | model["summary"], html_report.MODEL_COLUMNS)
        assert len(common) >= 13
        assert row["label"]["text"].split()[0] == model["model_name"].rsplit("/", 1)[-1]


def test_features_are_the_report(page, models):
    tables = Tables(page.read_text()).tables
    for number, model in enumerate(models):
        rows = tables.get(f"features-{number}", [])
        for row, feature in zip(rows, model["features"], strict=True):
            common = assert_row(row, feature, html_report.FEATURE_COLUMNS)
            assert len(common) >= 14
    assert "features-5" not in tables and "No value reached the threshold 1e+30" in page.read_text()


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
    assert found.tables == written.tables and len(found.tables) == 7
    figures = page.read_text().count("<figure")
    assert figures >= 20 and found.checked == f"7 tables, {figures} figures"


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
