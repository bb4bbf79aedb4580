"""English text that every Python carries, cut into subword tokens."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

LEARNING_CHARACTERS = 1_000_000  # merges hardly change past this much text
WORD = re.compile(r" ?\w+|[^\w ]| ")  # a word with the space before it, or one other character
Pair = tuple[int, int]


def python_prose() -> str:
    """The paragraphs of English in `pydoc_data.topics`, one a line (about 240 000 characters).

    Left out are code, grammar, tables, and every repeat of a paragraph: the topics quote one
    another, and a paragraph seen in training would make the held-out perplexity a lie.
    """
    from pydoc_data.topics import topics

    paragraphs: dict[str, None] = {}  # a dict keeps the order and drops the repeats
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            paragraph = re.sub(r"^(\* |\d+\. )", "", " ".join(block.split()))
            if _is_prose(paragraph):
                paragraphs[paragraph] = None
    return "\n".join(paragraphs) + "\n"


def _is_prose(paragraph: str) -> bool:
    if len(paragraph) < 60 or paragraph[-1] not in ".:!?":
        return False
    if any(mark in paragraph for mark in (">>>", "::=", "+--")):
        return False
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    return letters >= 0.85 * len(paragraph)


def read_text(path: Path | None) -> str:
    """The text of a UTF-8 file, or Python's own prose for None.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or is empty.
    """
    if path is None:
        return python_prose()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot read the text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text


class Subwords:
    """Byte-pair encoding over characters: the pieces of words that are most frequent in a text.

    Whole words would read best but need thousands of scores a step, and the score layer would
    then take most of the time; single characters need few scores but spend the network's memory
    on spelling. A few hundred pieces are between: sampled text reads as words, and the recurrence
    stays the larger part of the work. A piece is a word, with or without the space before it, or
    a part of one; punctuation stays single.

    Args:
        text: what the merges are learned from (its first million characters).
        alphabet: the characters that must be encodable.
        size: how many pieces; fewer come out where no pair occurs twice.

    Raises:
        ValueError: size is smaller than the alphabet.
    """

    def __init__(self, text: str, alphabet: set[str], size: int) -> None:
        self.pieces = sorted(alphabet)
        if size < len(self.pieces):
            raise ValueError(
                f"the text has {len(self.pieces)} different characters: "
                f"a vocabulary of {size} is too small"
            )
        self._code_of = {character: code for code, character in enumerate(self.pieces)}
        self._merges: list[tuple[Pair, int]] = []
        self._codes_of_word: dict[str, list[int]] = {}
        counted = Counter(WORD.findall(text[:LEARNING_CHARACTERS]))
        words = [[self._code_of[character] for character in word] for word in counted]
        counts = list(counted.values())
        # How often each pair occurs, and where: a merge then visits only the words it changes.
        frequency: Counter[Pair] = Counter()
        places: defaultdict[Pair, set[int]] = defaultdict(set)
        for place, word in enumerate(words):
            for pair in pairwise(word):
                frequency[pair] += counts[place]
                places[pair].add(place)
        while len(self.pieces) < size and frequency:
            best = max(frequency, key=lambda pair: (frequency[pair], pair))
            if frequency[best] < 2:
                break
            new = len(self.pieces)
            self._merges.append((best, new))
            self.pieces.append(self.pieces[best[0]] + self.pieces[best[1]])
            for place in places.pop(best):
                for pair in pairwise(words[place]):
                    frequency[pair] -= counts[place]
                words[place] = _merge(words[place], best, new)
                for pair in pairwise(words[place]):
                    frequency[pair] += counts[place]
                    places[pair].add(place)
            del frequency[best]

    def encode(self, text: str) -> Tensor:
        """The codes [N] (int64) of a text."""
        return torch.tensor(
            [code for word in WORD.findall(text) for code in self._encode_word(word)]
        )

    def _encode_word(self, word: str) -> list[int]:
        codes = self._codes_of_word.get(word)
        if codes is None:
            codes = [self._code_of[character] for character in word]
            for pair, new in self._merges:
                if len(codes) == 1:
                    break
                codes = _merge(codes, pair, new)
            self._codes_of_word[word] = codes
        return codes

    def decode(self, codes: list[int]) -> str:
        """The text of codes."""
        return "".join(self.pieces[code] for code in codes)


def _merge(codes: list[int], pair: Pair, new: int) -> list[int]:
    """Puts `new` for each occurrence of the pair, from the start on and without overlap."""
    merged = []
    place = 0
    while place < len(codes):
        if codes[place] == pair[0] and codes[place + 1 : place + 2] == [pair[1]]:
            merged.append(new)
            place += 2
        else:
            merged.append(codes[place])
            place += 1
    return merged


def streams(codes: Tensor, batch: int) -> Tensor:
    """[L, batch]: the text cut into `batch` streams side by side, each read downwards."""
    length = len(codes) // batch
    return codes[: length * batch].view(batch, length).t().contiguous()
