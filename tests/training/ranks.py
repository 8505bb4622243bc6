"""What several processes do in the tests of `training/parallel.py` and its like: `python ranks.py FOLDER`."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from carrara.core.types import Keyframes, TextStates
from carrara.core.weights import save_weights
from carrara.data.batches import mix
from carrara.denoisers.dit import DiT, DiTConfig
from carrara.training.checkpoint import checkpoints, load_checkpoint, read_state, save_checkpoint
from carrara.training.config import Parallel, TrainConfig
from carrara.training.loop import train
from carrara.training.muon import ShardedMuon, muon_of
from carrara.training.optim import Average, Optimizers
from carrara.training.parallel import _leave, alone_first, join
from carrara.training.sharding import Rows, spread

CONFIG = TrainConfig(
    steps=6, warmup=2, decay_share=0.2, precision="float32", pieces=2, prefetch=False, log_every=1,
    validate_every=2, picture_every=3, checkpoint_every=3, checkpoint_every_minutes=0, clip=0.5, threads=1,
)  # fmt: skip
CONSTANT = replace(CONFIG, decay_share=0.0)
MUON = replace(CONFIG, optimizer="muon")
SIZES = DiTConfig(heads=2, head_dim=12, layers=2, ffn_dim=40, in_channels=4, out_channels=4, text_dim=16, frequencies=8)


class Denoising:
    """A transformer that is sharded, and beside it a table of words that every process holds."""

    def __init__(self, uneven: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        denoiser, words = DiT(SIZES), nn.Embedding(5, 16)
        for parameter in (*denoiser.parameters(), *words.parameters()):
            nn.init.normal_(parameter, std=0.2, generator=generator)
        self.words, self.module = words, nn.ModuleDict({"denoiser": denoiser, "words": words})
        self.losses: dict[int, list[float]] = {}
        self.rows = 3 if uneven else 4

    @staticmethod
    def is_matrix(name: str, parameter: nn.Parameter) -> bool:
        return name.startswith("denoiser.blocks.") and parameter.ndim == 2

    def batch(self, step: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(mix(7, step))
        latents = torch.randn(self.rows, 4, 3, 4, 4, generator=generator)
        return {"latents": latents, "words": [mix(step, row) % 5 for row in range(self.rows)]}

    def loss(self, batch: dict[str, Any], step: int, generator: torch.Generator) -> dict[str, Tensor]:
        latents = batch["latents"]
        noise = torch.randn(latents.shape, generator=generator)
        levels = torch.rand(len(latents), 3, generator=generator)
        flow = self.flow(torch.lerp(latents, noise, levels[:, None, :, None, None]), levels, batch["words"])
        loss = (flow.float() - (noise - latents)).square().mean()
        self.losses.setdefault(step, []).append(loss.item())
        return {"loss": loss, "twice": 2 * loss.detach()}

    def flow(self, x: Tensor, levels: Tensor, words: Sequence[int]) -> Tensor:
        states = self.words(torch.tensor(words))[:, None].expand(-1, 3, -1)
        text = TextStates(states, torch.full((len(words),), 2), 6)
        return self.module["denoiser"](x, levels, text)

    def validate(self) -> dict[str, float]:
        batch = self.batch(10**6)
        return {"error": float(self.flow(batch["latents"], torch.full((self.rows, 3), 0.5), batch["words"]).mean())}

    def picture(self) -> Tensor:
        """From keys that are read outside of a forward pass, as samplers do."""
        denoiser, batch = self.module["denoiser"], self.batch(10**6)
        states = self.words(torch.tensor(batch["words"]))[:, None]
        keys = denoiser.read_text(TextStates(states, torch.ones(self.rows, dtype=torch.int64), 2))
        made = denoiser(batch["latents"], torch.full((self.rows,), 0.5), keys)
        return (made[0, 0, 0].abs() * 20).clamp(max=255).to(torch.uint8)[..., None].expand(-1, -1, 3)

    def export(self, folder: Path) -> None:
        save_weights(self.module.state_dict(), folder / "weights.safetensors")


class WordsKept(Denoising):
    """The transformer alone learns, so that every weight is sharded and no process holds a copy of any."""

    def __init__(self) -> None:
        super().__init__()
        self.words.requires_grad_(False)
        self.module = nn.ModuleDict({"denoiser": self.module["denoiser"]})


def run(folder: Path, config: TrainConfig = CONFIG, phase: Denoising | None = None) -> Denoising:
    phase = phase or Denoising()
    train(phase, config, folder, {"of": "tests"}, io.StringIO())
    return phase


def reshard(source: Path, target: Path) -> None:
    """Load a run's last checkpoint on the processes that there are, and save it again elsewhere."""
    team = join()
    phase = Denoising()
    for parameter in phase.module.parameters():
        nn.init.zeros_(parameter)
    held = spread(phase.module, team, CONFIG)
    average = Average(held.local, in_place=bool(held.rows))
    optimizers = Optimizers(
        held.local, lambda name, _: phase.is_matrix(name, held.parameters[name]), MUON, muon_of(held)
    )
    last = checkpoints(source)[-1]
    state, settings = read_state(last)
    load_checkpoint(last, held, average, optimizers)
    save_checkpoint(target, held, average, optimizers, state, settings)


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, put together from what its parts say of their rows."""
    files = [checkpoint] if checkpoint.is_file() else sorted(checkpoint.iterdir())
    found: dict[str, list[Tensor]] = {}
    for file in files:
        for name, tensor in load_file(file).items():
            found.setdefault(name, []).append(tensor)
    return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in found.items()}


def train_all(folder: Path) -> None:
    """Runs of two processes, some of which go on from what one process has saved."""
    run(folder / "sharded")
    run(folder / "words-kept", CONFIG, WordsKept())
    run(folder / "copied", replace(MUON, parallel=Parallel(shard=False)))
    run(folder / "uneven", CONFIG, Denoising(uneven=True))
    run(folder / "sequence", replace(CONFIG, pieces=1, parallel=Parallel(sequence=2, recompute=True)))
    run(folder / "muon", MUON)
    run(folder / "bfloat16", replace(CONFIG, precision="bfloat16"))
    reshard(folder.parent / "saved-by-one", folder / "saved-by-one-then-two")
    reshard(folder / "saved-by-one-then-two", folder / "saved-by-one-then-two-twice")
    with alone_first():
        if not (folder / "begun-by-one").exists():
            shutil.copytree(folder.parent / "begun-by-one", folder / "begun-by-one")
    run(folder / "begun-by-one", replace(CONSTANT, steps=6))
    run(folder / "begun-by-two", replace(CONSTANT, steps=3))
    for name, config in (
        ("sequence", replace(CONFIG, parallel=Parallel(sequence=3))),
        ("pieces", replace(CONFIG, pieces=3)),
    ):
        try:
            run(folder / "refused", config)
        except ValueError as error:
            (folder / f"refused-{name}-{os.environ['RANK']}").write_text(str(error))


CASES: dict[str, tuple[tuple[int, int, int], int, bool]] = {
    # latent frames, height, width; dimensions of the levels; keyframes
    "one group": ((2, 4, 4), 1, False),
    "a group a frame": ((3, 4, 4), 2, False),
    "uneven": ((3, 6, 6), 2, False),
    "keyframes": ((3, 4, 6), 2, True),
    "a level a token": ((3, 4, 4), 3, False),
    "few in a group": ((3, 2, 2), 2, False),
}


def flow_of(network: DiT, case: str) -> tuple[Tensor, dict[str, Tensor]]:
    """What a network makes of a case, and the gradients of all inputs and weights."""
    (frames, height, width), dims, given = CASES[case]
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, states = draw(2, 4, frames, height, width).requires_grad_(), draw(2, 5, 16).requires_grad_()
    grid = (frames, height // 2, width // 2)
    t = torch.rand({1: (2,), 2: (2, frames), 3: (2, grid[0] * grid[1] * grid[2])}[dims], generator=generator)
    keyframes = None
    if given:
        keyframes = Keyframes(draw(2, 4, 2, height, width), torch.tensor([[0.5, 2.25]] * 2), torch.zeros(2, 2))
    made = network(x, t, TextStates(states, torch.tensor([2, 5]), 9), keyframes)
    weight = draw(*made.shape)
    (made * weight).sum().backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    return made.detach(), {**gradients, "x": x.grad, "states": states.grad}


def random_network(heads: int = 2) -> DiT:
    network = DiT(replace(SIZES, heads=heads))
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


def split_all(folder: Path) -> None:
    """Each case with its tokens on two processes; gradients are averaged over them, as in training."""
    team = join(Parallel(sequence=2))
    for checkpointing in (False, True):
        network = random_network()
        network.checkpointing = checkpointing
        network.split_sequence(team.sequence_group())
        for case in CASES:
            made, gradients = flow_of(network, case)
            found = {"made": made, **{name: team.mean(value) for name, value in sorted(gradients.items())}}
            save_file({n: v.contiguous() for n, v in found.items()}, folder / f"{case}-{checkpointing}-{team.rank}")
    for name, refused in (
        ("heads", lambda: random_network(3).split_sequence(team.sequence_group())),
        (
            "short",
            lambda: network(
                torch.zeros(1, 4, 1, 2, 2), torch.zeros(1), TextStates(torch.zeros(1, 1, 16), torch.ones(1), 1)
            ),
        ),
    ):
        try:
            refused()
        except ValueError as error:
            (folder / f"refused-{name}").write_text(str(error))


SHAPES = ((6, 4), (3, 8), (1, 5), (5, 5), (7, 2))


def orthogonalise(folder: Path) -> None:
    """Muon over this process's rows of matrices whose gradients all processes know."""
    team = join()
    held = [Rows.of(shape[0], team.rank, team.size) for shape in SHAPES]

    def own(whole: Sequence[Tensor]) -> list[Tensor]:
        return [value[rows.start : rows.start + rows.count].clone() for value, rows in zip(whole, held)]

    parameters = [nn.Parameter(value) for value in own(drawn(0))]
    muon = ShardedMuon(parameters, held, team.rank, team.size, lr=0.1, adjust_lr_fn="match_rms_adamw")
    for step in (1, 2, 3):
        for parameter, gradient in zip(parameters, own(drawn(step))):
            parameter.grad = gradient
        muon.step()
    save_file({str(number): p.detach() for number, p in enumerate(parameters)}, folder / f"muon-{team.rank}")


def drawn(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def turns(folder: Path) -> None:
    """What the first process makes alone is there for the others."""
    with alone_first():
        made = folder / "made-by-the-first"
        if not made.exists():
            time.sleep(0.3)
            made.write_text(os.environ["RANK"])
        (folder / f"found-by-{os.environ['RANK']}").write_text(made.read_text())


class Failing(Denoising):
    """The second process is gone, or stands still, after two steps."""

    def __init__(self, fail: Callable[[], None]) -> None:
        super().__init__()
        self.fail = fail

    def batch(self, step: int) -> dict[str, Any]:
        if step == 2 and os.environ["RANK"] == "1":
            self.fail()
        return super().batch(step)


def die(folder: Path) -> None:
    run(folder, replace(CONFIG, checkpoint_every=1, parallel=Parallel(shard=False)), Failing(lambda: os._exit(9)))


def hang(folder: Path) -> None:
    patience = Parallel(shard=False, timeout_minutes=0.1)
    run(folder, replace(CONFIG, checkpoint_every=1, parallel=patience), Failing(lambda: time.sleep(600)))


TASKS: tuple[dict[str, tuple[Callable[[Path], None], ...]], ...] = (
    {"all": (split_all, turns, orthogonalise, train_all)},
    {"die": (die,), "hang": (hang,)},
)


def fork(name: str, tasks: Sequence[Callable[[Path], None]], folder: Path, size: int = 2) -> list[int]:
    """Begin a task on so many processes, placed as torchrun would place them; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    (folder / name).mkdir()
    found = []
    for rank in range(size):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                os.environ.update(
                    {key: str(value) for key, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
                )
                os.dup2(os.open(folder / f"{name}-{rank}.told", os.O_WRONLY | os.O_CREAT), 2)
                for task in tasks:
                    task(folder / name)
                _leave()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        found.append(process)
    return found


def main(folder: Path) -> None:
    """Do all tasks and write how every process ended. Those that stand still are killed once the others have ended."""
    torch.set_num_threads(1)
    codes: dict[str, list[int]] = {}
    for together in TASKS:
        begun = {name: fork(name, tasks, folder) for name, tasks in together.items()}
        for name, processes in begun.items():
            codes[name] = []
            for process in processes:
                if name == "hang" and codes[name]:
                    os.kill(process, signal.SIGKILL)
                codes[name].append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    # Once, before forking, rather than in every process.
    import torch._dynamo
    import torch.distributed.fsdp

    warnings.simplefilter("error", UserWarning)
    main(Path(sys.argv[1]))
