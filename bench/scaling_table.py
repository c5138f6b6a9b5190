#!/usr/bin/env python3
"""Make the Markdown tables and the JSON file of bench/scaling from what it has measured so far.

    scaling_table.py OUT

OUT holds `settings` and `steps.jsonl` (scaling.py); it gets scaling.md, which is also printed, and scaling.json. Exit
status 1 if results differ between numbers of ranks.
"""

import json
import pathlib
import statistics
import sys

from scaling import GB, key_of, lists, load, read_settings

REQUIRED = {4: 3.4, 8: 6.0}  # times one GPU, with resident weights


def number(value, digits=3):
    """So many significant digits, without an exponent."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    return f"{float(text):.0f}" if value > 1 else f"{float(text):.9f}".rstrip("0")


def pair(first, second, digits=3):
    """What was measured, and what it is compared with."""
    return f"{number(first, digits)} ({number(second, digits)})" if first is not None and second is not None else ""


def percent(value):
    return None if value is None else max(0.0, 100 * value)


def most_over_mean(values):
    mean = sum(values) / len(values)
    return max(values) / mean if mean > 0 else None


class Model:
    """The steps of one model, by number of ranks."""

    def __init__(self, steps, settings, key):
        self.steps, self.key, self.settings = steps, key, settings
        self.ranks, self.sequences = lists(settings)
        self.rows = []

    def get(self, *name):
        return self.steps.get(".".join(map(str, (self.key, *name))))

    def runs(self, count):
        found = (self.get("streamed", i, count) for i in range(1, int(self.settings["runs"]) + 1))
        return [run for run in found if run]

    def row(self, name, cell):
        """A row of the table, unless all of it is empty. cell: of the number of ranks."""
        cells = [cell(count) or "" for count in self.ranks]
        if any(cells):
            self.rows.append([name, *cells])

    # resident weights

    def speed_up(self, n, count):
        base, own = self.get("resident", n, 1), self.get("resident", n, count)
        return base["seconds"] / own["seconds"] if base and own else None

    def resident_rows(self, n):
        def seconds(count):
            own = self.get("resident", n, count)
            return f"{number(own['seconds'], 4)} ± {number(own['half_range'], 2)}" if own else ""

        def speed_up(count):
            return pair(self.speed_up(n, count), count * n / (n + count - 1)) if count > 1 else ""

        def waiting(count):
            gain, made = self.speed_up(n, count), self.get("plan-resident", n, count)
            if gain is None or made is None or count == 1:
                return ""
            values = [1 - gain / count, (count - 1) / (n + count - 1), made["time"]["bubble"] / made["time"]["seconds"]]
            return " / ".join(f"{100 * value:.1f}" for value in values)

        def planned(count):
            made = self.get("plan-resident", n, count)
            return number(made["time"]["seconds"], 4) if made else ""

        self.row(f"resident, {n} micro-batches: s", seconds)
        self.row("speed-up (at most: of equal ranks)", speed_up)
        self.row("waiting, %: measured / (P-1)/(M+P-1) / plan", waiting)
        self.row("plan, from one rank's rate: s", planned)

    def message_rows(self, n):
        def total(count):
            own = self.get("resident", n, count)
            return f"{number(own['messages_mb'])} {own['transport']}" if own and count > 1 else ""

        def alone(count):
            rows = (self.get("resident", n, count) or {}).get("rows_alone")
            if not rows:
                return ""
            rate = 1e-3 * rows["message_mb"] / rows["message_s"]
            return f"{number(1e3 * rows['message_s'])} ({number(rate)})"

        def share(count):
            own = self.get("resident", n, count)
            rows = (own or {}).get("rows_alone")
            return number(100 * rows["pass_s"] / own["seconds"]) if rows else ""

        def layers(count):
            own = self.get("resident", n, count)
            return " ".join(map(str, own["layers"])) if own else ""

        self.row("layers of the ranks", layers)
        self.row(f"messages, {n} micro-batches: MB", total)
        self.row("one alone: ms (GB/s)", alone)
        self.row("all, nothing computed: % of the pass", share)

    # from files

    def bytes_read(self, count):
        runs = self.runs(count)
        return sum(rank["bytes_read"] for rank in runs[0]["ranks"]) if runs else None

    def streamed_s(self, count):
        runs = self.runs(count)
        return statistics.median(run["seconds"] for run in runs) if runs else None

    def bound_s(self, count):
        reader, size = self.get("reader", count), self.bytes_read(count)
        return size / GB / reader["gb_per_s"] if reader and size else None

    def over_runs(self, count, value):
        runs = self.runs(count)
        return statistics.median(map(value, runs)) if runs else None

    def rate_rows(self):
        def rate(count):
            reader = self.get("reader", count)
            return number(reader["gb_per_s"]) if reader else ""

        def own_rate(count):
            seconds = self.streamed_s(count)
            return number(self.bytes_read(count) / GB / seconds) if seconds else ""

        def over_bound(count):
            seconds, bound = self.streamed_s(count), self.bound_s(count)
            return number(seconds / bound) if seconds and bound else ""

        def weights(count):
            own = self.get("weights", count)
            return number(own["seconds"]) if own else ""

        def said(count):
            return ", ".join(sorted({run["bound_by"] for run in self.runs(count)}))

        self.row("as many plain readers: GB/s", rate)
        self.row("bytes at that rate: s", lambda count: number(self.bound_s(count)))
        self.row("from files, first read to last product: s", lambda count: number(self.streamed_s(count)))
        self.row("GB/s", own_rate)
        self.row("/ bytes at the plain rate", over_bound)
        self.row("the same with 16 tokens: s", weights)
        self.row("bound by, says the run", said)

    def time_rows(self):
        def planned(count):
            made = self.get("plan-streamed", count)
            return number(made["time"]["seconds"]) if made else ""

        def idle(count):
            made, runs = self.get("plan-streamed", count), self.runs(count)
            if not made or not runs:
                return ""
            time = made["time"]
            busy = self.over_runs(count, lambda run: sum(r["compute"] for r in run["ranks"]) / len(run["ranks"]))
            return pair(percent(1 - busy / self.streamed_s(count)), percent(1 - time["compute"] / time["seconds"]))

        self.row("plan, at measured rates: s", planned)
        self.row("predicted by the run itself: s", lambda c: number(self.over_runs(c, lambda run: run["predicted_s"])))
        self.row("ranks not computing, % (plan)", idle)
        self.row("whole process: s", lambda count: number(self.over_runs(count, lambda run: run["whole_s"])))

    def balance_rows(self):
        def balance(count):
            values = [
                self.over_runs(count, lambda run, n=name: most_over_mean([rank[n] for rank in run["ranks"]]))
                for name in ("bytes_read", "compute")
            ]
            return " / ".join(f"{value:.2f}" for value in values) if None not in values and count > 1 else ""

        def messages(count):
            runs, example = self.runs(count), self.get("resident", self.sequences[0], count)
            if not runs or not example or not example["rows_alone"]:
                return ""
            each = runs[0]["boundaries"] * self.sequences[0]
            rows = example["rows_alone"]
            return f"{number(each * rows['message_mb'])}, {number(each * rows['message_s'])}"

        self.row("max / mean of the ranks: bytes / compute", balance)
        self.row("messages from files: MB, s one by one", messages)

    def differences(self):
        """[(what, ranks, names)] of all that is not the same as with the fewest ranks."""
        found = []
        for n in self.sequences:
            sums = {count: step["checksum"] for count in self.ranks if (step := self.get("resident", n, count))}
            first = next(iter(sums.values()), None)
            found += [(f"rows of {n} micro-batches", count, []) for count, value in sums.items() if value != first]
        runs = [(count, run) for count in self.ranks for run in self.runs(count)]
        for count, run in runs[1:]:
            base = runs[0][1]["digests"]
            names = sorted(n for n in base.keys() | run["digests"].keys() if base.get(n) != run["digests"].get(n))
            if names:
                found.append(("tables", count, names))
        return found

    def check_rows(self):
        different = self.differences()

        def cell(what, measured):
            if len([count for count in self.ranks if measured(count)]) < 2:
                return lambda count: ""
            wrong = {count for kind, count, _ in different if kind.startswith(what)}
            return lambda count: ("DIFFER" if count in wrong else "same") if measured(count) else ""

        resident = self.sequences[0]
        self.row("rows behind the last layer", cell("rows", lambda count: self.get("resident", resident, count)))
        self.row("tables", cell("tables", self.runs))

    def table(self):
        for n in self.sequences:
            self.resident_rows(n)
        self.message_rows(self.sequences[0])
        self.rate_rows()
        self.time_rows()
        self.balance_rows()
        self.check_rows()
        heads = [f"{count} rank{'s' if count > 1 else ''}" for count in self.ranks]
        lines = [f"| {self.key} | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
        return lines + [f"| {' | '.join(row)} |" for row in self.rows]

    def heading(self):
        parts = []
        for kind, what in (("resident", "resident"), ("streamed", "from files")):
            if step := self.get(kind, "layers"):
                size = self.bytes_read(next((c for c in self.ranks if self.runs(c)), 0)) if kind == "streamed" else None
                width = step["shape"]["hidden_size"]
                text = f"{what} {step['layers']} of {step['of']} layers"
                parts.append(f"{text} of width {width}{f', {number(size / GB)} GB' if size else ''}")
        compared = next((run for count in self.ranks for run in self.runs(count)), None)
        if compared:
            parts.append(f"tables of {len(compared['digests']) - 1} datasets, {compared['rows']} rows")
        return "; ".join(parts)

    def requirements(self):
        """Of resident speed: a line per number of ranks that one is set for."""
        lines = []
        for count, least in REQUIRED.items():
            gains = {n: gain for n in self.sequences if (gain := self.speed_up(n, count)) is not None}
            if not gains:
                lines.append(f"{count} GPUs: at least {least} x one: not measured")
                continue
            n = max(gains, key=gains.get)
            met = "met" if gains[n] >= least else "NOT met"
            lines.append(f"{count} GPUs: at least {least} x one: {gains[n]:.2f} with {n} micro-batches: {met}")
        return lines


def machine_lines(steps):
    lines = []
    for name, step in steps.items():
        if name.startswith("machine."):
            e = step["environment"]
            gpus = f"{e['gpus']} x {e['device']}, driver {e['driver']}" if "gpus" in e else "no GPU"
            gigabytes = int(e["memory_kb"]) * 1024 / GB
            text = f"{gpus}, {e['processors']} cores, {gigabytes:.0f} GB, commit {e['commit']}, {e['date'][:10]}"
            if text not in lines:
                lines.append(text)
    return lines


def make_tables(out):
    steps, settings = load(out), read_settings(out)
    lines, different = [], []
    machines = machine_lines(steps)
    if len(machines) > 1:
        lines.append(f"Measured on {len(machines)} machines or dates, so that numbers may not compare:")
    lines += machines + [f"Sequences of {settings['length']} tokens, micro-batches of one.", ""]
    for config in settings["models"].split():
        model = Model(steps, settings, key_of(config))
        lines += [f"### {model.key}", "", model.heading(), "", *model.table(), ""]
        different += [(model.key, *found) for found in model.differences()]
        if settings["device"] == "cuda":
            lines += [f"- {line}" for line in model.requirements()] + [""]
    for key, what, count, names in different:
        lines.append(f"{key}: {what} with {count} ranks DIFFER: {', '.join(names[:8])}")
    text = "\n".join(lines).rstrip() + "\n"
    (out / "scaling.md").write_text(text)
    numbers = {"settings": settings, "different": different, "steps": steps}
    (out / "scaling.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(text, end="")
    return 1 if different else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        print("usage: scaling_table.py OUT", file=sys.stderr)
        sys.exit(2)
    sys.exit(make_tables(pathlib.Path(sys.argv[1])))
