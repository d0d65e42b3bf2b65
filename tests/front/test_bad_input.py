"""Bad input through the command line: one line that names the culprit, its exit code, nothing written."""

from pathlib import Path

import pytest
from filelock import FileLock
from forked import SMALL as FORKED

SMALL = [*(s for s in FORKED if "cache_dir" not in s), "data.words=1500"]
WORDS = Path(__file__).parents[1] / "words.tsv"  # a frequency list

CONFIGURATIONS = {  # arguments: what the line names
    # names that do not exist, and the nearest that does
    "optimizer=sdg": "optimizer=sdg: no such option, did you mean sgd?",
    "--config-name nothing": "nothing",
    "optimizer.lrr=1": "optimizer.lrr: no such key or group with these options, did you mean optimizer.lr?",
    "+optimizer.amsgrd=true": "optimizer.amsgrd: unknown key, did you mean optimizer.amsgrad?",
    "trainer.use_amp=true": "precision=bf16",
    "epochs=3": "trainer.epochs=10",
    "trainer.n_layer=2": "model.config.n_layer",
    "optimizer.LR=1": "did you mean optimizer.lr?",
    "optimizer=AdamW": "did you mean adamw?",
    "curriculum.strategy=length": "curriculum/strategy=length",
    "curriculum.schedule.start_threshold=0.1": "curriculum/schedule=exponential",
    "data.train=x.txt": "data=text",
    "data=x.txt": "data=x.txt: no such option, did you mean text? (hub, stories, text); files are data=text",
    "precision=16": "precision=16: no such option",
    "logger=null": "logger=null: no such option",
    "-m optimizer=adamw, adam": "optimizer=adamw,adam",
    # types and ranges
    "optimizer.lr=abc": "optimizer.lr=abc",
    "optimizer.lr=nan": "optimizer: Invalid learning rate",
    "trainer.batch_size=0": "trainer.batch_size",
    "curriculum/schedule=linear curriculum.schedule.start_threshold=1.5": "curriculum.schedule.start_threshold",
    # what is missing, or no value
    "~optimizer": "optimizer is missing",
    "hydra.run.dir=": "hydra.run.dir= is empty",
    "data.cache_dir=": "data.cache_dir",
    "data=text": "data.train has to be given",
    "optimizer.lr=${oc.env:NO_SUCH_VARIABLE}": "NO_SUCH_VARIABLE",
    # what only the files or the libraries know
    "data=text data.train=latin1.txt": "latin1.txt, line 2",
    "model.config.n_head=7": "model: ",
    "model=modern_nano model.config.head_dim=false": "head_dim",
    "model=modern_nano model.config.num_attention_heads=2": "num_key_value_heads=5",
    "+model.config.vocab_size=10": "model.config.vocab_size is not free",
    "objective=masked model=gpt2_nano": "objective: MaskedObjective needs an encoder",
    "~optimizer.fused ~optimizer.betas ~optimizer.eps optimizer._target_=torch.optim.Muon": "optimizer: Muon",
    "experiment=baseline_tuned optimizer=adam": "optimizer.decay_horizon=2.0 needs",
    "~optimizer.weight_decay ~optimizer.fused optimizer._target_=torch.optim.SparseAdam": "optimizer: SparseAdam",
    "scheduler.name=reduce_lr_on_plateau": "scheduler.name=reduce_lr_on_plateau",
    "curriculum.lengths=[4,8]": "curriculum.lengths",
    "objective=rdrop model.config._target_=transformers.PhiConfig": "model",
    "trainer.eval_pairs=none.jsonl": "trainer.eval_pairs: no such file: none.jsonl",
    "+model.config.dtype=float16": "model.config.dtype is not free",
    # pairs of keys
    "scheduler.warmup_steps=5 scheduler.warmup_ratio=0.1": "scheduler.warmup_steps",
    "scheduler.warmup_steps=99 trainer.max_steps=10": "scheduler.warmup_steps",
    "trainer.eval_pairs=corpus trainer.metric=pairs/al": "trainer.metric",
    "track=strict_small curriculum/schedule=linear curriculum/strategy=frequency curriculum.strategy.frequency_list=LIST": "track",
    # a hand that slips
    "hydra/launcher=submitit_local": "add -m",
    "--max_steps=2": "max_steps=value",
    "—max_steps=2": "max_steps=value",
    "-m seed=range(3,1)": "seed=range(3,1): a sweep over nothing",
    "study=a\x1b[2Jb": "study: ",
    f"trainer.epochs={10**30}": "trainer.epochs",
}  # fmt: skip


@pytest.mark.parametrize("arguments", CONFIGURATIONS)
def test_configurations(refused, tmp_path, arguments):
    (tmp_path / "latin1.txt").write_bytes("राम\n".encode() + b"caf\xe9\n")
    typed = arguments.replace("LIST", str(WORDS)).split(" ")
    keys = {argument.partition("=")[0] for argument in typed}
    tiny = [] if any(w.startswith(("~model", "--config", "model=", "tokenizer=")) for w in typed) else SMALL
    keys |= {"data.words"} if "data=text" in typed else set()
    keys |= {"hydra.run.dir"} if "-m" in typed else set()
    assert CONFIGURATIONS[arguments] in refused(*typed, *(t for t in tiny if t.partition("=")[0] not in keys))


def test_a_checkpoint_of_another_run_or_none_at_all(run, refused, tmp_path):
    assert run(*SMALL, "seed=1")[0] == 0
    (tmp_path / "out").rename(tmp_path / "other")
    assert "another corpus" in refused(*SMALL, "resume=other")
    (tmp_path / "none.pt").write_bytes(b"PK")
    assert "none.pt" in refused(*SMALL, "resume=none.pt")


def test_directories(refused, tmp_path):
    small = [small for small in SMALL if "run.dir" not in small]
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below", "/proc/none", "क" * 100):
        assert "cannot write" in refused(*small, f"hydra.run.dir={place}", code=4)
    assert "cannot write" in refused(*small, "data.cache_dir=file/below", "hydra.run.dir=out", code=4)
    (tmp_path / "used").mkdir()
    with FileLock(tmp_path / "used/.lock"):
        assert "used" in refused(*small, "hydra.run.dir=used")
    huge = ("trainer.batch_size=1048576", "data.max_length=512")
    assert "GiB" in refused(*(s for s in small if "length" not in s), *huge, "hydra.run.dir=a/b/c", code=5)
    small = [small for small in small if "vocab_size" not in small]
    assert "vocab_size" in refused(*small, "hydra.run.dir=a/b/c", "tokenizer.vocab_size=3")  # the corpus is read first
