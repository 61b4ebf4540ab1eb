"""Change small valid files as an attacker or a broken disk would: bytes anywhere, the header first; JSON by its values."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

BYTES = (0, 1, 2, 4, 8, 16, 0x7F, 0x80, 0xFE, 0xFF)
NUMBERS = (0, 1, 2, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 65535, 2**31, 2**63, 10**40, 0.5, -1e308, float("nan"), float("inf"), "", "0", "#12345g", "a" * 5000,
    "../../etc/passwd", "/etc/passwd", "http://127.0.0.1:9/x.tif", "/vsicurl/http://127.0.0.1:9/x.tif", "s3://bucket/key", "file:///etc/passwd",
    "\x1b[2J\r\n", "<script>", "\udcff", "名", [], {}, [[]], [None], {"a": 1}, [0] * 100, "EPSG:0", "2020-99-99T00:00:00Z",
)  # fmt: skip
HEADER = 512  # bytes, on which two changes of three fall


def changed_bytes(content: bytes, chance: random.Random) -> bytes:
    """One to eight changes: bytes and numbers replaced, pieces cut out, doubled, moved, the end cut off."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        at = chance.randrange(min(len(data), HEADER) if chance.random() < 0.67 else len(data))
        length = chance.choice((1, 2, 4, 8, 40))
        match chance.randrange(8):
            case 0 | 1:
                data[at] = chance.choice(BYTES) if chance.random() < 0.5 else chance.randrange(256)
            case 2 | 3:
                size = chance.choice((2, 4, 8))
                number = chance.choice(NUMBERS) & (1 << 8 * size) - 1
                data[at : at + size] = number.to_bytes(size, chance.choice(("little", "big")))
            case 4:
                data[at] ^= 1 << chance.randrange(8)
            case 5:
                del data[at : at + length]
            case 6:
                data[at:at] = data[at : at + length]
            case 7:
                del data[at + 1 :]
    return bytes(data)


def changed_json(content: Any, chance: random.Random) -> bytes:
    """One to four values of a JSON document replaced, removed, renamed or doubled."""
    document = json.loads(json.dumps(content))
    for _ in range(chance.choice((1, 1, 2, 4))):
        places = list(_places(document))
        if not places:
            break
        holder, key = chance.choice(places)
        match chance.randrange(6):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(chance.choice(VALUES))
            case 3:
                del holder[key]
            case 4:
                other, name = chance.choice(places)
                holder[key] = json.loads(json.dumps(other.get(name) if isinstance(other, dict) else None))
            case 5 if isinstance(holder, dict):
                holder[str(chance.choice(VALUES))] = holder.pop(key)
            case _:
                holder[key] = [copy.deepcopy(holder[key]) for _ in range(3)]
    return json.dumps(document).encode()


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key or index) in a document."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], dict | list)]
    return found
