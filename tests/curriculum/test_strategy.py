"""Scores against numbers worked out by hand and against scipy."""

import json
import math
import runpy

import numpy as np
import pytest
from hydra.utils import instantiate
from scipy.stats import rankdata

from babylm_train.config import CONF, check_command_line
from babylm_train.curriculum.strategy import CombinedCurriculum, Curriculum, DynamicCurriculum, score_documents
from babylm_train.curriculum.strategy import FrequencyBasedCurriculum as Frequency
from babylm_train.curriculum.strategy import LengthBasedCurriculum as Length
from babylm_train.curriculum.strategy import MorphologicalComplexityCurriculum as Morphological
from babylm_train.curriculum.strategy import create_curriculum_strategy as create
from babylm_train.errors import InputError

TEXTS = ["मैं घर जाता हूँ।", "वह स्कूल में पढ़ता है।", "लड़के ने किताब को पढ़ा था।", "घर", "राम ने रोटी खा ली और सो गया।"]


@pytest.mark.parametrize("name", ["none", "length", "frequency", "morphological", "combined", "dynamic", "random"])
def test_every_strategy(name):
    made, turned = create(name), create(name, reverse=True)
    scores = made.compute_difficulty(TEXTS)
    assert (scores.dtype, scores.shape) == (np.float64, (len(TEXTS),))
    np.testing.assert_array_equal(turned.compute_difficulty(TEXTS), -scores)
    documents, in_order = made.sort_by_difficulty(TEXTS)
    assert sorted(documents) == sorted(TEXTS)
    np.testing.assert_array_equal(in_order, np.sort(scores))
    for texts in (["घर"], ["।", "घर"], []):
        assert np.isfinite(made.compute_difficulty(texts)).tolist() == [True] * len(texts)
    assert (made.ranks, made.adaptive) == (name != "none", name == "dynamic")
    assert name != "random" or (create(name, seed=1).compute_difficulty(TEXTS) != scores).all()
    assert json.loads(json.dumps(made.identity())) == made.identity() != turned.identity()


def test_morphological_holds_the_order_and_its_weights():
    found = Morphological().compute_difficulty(TEXTS[:3])
    # case, verb, compound, words: 0 2 0 4 | 1 2 0 5 | 2 2 0 6
    by_hand = [3 / 4 + 0.5 * 4 / 24, (1 + 3) / 5 + 0.5 * 5 / 25, (2 + 3) / 6 + 0.5 * 6 / 26]
    np.testing.assert_allclose(found, by_hand)
    assert found[0] < found[1] < found[2]
    keys = ["case_weight", "verb_weight", "compound_weight", "length_weight"]
    for key, value in zip(keys, (1 / 8, 2 / 8, 2 / 8, 8 / 28), strict=True):  # 8 words: ने; ली, गया; खा ली, सो गया
        made = Morphological(**{**dict.fromkeys(keys, 0.0), key: 1.0})
        assert made.compute_difficulty(TEXTS[4:])[0] == pytest.approx(value)


@pytest.mark.parametrize("name", ["morphological", "combined", "dynamic"])
def test_a_text_that_the_rules_cannot_read_is_refused(name):
    english = ["The quick brown fox jumps over the lazy dog."] * 12
    with pytest.raises(InputError, match="take length"):  # one marked word in 109
        create(name).compute_difficulty([*english, "है"])
    create(name).compute_difficulty([*english, "है", "है"])
    assert CombinedCurriculum(morphological=0).compute_difficulty(english).tolist() == [0.5] * 12


def test_length_is_clipped_and_sorting_is_stable():
    texts = ["क ख", "क", "ख क", "ग", "क ख ग घ च"]
    assert Length().compute_difficulty(texts).tolist() == [2, 1, 2, 1, 5]
    assert Length(min_length=2, max_length=4).compute_difficulty(texts).tolist() == [2, 2, 2, 2, 4]
    assert Length().sort_by_difficulty(texts)[0] == ["क", "ग", "क ख", "ख क", "क ख ग घ च"]
    assert Length(reverse=True).sort_by_difficulty(texts)[0] == ["क ख ग घ च", "क ख", "ख क", "क", "ग"]


def test_frequency_from_the_documents_or_a_list(tmp_path):
    # क 3, ख 2, ग 1: six words, three types; p = (count + 1) / 9
    scores = Frequency().compute_difficulty(["क क ख", "क ख ग"])
    p = {"क": 4 / 9, "ख": 3 / 9, "ग": 2 / 9}
    by_hand = [-sum(math.log(p[w]) for w in text.split()) / 3 for text in ("क क ख", "क ख ग")]
    np.testing.assert_allclose(scores, by_hand)
    path = tmp_path / "list.tsv"
    path.write_text("\ufeffक\t6\nपढ़\t2\r\n", encoding="utf-8")
    made = Frequency(frequency_list=str(path))
    # eight words, two types and one for the rest
    by_hand = [-math.log(7 / 11), -math.log(3 / 11), -math.log(1 / 11)]
    np.testing.assert_allclose(made.compute_difficulty(["क", "प\u095d", "ग"]), by_hand)
    assert str(path) in made.outside_text
    path.write_text("क\t7\n", encoding="utf-8")
    assert Frequency(frequency_list=str(path)).identity() != made.identity()
    path.write_text("क\t1\nख 2\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"list\.tsv:2"):
        Frequency(frequency_list=str(path))


def test_combined_is_the_weighted_mean_of_ranks():
    members = [Morphological(), Length(), Frequency()]
    ranks = [(rankdata(member.compute_difficulty(TEXTS)) - 1) / (len(TEXTS) - 1) for member in members]
    for weights in ((0.5, 0.3, 0.2), (3.0, 0.0, 1.0)):
        by_hand = sum(w / sum(weights) * r for w, r in zip(weights, ranks, strict=True))
        np.testing.assert_allclose(CombinedCurriculum(*weights).compute_difficulty(TEXTS), by_hand)


def test_dynamic_moves_its_threshold_within_its_bounds():
    made = DynamicCurriculum(Length(), performance_window=2, min_threshold=0.3, max_threshold=0.45)
    before = made.identity()
    moves = [made.update_difficulty_threshold(loss) for loss in (5.0, 4.0, 3.0, 3.5, 3.5, 3.5, 1.0)]
    assert moves == pytest.approx([0.3, 0.4, 0.45, 0.35, 0.3, 0.3, 0.4])
    np.testing.assert_array_equal(made.compute_difficulty(["क ख", "क"]), [2, 1])
    # neither the threshold nor how it moves changes the key of the cache; the base does
    assert made.identity() == before == DynamicCurriculum(Length(), 0.3).identity()
    assert DynamicCurriculum().identity() != before


def test_the_base_of_dynamic_is_chosen_as_a_group():
    chosen = ["curriculum/strategy=dynamic", "curriculum/strategy@curriculum.strategy.base=length"]
    (config,) = check_command_line([*chosen, "curriculum.strategy.base.max_length=9", "trainer.epochs=3"])
    made = instantiate(config.curriculum, _convert_="all").strategy
    assert (made.name, made.base, made.min_threshold) == ("dynamic", Length(max_length=9), 0.1)


class Given(Curriculum):
    """A user's own strategy."""

    name = "given"

    def score(self, documents):
        return np.array([2, 1])


def test_a_strategy_of_ones_own_is_scored_once(tmp_path, monkeypatch):
    made, split = create("given"), type("Corpus", (list,), {"fingerprint": "of these texts"})("ab")
    assert made.sort_by_difficulty(split)[0] == ["b", "a"]
    for _ in range(2):
        assert score_documents(made, split, tmp_path).tolist() == [2, 1]
        monkeypatch.setattr(Given, "score", None)


def test_the_example_trains_on_growing_pools(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(CONF.parent / "examples" / "curriculum.py"))
    lines = capsys.readouterr().out.splitlines()
    admitted, losses = zip(*((int(line.split()[2]), float(line.split()[-1])) for line in lines), strict=True)
    assert sorted(admitted) == list(admitted)
    assert admitted[0] < admitted[3]
    assert losses[3] < losses[0]
