"""Hindi morphology by rule: how many case, verb and compound marks a text holds. No tagger, no outside data.

The words are in hindi.tsv, for a linguist to correct. What spans several words (के बारे में, किया गया, जो ... वह) is found
by looking at neighbours, never across punctuation. Accepted noise (की, से, पर ...) is measured in docs/CURRICULA.md.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

TABLES = Path(__file__).with_name("hindi.tsv")
# What stands between words: the end of a sentence, other punctuation, the joint of a hyphenated compound.
STOP, COMMA, JOINT = "।", ",", "-"
GAPS = frozenset({STOP, COMMA, JOINT})

# \w leaves out the vowel signs, so marks are named: combining, Arabic, Devanagari, and the other Indic blocks.
_LETTER = r"(?:[^\W_]|[\u0300-\u036f\u064b-\u0652\u0900-\u0963\u0971-\u0dff])"
_WORD = re.compile(rf"(\d+(?:[.,:]\d+)+|{_LETTER}+)")
_SENTENCE_END = re.compile(r"[।॥?!.…]")
_HYPHENS = frozenset("-\u2010\u2011\u2013")
_INVISIBLE = {0x200B: None, 0x200C: None, 0x200D: None, 0xFEFF: None, 0x00AD: None}
_FOLD = {0x200C: None, 0x200D: None, 0x093C: None, 0x0901: 0x0902}


class Word(NamedTuple):
    form: str = ""  # as the tables hold it
    tags: frozenset[str] = frozenset()  # tables that hold it or its stem, kinds of verb form, and what _describe adds
    head: str = ""  # the row of compound_postpositions that it may begin


NOTHING = Word()  # beyond the ends of a sentence, and for punctuation


def count_features(documents: Sequence[str]) -> np.ndarray:
    """Words, case, verb and compound marks of each document, int64 of shape (4, N).

    Case: a postposition, a fused pronoun, a compound postposition as a whole.
    Verb: an inflected verb form or auxiliary, not a bare stem; one more for -वा- in either, and for a passive.
    Compound: a pair of stem and vector verb, or of noun or adjective and करना or होना; a joint of a hyphenated
    compound, a spaced reduplication, a correlative pair in a sentence.
    """
    counts = np.zeros((4, len(documents)), dtype=np.int64)
    for n, text in enumerate(documents):
        for sentence in (list(run) for is_stop, run in groupby(_split(text), STOP.__eq__) if not is_stop):
            counts[0, n] += sum(item not in GAPS for item in sentence)
            counts[1:, n] += _count_marks(sentence)
    return counts


def split_words(text: str) -> list[str]:
    """The words of `text` in NFC: runs of letters, marks and digits; a hyphenated compound is several."""
    return [item for item in _split(text) if item not in GAPS]


def _split(text: str) -> list[str]:
    """Words and the gaps between them; a line end is a sentence end, since corpora may hold one sentence a line."""
    return [item for token in text.replace("\n", " । ").split() for item in _split_token(token)]


@lru_cache(maxsize=1 << 17)
def _split_token(token: str) -> tuple[str, ...]:
    """Words and gaps of a text without white space."""
    items, pieces = [], _WORD.split(normalise(token))  # these are: a gap, maybe empty, a word, a gap ... a gap
    for i, piece in enumerate(pieces):
        if i % 2:
            items.append(piece)
        elif piece:
            is_joint = 0 < i < len(pieces) - 1 and piece in _HYPHENS
            items.append(JOINT if is_joint else STOP if _SENTENCE_END.search(piece) else COMMA)
    return tuple(items)


def normalise(text: str) -> str:
    """NFC without characters of no width, ZWJ and ZWNJ among them."""
    return unicodedata.normalize("NFC", text).translate(_INVISIBLE)


def lookup_form(word: str) -> str:
    """`word` as the tables hold it: no ZWJ, ZWNJ or nukta (of ऩ ऱ ऴ neither, which NFC keeps), ँ as ं."""
    return unicodedata.normalize("NFD", word).translate(_FOLD)


@cache
def _rows(table: str) -> dict[str, list[str]]:
    """The rows of a table of hindi.tsv, their words in look-up form."""
    rows: dict[str, list[str]] = {}
    lines = [line for line in TABLES.read_text(encoding="utf8").splitlines() if line.startswith(f"{table}\t")]
    for _, row, words in (line.split("\t") for line in lines):
        entries = words.split("," if table == "compound_postpositions" else None)
        rows.setdefault(lookup_form(row), []).extend(lookup_form(entry.strip()) for entry in entries)
    return rows


@cache
def _words(table: str) -> frozenset[str]:
    """The words of all rows of a table, in look-up form."""
    return frozenset(word for words in _rows(table).values() for word in words)


@cache
def _forms() -> dict[str, set[tuple[str, str]]]:
    """Each form of each verb -> its (stem, kind); kind is a row of the tables of endings, copula or bare."""
    stems = _words("stems")
    # Only a consonant takes the causative -वा-: बढ़ावा, पछतावा, जावा are nouns.
    stems |= {f"{stem}वा" for stem in stems if not _ends_in_vowel(stem)}
    forms: dict[str, set[tuple[str, str]]] = {}
    for stem in stems:
        after = "vowel" if _ends_in_vowel(stem) else "consonant"
        # The long vowel of पी and छू is short before a vowel: पिया, छुआ.
        spelt = {stem, re.sub("ी$", "ि", stem), re.sub("ू$", "ु", stem)}
        for kind, endings in (*_rows("endings_anywhere").items(), *_rows(f"endings_after_{after}").items()):
            for form in (text + ending for text in spelt for ending in endings):
                forms.setdefault(form, set()).add((stem, kind))
        if stem not in _words("not_bare"):
            forms.setdefault(stem, set()).add((stem, "bare"))
    for row, listed in _rows("irregular").items():
        stem, kind = row.split()
        for form in listed:
            forms.setdefault(form, set()).add((stem, kind))
    return {form: found for form, found in forms.items() if form not in _words("stop_words")}


def _ends_in_vowel(stem: str) -> bool:
    return "\u0904" <= stem[-1] <= "\u0914" or "\u093e" <= stem[-1] <= "\u094c"


@lru_cache(maxsize=1 << 16)
def _describe(item: str) -> Word:
    """What `item`, a word or a gap, can be."""
    if item in GAPS:
        return NOTHING
    form = lookup_form(item)
    tables = ("case", "motion_perfectives", "hona_hosts", "relatives", "correlates")
    tags = {table for table in tables if form in _words(table)}
    found = () if "case" in tags else _forms().get(form, ())
    stems = {stem for stem, _ in found}
    tags |= {kind for _, kind in found} | {"verb" for _, kind in found if kind != "bare"}
    tags |= {table for table in ("auxiliaries", "vectors", "jana", "karna", "hona") if stems & _words(table)}
    tags |= {"causative" for stem in stems if stem.endswith("वा") and stem != "गंवा"}  # गँवाना, to lose, is none
    if any("\u0904" <= letter <= "\u0939" for letter in form):
        tags |= {"letters"} if tags & {"case", "verb"} or form in _words("not_hosts") else {"letters", "host"}
    heads = [head for head, others in _rows("compound_heads").items() if form == head or form in others]
    return Word(form, frozenset(tags), *heads[:1])


def _count_marks(items: Sequence[str]) -> tuple[int, int, int]:
    """Case, verb and compound marks of one sentence."""
    words = [NOTHING, *map(_describe, items), NOTHING, NOTHING]
    lengths = [*map(_compound_length, words, words[1:], words[2:]), 0, 0]
    inside = [lengths[i - 1] > 1 or lengths[i - 2] > 2 for i in range(len(words))]  # later words of a compound one
    vector = ["vectors" in word.tags and not within for word, within in zip(words, inside, strict=True)]
    absolutive = [False] * len(words)  # पढ़ कर
    for i in range(1, len(words) - 1):
        if words[i].form == "कर" and "bare" in words[i - 1].tags:
            absolutive[i] = "auxiliaries" not in words[i + 1].tags and not vector[i + 1]
    case, verb, compound = sum(map(bool, lengths)), 0, _count_correlatives(words)
    for i in range(1, len(words) - 2):
        form, before, tags, after = words[i].form, words[i - 1].tags, words[i].tags, words[i + 1].tags
        free, passes = not inside[i], "jana" in after
        ki_verb = form == "की" and passes  # की गई
        ke_verb = form == "के" and words[i - 1].form == "कर"  # कर के
        motion = "motion_perfectives" in tags and passes
        passive = ki_verb or ("perfective" in tags and free and passes and not motion)
        pair = "bare" in tags and vector[i + 1] and free and not passive and not motion
        stem_only = pair or ("bare" in tags and "auxiliaries" in after)
        conjunct = "host" in tags and "karna" in after and not absolutive[i + 1]
        conjunct |= "hona_hosts" in tags and "hona" in after and "copula" not in after
        case += "case" in tags and free and not ki_verb and not ke_verb and not lengths[i]
        verb += ("verb" in tags and free and not stem_only) + ("causative" in tags) + passive + ki_verb
        verb += absolutive[i] or (form == "कर" and words[i + 1].form == "के")
        compound += (pair or motion) + (conjunct and free)
        if items[i - 1] == JOINT:
            compound += "letters" in before and "letters" in after
        elif i < len(items) and items[i - 1] == items[i]:  # बार बार
            compound += "letters" in tags and not tags & {"case", "copula"}
    return case, verb, compound


def _compound_length(word: Word, first: Word, second: Word) -> int:
    """Words of the compound postposition that `word` begins: 0, 2 or 3."""
    entries = _rows("compound_postpositions")[word.head] if word.head else ()
    return 3 if f"{first.form} {second.form}" in entries else 2 * (first.form in entries)


def _count_correlatives(words: Sequence[Word]) -> int:
    """Rows of the tables of which the sentence holds a relative word and, later, a correlate."""
    asked, answered = set[str](), set[str]()
    for word in words:
        if word.tags & {"relatives", "correlates"}:
            answered |= {row for row in asked if word.form in _rows("correlates")[row]}
            asked |= {row for row, listed in _rows("relatives").items() if word.form in listed}
    return len(answered)
