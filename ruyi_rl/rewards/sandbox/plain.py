"""Plain data as bytes: what crosses the border of a sandbox, in both directions.

Plain are None, bool, int, float, complex, str, bytes, list, tuple, dict, set and frozenset, by their exact type, and
nested. The decoder trusts nothing: it only ever makes these types, and bounds size, depth, digits and hash collisions.
This file also runs inside, where an import costs time: it needs none.
"""

MAX_DEPTH = 100
"""Nested containers."""
MAX_DIGITS = 4300
"""Decimal digits of an integer: Python's own limit, so that `str` of a decoded value never fails."""
MAX_BITS = 14_284
MAX_COLLISIONS = 100
"""Keys of one dict or set with the same hash: more would make building it take quadratic time."""

_SEQUENCES = {b"l": list, b"t": tuple, b"S": set, b"Z": frozenset}
_TAGS = {kind: tag for tag, kind in _SEQUENCES.items()}


class Unplain(Exception):
    """A value that is not plain data; the message names its type."""


class TooLarge(Exception):
    """Plain data over a limit; the message names the limit."""


class Malformed(Exception):
    """Bytes that `encode` cannot have written."""


class Colliding(Exception):
    """A dict or set with more than `MAX_COLLISIONS` keys of one hash."""


def encode(value: object, limit: int) -> bytes:
    """The bytes of plain data.

    Args:
        limit: bytes that the result may have.

    Raises:
        Unplain: some part of it is of another type, be it a subclass.
        TooLarge: over `limit`, `MAX_DEPTH` or `MAX_DIGITS`.
    """
    parts: list[bytes] = []
    room = limit

    def put(tag: bytes, body: bytes) -> None:
        nonlocal room
        room -= 5 + len(body)
        if room < 0:
            raise TooLarge(f"more than {limit} bytes")
        parts.append(tag + len(body).to_bytes(4, "little") + body)

    def add(item: object, depth: int) -> None:
        nonlocal room
        kind = type(item)
        if item is None or kind is bool:
            put(b"N" if item is None else b"T" if item else b"F", b"")
        elif kind is int:
            bits = item.bit_length()
            if bits > MAX_BITS:
                raise TooLarge(f"an integer of more than {MAX_DIGITS} digits")
            put(b"i", item.to_bytes(bits // 8 + 1, "little", signed=True))
        elif kind is str:
            if len(item) > room:
                raise TooLarge(f"more than {limit} bytes")
            put(b"s", item.encode("utf-8", "surrogatepass"))
        elif kind is float:
            put(b"f", item.hex().encode())
        elif kind is complex:
            put(b"c", f"{item.real.hex()} {item.imag.hex()}".encode())
        elif kind is bytes:
            put(b"b", item)
        elif kind in _TAGS or kind is dict:
            if depth >= MAX_DEPTH:
                raise TooLarge(f"nested more than {MAX_DEPTH} deep")
            room -= 5
            if len(item) * 5 > room:
                raise TooLarge(f"more than {limit} bytes")
            parts.append((b"d" if kind is dict else _TAGS[kind]) + len(item).to_bytes(4, "little"))
            if kind is dict:
                for key, entry in item.items():
                    add(key, depth + 1)
                    add(entry, depth + 1)
            else:
                for entry in item:
                    add(entry, depth + 1)
        else:
            raise Unplain(f"a value of type {kind.__name__}")

    add(value, 0)
    return b"".join(parts)


def decode(data: bytes) -> object:
    """The value that `encode` made `data` of.

    Raises:
        Malformed: it never did; or a value over a limit.
        Colliding: keys that collide, as they do on purpose only.
    """
    value, end = _decode(data, 0, 0)
    if end != len(data):
        raise Malformed("bytes after the end")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[object, int]:
    tag, head = data[at : at + 1], data[at + 1 : at + 5]
    if len(head) < 4:
        raise Malformed("cut short")
    size, at = int.from_bytes(head, "little"), at + 5
    if tag in _SEQUENCES or tag == b"d":
        count = size * 2 if tag == b"d" else size
        if depth >= MAX_DEPTH or count * 5 > len(data) - at:
            raise Malformed("too deep or too long")
        items = []
        for _ in range(count):
            item, at = _decode(data, at, depth + 1)
            items.append(item)
        if tag == b"d":
            _check_keys(items[::2])
            return dict(zip(items[::2], items[1::2], strict=True)), at
        if tag in (b"S", b"Z"):
            _check_keys(items)
        return _SEQUENCES[tag](items), at
    body, end = data[at : at + size], at + size
    if end > len(data):
        raise Malformed("cut short")
    return _scalar(tag, body), end


def _scalar(tag: bytes, body: bytes) -> object:
    try:
        if tag == b"s":
            return body.decode("utf-8", "surrogatepass")
        if tag == b"i" and 0 < len(body) <= MAX_BITS // 8 + 1:
            number = int.from_bytes(body, "little", signed=True)
            if number.bit_length() <= MAX_BITS:
                return number
        elif tag == b"f" and len(body) < 40:
            return float.fromhex(body.decode("ascii"))
        elif tag == b"c" and len(body) < 80:
            real, imaginary = body.decode("ascii").split(" ")
            return complex(float.fromhex(real), float.fromhex(imaginary))
    except (ValueError, OverflowError) as error:
        raise Malformed(f"not a value: {error}") from None
    if tag == b"b":
        return body
    if tag in (b"N", b"T", b"F") and not body:
        return {b"N": None, b"T": True, b"F": False}[tag]
    raise Malformed("not a value")


def _check_keys(keys: list) -> None:
    """Refuses keys that have no hash, and so many of the same hash that a dict of them would take quadratic time."""
    counts: dict[int, int] = {}
    for key in keys:
        try:
            code = hash(key)
        except TypeError:
            raise Malformed("a key without a hash") from None
        counts[code] = counts.get(code, 0) + 1
        if counts[code] > MAX_COLLISIONS:
            raise Colliding(f"more than {MAX_COLLISIONS} keys of one hash")
