"""Reads what scripts need of a run's config (libconfig), with its includes and -s overrides.

It is the program that judges a config: unknown keys and values out of range pass read().
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

from script_messages import BadInput

DEFAULTS = {"model": {"name": ""}, "data": {"sequences": 16, "length": 2048, "skip": 0}}
MOST_INCLUDES = 10  # one inside the other, as in libconfig
BUILD = pathlib.Path(__file__).resolve().parents[1] / "build"
WORD = re.compile(
    r"""(?P<skip>(?:\s+|\#[^\n]*|//[^\n]*|/\*.*?\*/)+)
    |(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<sign>[][(){}=:;,])
    |(?P<word>[^\s"\#\[\](){}=:;,]+)""",
    re.VERBOSE | re.DOTALL,
)
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "b": "\b"}


def unquote(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        code = match.group(1)
        return chr(int(code[1:], 16)) if len(code) > 1 else ESCAPES.get(code, code)

    return re.sub(r"\\(x[0-9A-Fa-f]{2}|.)", replace, text[1:-1], flags=re.DOTALL)


def scalar(word: str) -> object:
    """A word as a value: bool, int, float, or the text itself."""
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    if re.fullmatch(r"[-+]?(0[xX][0-9a-fA-F]+|\d+)L{0,2}", word):
        return int(word.rstrip("L"), 16 if "x" in word.lower() else 10)
    try:
        return float(word)
    except ValueError:
        return word


def flatten(path: pathlib.Path, folder: pathlib.Path, depth: int = 0) -> str:
    """Text of a config with what it includes; paths of includes start at the folder of the first file."""
    if depth > MOST_INCLUDES:
        raise BadInput(f"includes go too deep ({path}): does a file include itself?")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            f"config file cannot be read: {getattr(error, 'strerror', 'no UTF-8')} ({path}): check it"
        ) from None
    return re.sub(
        r'^[ \t]*@include[ \t]+("(?:[^"\\]|\\.)*")[^\n]*$',
        lambda match: flatten(folder / unquote(match.group(1)), folder, depth + 1),
        text,
        flags=re.MULTILINE,
    )


class Reader:
    def __init__(self, text: str, path: pathlib.Path):
        self.words, self.path = [], path
        at = 0
        while at < len(text):
            match = WORD.match(text, at)
            if not match:
                raise self.wrong(f"near {text[at : at + 20].split()[0]}")
            if match.lastgroup != "skip":
                self.words.append((match.lastgroup, match.group()))
            at = match.end()
        self.words.append(("end", ""))
        self.at = 0

    def wrong(self, where: str) -> BadInput:
        return BadInput(f"no valid config ({self.path}): {where}: moe-outliers plan {self.path} names the line")

    def take(self, *signs: str) -> str | None:
        kind, text = self.words[self.at]
        if kind == "sign" and text in signs:
            self.at += 1
            return text
        return None

    def group(self, end: str) -> dict[str, object]:
        found = {}
        while self.words[self.at] != (("sign", end) if end else ("end", "")):
            kind, name = self.words[self.at]
            self.at += 1
            if kind != "word" or not self.take("=", ":"):
                raise self.wrong(f"near {name or 'the end'}")
            found[name] = self.value()
            self.take(";", ",")
        self.at += 1
        return found

    def value(self) -> object:
        kind, text = self.words[self.at]
        self.at += 1
        if kind == "string":
            while self.words[self.at][0] == "string":  # strings side by side are one
                text = text[:-1] + self.words[self.at][1][1:]
                self.at += 1
            return unquote(text)
        if kind == "word":
            return scalar(text)
        if text == "{":
            return self.group("}")
        if text in ("(", "["):
            items = []
            while not self.take(")" if text == "(" else "]"):
                items.append(self.value())
                self.take(",")
            return items
        raise self.wrong(f"near {text or 'the end'}")


def read(path: str | pathlib.Path, overrides: list[str] = ()) -> dict[str, dict[str, object]]:
    """{section: {key: value}}; overrides: texts section.key=value, the last one counts."""
    path = pathlib.Path(path)
    config = Reader(flatten(path, path.parent), path).group("")
    sections = {name: dict(keys) for name, keys in DEFAULTS.items()}
    for name, keys in config.items():
        if isinstance(keys, dict):
            sections.setdefault(name, {}).update(keys)
    for override in overrides:
        match = re.fullmatch(r"\s*(\w+)\.(\w+)\s*=\s*(.*?)\s*", override)
        if not match:
            raise BadInput(f"wrong override (-s {override}): write -s section.key=value")
        section, key, text = match.groups()
        if len(text) >= 2 and text[0] == text[-1] == '"':
            text = unquote(text)
        number = isinstance(DEFAULTS.get(section, {}).get(key), int)
        sections.setdefault(section, {})[key] = scalar(text) if number else text
    return sections


def check(path: str | pathlib.Path, overrides: list[str] = ()) -> None:
    """Has the program look for unknown sections and keys, if it is built: it knows them."""
    programs = [os.environ.get("MOE_OUTLIERS"), *(BUILD / preset / "moe-outliers" for preset in ("default", "cpu"))]
    program = next((program for program in programs if program and os.access(program, os.X_OK)), None)
    if not program:
        return
    argv = [program, "config", path, *(word for text in overrides for word in ("-s", text))]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return
    match = re.match(r"moe-outliers: error: (unknown (?:key|section) .*)", done.stderr)
    if match:
        raise BadInput(match.group(1))


def text_of(config: dict[str, dict[str, object]], section: str, key: str, path: object) -> str:
    """A key that must be there as a text; path: the config's file, for the message."""
    value = config.get(section, {}).get(key, "")
    if value == "" or isinstance(value, (dict, list, bool)):
        raise BadInput(f"{section}.{key} is not given ({path}): set it there or by -s {section}.{key}=...")
    return str(value)


def count_of(config: dict[str, dict[str, object]], section: str, key: str, path: object, least: int) -> int:
    value = config[section][key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(f"{section}.{key} is {value} ({path}): give a whole number from {least}")
    return value
