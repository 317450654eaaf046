"""Checks of a tokenizer: its special tokens, its words, its rows, and whether it fits the model in the same folder."""

from copy import deepcopy
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pruneonce.errors import ModelError
from pruneonce.models.configuration import build_body, position_offset
from pruneonce.models.folders import VOCABULARIES, reading


def check_special_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise ModelError if mask, cls, sep or pad is missing, or one token has two roles.

    The pipeline masks, cuts and pads rows by the ids of the roles.
    """
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in ("mask", "cls", "sep", "pad", "unk")}
    if missing := [role for role in ("mask", "cls", "sep", "pad") if ids[role] is None]:
        raise ModelError(
            f"expected a tokenizer with mask, cls, sep and pad token in {folder}, found {type(tokenizer).__name__} without "
            f"{', '.join(missing)}. Name them in its tokenizer_config.json, or choose another `common.model`."
        )
    first: dict[int, str] = {}
    for role, token in ids.items():
        if token is not None and (other := first.setdefault(token, role)) != role:
            raise ModelError(
                f"expected a tokenizer with a token of its own for mask, cls, sep, pad and unk in {folder}, found token "
                f"{token} as {other} and as {role}. Name another in its tokenizer_config.json, or choose another "
                "`common.model`."
            )


def check_padding(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, folder: Path) -> None:
    """Raise ModelError if the model numbers positions by its own padding token, and the tokenizer pads with another."""
    expected, pad = getattr(config, "pad_token_id", None), tokenizer.pad_token_id
    if expected != pad and position_offset(build_body(config, folder)):
        raise ModelError(
            f"expected {expected} for padding in {folder}, the `pad_token_id` of config.json by which a {config.model_type} "
            f"numbers its positions, found {pad}, the tokenizer's {tokenizer.pad_token!r}. Do the files belong together?"
        )


def check_rows(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise ModelError unless the tokenizer writes the expected rows.

    One text is cls, text, sep. A pair is cls, text, one sep or more, text, sep.
    """
    with reading("a tokenizer", folder):
        copy = deepcopy(tokenizer)  # a call changes the truncation that is saved with the tokenizer
        text = copy("a", add_special_tokens=False, verbose=False)["input_ids"]
        one, two = copy("a", verbose=False)["input_ids"], copy("a", "a", verbose=False)["input_ids"]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    seps = [sep] * max(len(two) - 2 - 2 * len(text), 1)  # RoBERTa writes two of them between texts
    for kind, row, expected in (("a text", one, [cls, *text, sep]), ("a pair", two, [cls, *text, *seps, *text, sep])):
        if row != expected:
            raise ModelError(
                f"expected a tokenizer that writes cls before and sep after each text in {folder}, {expected} for {kind}, "
                f"found {row}. Put the model's own `post_processor` into its tokenizer.json, or choose another "
                "`common.model`."
            )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, folder: Path) -> None:
    """Raise ModelError if the tokenizer has no words, or a token id beyond the `rows` of the model's embeddings."""
    ids = tokenizer.get_vocab()
    if not ids.keys() - set(tokenizer.all_special_tokens):
        raise ModelError(
            f"expected a tokenizer with words in {folder}, found special tokens only. Is its tokenizer.json (or "
            f"{', '.join(VOCABULARIES[:4])}) there, and whole?"
        )
    last = max(ids, key=ids.__getitem__)
    if ids[last] >= rows:
        raise ModelError(
            f"expected token ids below {rows}, the embeddings of the model in {folder}, found {ids[last]} for {last!r}: "
            "tokens were added and the embeddings not resized, or the two are not of one model. Call "
            "`model.resize_token_embeddings(len(tokenizer))` and save both, or take the tokenizer of the model."
        )
