"""A text as data: its fingerprint up to case and white space."""

import hashlib


def text_key(text: str, seed: int = 0) -> int:
    """64-bit fingerprint of a text up to case and white space: equal texts, equal keys; uniform otherwise."""
    return fingerprint(normalized(text), seed)


def normalized(text: str) -> bytes:
    """The text without case, its white space single blanks, in UTF-8."""
    return " ".join(text.casefold().split()).encode()


def fingerprint(text: bytes, seed: int) -> int:
    """64 bits of a keyed hash, uniform for texts that differ."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, salt=seed.to_bytes(8, "big")).digest(), "big")
