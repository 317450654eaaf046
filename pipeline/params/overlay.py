"""Merge one YAML document over another, with comments that stay true.

A number's comment says where the number comes from. A document that changes the number brings its own comment, or none: the
old comment is dropped. Lines between two sections stay between them. Lines above a dropped block are dropped with it.
"""

from collections.abc import Mapping
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken


def lay(base: CommentedMap, over: CommentedMap) -> CommentedMap:
    """`base` with `over` on top, in place: mappings are merged key by key, anything else is replaced, lists as a whole.

    The comment at the top is that of `over`, if it has one.
    """
    if over.ca.comment and over.ca.comment[1]:
        base.ca.comment = over.ca.comment
    _merge(base, over)
    return base


def drop(base: CommentedMap, section: str, key: str) -> None:
    """Take a block out of a section, with the lines above it, which are about it; those below it stay."""
    block = base[section]
    keys = list(block)
    before = keys.index(key) - 1
    below = _swap_tail(block, key, None)
    del block[key]
    block.ca.items.pop(key, None)
    if before >= 0:
        _swap_tail(block, keys[before], below)
    elif not block.fa.flow_style():
        _, above, beside, _ = base.ca.items.pop(section, [None] * 4)
        comment = beside.value.partition("\n")[0] if beside else ""
        token = CommentToken(f"{comment}\n{below or ''}", CommentMark(beside.start_mark.column if comment else 0), None)
        if above or comment or below:
            base.ca.items[section] = [None, above, token if comment or below else None, None]
        block.ca.comment = [token, None] if comment or below else None  # the same token once more


def _merge(base: CommentedMap, over: CommentedMap) -> None:
    for key in list(over):
        old, new = base.get(key), over[key]
        _swap_tail(over, key, None)
        if isinstance(old, CommentedMap) and isinstance(new, CommentedMap) and old:
            _merge(old, new)
            if key in over.ca.items or old.fa.flow_style():  # beside braces it is about the numbers inside
                _take_comment(base, over, key)
                old.ca.comment = new.ca.comment  # the same token once more
        else:
            last = key if key in base else next(reversed(base), None)
            tail = None if last is None else _swap_tail(base, last, None)
            base[key] = new
            _take_comment(base, over, key)
            _swap_tail(base, key, tail)


def _take_comment(base: CommentedMap, over: CommentedMap, key: Any) -> None:
    """The comment beside the key is that of `over`, or none; what stands above the key stays."""
    _, above, _, _ = base.ca.items.pop(key, [None] * 4)
    _, _, *beside = over.ca.items.get(key, [None] * 4)
    if above or any(beside):
        base.ca.items[key] = [None, above, *beside]


def _swap_tail(node: Any, key: Any, tail: str | None) -> str | None:
    """Set the lines below the value of `key`, up to what follows it; returns those that were there.

    ruamel.yaml keeps them in one token with the comment beside the value, at the innermost last value, or at a list's end.
    """
    value = node[key]
    if isinstance(value, CommentedSeq) and value.ca.end:
        below = "".join(token.value for token in value.ca.end)
        value.ca.end = []
        _swap_tail(node, key, tail)
        return below
    if isinstance(value, CommentedMap | CommentedSeq) and value and not value.fa.flow_style():
        return _swap_tail(value, next(reversed(value)) if isinstance(value, Mapping) else len(value) - 1, tail)
    place = 2 if isinstance(node, CommentedMap) else 0
    tokens = node.ca.items.get(key) or [None, None, None, None]
    token = tokens[place]
    beside, _, below = token.value.partition("\n") if token else ("", "", "")
    if not beside and not tail:
        node.ca.items.pop(key, None)
    else:
        column = token.start_mark.column if token else 0
        tokens[place] = CommentToken(f"{beside}\n{tail or ''}", CommentMark(column), None)
        node.ca.items[key] = tokens
    return below or None
