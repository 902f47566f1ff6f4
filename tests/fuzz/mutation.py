"""Damage to files, drawn from a seed."""

import copy
import json
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 64, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, "", "a",
    "../x", "/etc/passwd", "\ud800", "a\nb", "\x1b[31m", "F8_E4M3", "I64", "BF16", [], {}, [0],
    [[]], {"a": 1}, [None], "64", ["64"], float("nan"), float("inf"),
)  # fmt: skip


def damaged(random: Random, content: bytes) -> bytes:
    """Some bytes are other ones, missing or more."""
    if not content:
        return bytes(random.randbytes(8))
    place, end = sorted(random.choices(range(len(content) + 1), k=2))
    end = min(end, place + random.choice((1, 8, 200)))
    return random.choice(
        (
            lambda: _flipped(random, content),
            lambda: content[:place],
            lambda: content[:place] + content[end:],
            lambda: content[:place] + random.randbytes(end - place) + content[end:],
            lambda: content[:place] + content[place:end] * 2 + content[end:],
            lambda: content + random.randbytes(random.choice((1, 64))),
            lambda: b"",
        )
    )()


def _flipped(random: Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 4))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def damaged_json(random: Random, content: bytes) -> bytes:
    """One or two values are of another type or size, missing, or stand under another name."""
    changed = copy.deepcopy(json.loads(content))
    for _ in range(random.choice((1, 1, 2))):
        changed = spoiled(random, changed)
    text = json.dumps(changed)
    if random.random() < 0.1:  # a name that stands twice
        text = text.replace("{", '{"' + random.choice(_names(changed) or ["a"]) + '": 1, ', 1)
    return text.encode()


def spoiled(random: Random, content: Any) -> Any:
    """`content` with a value somewhere in it replaced, dropped or renamed."""
    places = list(_places(content))
    if not places or random.random() < 0.03:
        return copy.deepcopy(random.choice(VALUES))
    parent, key = random.choice(places)
    kind = random.random()
    if kind < 0.7:
        parent[key] = _other(random, parent[key])
    elif kind < 0.85 or not isinstance(parent, dict):
        del parent[key]
    else:
        parent[str(key) + "_"] = parent.pop(key)
    return content


def _other(random: Random, value: Any) -> Any:
    if type(value) in (int, float) and random.random() < 0.5:
        return random.choice((value + 1, value - 1, -value, value * 2, str(value), value / 3))
    return copy.deepcopy(random.choice(VALUES))


def _places(content: Any) -> list[tuple[Any, Any]]:
    """Every place in lists and objects; of long ones the first few."""
    if not isinstance(content, dict | list):
        return []
    items = list(content.items() if isinstance(content, dict) else enumerate(content))[:40]
    found = [(content, key) for key, _ in items]
    for _, value in items:
        found += _places(value)
    return found


def _names(content: Any) -> list[str]:
    return [str(key).replace("\\", "") for key in content] if isinstance(content, dict) else ["a"]


def damaged_safetensors(random: Random, content: bytes) -> bytes:
    """The header says something else, or bytes anywhere are damaged."""
    length = int.from_bytes(content[:8], "little")
    header, tensors = content[8 : 8 + length], content[8 + length :]
    kind = random.random()
    if kind < 0.15:
        return damaged(random, content)
    if kind < 0.3:  # short offsets are rarely hit by chance
        return (
            random.choice((0, length - 1, length + 8, 2**32, 2**63, 2**64 - 1)).to_bytes(
                8, "little"
            )
            + content[8:]
        )
    if kind < 0.45:
        changed = damaged(random, header)
    elif kind < 0.7:
        changed = _moved(random, header)
    else:
        changed = damaged_json(random, header)
    return len(changed).to_bytes(8, "little") + changed + tensors


def _moved(random: Random, header: bytes) -> bytes:
    """Tensors that overlap, leave gaps or change places."""
    entries = json.loads(header)
    names = [name for name in entries if name != "__metadata__"]
    one, other = random.choices(names, k=2)
    if random.random() < 0.5:
        entries[one]["data_offsets"] = entries[other]["data_offsets"]
        if random.random() < 0.5:
            entries[one]["shape"] = entries[other]["shape"]
    else:
        shift = random.choice((-(2**40), -64, -4, 4, 64, 2**40))
        offsets = entries[one]["data_offsets"]
        offsets[random.randrange(2)] += shift
        if random.random() < 0.5:
            entries[one]["data_offsets"] = [offset + shift for offset in offsets]
    return json.dumps(entries).encode()
