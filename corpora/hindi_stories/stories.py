"""Mini-stories in Hindi from our own grammar: lexicon.tsv, plots.txt and the rules are ours, so no licence applies."""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from hindi_stories import lexicon
from hindi_stories.grammar import NP, PERFECTIVE, Clause, Pair, Phrase, Pronoun, finite, held_out, noun, predicate
from hindi_stories.lexicon import Adjective, Noun, Verb, copula, nfc

LEVELS = (1, 2, 3, 4, 5)
SCENES, SCENE = 1 / 3, 2  # share of the stories told in scenes, and a scene's sentences

PLOTS = Path(__file__).with_name("plots.txt")
NARRATION = {  # tense and weight at each level; the level's verbs decide what of it can be ergative
    1: (("habitual", 5), ("progressive", 4)),
    2: (("habitual", 3), ("progressive", 3), ("past_habitual", 2), ("past_progressive", 2), ("past", 2)),
    3: (("past", 8), ("pluperfect", 1), ("past_progressive", 1), ("past_habitual", 1)),
    4: (("past", 8), ("pluperfect", 1), ("past_progressive", 1), ("past_habitual", 1)),
    5: (("past", 8), ("pluperfect", 1), ("past_progressive", 1), ("past_habitual", 1)),
}
_STATIVE = tuple(map(nfc, ("रहना", "चाहना", "डरना", "प्यार करना", "भरोसा करना", "पालना")))
_CONJUNCT_LEVEL, _MARKED_LEVEL, _ERGATIVE_LEVEL, _RELATIVE_LEVEL = 4, 2, 3, 5
_UNMARKED_ANIMALS = tuple(map(nfc, ("ख़रीदना", "बेचना", "पालना", "चाहना")))
_WHEN_PRESENT = ("रोज़", "अक्सर", "कभी-कभी", "हर दिन", "सुबह", "शाम को", "अब", "आज")
_WHEN_PAST = (
    "एक दिन",
    "अगले दिन",
    "कल",
    "उस दिन",
    "सुबह",
    "शाम को",
    "रात को",
    "फिर",
    "थोड़ी देर बाद",
    "आज",
)
_AT_ONCE = ("अचानक", "तभी") * 4
_SUDDEN = tuple(map(nfc, ("आना", "गिरना", "भागना", "टूटना", "रोना", "हँसना", "जागना", "उठना", "निकलना")))
_SCENIC = tuple(map(nfc, ("रहना", "चमकना")))  # said by the introduction and the weather
_UNPLACED = tuple(map(nfc, ("निकलना", "चलना", "थकना")))
_WHEN_FUTURE = ("कल", "अगले दिन", "शाम को", "आज", "अब")
_MOODS = tuple(map(nfc, ("ख़ुश", "दुखी", "भूखा", "प्यासा", "अकेला", "बीमार")))
_NEEDS = {nfc(verb): nfc(need) for verb, need in (("खाना", "भूख"), ("पीना", "प्यास"), ("तैरना", "गर्मी"))}
_NUMERALS = ("दो", "तीन", "चार", "पाँच", "कई", "बहुत से", "कुछ")


def generate(words: int, seed: int) -> list[str]:
    """Mini-stories of all levels, shuffled, until they hold at least `words` words.

    Two of three stories are one document each; of the third, each scene of SCENE sentences is one. So documents differ
    in length, and any kind of sentence can be a document's first: a sentence alone is no surprise to the model.
    The same for the same seed, on every machine; fewer words are the beginning of more.
    """
    rng = random.Random(f"stories {seed}")
    documents: list[str] = []
    count = 0
    while count < words:
        sentences = tell(rng, rng.choice(LEVELS), rng.choice(plots()))
        count += sum(len(sentence.split()) for sentence in sentences)
        size = SCENE if rng.random() < SCENES else len(sentences)
        documents += [" ".join(sentences[i : i + size]) for i in range(0, len(sentences), size)]
    return documents


def tell(rng: random.Random, level: int, plot: list[str]) -> list[str]:
    """The sentences of one story after a plot, with the constructions of the level (1 to 5)."""
    return list(Narrator(rng, level, plot).sentences())


@cache
def plots() -> list[list[str]]:
    """The plots, each a list of the cast and the beats."""
    lines = nfc(PLOTS.read_text(encoding="utf-8")).splitlines()
    return [[part.strip() for part in line.split("|")] for line in lines if not line.startswith("#")]


@cache
def _nouns(fields: str) -> tuple[Noun, ...]:
    """The nouns of a comma-separated list of fields and lemmas."""
    return tuple(
        n
        for n in (*lexicon.lexicon().nouns, *lexicon.lexicon().names)
        if any(f in n.fields or f == n.lemma for f in fields.split(","))
    )


@cache
def _verb(lemma: str) -> Verb:
    return lexicon.lexicon().verb(nfc(lemma))


@cache
def _adjectives(noun: Noun) -> tuple[Adjective, ...]:
    return tuple(a for a in lexicon.lexicon().adjectives if a.fields & noun.fields and not held_out(noun, a.lemma))


def required_level(verb: Verb) -> int:
    """The first level at which a verb may be used, in any tense."""
    if verb.prefix:
        return _CONJUNCT_LEVEL
    return _MARKED_LEVEL if verb.frame == "d" or verb.marker not in ("", "goal") else 1


def own(phrase: NP | None, subject: Phrase) -> NP | None:
    """The phrase with अपना, if the subject is its possessor."""
    if (
        phrase
        and isinstance(subject, NP)
        and isinstance(phrase.possessor, NP)
        and phrase.possessor.noun == subject.noun
    ):
        return replace(phrase, possessor=None, own=True)
    return phrase


def address(hearer: NP, rng: random.Random) -> str:
    """The pronoun that suits the hearer: आप for respected persons and strangers, तुम or now and then तू for others."""
    if hearer.noun.fields & {"elder", "worker"}:
        return "आप"
    return "तू" if rng.random() < 0.2 else "तुम"


@cache
def _actions(kind: frozenset[str], level: int) -> tuple[Verb, ...]:
    """The verbs that a being of these fields can be the subject of at a level, but for those that want a clause."""
    return tuple(
        v
        for v in lexicon.lexicon().verbs
        if v.subjects & kind
        and required_level(v) <= level
        and (v.objects or v.frame in ("i", "k"))
        and v.lemma not in _SCENIC
    )


class Narrator:
    """Tells one story: casts the plot, then turns each beat into a sentence with what the level allows."""

    def __init__(self, rng: random.Random, level: int, plot: list[str]) -> None:
        self.rng, self.level = rng, level
        self.beats = [beat.split() for beat in plot[1:]]
        self.past = level >= 3 or (level == 2 and rng.random() < 0.5)
        self.topic: Phrase | None = None  # the subject of the sentence before, which a pronoun may take up
        self.cast: dict[str, NP] = {}
        for role in ("E=elder", "W=worker", "F=name", "T=toy", *plot[0].split()):
            letter, fields = role.split("=")
            self.cast[letter] = self.person(fields) if letter in "HFEWAB" else self.thing(letter, fields)

    def sentences(self) -> list[str]:
        """The story's sentences, each with its danda or question mark."""
        told = [*self.introduction()]
        for beat in self.beats:
            told.append(self.sentence(beat))
            if self.rng.random() < 0.45:
                told.append(self.sentence(["do", self.rng.choice(["H", "H", "H", "F", "E", "W"])]))
            if self.rng.random() < 0.15:
                told.append(self.sentence(["describe"]))
            if self.rng.random() < 0.35:
                told.append(self.sentence(["others"]))
        return [s for s in told if s]

    # Casting.

    def person(self, fields: str) -> NP:
        taken = {n.lemma for phrase in self.cast.values() for n in phrase.nouns()}
        related = {"kin"} if fields == "worker" else set()
        n = self.rng.choice([n for n in _nouns(fields) if n.lemma not in taken and not n.fields & related])
        return NP(n, number="pl" if "elder" in n.fields else "sg")

    def thing(self, letter: str, fields: str) -> NP:
        """A noun that may meet the verbs which the plot uses it with."""
        verbs = [beat[0].replace("_", " ") for beat in self.beats if letter in [w.lstrip(">@") for w in beat]]
        fit = [n for n in _nouns(fields) if not any(held_out(n, v) for v in verbs)]
        return NP(self.rng.choice(fit or _nouns(fields)))

    def draw(self, fields: str, verb: str) -> NP | None:
        """A new noun phrase of some fields, with the modifiers of the level, that may stand with the verb."""
        fit = [n for n in _nouns(fields) if not held_out(n, verb)]
        if not fit:
            return None
        n = self.rng.choice(fit)
        return self.modified(NP(n, number="pl" if "elder" in n.fields else "sg"))

    def modified(self, phrase: NP) -> NP:
        rng, n = self.rng, phrase.noun
        if n.fields & {"name", "elder", "deed", "want", "come", "speech", "sky", "weather"}:
            return phrase
        fixed = n.fields & {"mass", "in", "on", "water"}
        number = "pl" if not fixed and rng.random() < 0.36 else "sg"
        fitting = _adjectives(n)
        adjective = rng.choice(fitting) if fitting and rng.random() < 0.4 else None
        phrase = replace(phrase, number=number, adjective=adjective)
        chance = rng.random()
        if (
            self.level >= _MARKED_LEVEL
            and chance < 0.18
            and (not n.fields & {"in", "on", "water", "live"} or "owned" in n.fields)
        ):
            return replace(phrase, possessor=self.cast[rng.choice("HFE")])
        if chance < 0.28:
            return replace(phrase, determiner=rng.choice(("यह", "वह")))
        if chance < 0.45 and number == "pl":
            return replace(phrase, numeral=rng.choice(_NUMERALS))
        if chance < 0.4 and number == "sg" and not fixed:
            return replace(phrase, numeral="एक")
        return phrase

    # Sentences.

    def introduction(self) -> Iterator[str]:
        hero, rng = self.cast["H"], self.rng
        home = self.draw("in", nfc("रहना"))
        assert home
        if "name" in hero.noun.fields:
            kinds = [n for n in _nouns("child,worker") if n.gender == hero.noun.gender]
            kind = rng.choice([n for n in kinds if "kin" not in n.fields])
            someone = NP(kind, adjective=rng.choice(_adjectives(kind) or (None,)), numeral="एक")
            verb = copula(hero.noun.gender, "sg", "3", self.past)
            yield f"{hero.text()} {someone.text()} {verb}।"
        else:
            adjective = rng.choice(_adjectives(hero.noun) or (None,))
            one = replace(hero, adjective=adjective, numeral="एक")
            verb = copula(hero.noun.gender, "sg", "3", self.past)
            place = rng.choice([n for n in _nouns("in") if not adjective or not held_out(n, adjective.lemma)])
            yield f"{NP(place).case('में')} {one.text()} {verb}।"
        if "name" in hero.noun.fields and rng.random() < 0.6:
            tense = "past_habitual" if self.past else "habitual"
            clause = Clause(self.pronoun(hero), _verb("रहना"), tense, argument=home)
            yield f"{clause.text()}।"
        self.topic = hero

    def sentence(self, beat: list[str]) -> str:
        """A beat as a sentence; empty if the level or the held-out combinations do not allow it."""
        for _ in range(4):
            text = self.scene(beat) if beat[0].isascii() else self.event(beat)
            if text and not any(twice in text for twice in ("वह वह ", "वे वे ", "वह वे ")):
                return text if text.endswith("?") else text + "।"
        return ""

    def event(self, beat: list[str]) -> str:
        clause = self.clause(beat)
        return self.joined(clause) if clause else ""

    def clause(self, beat: list[str], tense: str = "") -> Clause | None:
        """A clause for `verb subject object >argument @place`, or None if it is not allowed."""
        verb = _verb_or_none(beat[0].replace("_", " "))
        if not verb or required_level(verb) > self.level:
            return None
        phrases: dict[str, NP | None] = {"": None, ">": None, "@": None}
        for word in beat[2:]:
            kind = word[0] if word[0] in ">@" else ""
            name = word.lstrip(">@")
            phrases[kind] = self.cast.get(name) or self.draw(name, verb.lemma)
        return self.finished(Clause(self.cast[beat[1]], verb, tense, phrases[""], argument=phrases[">"]), phrases["@"])

    def action(self, subject: NP, tense: str = "") -> Clause | None:
        """A clause about anything the subject may do."""
        possible = _actions(subject.noun.fields, self.level)
        if not possible:
            return None
        verb = self.rng.choice(possible)
        target = argument = None
        fields = ",".join(sorted(verb.objects))
        if verb.frame in ("t", "t-", "d"):
            target = self.draw(fields, verb.lemma)
        elif verb.marker and verb.marker != "goal":
            argument = self.other(subject) if "people" in verb.objects else self.draw(fields, verb.lemma)
        if verb.marker == "goal" and self.rng.random() < 0.8:
            argument = replace(NP(self.rng.choice(_nouns("goal"))))
        if verb.frame == "d" or (verb.frame == "t" and verb.marker):
            argument = self.other(subject)
        place = None
        placed = verb.marker in ("", "से") and verb.lemma not in _UNPLACED
        if self.level >= _MARKED_LEVEL and placed and self.rng.random() < 0.25:
            place = self.draw("in", verb.lemma)
        return self.finished(Clause(subject, verb, tense, target, argument=argument), place)

    def spoken(self, doer: NP, tense: str, persons: dict[Noun, Pronoun]) -> Clause | None:
        """What the doer does, as it is said: `persons` are the speaker (मैं) and the hearer (तुम, आप)."""
        clause = self.action(doer, tense)
        if not clause:
            return None
        argument: Phrase | None = clause.argument
        if isinstance(argument, NP):
            argument = persons.get(argument.noun, argument)
        # A possessor would have to become अपना, मेरा or तुम्हारा; the sentence does as well without.
        target = replace(clause.object, possessor=None) if clause.object else None
        place = (replace(clause.place[0], possessor=None), clause.place[1]) if clause.place else None
        return replace(clause, subject=persons[doer.noun], argument=argument, object=target, place=place, adverb="")

    def other(self, subject: NP) -> NP:
        return self.rng.choice([c for k, c in self.cast.items() if k in "HFEW" and c.noun != subject.noun])

    def finished(self, clause: Clause, place: NP | None) -> Clause | None:
        """The clause with a place, its tense and the level's trimmings; None if it may not occur in training."""
        rng, verb = self.rng, clause.verb
        tense = clause.tense or self.tense(verb)
        if verb.lemma in _STATIVE:
            tense = {"progressive": "habitual", "past_progressive": "past_habitual"}.get(tense, tense)
        target, place = own(clause.object, clause.subject), own(place, clause.subject)
        argument = own(clause.argument, clause.subject) if isinstance(clause.argument, NP) else clause.argument
        if self.level < _ERGATIVE_LEVEL and tense in PERFECTIVE and verb.frame != "i":
            tense = "past_progressive" if self.past else "progressive"
        if target and isinstance(argument, NP) and isinstance(target.possessor, NP):
            given_back = target.possessor.noun == argument.noun
            target = replace(target, possessor=None) if given_back else target
        marked = False
        if target:
            live = "live" in target.noun.fields and verb.lemma not in _UNMARKED_ANIMALS
            definite = not target.numeral and verb.frame == "t" and not target.noun.fields & {"song", "speech", "mass"}
            marked = self.level >= _MARKED_LEVEL and (live or (definite and not verb.marker and rng.random() < 0.2))
            if live and not marked:
                return None
        where = (place, "पर" if place.noun.fields & {"on", "seat", "tree"} else "में") if place else None
        adverb = self.adverb(tense, verb)
        clause = Clause(clause.subject, verb, tense, target, marked, argument, where, adverb=adverb)
        clause = self.trimmed(clause)
        return None if clause.held_out() else clause

    def trimmed(self, clause: Clause) -> Clause:
        """With a vector verb, a modal or a negation, where the level has them."""
        rng, verb = self.rng, clause.verb
        if self.level >= _CONJUNCT_LEVEL:
            if verb.vectors and clause.tense in ("past", "future") and rng.random() < 0.5:
                return replace(clause, vector=rng.choice(verb.vectors))
            if clause.tense in ("past", "habitual", "future") and verb.lemma not in _STATIVE and rng.random() < 0.15:
                modal = rng.choice(("ability", "completion", "obligation") if clause.tense == "past" else ("ability",))
                if not (modal == "obligation" and verb.marker == "goal"):
                    tense = "pluperfect" if modal == "completion" else clause.tense
                    return replace(clause, modal=modal, tense=tense)
        if verb.lemma == nfc("खोना"):
            return clause
        return replace(clause, negative=True, adverb="") if rng.random() < 0.06 else clause

    def tense(self, verb: Verb) -> str:
        if verb.lemma in _STATIVE:
            return "past_habitual" if self.past else "habitual"
        choices = [(t, w) for t, w in NARRATION[self.level] if self.past or t in ("habitual", "progressive")]
        if self.level == 2 and self.past:
            choices = [(t, w) for t, w in choices if t.startswith("past")]
        return self.rng.choices([t for t, _ in choices], [w for _, w in choices])[0]

    def adverb(self, tense: str, verb: Verb | None = None) -> str:
        if self.rng.random() > 0.4:
            return ""
        if tense == "future":
            return self.rng.choice(_WHEN_FUTURE)
        if tense in ("habitual", "progressive", "perfect", "past_habitual"):
            words = ("अब", "आज") if tense != "habitual" and tense != "past_habitual" else _WHEN_PRESENT[:6]
            return self.rng.choice(words)
        sudden = _AT_ONCE if tense == "past" and verb and verb.lemma in _SUDDEN else ()
        return self.rng.choice(_WHEN_PAST + sudden)

    def pronoun(self, phrase: Phrase) -> Phrase:
        """A third-person pronoun for a phrase."""
        return Pronoun("वे" if phrase.agreement.number == "pl" else "वह", phrase.agreement.gender)

    def joined(self, clause: Clause) -> str:
        """One clause, or two where the level has compound and complex sentences."""
        subject, rng = clause.subject, self.rng
        said = clause
        if subject == self.topic and isinstance(subject, NP) and rng.random() < 0.5:
            said = replace(clause, subject=self.pronoun(subject))
        self.topic = subject
        text = said.text()
        chance = rng.random()
        if not isinstance(subject, NP) or self.level == 1 or chance > 0.3:
            return text
        second = self.action(subject, clause.tense)
        if not second:
            return text
        second = replace(second, adverb="", subject=self.pronoun(subject))
        if self.level >= _CONJUNCT_LEVEL and chance < 0.1 and second.verb.frame == "t" and not second.verb.marker:
            return self.absolutive(second, replace(clause, adverb="")) or text
        if self.level >= _RELATIVE_LEVEL:
            return self.complex(clause, second)
        link = "लेकिन" if clause.negative != second.negative else rng.choice(("और", "और फिर"))
        return f"{text} {link} {second.text()}"

    def absolutive(self, first: Clause, second: Clause) -> str:
        """किताब पढ़कर लड़का सो गया।"""
        if not first.object or replace(first, subject=second.subject).held_out():
            return ""
        before = first.object.case("को" if first.marked else "")
        verb = "करके" if first.verb.stem == "कर" else first.verb.stem + "कर"
        return " ".join(w for w in (before, first.verb.prefix, verb, second.text()) if w)

    def complex(self, first: Clause, second: Clause) -> str:
        """Subordination: जब ... तब, क्योंकि, इसलिए, and अगर ... तो as a thought."""
        subject = first.subject
        assert isinstance(subject, NP)
        form = self.rng.choice(("when", "because", "so", "if"))
        first = replace(first, adverb="")
        if form == "when":
            return f"जब {first.text()}, तब {second.text()}"
        if form == "because":
            return f"{first.text()} क्योंकि {self.reason(first, subject, self.pronoun(subject))}"
        if form == "so":
            return f"{self.reason(second, subject, subject)} इसलिए {second.text()}"
        me = Pronoun("मैं", subject.noun.gender)
        plan = [replace(c, tense="future", modal="", vector="", subject=me) for c in (first, second)]
        thought = Clause(subject, _verb("सोचना"), "past")
        if thought.held_out():
            return ""
        return f"{thought.text()} कि अगर {plan[0].text()}, तो {plan[1].text()}"

    def reason(self, deed: Clause, who: NP, said: Phrase) -> str:
        """Why someone does something: उसे भूख लगी थी, वह बहुत ख़ुश था."""
        moods = [a for a in lexicon.lexicon().adjectives if a.lemma in _MOODS and not held_out(who.noun, a.lemma)]
        if moods and deed.verb.lemma not in _NEEDS:
            return predicate(said, self.rng.choice(moods), True, intensity="बहुत")
        need = noun(_NEEDS.get(deed.verb.lemma, self.rng.choice(("भूख", "प्यास", "ठंड", "गर्मी"))))
        return f"{said.case('को')} {need.lemma} {finite('लग', 'pluperfect', NP(need).agreement)}"

    def relative(self) -> str:
        """जो लड़का ..., वह ...; जिस लड़के ने ..., उसने ...; जो किताब लड़के ने पढ़ी, वह नई थी।"""
        rng = self.rng
        if rng.random() < 0.5:
            who = NP(rng.choice(_nouns("child,worker,animal")), determiner="जो")
            first, second = self.action(who, "past"), self.action(who, "past")
            if not first or not second:
                return ""
            first = replace(first, adverb="", negative=False)
            second = replace(second, adverb="", subject=self.pronoun(who))
            return f"{first.text()}, {second.text()}"
        clause = self.action(self.cast["H"], "past")
        if not clause or not clause.object or not clause.ergative or clause.marked:
            return ""
        what = NP(clause.object.noun, clause.object.number, determiner="जो")
        clause = replace(clause, object=what, adverb="", fronted=True, negative=False)
        fitting = _adjectives(what.noun)
        if not fitting:
            return ""
        return f"{clause.text()}, {predicate(self.pronoun(what), rng.choice(fitting), True, intensity='बहुत')}"

    # Scenes: what a verb of the lexicon alone does not say.

    def scene(self, beat: list[str]) -> str:
        who = self.cast.get(beat[1]) if len(beat) > 1 else None
        match beat[0]:
            case "do":
                return self.doing(who)
            case "describe":
                return self.description()
            case "others":
                return self.others()
            case "weather":
                return self.weather()
            case "both":
                return self.both(who, self.cast[beat[2]])
            case "sad" | "happy" | "like":
                return self.state(beat[0], who)
            case "has" | "put" | "lost" | "get":
                return self.owning(beat, who)
            case "want" | "come":
                return self.feeling(beat, who)
            case "ask" | "say":
                return self.speech(beat[0], who, self.cast[beat[2]])
        raise ValueError(f"no such scene: {beat[0]}")

    def doing(self, who: NP | None) -> str:
        assert who
        if self.level >= _RELATIVE_LEVEL and self.rng.random() < 0.5:
            return self.relative()
        if self.level >= _MARKED_LEVEL and self.rng.random() < 0.2:
            return self.speech(self.rng.choice(("ask", "say")), who, self.other(who))
        clause = self.action(who)
        return self.joined(clause) if clause else ""

    def description(self) -> str:
        """यह नई किताब है। किताबें मेज़ पर हैं। कमरा साफ़ है।"""
        rng = self.rng
        n = rng.choice([n for n in lexicon.lexicon().nouns if _adjectives(n)])
        self.topic = None
        adjective = rng.choice(_adjectives(n))
        number = "pl" if rng.random() < 0.4 and not n.fields & {"mass", "in", "on", "water", "elder"} else "sg"
        phrase = NP(n, number)
        be = copula(n.gender, number, "3", self.past)
        chance = rng.random()
        if "body" in n.fields:
            whose = self.cast["H"]
            if self.level < _MARKED_LEVEL or held_out(whose.noun, adjective.lemma):
                return ""
            return predicate(replace(phrase, possessor=whose), adjective, self.past)
        if chance < 0.4:
            this = "ये" if number == "pl" else "यह"
            return f"{this} {replace(phrase, adjective=adjective).text()} {be}"
        if chance < 0.7 or n.fields.isdisjoint(("toy", "tool", "text", "fruit", "vessel", "book", "cloth", "food")):
            owner = self.cast["H"] if self.level >= _MARKED_LEVEL and "live" not in n.fields else None
            if owner and held_out(owner.noun, adjective.lemma):
                owner = None
            owned = replace(phrase, possessor=owner) if rng.random() < 0.5 else phrase
            return predicate(owned, adjective, self.past, intensity=rng.choice(("", "बहुत")))
        seat = rng.choice([s for s in _nouns("seat,box") if not held_out(s, adjective.lemma)])
        where = NP(seat).case("पर" if "seat" in seat.fields else "में")
        return f"{replace(phrase, adjective=adjective).text()} {where} {be}"

    def others(self) -> str:
        """What someone else does meanwhile, mostly several: लड़कियाँ खेल रही हैं।"""
        n = self.rng.choice(_nouns("child,worker,animal,bird"))
        phrase = replace(NP(n), number=self.rng.choice(("sg", "pl", "pl")))
        if phrase.number == "pl" and self.rng.random() < 0.3:
            phrase = replace(phrase, numeral=self.rng.choice(_NUMERALS))
        clause = self.action(phrase)
        self.topic = None
        return clause.text() if clause else ""

    def weather(self) -> str:
        what, stem = self.rng.choice(
            (
                ("हवा", "चल"),
                ("बारिश", "हो"),
                ("आँधी", "आ"),
                ("धूप", "निकल"),
                ("बर्फ़", "गिर"),
                ("सूरज", "चमक"),
                ("तारा", "चमक"),
                ("चाँद", "निकल"),
                ("बादल", "आ"),
            )
        )
        n = noun(what)
        controller = NP(n, number="pl" if what in ("तारा", "बादल") else "sg")
        tense = "past_progressive" if self.past else "progressive"
        if self.past and self.rng.random() < 0.3 and stem != "चमक":
            tense = "past"
        when = self.rng.choice(("", "आज", "उस दिन" if self.past else "अब"))
        return f"{when} {controller.text()} {finite(nfc(stem), tense, controller.agreement)}".strip()

    def both(self, first: NP | None, second: NP) -> str:
        assert first
        pair = Pair(first, second)
        clause = self.action(first)
        if not clause or clause.argument in (first, second):
            return ""
        clause = replace(clause, subject=pair)
        self.topic = pair
        return "" if clause.held_out() else clause.text()

    def state(self, kind: str, who: NP | None) -> str:
        assert who
        if kind == "like":
            fitting = _adjectives(who.noun)
            return predicate(who, self.rng.choice(fitting), self.past, intensity="बहुत") if fitting else ""
        lemma = nfc("ख़ुश" if kind == "happy" else "दुखी")
        if held_out(who.noun, lemma):
            return ""
        subject = self.pronoun(who) if who == self.topic and self.rng.random() < 0.5 else who
        self.topic = who
        return predicate(subject, lemma, self.past, intensity=self.rng.choice(("", "बहुत")))

    def owning(self, beat: list[str], who: NP | None) -> str:
        assert who
        match beat[0]:
            case "has":
                if self.level < _MARKED_LEVEL:
                    return ""
                what = replace(self.modified(self.cast[beat[2]]), possessor=None, determiner="", numeral="")
                if any(held_out(who.noun, a.lemma) for a in what.adjectives()):
                    return ""
                return f"{who.genitive('m', 'sg', True)} पास {what.text()} {copula(*what.agreement, self.past)}"
            case "put":
                if self.level < _MARKED_LEVEL:
                    return ""
                clause = self.clause([nfc("रखना"), beat[1], beat[2], "@seat,box"])
                return clause.text() if clause else ""
            case "lost":
                if self.level < _CONJUNCT_LEVEL or held_out(who.noun, nfc("खोना")):
                    return ""
                return Clause(who, _verb("खोना"), "past", adverb=self.adverb("past"), vector=nfc("जाना")).text()
        found = self.draw(beat[2], nfc("मिलना"))
        if self.level < _MARKED_LEVEL or not found or not self.past or held_out(who.noun, nfc("मिलना")):
            return ""
        found = replace(found, possessor=None)
        if any(held_out(who.noun, a.lemma) for a in found.adjectives()):
            return ""
        return f"{self.adverb('past')} {who.case('को')} {found.text()} {finite('मिल', 'past', found.agreement)}".strip()

    def feeling(self, beat: list[str], who: NP | None) -> str:
        """राम को भूख लगी।"""
        if self.level < _MARKED_LEVEL or not who:
            return ""
        n = noun(beat[2])
        stem = "लग" if beat[0] == "want" else "आ"
        tense = "past" if self.past else "progressive"
        return f"{self.adverb(tense)} {who.case('को')} {n.lemma} {finite(stem, tense, NP(n).agreement)}".strip()

    def speech(self, kind: str, speaker: NP | None, hearer: NP) -> str:
        """X ने Y से पूछा कि ...? The narration's tense frames it; what is said has its own."""
        if self.level < _MARKED_LEVEL or not speaker or speaker.noun == hearer.noun:
            return ""
        verb = _verb("पूछना" if kind == "ask" else "कहना")
        tense = "past" if self.level >= _ERGATIVE_LEVEL else "past_progressive" if self.past else "habitual"
        frame = Clause(speaker, verb, tense, argument=hearer)
        said = self.question(speaker, hearer) if kind == "ask" else self.statement(speaker, hearer)
        if not said or frame.held_out():
            return ""
        self.topic = speaker
        return f"{frame.text()} कि {said}"

    def question(self, speaker: NP, hearer: NP) -> str:
        rng = self.rng
        you = Pronoun(address(hearer, rng), hearer.noun.gender)
        persons = {hearer.noun: you, speaker.noun: Pronoun("मैं", speaker.noun.gender)}
        chance = rng.random()
        if chance < 0.25:
            return f"{you.text()} कहाँ {finite('जा', 'progressive', you.agreement)}?"
        if chance < 0.45:
            return f"{you.text()} क्या {finite('कर', 'progressive', you.agreement)}?"
        clause = self.spoken(hearer, rng.choice(self.spoken_tenses()), persons)
        return f"क्या {replace(clause, negative=False).text()}?" if clause else ""

    def spoken_tenses(self) -> tuple[str, ...]:
        past = ("past", "perfect") if self.level >= _ERGATIVE_LEVEL else ()
        return ("future", "progressive", "habitual", *past)

    def statement(self, speaker: NP, hearer: NP) -> str:
        rng = self.rng
        you = Pronoun(address(hearer, rng), hearer.noun.gender)
        persons = {hearer.noun: you, speaker.noun: Pronoun("मैं", speaker.noun.gender)}
        chance = rng.random()
        if chance < 0.15:
            n = rng.choice(_nouns("want"))
            return f"मुझे {n.lemma} {finite('लग', rng.choice(('perfect', 'progressive')), NP(n).agreement)}"
        if chance < 0.4 and self.level >= _ERGATIVE_LEVEL:
            clause = self.spoken(hearer, "future", persons)
            if not clause:
                return ""
            return replace(clause, tense="imperative", vector="", modal="", negative=False).text()
        clause = self.spoken(speaker, rng.choice(self.spoken_tenses()), persons)
        return clause.text() if clause else ""


def _verb_or_none(lemma: str) -> Verb | None:
    return next((v for v in lexicon.lexicon().verbs if v.lemma == nfc(lemma)), None)
