"""Any strategy with any schedule: it trains to the end of the same budget, and a stopped run resumes exactly."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hindi_stories.stories import generate
from hydra.utils import instantiate
from omegaconf import OmegaConf

from babylm_train.config import CONF
from babylm_train.errors import PreemptedError

EPOCHS, DOCUMENTS = 4, 40
STRATEGIES, SCHEDULES = (
    sorted(p.stem for p in (CONF / "curriculum" / kind).glob("*.yaml")) for kind in ("strategy", "schedule")
)


def fragment(path: Path):
    values = yaml.safe_load(path.read_text(encoding="utf8"))
    for parent in values.pop("defaults", []):
        if parent != "_self_":
            values = yaml.safe_load((path.parent / f"{parent}.yaml").read_text(encoding="utf8")) | values
    known = OmegaConf.create({"seed": 3, "trainer": {"epochs": EPOCHS}, "node": values})
    return instantiate(known.node, _convert_="all")


@cache
def scores(strategy: str) -> np.ndarray:
    return fragment(CONF / "curriculum/strategy" / f"{strategy}.yaml").compute_difficulty(generate(2500, 1)[:DOCUMENTS])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("pacing", ["matched", "single_pass"])
def test_trains_to_the_end_and_resumes_exactly(make_trainer, strategy, schedule, pacing):
    def trainer(name):
        return make_trainer(
            name,
            strategy=fragment(CONF / "curriculum/strategy" / f"{strategy}.yaml"),
            schedule=fragment(CONF / "curriculum/schedule" / f"{schedule}.yaml"),
            scores=scores(strategy),
            pacing=pacing,
            epochs=EPOCHS,
            eval_every=3,
        )

    whole = trainer("whole")
    whole.train()
    if pacing == "matched":
        tokens = int(whole.curriculum.targets.sum())
        assert (whole.state.updates, whole.state.tokens) == (whole.curriculum.total_updates, EPOCHS * tokens)
    assert len(whole.curriculum.records) == EPOCHS
    assert whole.state.updates <= whole.curriculum.total_updates
    part = trainer("part")
    part.should_stop = lambda: part.state.updates == whole.state.updates // 2
    with pytest.raises(PreemptedError):
        part.train()
    resumed = trainer("part")
    resumed.load_checkpoint(resumed.checkpoints.newest()[1])
    resumed.train()
    assert resumed.record.metrics.read_bytes() == whole.record.metrics.read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))
    assert resumed.curriculum.state_dict() == whole.curriculum.state_dict()
