"""Ways to damage files: bytes, PNG chunks, JSON values and zip entries, all drawn from a random.Random."""

import copy
import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any

NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 32767, 32768, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)


def damaged(content: bytes, rng: random.Random, others: Iterable[bytes] = ()) -> bytes:
    """The content after one to four random changes; rarely as it is."""
    data = bytearray(content)
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 4))):
        near = rng.random() < 0.5  # headers matter more than pixels
        at = rng.randrange(min(len(data), 80) if near else len(data)) if data else 0
        length = rng.choice((1, 2, 4, 8, 30, 200))
        change = rng.randrange(9)
        if change == 0:
            data[at : at + 1] = bytes([data[at] ^ 1 << rng.randrange(8)]) if data else b"\0"
        elif change == 1:
            data[at : at + length] = rng.randbytes(min(length, len(data) - at))
        elif change == 2:
            width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
            data[at : at + width] = (rng.choice(NUMBERS) % 2 ** (8 * width)).to_bytes(width, order)
        elif change == 3:
            del data[at:]
        elif change == 4:
            del data[at : at + length]
        elif change == 5:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
        elif change == 6:
            data[at:at] = rng.randbytes(length)
        elif change == 7:
            data[at : at + length] = bytes(min(length, len(data) - at))
        elif others := list(others):
            other = rng.choice(others)
            data[at:] = other[rng.randrange(len(other) + 1) :]
    content = bytes(data)
    return sealed_png(content) if rng.random() < 0.7 else content


def sealed_png(content: bytes) -> bytes:
    """A PNG whose checksums are right again, so that its damage is read; other content as it is."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    result, at = content[:8], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        body = content[at + 4 : at + 8 + length]
        result += content[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return result + content[at:]


ODD = (
    *(None, True, False, 0, -1, 1, 1.5, 1e400, -1e400, float("nan"), 10**30, -(2**63), 0.1),
    *("", "x", "\0", "[/x]", "../../x", "/etc/passwd", "nan", "x" * 10_000, "\ud800", "<script>", "é"),
    *([], {}, [[]], {"": None}, [None] * 3, [1, 2, 3], ["x"], {"x": {"y": []}}),
)


def odd_json(content: Any, rng: random.Random) -> bytes:
    """A JSON file with one to three values replaced, dropped, renamed or copied elsewhere, or damaged as bytes."""
    kind = rng.random()
    if kind < 0.02:
        return rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b"[]", b"\xff\xfe{}", b"\xef\xbb\xbf{}"))
    content = copy.deepcopy(content)
    for _ in range(rng.choice((0, 1, 1, 2, 3)) if kind < 0.85 else 0):
        inner = content
        while isinstance(inner, dict | list) and inner:
            key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            if not isinstance(inner[key], dict | list) or not inner[key] or rng.random() < 0.25:
                change = rng.randrange(5)
                if change == 0:
                    del inner[key]
                elif change == 1 and isinstance(inner, dict):
                    inner[rng.choice(("", "x", "format", "a" * 300))] = inner.pop(key)
                elif change == 2:
                    inner[key] = [inner[key]]
                elif isinstance(inner[key], int | float) and change == 3:
                    inner[key] = inner[key] * rng.choice((-1, 0, 0.5, 2, 10**6, 1e308))
                else:
                    inner[key] = copy.deepcopy(rng.choice(ODD))
                break
            inner = inner[key]
    data = json.dumps(content).encode("utf-8", "surrogatepass")
    return data if kind < 0.85 else damaged(data, rng)


def damaged_zip(content: bytes, rng: random.Random) -> bytes:
    """The zip with one entry damaged, dropped or doubled, its checksums right."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(result, "w") as after:
        names = before.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        chosen = rng.choice(pickles if pickles and rng.random() < 0.8 else names)
        for name in names:
            data = before.read(name)
            change = rng.random() if name == chosen else 1.0
            if change > 0.1:
                after.writestr(name, damaged(data, rng) if name == chosen else data)
            elif change > 0.05:
                after.writestr(rng.choice(("x", "../x", "/abs/x", "archive/data/0")), data)
    return result.getvalue()
