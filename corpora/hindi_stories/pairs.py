"""Minimal pairs of the built-in Hindi grammar, each over a noun and a verb or adjective that training keeps apart."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from babylm_train.state import MinimalPair
from hindi_stories.grammar import NP, Agreement, Clause, held_out, predicate
from hindi_stories.lexicon import Adjective, Noun, Verb, lexicon, nfc

Drafted = tuple[str, str]  # the good and the bad sentence, without the danda

# Verbs that never take ने. Those that some speakers use with it (छींकना, नाचना, खेलना) are left out.
_NEVER_ERGATIVE = tuple(map(nfc, ("आना", "पहुँचना", "लौटना", "भागना", "दौड़ना", "सोना", "जागना", "उठना", "रुकना", "थकना")))
_UNPLACED = tuple(map(nfc, ("रहना", "निकलना", "चलना", "थकना", "उड़ना", "चमकना", "टूटना", "खोना")))
_RARE = tuple(map(nfc, ("चाहना", "रोकना")))  # whose perfectives the stories hardly show
_UNGRADED = ("mass", "elder", "name")


def minimal_pairs(per_phenomenon: int, seed: int) -> list[MinimalPair]:
    """`per_phenomenon` different pairs a phenomenon; the same for the same seed.

    Each turns on a noun and a verb or adjective that never meet in a clause of the stories.
    """
    result: list[MinimalPair] = []
    for phenomenon, drafts in _PHENOMENA.items():
        rng = random.Random(f"{phenomenon} {seed}")
        found: dict[str, MinimalPair] = {}
        while len(found) < per_phenomenon:
            good, bad = rng.choice(drafts)(rng)
            found.setdefault(good, MinimalPair(good + "।", bad + "।", phenomenon))
        result += found.values()
    return result


@cache
def _doings(objects: bool) -> tuple[tuple[Noun, Verb], ...]:
    """Held-out pairs of a subject and an intransitive verb, or of an object and a transitive one."""
    verbs = [v for v in lexicon().verbs if not v.marker or v.marker == "goal"]
    if objects:
        verbs = [v for v in verbs if v.frame == "t" and not v.prefix and v.lemma not in _RARE]
        things = [n for n in lexicon().nouns if n.fields.isdisjoint(("live", "in", "on", "water", "speech"))]
        fit = [(n, v) for v in verbs for n in things if v.objects & n.fields]
    else:
        fit = [(n, v) for v in verbs if v.frame == "i" for n in lexicon().nouns if v.subjects & n.fields]
    return tuple((n, v) for n, v in fit if held_out(n, v.lemma))


@cache
def _places() -> tuple[tuple[Noun, Verb, str], ...]:
    """Held-out pairs of a place and a verb that takes one, with the postposition."""
    verbs = [v for v in lexicon().verbs if v.frame == "i" and v.marker in ("", "पर", "में") and v.lemma not in _UNPLACED]
    return tuple(
        (n, v, v.marker or "में")
        for v in verbs
        for n in lexicon().nouns
        if (v.objects or {"in"}) & n.fields and held_out(n, v.lemma)
    )


@cache
def _qualities(agreeing: bool) -> tuple[tuple[Noun, Adjective], ...]:
    """Held-out pairs of a noun and an adjective."""
    return tuple(
        (n, a)
        for a in lexicon().adjectives
        for n in lexicon().nouns
        if a.fields & n.fields and held_out(n, a.lemma) and (a.lemma.endswith("ा") or not agreeing)
    )


def _name(rng: random.Random) -> NP:
    return NP(rng.choice(lexicon().names))


def _flipped(agreement: Agreement, what: str) -> Agreement:
    gender, number, person = agreement
    if what == "gender":
        return Agreement("f" if gender == "m" else "m", number, person)
    return Agreement(gender, "sg" if number == "pl" else "pl", person)


def _overt_plural(noun: Noun) -> bool:
    return noun.forms[0] != noun.forms[2] and noun.fields.isdisjoint(_UNGRADED)


def _tense(rng: random.Random) -> str:
    return rng.choice(("habitual", "progressive", "past_habitual", "past_progressive"))


# Each draft draws one kind of pair.


def _gender_subject(rng: random.Random) -> Drafted:
    noun, verb = rng.choice([(n, v) for n, v in _doings(False) if "either" not in n.fields])
    clause = Clause(NP(noun), verb, _tense(rng))
    return clause.text(), clause.text(_flipped(clause.controller(), "gender"))


def _gender_adjective(rng: random.Random) -> Drafted:
    noun, adjective = rng.choice([(n, a) for n, a in _qualities(True) if "either" not in n.fields])
    gender = "f" if noun.gender == "m" else "m"
    past = rng.random() < 0.5
    frame = f"यह {{}} {noun.lemma} {'था' if past and noun.gender == 'm' else 'थी' if past else 'है'}"
    return frame.format(adjective.form(noun.gender, "sg", False)), frame.format(adjective.form(gender, "sg", False))


def _gender_predicate(rng: random.Random) -> Drafted:
    noun, adjective = rng.choice([(n, a) for n, a in _qualities(True) if "either" not in n.fields])
    good = predicate(NP(noun), adjective, False)
    gender = "f" if noun.gender == "m" else "m"
    return good, f"{noun.lemma} {adjective.form(gender, 'sg', False)} है"


def _number_subject(rng: random.Random) -> Drafted:
    noun, verb = rng.choice([(n, v) for n, v in _doings(False) if _overt_plural(n)])
    # A singular with a plural verb can be respect (रानी आती हैं); not with a masculine in -ā, and not for an animal.
    honest = noun.gender == "m" or "beast" in noun.fields
    clause = Clause(NP(noun, "sg" if honest and rng.random() < 0.5 else "pl"), verb, _tense(rng))
    return clause.text(), clause.text(_flipped(clause.controller(), "number"))


def _number_object(rng: random.Random) -> Drafted:
    noun, verb = rng.choice([(n, v) for n, v in _doings(True) if _overt_plural(n)])
    clause = Clause(_name(rng), verb, "past", NP(noun, rng.choice(("sg", "pl"))))
    return clause.text(), clause.text(_flipped(clause.controller(), "number"))


def _number_predicate(rng: random.Random) -> Drafted:
    noun, adjective = rng.choice([(n, a) for n, a in _qualities(True) if _overt_plural(n) and n.gender == "m"])
    good = predicate(NP(noun, "pl"), adjective, False)
    return good, f"{noun.forms[2]} {adjective.form('m', 'sg', False)} हैं"


def _ergative_object(rng: random.Random) -> Drafted:
    noun, verb = rng.choice(_doings(True))
    clause = Clause(_name(rng), verb, "past", NP(noun))
    return clause.text(), clause.text(_flipped(clause.controller(), "gender"))


def _ergative_blocked(rng: random.Random) -> Drafted:
    noun, verb = rng.choice([(n, v) for n, v in _doings(True) if n.fields.isdisjoint(("mass", "song"))])
    clause = Clause(_name(rng), verb, "past", NP(noun), marked=True)
    return clause.text(), clause.text(Agreement("f", "sg"))


def _ergative_missing(rng: random.Random) -> Drafted:
    noun, verb = rng.choice(_doings(True))
    clause = Clause(_name(rng), verb, "past", NP(noun))
    return clause.text(), clause.text(subject_case="")


def _ergative_imperfective(rng: random.Random) -> Drafted:
    noun, verb = rng.choice(_doings(True))
    clause = Clause(_name(rng), verb, rng.choice(("habitual", "progressive")), NP(noun))
    return clause.text(), clause.text(subject_case="ने")


def _ergative_intransitive(rng: random.Random) -> Drafted:
    noun, verb = rng.choice([(n, v) for n, v in _doings(False) if v.lemma in _NEVER_ERGATIVE])
    clause = Clause(NP(noun), verb, "past")
    return clause.text(), clause.text(subject_case="ने")


def _located(rng: random.Random, places: list[tuple[Noun, Verb, str]]) -> tuple[Clause, NP, str]:
    noun, verb, marker = rng.choice(places)
    place = NP(noun)
    return Clause(_name(rng), verb, _tense(rng), place=(place, marker)), place, marker


def _oblique_place(rng: random.Random) -> Drafted:
    clause, place, _ = _located(rng, [p for p in _places() if p[0].forms[0] != p[0].forms[1]])
    good = clause.text()
    return good, good.replace(place.text(True), place.text())


def _oblique_genitive(rng: random.Random) -> Drafted:
    clause, place, marker = _located(
        rng, [p for p in _places() if p[0].gender == "m" and p[0].fields & {"owned", "seat"}]
    )
    owned = replace(place, possessor=_name(rng))
    good = replace(clause, place=(owned, marker)).text()
    return good, good.replace(f" के {place.text(True)} {marker}", f" का {place.text(True)} {marker}")


def _wrong_postposition(rng: random.Random) -> Drafted:
    verbs = [v for v in lexicon().verbs if v.lemma in (nfc("डरना"), nfc("लड़ना"))]
    noun, verb = rng.choice([(n, v) for v in verbs for n in lexicon().of(*v.objects) if held_out(n, v.lemma)])
    clause = Clause(_name(rng), verb, _tense(rng), argument=NP(noun))
    good = clause.text()
    return good, good.replace(" से ", " में ")


def _wrong_place(rng: random.Random) -> Drafted:
    clause, place, _ = _located(rng, [p for p in _places() if p[2] == "में"])
    good = clause.text()
    return good, good.replace(place.case("में"), place.case("को"))


def _order_postposition(rng: random.Random) -> Drafted:
    clause, place, marker = _located(rng, list(_places()))
    good = clause.text()
    return good, good.replace(f"{place.text(True)} {marker}", f"{marker} {place.text(True)}")


def _order_progressive(rng: random.Random) -> Drafted:
    noun, verb = rng.choice(_doings(False))
    clause = Clause(NP(noun), verb, rng.choice(("progressive", "past_progressive")))
    good = clause.text()
    words = good.split()
    return good, " ".join([*words[:-3], words[-2], words[-3], words[-1]])


def _order_adjective(rng: random.Random) -> Drafted:
    clause, place, marker = _located(rng, list(_places()))
    adjectives = [a for n, a in _qualities(False) if n == place.noun]
    if not adjectives:
        return _order_adjective(rng)
    adjective = rng.choice(adjectives)
    modified = replace(place, adjective=adjective)
    good = replace(clause, place=(modified, marker)).text()
    form = adjective.form(place.noun.gender, "sg", True)
    return good, good.replace(f"{form} {place.text(True)} {marker}", f"{place.text(True)} {form} {marker}")


def _order_ergative(rng: random.Random) -> Drafted:
    noun, verb = rng.choice(_doings(True))
    subject = _name(rng)
    good = Clause(subject, verb, "past", NP(noun)).text()
    return good, good.replace(f"{subject.text()} ने", f"ने {subject.text()}")


_PHENOMENA: dict[str, tuple[Callable[[random.Random], Drafted], ...]] = {
    "gender": (_gender_subject, _gender_adjective, _gender_predicate),
    "number": (_number_subject, _number_object, _number_predicate),
    "ergative": (
        _ergative_object,
        _ergative_blocked,
        _ergative_missing,
        _ergative_imperfective,
        _ergative_intransitive,
    ),
    "postposition": (_oblique_place, _oblique_genitive, _wrong_postposition, _wrong_place),
    "word_order": (_order_postposition, _order_progressive, _order_adjective, _order_ergative),
}
