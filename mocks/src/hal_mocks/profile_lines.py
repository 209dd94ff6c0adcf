"""Where each key of a TOML text stands: tomllib tells lines of syntax errors only, a profile's user needs all."""

from __future__ import annotations

from collections.abc import Mapping

Path = tuple[str | int, ...]


def lines_of(text: str) -> dict[Path, int]:
    """Return the line (from 1) of every table, key, array item and inline key of a TOML text.

    The text must be one that tomllib accepts: nothing is validated here. A path is the keys from the top, with an
    index for each item of an array: ``("gpu", 1, "model")``.
    """
    return _Scanner(text).scan()


def line_at(lines: Mapping[Path, int], path: Path) -> int:
    """Return the line of a path, or of the nearest thing around it that has one."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 1


class _Scanner:
    """A walk over valid TOML that keeps only positions."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.line = 1
        self.lines: dict[Path, int] = {}
        self.counts: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while True:
            self.skip(" \t\r\n")
            if self.at >= len(self.text):
                return self.lines
            if self.peek("[["):
                self.move(2)
                table = self.header(self.keys("]"), array=True)
                self.move(2)
            elif self.peek("["):
                self.move(1)
                table = self.header(self.keys("]"), array=False)
                self.move(1)
            else:
                self.pair(table)

    def header(self, keys: list[str], array: bool) -> Path:
        path: Path = ()
        for position, key in enumerate(keys):
            path = (*path, key)
            if position == len(keys) - 1 and array:
                self.lines.setdefault(path, self.line)
                self.counts[path] = self.counts.get(path, 0) + 1
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
            self.lines.setdefault(path, self.line)
        return path

    def pair(self, table: Path) -> None:
        keys = self.keys("=")
        for end in range(1, len(keys) + 1):
            self.lines.setdefault((*table, *keys[:end]), self.line)
        self.move(1)
        self.value((*table, *keys))

    def value(self, path: Path) -> None:
        self.skip(" \t")
        if self.peek("["):
            self.items(path, "]")
        elif self.peek("{"):
            self.items(path, "}")
        elif self.peek('"') or self.peek("'"):
            self.string()
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}\n#":
                self.move(1)

    def items(self, path: Path, end: str) -> None:
        self.move(1)
        index = 0
        while True:
            self.skip(" \t\r\n,")
            if self.at >= len(self.text):
                return
            if self.peek(end):
                self.move(1)
                return
            if end == "]":
                self.lines[(*path, index)] = self.line
                self.value((*path, index))
                index += 1
            else:
                self.pair(path)

    def keys(self, end: str) -> list[str]:
        found: list[str] = []
        while self.at < len(self.text):
            self.skip(" \t.")
            if self.peek(end):
                break
            if self.peek('"') or self.peek("'"):
                basic = self.peek('"')
                found.append(_unescaped(self.string()) if basic else self.string())
                continue
            start = self.at
            while self.at < len(self.text) and self.text[self.at] not in " \t.\n" + end:
                self.move(1)
            found.append(self.text[start : self.at])
            if self.at == start:
                break
        return found

    def string(self) -> str:
        quote = self.text[self.at]
        mark = quote * 3 if self.peek(quote * 3) else quote
        self.move(len(mark))
        start = self.at
        while self.at < len(self.text) and not self.peek(mark):
            self.move(2 if quote == '"' and self.peek("\\") else 1)
        text = self.text[start : self.at]
        self.move(len(mark))
        while len(mark) == 3 and self.peek(quote):  # """" ends with the quotes that belong to the text
            self.move(1)
        return text

    def peek(self, mark: str) -> bool:
        return self.text.startswith(mark, self.at)

    def move(self, count: int) -> None:
        self.line += self.text.count("\n", self.at, self.at + count)
        self.at += count

    def skip(self, blanks: str) -> None:
        while self.at < len(self.text):
            if self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            elif self.text[self.at] in blanks:
                self.move(1)
            else:
                return


def _unescaped(text: str) -> str:
    """Return the key that a basic string with escapes stands for."""
    if "\\" not in text:
        return text
    import tomllib

    return str(tomllib.loads(f'key = "{text}"')["key"])
