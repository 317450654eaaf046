"""Texts: keys that are equal for texts that differ in case and white space only."""

import hashlib


def text_key(text: str, seed: int = 0) -> int:
    """Return a 64-bit key, equal for texts that are equal up to case and white space, else uniform."""
    return fingerprint(normalized(text), seed)


def normalized(text: str) -> bytes:
    """Return the text in UTF-8 without case, with one blank for all white space between words."""
    return " ".join(text.casefold().split()).encode()


def fingerprint(text: bytes, seed: int) -> int:
    """Return 64 bits of a keyed hash, uniform for texts that differ."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, salt=seed.to_bytes(8, "big")).digest(), "big")
