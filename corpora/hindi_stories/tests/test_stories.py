"""The built-in corpus: hand-worked sentences, what the package ships, and what its minimal pairs turn on."""

import gzip
import json
import random
import re
import unicodedata
from collections import defaultdict
from functools import cache
from itertools import product

import pytest
from hindi_stories import stories
from hindi_stories.__main__ import SHIPPED, pair_lines, story_lines
from hindi_stories.grammar import NP, Clause, Pronoun, held_out, noun
from hindi_stories.lexicon import decline, lexicon, participle, perfective
from hindi_stories.pairs import minimal_pairs
from hindi_stories.stories import generate

PHENOMENA = ("gender", "number", "ergative", "postposition", "word_order")


def nfc(text):
    return unicodedata.normalize("NFC", text)


def split(story):
    return [s for s in re.split(r"(?<=[।?]) ", story) if s]


def clause(subject, verb, tense, target="", **more):
    nouns = {k: NP(noun(v)) if isinstance(v, str) and k == "argument" else v for k, v in more.items()}
    who = subject if isinstance(subject, Pronoun) else NP(noun(subject), "pl" if "जी" in subject else "sg")
    return Clause(who, lexicon().verb(nfc(verb)), tense, NP(noun(target)) if target else None, **nouns).text()


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (clause("लड़का", "पढ़ना", "past", "किताब"), "लड़के ने किताब पढ़ी"),
        (clause("लड़की", "खाना", "past", "फल"), "लड़की ने फल खाया"),
        (clause("लड़का", "पढ़ना", "past", "किताब", marked=True), "लड़के ने किताब को पढ़ा"),
        (clause("लड़का", "पढ़ना", "habitual", "किताब"), "लड़का किताब पढ़ता है"),
        (clause("लड़की", "लाना", "past", "फल"), "लड़की फल लाई"),
        (clause("लड़का", "भूलना", "past", "किताब"), "लड़का किताब भूला"),
        (clause("लड़की", "खाना", "past", "फल", vector="जाना"), "लड़की फल खा गई"),
        (clause("लड़का", "खाना", "past", "रोटी", vector="लेना"), "लड़के ने रोटी खा ली"),
        (clause("लड़का", "मदद करना", "past", argument="राम"), "लड़के ने राम की मदद की"),
        (clause("लड़की", "काम करना", "past"), "लड़की ने काम किया"),
        (clause("पिता जी", "आना", "progressive"), "पिता जी आ रहे हैं"),
        (clause("माता जी", "जाना", "past"), "माता जी गईं"),
        (clause("लड़का", "जाना", "habitual", argument="घर"), "लड़का घर जाता है"),
        (clause("लड़की", "पढ़ना", "past", "किताब", modal="obligation"), "लड़की को किताब पढ़नी पड़ी"),
        (clause("लड़का", "पढ़ना", "pluperfect", "किताब", modal="completion"), "लड़का किताब पढ़ चुका था"),
        (clause(Pronoun("तुम", "f"), "खाना", "habitual", "रोटी"), "तुम रोटी खाती हो"),
        (clause(Pronoun("आप", "m"), "खाना", "future", "रोटी"), "आप रोटी खाएँगे"),
        (clause(Pronoun("मैं", "f"), "पीना", "future", "पानी"), "मैं पानी पिऊँगी"),
        (clause(Pronoun("वे", "m"), "देना", "past", "किताब", argument="राम"), "उन्होंने राम को किताब दी"),
    ],
)
def test_hand_worked_sentences(made, expected):
    assert made == nfc(expected)


FORMS = """m लड़का लड़के लड़के लड़कों|m घर घर घर घरों|m आदमी आदमी आदमी आदमियों|m कुआँ कुएँ कुएँ कुओं|f लड़की लड़की लड़कियाँ लड़कियों
f किताब किताब किताबें किताबों|f चिड़िया चिड़िया चिड़ियाँ चिड़ियों|f माला माला मालाएँ मालाओं|f मिठाई मिठाई मिठाइयाँ मिठाइयों"""


@pytest.mark.parametrize("gender_and_forms", nfc(FORMS).replace("\n", "|").split("|"))
def test_declension(gender_and_forms):
    gender, *expected = gender_and_forms.split()
    assert decline(expected[0], gender) == tuple(expected)


@cache
def shipped():
    """The lines of the two files that the package holds."""
    files = (SHIPPED / name for name in ("stories.jsonl.gz", "stories_pairs.tsv.gz"))
    return [gzip.decompress(file.read_bytes()).decode().splitlines(keepends=True) for file in files]


@cache
def corpus():
    return [json.loads(line)["text"] for line in shipped()[0]]


def test_the_package_ships_what_the_grammar_gives():
    """The whole of it: `make stories` writes both files anew."""
    lines, pairs = shipped()
    assert story_lines(200_000) == lines
    assert pair_lines() == pairs


def test_fewer_words_are_the_beginning_of_more_and_another_seed_is_another_text():
    assert generate(5000, 0) == corpus()[: len(generate(5000, 0))] != generate(5000, 4)
    assert all(story == nfc(story) and story[-1] in "।?" for story in corpus())


def test_held_out_combinations_never_meet_in_a_clause():
    """By the word forms alone: a noun and a verb or adjective that are kept apart share no clause."""
    agreements, nouns, verbs = list(product("mf", ("sg", "pl"))), defaultdict(set), defaultdict(set)
    for n in lexicon().nouns:
        for form in n.forms:
            nouns[form].add(n)
    for v in (v for v in lexicon().verbs if not v.prefix):
        for word in [v.stem, *(make(v.stem, *a) for make in (participle, perfective) for a in agreements)]:
            verbs[word].add(v.lemma)
    helpers = {v.lemma for v in lexicon().verbs if v.stem in nfc("पड़ आ जा उठ बैठ दे ले रह").split()}
    others = {w: min(found) for w, found in verbs.items() if len(found) == 1 and w not in nouns and not found & helpers}
    light = {v.prefix for v in lexicon().verbs}  # साफ़ करना is a verb of its own
    described = {a.form(*g, o): a.lemma for a in lexicon().adjectives for g in agreements for o in (False, True)}
    others |= {word: lemma for word, lemma in described.items() if word not in light}
    met = 0
    for sentence in (s for story in corpus() for s in split(story)):
        if re.search(r",|कर(के)? |(?<!\S)(कि|क्योंकि|इसलिए|लेकिन|और|जब|तब|तो|अगर|जो)(?!\S)", sentence):
            continue  # more than one clause
        words = re.split(r"[ ।?]+", sentence)
        pairs = [(next(iter(nouns[n])), others[w]) for n in words for w in words if len(nouns[n]) == 1 and w in others]
        met += len(pairs)
        assert [pair for pair in pairs if held_out(*pair)] == [], sentence
    assert met > 5_000


def test_pairs_are_unique_minimal_and_decided_by_the_grammar():
    pairs = minimal_pairs(60, 0)
    assert pairs == minimal_pairs(60, 0)
    assert [p.phenomenon for p in pairs] == [name for name in PHENOMENA for _ in range(60)]
    assert len({p.good for p in pairs}) == len(pairs)
    for good, bad, phenomenon in pairs:
        a, b = good.split(), bad.split()
        if phenomenon == "word_order":
            assert sorted(w.strip("।") for w in a) == sorted(w.strip("।") for w in b)
            assert a != b
        elif len(a) == len(b):
            changed = sum(x != y for x, y in zip(a, b, strict=True))
            assert 1 <= changed <= 3
            assert phenomenon in ("ergative", "number", "gender") or changed == 1
        else:
            assert phenomenon == "ergative"
            assert abs(len(a) - len(b)) == 1


def test_the_words_of_the_pairs_are_in_the_training_text():
    """All nouns and adjectives; of the verbs a few rare forms (सजाईं) may be left to be inferred."""
    known = {w.strip("।?,") for story in corpus() for w in story.split()}
    unknown = {w.strip("।") for p in minimal_pairs(200, 0) for s in p[:2] for w in s.split()} - known
    assert len(unknown) <= 5


def test_complexity_is_graded():
    """Simple stories have no ergative, no compound verb and no subordinate clause."""
    rng = random.Random(0)
    told = {level: [" ".join(stories.tell(rng, level, p)) for p in stories.plots()] for level in stories.LEVELS}
    text = {level: " " + re.sub(r"[।?,]|शाम को|रात को", " ", " ".join(t)) + " " for level, t in told.items()}
    assert not re.search(r" (ने|उसने|उन्होंने|कि|जब|जो|को|उसे) ", text[1])
    assert not re.search(r" (ने|उसने|उन्होंने|जब|जिस) ", text[2])
    assert " ने " in text[3]
    assert not re.search(r" (जब|जिस|क्योंकि) ", text[3] + text[4])
    assert re.search(r" (जब|जिस) ", text[5])
