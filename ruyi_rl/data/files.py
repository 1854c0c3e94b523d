"""Where data files lie, and their rows one by one with their line. Imports no torch and no datasets."""

from __future__ import annotations

import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruyi_rl.data.options import DataOptions
from ruyi_rl.refusal import Refusal

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
READABLE = "JSON lines, a JSON array of objects, or parquet: " + ", ".join(SUFFIXES)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Sources:
    """The files of each split, or the hub id. No test files: the held-out rows are cut from the training split."""

    train: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    hub: str | None = None


def locate(options: DataOptions) -> Sources:
    """Find the split files of `options.path`.

    Raises:
        Refusal: there is no such file or folder and it cannot be a hub id, the training split is not in the folder,
            or a split's name fits several files.
    """
    if not options.path:
        raise Refusal("data.path", "is not given", "a data file, a folder that holds train.jsonl, or a hub dataset id")
    path = Path(options.path).expanduser()
    if path.is_dir():
        train = _split_files(path, options.train, "data.train")
        if not train:
            there = sorted(f.name for f in path.iterdir() if f.name.endswith(SUFFIXES))
            raise Refusal(
                "data.train",
                f"{path} holds no file for the split {options.train!r}",
                "data files there: " + (", ".join(there) or "none"),
            )
        return Sources(train, _split_files(path, options.test, "data.test") if options.test else ())
    if path.is_file():
        # Beside a single file, only a held-out split that is spelt out counts: a neighbour named test.jsonl may be
        # anything.
        named = bool(options.test) and options.test.endswith(SUFFIXES)
        return Sources((path,), _split_files(path.parent, options.test, "data.test") if named else ())
    # owner/name, unless a folder `owner` stands here: then it is a mistyped path.
    if _HUB_ID.fullmatch(options.path) and not options.path.endswith(SUFFIXES) and not path.parent.exists():
        return Sources(hub=options.path)
    raise Refusal("data.path", f"{options.path} does not exist", "a file, a folder, or a hub id such as openai/gsm8k")


def _split_files(folder: Path, name: str, key: str) -> tuple[Path, ...]:
    for base in (folder, folder / "data"):
        if (base / name).is_file():
            return (base / name,)
        single = [base / f"{name}{suffix}" for suffix in SUFFIXES if (base / f"{name}{suffix}").is_file()]
        shards = [Path(f) for f in sorted(glob.glob(f"{glob.escape(str(base / name))}-*-of-*"))]
        shards = [f for f in shards if f.name.endswith(SUFFIXES)]
        if len(single) + bool(shards) > 1:
            raise Refusal(key, f"{name!r} fits several files in {base}", "one of: " + _names(single + shards))
        if single or shards:
            return tuple(single or shards)
    return ()


def _names(files: list[Path]) -> str:
    return ", ".join(f.name for f in files)


def read_records(path: Path, budget: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) for every row of a file; the place names file and line, or file and row for parquet.

    Args:
        path: a file with one of `SUFFIXES`.
        budget: stop after about so many bytes of (unpacked) data. None: read everything.

    Raises:
        Refusal: unknown suffix, empty file, or a row that cannot be read, with its line.
    """
    if not path.name.endswith(SUFFIXES):
        raise Refusal("data.path", f"{path} is of no known kind", READABLE)
    if path.stat().st_size == 0:
        raise Refusal("data.path", f"{path} is empty")
    read = _read_parquet if path.name.endswith(".parquet") else _read_json
    empty = True
    for record in read(path, budget):
        empty = False
        yield record
    if empty:
        raise Refusal("data.path", f"{path} holds no rows")


def _read_parquet(path: Path, budget: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise Refusal("data.path", f"{path} is not a parquet file: {error}") from error
    number = size = 0
    for batch in file.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield f"{path} row {number}", row
        size += batch.nbytes
        if budget is not None and size > budget:
            return


def _read_json(path: Path, budget: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as file:
        try:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            file.seek(0)
            if head.startswith(b"[") and ".jsonl" not in path.name:
                yield from _array_rows(path, file, budget)
            else:
                yield from _line_rows(path, file, budget)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Refusal("data.path", f"{path} is not a whole gzip file: {error}") from error


def _line_rows(path: Path, file, budget: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    size = 0
    for number, line in enumerate(file, 1):
        if budget is not None and size > budget:
            return
        size += len(line)
        place = f"{path} line {number}"
        text = _decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, path, number)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise _not_json(path, number, error) from error
        yield place, _checked_row(row, place, text)


def _array_rows(path: Path, file, budget: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    data = file.read() if budget is None else file.read(budget)
    cut = bool(file.read(1))
    if cut:
        # Not in the middle of a character.
        data = data[: data.rfind(b"\n") + 1] or data[: data.rfind(b"}") + 1]
    text = _decode(data.removeprefix(b"\xef\xbb\xbf"), path, 1)
    decode, line, counted = json.JSONDecoder().raw_decode, 1, 0
    at, first = _skip(text, _skip(text, 0) + 1), True
    while not (first and text[at : at + 1] == "]"):
        try:
            row, end = decode(text, at)
            after = _skip(text, end)
            if text[after : after + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, after)
        except json.JSONDecodeError as error:
            if cut:
                return
            raise _not_json(path, text.count("\n", 0, error.pos) + 1, error) from error
        line, counted = line + text.count("\n", counted, at), at
        place = f"{path} line {line}"
        yield place, _checked_row(row, place, text[at:end])
        first, at = False, after
        if text[after] == "]":
            break
        at = _skip(text, after + 1)
    rest = _skip(text, at + 1)
    if rest < len(text) and not cut:
        raise Refusal("data.path", f"{path} line {text.count(chr(10), 0, rest) + 1} stands after the array's end")


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def _decode(data: bytes, path: Path, first_line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise Refusal("data.path", f"{path} line {line} is not UTF-8: {error.reason}") from error


def _not_json(path: Path, line: int, error: json.JSONDecodeError) -> Refusal:
    return Refusal("data.path", f"{path} line {line} is not JSON: {error.msg} (column {error.colno})", READABLE)


def _checked_row(row: Any, place: str, text: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise Refusal("data.path", f"{place} is not an object with fields but {type(row).__name__}", READABLE)
    if "\\ud" in text.lower():
        # An escaped half of a surrogate pair is JSON but no text: neither Arrow nor a tokenizer can hold it.
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise Refusal("data.path", f"{place} holds half a surrogate pair, which is no text") from error
    return row
