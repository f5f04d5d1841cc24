"""Training on accelerate: two processes against one, parts of a batch, bfloat16, what diverges, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn

from edgekit.compression import compress
from edgekit.compression.settings import Compression, Data
from edgekit.errors import CheckFailed, SourceError, UsageError
from edgekit.methods.examples import CLASSES, Examples
from edgekit.methods.processes import processes
from edgekit.methods.resume import Checkpoint
from edgekit.methods.training import Run, Training
from tests.support.tiny_bundle import write_tokenizer
from tests.support.tiny_decoders import build
from tests.support.train_together import HERE, STOPPED_AT, points, quadrant

METHODS = {
    "backslash": "rate: {steps: 40, strength: 3}\n",
    "bitnet": "bitnet: {ramp: 10}\n",
    "salt": "salt: {teacher: teacher, steps: 25, top: 16}\n",
    "distill": "distill: {student: prune, weight: 0.9, top: 300}\nprune: {sparsity: 0.5, steps: 20}\n",
    "recover": "recover: {format: ternary, top: 300}\ncalibration: {examples: 16}\n",
    "recover-scales": "recover: {format: int2, train: scales, top: 0}\ncalibration: {examples: 16}\n",
}


def launched(module: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Two processes of a module, on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, env=environment, timeout=600)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made."""
    path = tmp_path_factory.mktemp("together")
    for name, layers in (("teacher", 1), ("model", 2)):
        build("Llama", {"vocab_size": 259, "num_hidden_layers": layers}).save_pretrained(path / name)
        write_tokenizer(path / name)
    (path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    for method, section in METHODS.items():
        (path / f"method-{method}.yaml").write_text(
            f"version: 1\nmethod: {method.partition('-')[0]}\n{section}data: {{train: [text.txt], length: 32}}\n"
            "training: {steps: 50, batch_size: 8, learning_rate: 1e-3, weight_decay: 0.1, evaluate_every: 25}\n"
        )
    (path / "quadrant.yaml").write_text(
        f'version: 1\nmethod: none\ndata: {{train: ["{HERE}:points"]}}\n'
        "training: {steps: 40, learning_rate: 0.01, checkpoint_every: 7, clip: 1.0, accumulate: 2}\n"
    )
    done = launched("tests.support.train_together", path)
    assert done.returncode == 0, done.stderr[-3000:]
    (path / "out.txt").write_text(done.stdout)
    (path / "err.txt").write_text(done.stderr)
    return path


def losses(directory: Path) -> list[float]:
    return [loss for _, loss in json.loads((directory / "compress.json").read_text())["losses"]]


def alone(together: Path, method: str, output: Path, accumulate: int) -> list[float]:
    settings = Compression.load(together / f"method-{method}.yaml")
    settings = replace(settings, training=replace(settings.training, accumulate=accumulate))
    settings = replace(settings, data=Data((str(together / "text.txt"),), length=32))
    if settings.salt is not None:
        settings = replace(settings, salt=replace(settings.salt, teacher=str(together / "teacher")))
    history = compress(together / "model", settings, output).history
    assert len(history.losses) == 50 and history.losses[-1] < history.losses[0]
    return history.losses


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one_that_takes_two_parts(together: Path, tmp_path: Path, method: str) -> None:
    """Bit for bit: halves of sums are exact."""
    assert losses(together / f"method-{method}") == alone(together, method, tmp_path / "out", 2)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("bitnet", "recover")])
def test_two_processes_lose_what_one_does(together: Path, tmp_path: Path, method: str) -> None:
    """Of a whole batch sums are rounded otherwise; where that turns a ternary code, as in bitnet and recover, the losses part."""
    wanted = alone(together, method, tmp_path / "out", 1)
    assert losses(together / f"method-{method}") == pytest.approx(wanted, abs=1e-5, rel=0)


def test_a_signal_to_one_stops_both_and_they_go_on(together: Path, tmp_path: Path) -> None:
    assert (together / "out.txt").read_text().count(": stopped") == 4  # two runs, two processes
    one, two = (load_file(together / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one) and losses(together / "whole") == losses(
        together / "parts"
    )
    one_process = compress(f"{HERE}:quadrant", together / "quadrant.yaml", tmp_path / "out").history
    assert losses(together / "whole") == pytest.approx(one_process.losses, abs=1e-5)


def test_one_process_tells_and_writes(together: Path) -> None:
    told = [line for line in (together / "err.txt").read_text().splitlines() if "train: step" in line]
    assert told and len(told) == len(set(told)) <= 21
    assert (together / "out.txt").read_text().count("next: edgekit export") == 1
    left = [path.name for path in together.iterdir() if path.name.startswith(".")]
    assert left == [".stopped.checkpoint"]


def test_a_checkpoint_of_other_processes_is_refused(together: Path) -> None:
    (state,) = (together / ".stopped.checkpoint").iterdir()
    assert state.name == f"step-{STOPPED_AT // 2}"  # a batch in two parts
    with pytest.raises(UsageError, match="processes is 1 now and was 2; resume with the settings that it began with"):
        compress(f"{HERE}:stopped", together / "quadrant.yaml", together / "stopped", resume=True)


def test_what_launchers_are_refused(together: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = Compression(1, Data((str(together / "text.txt"),)), "gptq")
    with pytest.raises(UsageError, match="gptq: runs in one process; start it without a launcher"):
        compress(together / "model", config, together / "never")


def test_where_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA where there is any, unless ``accelerate launch --cpu`` says otherwise."""
    asked: list[bool] = []
    monkeypatch.setattr("edgekit.methods.processes.PartialState", lambda cpu, timeout: asked.append(cpu))
    for there, env in ((False, "false"), (True, "false"), (True, "true")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        monkeypatch.setenv("ACCELERATE_USE_CPU", env)
        processes()
    assert asked == [True, False, True]


def test_a_model_in_shards_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(UsageError, match="is told to use FSDP; each process holds the whole model here: launch with"):
        run()


def run(model: nn.Module | None = None, **changes: Any) -> Run:
    training = Training(**{"steps": 20, "batch_size": 32, "learning_rate": 0.01, **changes})
    data = Examples({name: torch.from_numpy(array) for name, array in points().items()})
    return Run(model or quadrant()[0], CLASSES, data, training, evaluation=data)


def test_a_batch_in_parts_is_the_same_batch() -> None:
    assert run(accumulate=4).go().losses == pytest.approx(run().go().losses, abs=1e-6)
    with pytest.raises(
        UsageError, match=r"batch_size: 32 examples cannot be shared evenly by 1 processes .* in 5 parts"
    ):
        run(accumulate=5)


def test_weight_decay_spares_norms_and_biases() -> None:
    plain, decayed = quadrant()[0], quadrant()[0]
    run(plain, steps=1).go()
    run(decayed, steps=1, weight_decay=5.0).go()
    for (name, one), two in zip(plain.named_parameters(), decayed.parameters(), strict=True):
        assert torch.equal(one, two) == (one.ndim < 2 or name.startswith("unused")), name


def test_bfloat16_computes_coarser_and_keeps_float_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quadrant()[0]
    coarse, fine = run(model, mixed_precision="bf16").go().losses, run().go().losses
    assert coarse != fine and coarse == pytest.approx(fine, rel=0.05)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(torch.ones(1, 2)).dtype == torch.float32 and torch.equal(
        model(torch.ones(1, 2)), model(torch.ones(1, 2))
    )
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # what accelerate launch says
    assert run().go().losses == coarse
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UsageError, match="mixed_precision: 'fp16' is not one of no, bf16"):
        run()


class Explodes(nn.Module):
    """Its weights become infinite after some steps."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(2, 4), calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls -= self.training
        return self.layer(x) * (float("inf") if self.calls == 0 else 1.0)  # type: ignore[no-any-return]


class Ruin:
    """Makes a weight infinite in the sixth step."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, self.done = weight, 0

    def step(self) -> None:
        self.done += 1
        if self.done == 6:
            self.weight.data[0] = float("inf")

    def hold(self) -> None: ...

    def zeros(self) -> float:
        return 0.0

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def test_what_diverges_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state", {})
    message = (
        r"^step 9: the loss is nan; lower learning_rate \(0\.01\) or set clip; the checkpoint of step 6 is kept, "
        r"--resume goes on from it$"
    )
    with pytest.raises(CheckFailed, match=message):
        run(Explodes(9), checkpoint_every=3).go(checkpoint=checkpoint)
    again = run(Explodes(100), checkpoint_every=3, learning_rate=1e-3)
    again.resume(checkpoint)
    assert again.step == 6 and len(again.go().losses) == 20
    broken = run(Explodes(100), checkpoint_every=3)
    broken.constraint = Ruin(broken.model.get_parameter("layer.weight"))
    with pytest.raises(CheckFailed, match=r"^step 7: the weights are no finite numbers; .* step 3 is kept"):
        broken.go(checkpoint=Checkpoint(tmp_path / "other", {}))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["step-3"]


def stopped_at_six(path: Path) -> tuple[Checkpoint, Path]:
    """A checkpoint, and its directory."""
    checkpoint = Checkpoint(path / "state", {})

    def stop(what: str, share: float) -> None:
        if share > 0.3:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(checkpoint_every=2).go(checkpoint=checkpoint, progress=stop)
    return checkpoint, path / "state" / "step-6"


def refused(checkpoint: Checkpoint) -> None:
    again = run(checkpoint_every=2)
    with pytest.raises(SourceError, match=r"step-6.*: not a checkpoint, or damaged \(.+\); --force begins anew"):
        again.resume(checkpoint)
        again.go()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "run"])
def test_a_damaged_checkpoint(tmp_path: Path, name: str) -> None:
    checkpoint, directory = stopped_at_six(tmp_path)
    file = directory / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(checkpoint)


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "run"])
def test_a_checkpoint_runs_no_code(tmp_path: Path, name: str) -> None:
    checkpoint, directory = stopped_at_six(tmp_path)
    torch.save(Bomb(tmp_path / "ran"), directory / name)
    refused(checkpoint)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device to train on")
def test_a_gpu_trains_and_resumes(tmp_path: Path) -> None:
    assert processes().device.type == "cuda"
    whole, checkpoint = run(checkpoint_every=6).go().losses, Checkpoint(tmp_path / "state", {})

    def stop(what: str, share: float) -> None:
        if share > 0.5:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(checkpoint_every=6).go(checkpoint=checkpoint, progress=stop)
    again = run(checkpoint_every=6)
    again.resume(checkpoint)
    assert again.go().losses == pytest.approx(whole, abs=1e-5)
    config = Compression(1, Data((f"{HERE}:points",)), "backslash", Training(steps=20))
    found = compress(f"{HERE}:quadrant", config, tmp_path / "out")
    assert found.after.total.zeros >= found.before.total.zeros
