"""The words of the built-in Hindi corpus (lexicon.tsv) and their forms: declension and conjugation of standard Hindi.

Paradigms after R. S. McGregor, Outline of Hindi Grammar (3rd ed., 1995). All strings are NFC.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("lexicon.tsv")

# The vowel signs: a stem that ends in one, or in a full vowel, takes full vowels as endings (खाए, not खाे).
_SIGNS = "ािीुूेैोौ"
_FULL = "अआइईउऊएऐओऔ"
_IRREGULAR_PERFECTIVE = {  # masculine singular and plural, feminine singular and plural
    "कर": ("किया", "किए", "की", "कीं"),
    "दे": ("दिया", "दिए", "दी", "दीं"),
    "ले": ("लिया", "लिए", "ली", "लीं"),
    "पी": ("पिया", "पिए", "पी", "पीं"),
    "जा": ("गया", "गए", "गई", "गईं"),
    "हो": ("हुआ", "हुए", "हुई", "हुईं"),
    "छू": ("छुआ", "छुए", "छुई", "छुईं"),
}
_IRREGULAR_SUBJUNCTIVE = {  # 1 singular, 2/3 singular, 2 तुम, plural
    "दे": ("दूँ", "दे", "दो", "दें"),
    "ले": ("लूँ", "ले", "लो", "लें"),
    "पी": ("पिऊँ", "पिए", "पियो", "पिएँ"),
    "हो": ("होऊँ", "हो", "हो", "हों"),
    "छू": ("छुऊँ", "छुए", "छुओ", "छुएँ"),
}
_IRREGULAR_POLITE = {"कर": "कीजिए", "दे": "दीजिए", "ले": "लीजिए", "पी": "पीजिए", "छू": "छुइए"}


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Noun:
    """A noun: gender "m" or "f", the fields it belongs to, and its forms.

    `forms` are direct singular, oblique singular, direct plural, oblique plural.
    """

    lemma: str
    gender: str
    fields: frozenset[str]
    forms: tuple[str, str, str, str]

    def form(self, number: str, oblique: bool) -> str:
        return self.forms[2 * (number == "pl") + oblique]


@dataclass(frozen=True)
class Adjective:
    """An adjective and the fields of the nouns it may describe."""

    lemma: str
    fields: frozenset[str]

    def form(self, gender: str, number: str, oblique: bool) -> str:
        """Agreeing form. Invariable unless the lemma ends in -ा."""
        return agree(self.lemma, gender, number, oblique)


@dataclass(frozen=True)
class Verb:
    """A verb with its frame; `prefix` is the noun or adjective of a conjunct verb (मदद करना), else empty."""

    lemma: str
    stem: str
    prefix: str
    frame: str
    marker: str
    subjects: frozenset[str]
    objects: frozenset[str]
    vectors: tuple[str, ...]

    @property
    def ergative(self) -> bool:
        """Whether the subject takes ने in the perfective."""
        return self.frame in ("t", "d", "k")


@dataclass(frozen=True)
class Lexicon:
    nouns: tuple[Noun, ...]
    names: tuple[Noun, ...]
    adjectives: tuple[Adjective, ...]
    verbs: tuple[Verb, ...]

    def of(self, *fields: str) -> list[Noun]:
        """The nouns, or for the field `name` the names, that belong to one of the fields."""
        return [n for n in (*self.nouns, *self.names) if not n.fields.isdisjoint(fields)]

    def verb(self, lemma: str) -> Verb:
        return next(v for v in self.verbs if v.lemma == lemma)


def agree(lemma: str, gender: str, number: str, oblique: bool) -> str:
    """An adjective, possessive or participle in -ा: -ा, -े (masculine plural or oblique) or -ी."""
    if not lemma.endswith("ा"):
        return lemma
    if lemma.endswith("या"):  # नया: नए, नई
        return lemma[:-2] + ("ई" if gender == "f" else "ए" if number == "pl" or oblique else "या")
    if gender == "f":
        return lemma[:-1] + "ी"
    return lemma[:-1] + ("े" if number == "pl" or oblique else "ा")


def decline(lemma: str, gender: str, fixed: bool = False) -> tuple[str, str, str, str]:
    """Direct and oblique singular, direct and oblique plural; `fixed` for masculines like राजा that keep -ā."""
    if gender == "m":
        if lemma.endswith("आँ"):
            return lemma, lemma[:-2] + "एँ", lemma[:-2] + "एँ", lemma[:-2] + "ओं"
        if lemma.endswith("या") and not fixed:
            oblique = lemma[:-1] + "े" if lemma.endswith("ीया") else lemma[:-2] + "ए"
            return lemma, oblique, oblique, lemma[:-2] + "यों"
        if lemma.endswith("आ") and not fixed:
            return lemma, lemma[:-1] + "ए", lemma[:-1] + "ए", lemma[:-1] + "ओं"
        if lemma.endswith("ा") and not fixed:
            return lemma, lemma[:-1] + "े", lemma[:-1] + "े", lemma[:-1] + "ों"
        return lemma, lemma, lemma, _oblique_plural(lemma)
    if lemma.endswith(("िया", "ैया")):
        direct = lemma + "ँ"
    elif lemma.endswith(("ी", "ि", "ई")):
        direct = _shortened(lemma) + "याँ"
    elif lemma[-1] in _SIGNS + _FULL:
        direct = _shortened(lemma) + "एँ"
    else:
        direct = lemma + "ें"
    return lemma, lemma, direct, _oblique_plural(lemma)


def _shortened(lemma: str) -> str:
    return lemma[:-1] + {"ी": "ि", "ई": "इ", "ू": "ु"}.get(lemma[-1], lemma[-1])


def _oblique_plural(lemma: str) -> str:
    if lemma.endswith(("िया", "ैया")):
        return lemma[:-1] + "ों"
    if lemma.endswith(("ी", "ि", "ई")):
        return _shortened(lemma) + "यों"
    return _shortened(lemma) + ("ओं" if lemma[-1] in _SIGNS + _FULL else "ों")


def perfective(stem: str, gender: str, number: str, nasal: bool = True) -> str:
    """पढ़ा, पढ़े, पढ़ी, पढ़ीं; `nasal` is False before an auxiliary, which carries the plural instead (पढ़ी हैं)."""
    column = 2 * (gender == "f") + (number == "pl" and (gender == "m" or nasal))
    if stem in _IRREGULAR_PERFECTIVE:
        return _IRREGULAR_PERFECTIVE[stem][column]
    if stem[-1] in _SIGNS + _FULL:
        return stem + ("या", "ए", "ई", "ईं")[column]
    return stem + ("ा", "े", "ी", "ीं")[column]


def participle(stem: str, gender: str, number: str) -> str:
    """The imperfective: पढ़ता, पढ़ते, पढ़ती."""
    return agree(stem + "ता", gender, number, False)


def subjunctive(stem: str, number: str, person: str) -> str:
    """पढ़ूँ, पढ़े, पढ़ो, पढ़ें; `person` is "1", "तू", "तुम" or "3" (आप goes with the plural of "3")."""
    column = 2 if person == "तुम" else 3 if number == "pl" else 0 if person == "1" else 1
    if stem in _IRREGULAR_SUBJUNCTIVE:
        return _IRREGULAR_SUBJUNCTIVE[stem][column]
    if stem[-1] in _SIGNS + _FULL:
        return stem + ("ऊँ", "ए", "ओ", "एँ")[column]
    return stem + ("ूँ", "े", "ो", "ें")[column]


def future(stem: str, gender: str, number: str, person: str) -> str:
    """पढ़ूँगा, पढ़ेगा, पढ़ोगे, पढ़ेंगे and the feminines in -गी."""
    ending = "गी" if gender == "f" else "गे" if number == "pl" else "गा"
    # Before the ending the plural is written with the anusvara on े and with the chandrabindu elsewhere.
    return subjunctive(stem, number, person) + ending


def imperative(stem: str, person: str) -> str:
    """पढ़ (तू), पढ़ो (तुम), पढ़िए (आप)."""
    if person == "तू":
        return stem
    if person == "तुम":
        return subjunctive(stem, "pl", "तुम")
    return _IRREGULAR_POLITE.get(stem, stem + ("इए" if stem[-1] in _SIGNS + _FULL else "िए"))


def copula(gender: str, number: str, person: str, past: bool) -> str:
    """है, हैं, हो, हूँ; in the past था, थे, थी, थीं."""
    if past:
        return {"m": ("था", "थे"), "f": ("थी", "थीं")}[gender][number == "pl"]
    if person == "तुम":
        return "हो"
    return "हैं" if number == "pl" else "हूँ" if person == "1" else "है"


@cache
def lexicon() -> Lexicon:
    """The built-in lexicon, read once."""
    sections = dict(_sections(nfc(SOURCE.read_text(encoding="utf-8"))))
    return Lexicon(
        nouns=tuple(_noun(*row[:3]) for row in sections["nouns"]),
        names=tuple(_noun(row[0], row[1], "name,people") for row in sections["names"]),
        adjectives=tuple(Adjective(row[0], frozenset(row[1].split(","))) for row in sections["adjectives"]),
        verbs=tuple(_verb(row) for row in sections["verbs"]),
    )


def _sections(text: str) -> Iterator[tuple[str, list[list[str]]]]:
    for block in text.split("\n[")[1:]:
        title, *lines = block.splitlines()
        yield title.rstrip("]"), [line.split("\t") for line in lines if line and not line.startswith("#")]


def _noun(lemma: str, gender: str, fields: str) -> Noun:
    lemma, belongs = lemma.replace("_", " "), set(fields.split(","))
    if belongs & {"child", "worker", "elder"}:
        belongs.add("people")
    if belongs & {"animal", "bird"}:
        belongs.add("beast")
    if belongs & {"people", "beast"}:
        belongs.add("live")
    single = bool(belongs & {"name", "elder"})
    forms = (lemma,) * 4 if single else decline(lemma, gender, "fixed" in belongs)
    return Noun(lemma, gender, frozenset(belongs), forms)


def _verb(row: list[str]) -> Verb:
    lemma, frame, subjects, objects, vectors = row[:5]
    prefix, _, infinitive = lemma.rpartition("_")
    kind, _, marker = frame.partition(":")
    parts = [frozenset(x.split(",")) if x != "-" else frozenset() for x in (subjects, objects)]
    light = tuple(vectors.split(",")) if vectors != "-" else ()
    return Verb(lemma.replace("_", " "), infinitive.removesuffix("ना"), prefix, kind, marker, parts[0], parts[1], light)
