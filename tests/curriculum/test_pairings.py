"""Each strategy and each schedule in a run: it trains to the end of its budget, and a stopped run resumes exactly."""

from itertools import cycle

import pytest
import torch
from hydra.utils import instantiate

from babylm_train.config import CONF, check_command_line
from babylm_train.errors import PreemptedError

EPOCHS = 4
STRATEGIES, SCHEDULES = (
    sorted(path.stem for path in CONF.glob(f"curriculum/{kind}/*.yaml")) for kind in ("strategy", "schedule")
)
PAIRS = list(zip(STRATEGIES, cycle(SCHEDULES[::-1]), cycle(["single_pass", "matched"]), strict=False))


@pytest.mark.parametrize(("strategy", "schedule", "pacing"), PAIRS)
def test_trains_to_the_end_and_resumes_exactly(make_trainer, strategy, schedule, pacing):
    chosen = [f"curriculum/strategy={strategy}", f"curriculum/schedule={schedule}", f"trainer.epochs={EPOCHS}"]
    (config,) = check_command_line(chosen)

    def trainer(name):
        parts = instantiate(config.curriculum, _convert_="all")
        return make_trainer(
            name, strategy=parts.strategy, schedule=parts.schedule, pacing=pacing, epochs=EPOCHS, eval_every=3
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
