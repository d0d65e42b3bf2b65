"""Scores against numbers worked out by hand and against scipy."""

import inspect
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from babylm_train.curriculum import strategy as module
from babylm_train.curriculum.checks import check_scores
from babylm_train.curriculum.strategy import (
    CombinedCurriculum,
    Curriculum,
    DynamicCurriculum,
    FrequencyBasedCurriculum,
    LengthBasedCurriculum,
    MorphologicalComplexityCurriculum,
    NoCurriculum,
    RandomCurriculum,
    scaled_ranks,
)
from babylm_train.errors import InputError

CONF = Path(__file__).parents[2] / "conf" / "curriculum" / "strategy"
ALL = [
    NoCurriculum,
    LengthBasedCurriculum,
    FrequencyBasedCurriculum,
    MorphologicalComplexityCurriculum,
    CombinedCurriculum,
    DynamicCurriculum,
    RandomCurriculum,
]
TEXTS = ["मैं घर जाता हूँ।", "वह स्कूल में पढ़ता है।", "लड़के ने किताब को पढ़ा था।", "घर", "राम ने रोटी खा ली और सो गया।"]


@pytest.mark.parametrize("kind", ALL)
def test_every_strategy(kind):
    scores = kind().compute_difficulty(TEXTS)
    assert scores.dtype == np.float64
    assert scores.shape == (len(TEXTS),)
    np.testing.assert_array_equal(kind(reverse=True).compute_difficulty(TEXTS), -scores)
    assert sorted(kind().sort_by_difficulty(TEXTS)) == sorted(TEXTS)
    one = kind().compute_difficulty(["घर"])
    assert one.shape == (1,)
    assert np.isfinite(one).all()
    assert np.isfinite(kind().compute_difficulty(["।", "घर"])).all()
    assert kind().compute_difficulty([]).shape == (0,)
    assert kind().name
    assert kind().ranks == (kind is not NoCurriculum)
    assert kind().adaptive == (kind is DynamicCurriculum)
    assert json.loads(json.dumps(kind().identity())) == kind().identity()
    assert kind().identity() != kind(reverse=True).identity()


def test_the_order_to_hold():
    scores = MorphologicalComplexityCurriculum().compute_difficulty(TEXTS[:3])
    # case, verb, compound, words: 0 2 0 4 | 1 2 0 5 | 2 2 0 6
    by_hand = [3 / 4 + 0.5 * 4 / 24, (1 + 3) / 5 + 0.5 * 5 / 25, (2 + 3) / 6 + 0.5 * 6 / 26]
    np.testing.assert_allclose(scores, by_hand)
    assert scores[0] < scores[1] < scores[2]


def test_morphological_weights():
    text = ["राम ने रोटी खा ली और सो गया।"]  # 8 words: ने; ली, गया; खा ली, सो गया
    for key, value in {
        "case_weight": 1 / 8,
        "verb_weight": 2 / 8,
        "compound_weight": 2 / 8,
        "length_weight": 8 / 28,
    }.items():
        weights = dict.fromkeys(("case_weight", "verb_weight", "compound_weight", "length_weight"), 0.0)
        strategy = MorphologicalComplexityCurriculum(**{**weights, key: 1.0})
        assert strategy.compute_difficulty(text)[0] == pytest.approx(value)


def test_an_attached_danda_changes_nothing_and_apne_is_easier_than_ne():
    a, b, c, d = MorphologicalComplexityCurriculum().compute_difficulty(["राम ने", "राम ने।", "अपने घर", "राम ने घर"])
    assert a == b
    assert c < d


def test_length():
    texts = ["क ख ग", "क", "क ख ग घ च"]
    assert LengthBasedCurriculum().compute_difficulty(texts).tolist() == [3, 1, 5]
    assert LengthBasedCurriculum(min_length=2, max_length=4).compute_difficulty(texts).tolist() == [3, 2, 4]


def test_frequency_from_the_documents():
    # क 3, ख 2, ग 1: six words, three types; p = (count + 1) / 9
    scores = FrequencyBasedCurriculum().compute_difficulty(["क क ख", "क ख ग"])
    p = {"क": 4 / 9, "ख": 3 / 9, "ग": 2 / 9}
    by_hand = [-sum(math.log(p[w]) for w in text.split()) / 3 for text in ("क क ख", "क ख ग")]
    np.testing.assert_allclose(scores, by_hand)


def test_frequency_from_a_list(tmp_path):
    path = tmp_path / "list.tsv"
    path.write_text("\ufeffक\t6\nपढ़\t2\r\n\n", encoding="utf-8")
    strategy = FrequencyBasedCurriculum(frequency_list=str(path))
    # eight words, two types and one for the rest
    by_hand = [-math.log(7 / 11), -math.log(3 / 11), -math.log(1 / 11)]
    np.testing.assert_allclose(strategy.compute_difficulty(["क", "प\u095d", "ग"]), by_hand)
    before = strategy.identity()
    path.write_text("क\t7\n", encoding="utf-8")
    assert FrequencyBasedCurriculum(frequency_list=str(path)).identity() != before
    assert str(path) not in json.dumps(before)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("क\t1\nख 2\n".encode(), "list.tsv:2: expected word<TAB>count"),
        ("क\tmany\n".encode(), "list.tsv:1"),
        ("क\t-1\n".encode(), "list.tsv:1"),
        (b"\t1\n", "list.tsv:1"),
        ("क\t1\n".encode() + b"\xff\t2\n", "list.tsv:2: not UTF-8"),
        (b"", "empty"),
    ],
)
def test_bad_frequency_lists_name_the_line(tmp_path, data, message):
    (tmp_path / "list.tsv").write_bytes(data)
    with pytest.raises(InputError, match=message):
        FrequencyBasedCurriculum(frequency_list=str(tmp_path / "list.tsv"))


def test_a_missing_frequency_list_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.tsv"):
        FrequencyBasedCurriculum(frequency_list=str(tmp_path / "nothing.tsv"))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_scaled_ranks_agree_with_scipy(values):
    scores = np.array(values, dtype=np.float64)
    np.testing.assert_allclose(scaled_ranks(scores), (rankdata(scores) - 1) / max(len(values) - 1, 1))


def test_combined_is_the_weighted_mean_of_ranks():
    members = [MorphologicalComplexityCurriculum(), LengthBasedCurriculum(), FrequencyBasedCurriculum()]
    ranks = [(rankdata(member.compute_difficulty(TEXTS)) - 1) / (len(TEXTS) - 1) for member in members]
    np.testing.assert_allclose(
        CombinedCurriculum().compute_difficulty(TEXTS), 0.5 * ranks[0] + 0.3 * ranks[1] + 0.2 * ranks[2]
    )
    np.testing.assert_allclose(
        CombinedCurriculum(morphological=3, length=0, frequency=1).compute_difficulty(TEXTS),
        0.75 * ranks[0] + 0.25 * ranks[2],
    )


def test_sorting_is_stable_and_reverse_turns_it():
    texts = ["क ख", "क", "ख क", "ग"]
    assert LengthBasedCurriculum().sort_by_difficulty(texts) == ["क", "ग", "क ख", "ख क"]
    assert LengthBasedCurriculum(reverse=True).sort_by_difficulty(texts) == ["क ख", "ख क", "क", "ग"]
    assert NoCurriculum(reverse=True).sort_by_difficulty(texts) == texts


def test_random_is_seeded():
    a, b, c = (RandomCurriculum(seed).compute_difficulty(TEXTS) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_dynamic_moves_its_threshold():
    strategy = DynamicCurriculum(LengthBasedCurriculum(), adaptation_rate=0.1, performance_window=2, min_threshold=0.3)
    assert strategy.threshold == 0.3
    moves = [strategy.update_difficulty_threshold(loss) for loss in (5.0, 4.0, 3.0, 3.5, 3.5, 3.5, 1.0)]
    assert moves == pytest.approx([0.3, 0.4, 0.5, 0.4, 0.3, 0.3, 0.4])
    assert strategy.upper_bound(0.0) == 1.0
    np.testing.assert_array_equal(strategy.compute_difficulty(["क ख", "क"]), [2, 1])


def test_dynamic_stops_at_its_bounds():
    strategy = DynamicCurriculum(LengthBasedCurriculum(), adaptation_rate=0.4, max_threshold=0.9, initial_threshold=0.5)
    for loss in range(9, 0, -1):
        strategy.update_difficulty_threshold(loss)
    assert strategy.threshold == 0.9


def test_dynamic_state_goes_through_json_and_continues_exactly():
    losses = [5.0, 4.1, 4.3, 3.9, 4.0, 4.4, 3.0]
    whole = DynamicCurriculum()
    expected = [whole.update_difficulty_threshold(loss) for loss in losses]
    first, second = DynamicCurriculum(), DynamicCurriculum()
    found = [first.update_difficulty_threshold(loss) for loss in losses[:3]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.update_difficulty_threshold(loss) for loss in losses[3:]]
    assert found == expected


def test_the_dynamic_threshold_does_not_change_the_cache_key():
    strategy = DynamicCurriculum()
    before = strategy.identity()
    strategy.update_difficulty_threshold(3.0)
    assert strategy.identity() == before == DynamicCurriculum(adaptation_rate=0.3).identity()
    assert DynamicCurriculum(LengthBasedCurriculum()).identity() != before


def test_only_an_adaptive_strategy_has_a_threshold():
    assert LengthBasedCurriculum().threshold is None
    assert LengthBasedCurriculum().state_dict() == {}
    with pytest.raises(InputError, match="length has no threshold"):
        LengthBasedCurriculum().update_difficulty_threshold(1.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MorphologicalComplexityCurriculum(case_weight=-1), "curriculum.strategy.case_weight"),
        (lambda: MorphologicalComplexityCurriculum(verb_weight=float("nan")), "verb_weight"),
        (lambda: MorphologicalComplexityCurriculum(length_weight="much"), "length_weight"),
        (lambda: LengthBasedCurriculum(min_length=-1), "min_length"),
        (lambda: LengthBasedCurriculum(min_length=5, max_length=4), "max_length"),
        (lambda: CombinedCurriculum(length=-0.1), "curriculum.strategy.length must be at least 0, got -0.1"),
        (lambda: CombinedCurriculum(0, 0, 0), "must not all be 0"),
        (lambda: RandomCurriculum(seed=0.5), "seed"),
        (lambda: DynamicCurriculum(adaptation_rate=0), "adaptation_rate"),
        (lambda: DynamicCurriculum(performance_window=1), "performance_window"),
        (lambda: DynamicCurriculum(min_threshold=0.9, max_threshold=0.5), "min_threshold"),
        (lambda: DynamicCurriculum(max_threshold=1.2), "max_threshold"),
        (lambda: DynamicCurriculum(initial_threshold=0.1), "initial_threshold"),
        (lambda: DynamicCurriculum(NoCurriculum()), "base"),
        (lambda: DynamicCurriculum(DynamicCurriculum()), "base"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(InputError, match=message):
        build()


class Given(Curriculum):
    """A user's own strategy."""

    name = "given"

    def __init__(self, scores, reverse=False):
        super().__init__(reverse)
        self.scores = scores

    def score(self, documents):
        return np.array(self.scores)


def test_a_strategy_of_ones_own():
    assert Given([2, 1]).sort_by_difficulty(["a", "b"]) == ["b", "a"]
    assert Given([2, 1]).identity()["scores"] == [2, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_must_be_finite(bad):
    with pytest.raises(InputError, match="document 1 is"):
        Given([0.0, bad, bad]).compute_difficulty(["a", "b", "c"])
    with pytest.raises(InputError, match=r"story\.txt:2"):
        check_scores(np.array([0.0, bad]), 2, lambda i: f"story.txt:{i + 1}")


def test_scores_must_be_one_a_document():
    with pytest.raises(InputError, match="one score a document"):
        Given([0.0]).compute_difficulty(["a", "b"])


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_fragments_hold_every_argument_and_its_default(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    fragment = yaml.safe_load(text)
    if "defaults" in fragment:  # a variation of another fragment
        return
    target = fragment.pop("_target_")
    kind = getattr(module, target.rpartition(".")[2])
    assert target.rpartition(".")[0] == module.__name__
    assert kind().name == path.stem
    parameters = inspect.signature(kind).parameters
    assert list(fragment) == list(parameters)
    assert fragment["reverse"] is False
    if path.stem == "dynamic":
        assert fragment.pop("base") == yaml.safe_load((CONF / "combined.yaml").read_text(encoding="utf-8"))
    if path.stem == "random":
        assert fragment.pop("seed") == "${seed}"
    assert fragment == {key: parameters[key].default for key in fragment}


def test_importing_it_is_light():
    code = (
        "import sys, babylm_train.curriculum.strategy; print({'scipy', 'pandas', 'torch', 'hydra'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CONF.parents[2])
    assert done.stdout.strip() == "set()"
