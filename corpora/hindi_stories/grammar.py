"""Noun phrases and clauses of the built-in Hindi grammar: case, agreement, ergativity, and what training may not show.

After Y. Kachru, Hindi (2006): the verb agrees with the subject if that is unmarked, else with an unmarked object, else
it is masculine singular. ने marks the subject of a transitive verb in the perfective; in a compound verb the vector
decides.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from hindi_stories.lexicon import (
    Adjective,
    Noun,
    Verb,
    agree,
    copula,
    future,
    imperative,
    lexicon,
    nfc,
    participle,
    perfective,
)

PERFECTIVE = ("past", "perfect", "pluperfect")
HELD_OUT_IN = 8  # one lexeme combination in this many never occurs in the training text
_ERGATIVE_VECTORS = ("ले", "दे", "डाल")

_PRONOUNS = {  # direct: oblique, with ने, dative, genitive, number, person
    "मैं": ("मुझ", "मैंने", "मुझे", "मेरा", "sg", "1"),
    "हम": ("हम", "हमने", "हमें", "हमारा", "pl", "1"),
    "तू": ("तुझ", "तूने", "तुझे", "तेरा", "sg", "तू"),
    "तुम": ("तुम", "तुमने", "तुम्हें", "तुम्हारा", "pl", "तुम"),
    "आप": ("आप", "आपने", "आपको", "आपका", "pl", "3"),
    "वह": ("उस", "उसने", "उसे", "उसका", "sg", "3"),
    "वे": ("उन", "उन्होंने", "उन्हें", "उनका", "pl", "3"),
}
_DETERMINERS = {"यह": ("यह", "इस", "ये", "इन"), "वह": ("वह", "उस", "वे", "उन"), "जो": ("जो", "जिस", "जो", "जिन")}


class Agreement(NamedTuple):
    """What a verb agrees in: gender m or f, number sg or pl, person 1, तू, तुम or 3."""

    gender: str
    number: str
    person: str = "3"


NEUTRAL = Agreement("m", "sg")


@dataclass(frozen=True)
class NP:
    """A noun phrase. A respected person (पिता जी) has number "pl", so everything agrees in the plural."""

    noun: Noun
    number: str = "sg"
    adjective: Adjective | None = None
    determiner: str = ""
    numeral: str = ""
    possessor: "NP | Pronoun | None" = None
    own: bool = False  # अपना

    @property
    def agreement(self) -> Agreement:
        return Agreement(self.noun.gender, self.number)

    def text(self, oblique: bool = False) -> str:
        gender, number = self.noun.gender, self.number
        words = []
        if self.own:
            words.append(agree("अपना", gender, number, oblique))
        elif self.possessor:
            words.append(self.possessor.genitive(gender, number, oblique))
        if self.determiner:
            words.append(_DETERMINERS[self.determiner][2 * (number == "pl") + oblique])
        if self.numeral:
            words.append(self.numeral)
        if self.adjective:
            words.append(self.adjective.form(gender, number, oblique))
        words.append(self.noun.form(number, oblique))
        return " ".join(words)

    def case(self, postposition: str) -> str:
        """The phrase before a postposition; the direct form if that is empty."""
        return f"{self.text(True)} {postposition}" if postposition else self.text()

    def genitive(self, gender: str, number: str, oblique: bool = False) -> str:
        """With का, के or की, which agree with what is possessed."""
        return f"{self.text(True)} {agree('का', gender, number, oblique)}"

    def nouns(self) -> Iterator[Noun]:
        yield self.noun
        if self.possessor:
            yield from self.possessor.nouns()

    def adjectives(self) -> Iterator[Adjective]:
        if self.adjective:
            yield self.adjective
        if isinstance(self.possessor, NP):
            yield from self.possessor.adjectives()


@dataclass(frozen=True)
class Pronoun:
    """A personal pronoun for someone of the given gender."""

    lemma: str
    gender: str

    @property
    def person(self) -> str:
        return _PRONOUNS[self.lemma][5]

    @property
    def agreement(self) -> Agreement:
        return Agreement(self.gender, _PRONOUNS[self.lemma][4], self.person)

    def text(self, oblique: bool = False) -> str:
        return _PRONOUNS[self.lemma][0] if oblique else self.lemma

    def case(self, postposition: str) -> str:
        """The forms for ने and को (मैंने, मुझे), else the oblique and the postposition."""
        fused = {"": self.lemma, "ने": _PRONOUNS[self.lemma][1], "को": _PRONOUNS[self.lemma][2]}
        space = " " if postposition == "पर" else ""  # मुझसे, मुझमें, but मुझ पर
        return fused.get(postposition) or f"{self.text(True)}{space}{postposition}"

    def genitive(self, gender: str, number: str, oblique: bool = False) -> str:
        return agree(_PRONOUNS[self.lemma][3], gender, number, oblique)

    def nouns(self) -> Iterator[Noun]:
        yield from ()

    def adjectives(self) -> Iterator[Adjective]:
        yield from ()


@dataclass(frozen=True)
class Pair:
    """Two noun phrases joined by और: plural, and masculine unless both are feminine."""

    first: NP
    second: NP

    @property
    def agreement(self) -> Agreement:
        both = self.first.noun.gender == self.second.noun.gender == "f"
        return Agreement("f" if both else "m", "pl")

    def text(self, oblique: bool = False) -> str:
        return f"{self.first.text(oblique)} और {self.second.text(oblique)}"

    def case(self, postposition: str) -> str:
        return f"{self.text(True)} {postposition}" if postposition else self.text()

    def genitive(self, gender: str, number: str, oblique: bool = False) -> str:
        return f"{self.text(True)} {agree('का', gender, number, oblique)}"

    def nouns(self) -> Iterator[Noun]:
        yield from (self.first.noun, self.second.noun)

    def adjectives(self) -> Iterator[Adjective]:
        yield from (*self.first.adjectives(), *self.second.adjectives())


Phrase = NP | Pronoun | Pair


@dataclass(frozen=True)
class Clause:
    """One clause: who did what to what. `place` and `source` are phrases with their postpositions.

    `argument` takes the postposition that the verb's frame names. `modal` is one of ability (सकना), completion (चुकना),
    obligation (subject in को, the infinitive agrees with the object) or empty.
    """

    subject: Phrase
    verb: Verb
    tense: str
    object: NP | None = None
    marked: bool = False  # object in को
    argument: Phrase | None = None
    place: tuple[NP, str] | None = None
    adverb: str = ""
    vector: str = ""
    modal: str = ""
    negative: bool = False
    fronted: bool = False  # object or place before the subject

    @property
    def ergative(self) -> bool:
        if self.modal or self.tense not in PERFECTIVE:
            return False
        return self.verb.ergative and (not self.vector or self.vector.removesuffix("ना") in _ERGATIVE_VECTORS)

    def controller(self) -> Agreement:
        """What the verb agrees with."""
        if not self.ergative and self.modal != "obligation":
            return self.subject.agreement
        if self.object and not self.marked:
            return self.object.agreement
        deed = self.deed()
        return Agreement(deed.gender, "sg") if deed else NEUTRAL

    def deed(self) -> Noun | None:
        """The noun of a conjunct verb that is the verb's object (मदद in मदद करना)."""
        return noun(self.verb.prefix) if self.verb.frame == "k" else None

    def nouns(self) -> list[Noun]:
        place = [self.place[0]] if self.place else []
        return [n for phrase in (self.subject, self.object, self.argument, *place) if phrase for n in phrase.nouns()]

    def adjectives(self) -> list[Adjective]:
        place = [self.place[0]] if self.place else []
        phrases = (self.subject, self.object, self.argument, *place)
        return [a for phrase in phrases if phrase for a in phrase.adjectives()]

    def held_out(self) -> bool:
        """Whether two of its lexemes may not meet in the training text."""
        nouns = self.nouns()
        return any(held_out(n, self.verb.lemma) for n in nouns) or any(
            held_out(n, a.lemma) for a in self.adjectives() for n in nouns
        )

    def text(self, controller: Agreement | None = None, subject_case: str | None = None) -> str:
        """The clause without its danda. The arguments override the grammar, for the bad sentence of a pair."""
        case = "ने" if self.ergative else "को" if self.modal == "obligation" else ""
        subject = self.subject.case(case if subject_case is None else subject_case)
        place = self.place[0].case(self.place[1]) if self.place else ""
        target = self.object.case("को" if self.marked else "") if self.object else ""
        argument = self._argument()
        order = [place, target, subject, argument] if self.fronted else [subject, place, argument, target]
        negation = "नहीं" if self.negative else ""
        words = [self.adverb, *order, self.verb.prefix, negation, self._verb_group(controller or self.controller())]
        return " ".join(w for w in words if w)

    def _argument(self) -> str:
        if not self.argument:
            return ""
        marker = "को" if self.verb.frame == "d" else self.verb.marker
        if marker == "का":
            deed = self.deed()
            assert deed, f"{self.verb.lemma} has no noun for its genitive"
            return self.argument.genitive(deed.gender, "sg")
        return self.argument.text(True) if marker == "goal" else self.argument.case(marker)

    def _verb_group(self, controller: Agreement) -> str:
        stem = self.verb.stem
        if self.modal == "ability":
            return f"{stem} {finite('सक', self.tense, controller)}"
        if self.modal == "completion":
            return f"{stem} {finite('चुक', self.tense, controller)}"
        if self.modal == "obligation":
            infinitive = agree(stem + "ना", controller.gender, controller.number, False)
            return f"{infinitive} {finite('पड़', self.tense, controller)}"
        if self.vector:
            return f"{stem} {finite(self.vector.removesuffix('ना'), self.tense, controller)}"
        return finite(stem, self.tense, controller)


def finite(stem: str, tense: str, controller: Agreement) -> str:
    """A finite verb with its auxiliaries, for a stem, a tense and what it agrees with."""
    gender, number, person = controller
    past = tense in ("past_habitual", "past_progressive", "pluperfect")
    auxiliary = copula(gender, number, person, past)
    match tense:
        case "habitual" | "past_habitual":
            return f"{participle(stem, gender, number)} {auxiliary}"
        case "progressive" | "past_progressive":
            return f"{stem} {agree('रहा', gender, number, False)} {auxiliary}"
        case "past":
            return perfective(stem, gender, number)
        case "perfect" | "pluperfect":
            return f"{perfective(stem, gender, number, nasal=False)} {auxiliary}"
        case "future":
            return future(stem, gender, number, person)
        case "imperative":
            return imperative(stem, person if person in ("तू", "तुम") else "आप")
    raise ValueError(f"no such tense: {tense}")


def predicate(subject: Phrase, complement: Adjective | str, past: bool, adverb: str = "", intensity: str = "") -> str:
    """The subject is so: लड़की अच्छी है, कमरे साफ़ थे."""
    gender, number, person = subject.agreement
    word = complement if isinstance(complement, str) else complement.form(gender, number, False)
    return " ".join(w for w in (adverb, subject.text(), intensity, word, copula(gender, number, person, past)) if w)


def plain(noun: Noun) -> bool:
    """Whether the noun counts for the held-out combinations: proper names and the nouns of conjunct verbs do not."""
    return noun.fields.isdisjoint(("name", "deed", "speech", "want", "come", "sky", "weather", "elder"))


def held_out(noun: Noun, lemma: str) -> bool:
    """Whether the noun and the verb or adjective are kept apart in the training text. Stable: a hash of the lemmas."""
    return plain(noun) and _held_out(noun.lemma, lemma)


@cache
def _held_out(noun: str, lemma: str) -> bool:
    return int(hashlib.sha256(nfc(f"{noun}|{lemma}").encode()).hexdigest(), 16) % HELD_OUT_IN == 0


@cache
def noun(lemma: str) -> Noun:
    """The noun with this lemma."""
    return next(n for n in (*lexicon().nouns, *lexicon().names) if n.lemma == nfc(lemma))
