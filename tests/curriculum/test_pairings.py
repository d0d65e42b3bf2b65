"""Each strategy and each schedule in a run: it trains to the end of its budget, and a stopped run resumes exactly."""

from itertools import cycle

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf

from babylm_train.config import CONF
from babylm_train.errors import PreemptedError

EPOCHS = 4
STRATEGIES, SCHEDULES = (
    sorted(CONF.glob(f"curriculum/{kind}/*.yaml"), key=lambda path: path.stem) for kind in ("strategy", "schedule")
)


def fragment(path):
    values = yaml.safe_load(path.read_text(encoding="utf8"))
    for parent in values.pop("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            values = yaml.safe_load((path.parent / f"{parent}.yaml").read_text(encoding="utf8")) | values
    known = OmegaConf.create({"seed": 3, "trainer": {"epochs": EPOCHS}, "node": values})
    return instantiate(known.node, _convert_="all")


PAIRS = list(zip(STRATEGIES, cycle(SCHEDULES[::-1]), cycle(["single_pass", "matched"]), strict=False))


@pytest.mark.parametrize(("strategy", "schedule", "pacing"), PAIRS, ids=lambda part: getattr(part, "stem", part))
def test_trains_to_the_end_and_resumes_exactly(make_trainer, strategy, schedule, pacing):
    def trainer(name):
        parts = {"strategy": fragment(strategy), "schedule": fragment(schedule)}
        return make_trainer(name, **parts, pacing=pacing, epochs=EPOCHS, eval_every=3)

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
