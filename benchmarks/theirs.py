"""The peer's side of the whole network: the variants, and contestants for each task.

Never imports jax.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import dsnet_peer, inputs, peer
from benchmarks.timing import Contestant

# All variants are compiled from the same lines.
torch._dynamo.config.recompile_limit = 64

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}


# Kernels' number of axes -> how channels are last in them.
RANKS = {4: torch.channels_last, 5: torch.channels_last_3d}


def device() -> torch.device:
    """The GPU if torch sees one and was not told otherwise by `CUDA_VISIBLE_DEVICES`."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait(_: Any = None) -> None:
    """Returns when the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to run the same network in PyTorch.

    Attributes:
      layout: a key of `FORMATS`.
      norm: one of `peer.NORMS`.
      compiled: through `torch.compile`.
      graph: recorded as a CUDA graph and replayed.
    """

    layout: str = "contiguous"
    norm: str = "instance_norm"
    compiled: bool = False
    graph: bool = False

    def __str__(self) -> str:
        parts = [self.layout, self.norm, "compiled" if self.compiled else "eager"]
        return ", ".join([*parts, *(["CUDA graph"] if self.graph else [])])


def variants() -> list[Variant]:
    """All that are tried: on a CPU six; on a GPU each also as a CUDA graph."""
    eager = [Variant(layout, norm) for layout in FORMATS for norm in peer.NORMS]
    found = [*eager, *(Variant(layout, compiled=True) for layout in FORMATS)]
    if torch.cuda.is_available():
        found += [dataclasses.replace(v, graph=True) for v in found]
    return found


class LookaheadNAdam:
    """`torch.optim.NAdam` inside lookahead, with the recipe's numbers as `optim.make` has them."""

    def __init__(self, parameters, *, capturable=False, sync_period=6, slow_step_size=0.5):
        self.fast = list(parameters)
        self.nadam = torch.optim.NAdam(
            self.fast, 1e-3, (0.95, 0.99), 1e-8, momentum_decay=0.004, capturable=capturable
        )
        self.slow = [p.detach().clone() for p in self.fast]
        self.sync_period, self.slow_step_size, self.count = sync_period, slow_step_size, 0

    @torch.no_grad()
    def restart(self, parameters: Sequence[torch.Tensor]) -> None:
        """Back to these parameters and no step taken; in place, where a graph will look for it."""
        for kept in (self.fast, self.slow):
            torch._foreach_copy_(kept, parameters)
        for state in self.nadam.state.values():
            for name, value in state.items():
                value.fill_(1.0 if name == "mu_product" else 0.0)
        self.count = 0

    @torch.no_grad()
    def synchronise(self) -> None:
        """Counts a step; every `sync_period` steps slow weights move and fast ones follow."""
        self.count += 1
        if self.count % self.sync_period == 0:
            torch._foreach_lerp_(self.slow, self.fast, self.slow_step_size)
            torch._foreach_copy_(self.fast, self.slow)


def recorded(step: Callable[[], Any]) -> Callable[[], Any]:
    """The step as a CUDA graph: warmed up on a side stream, recorded, replayed; results stay put.

    Reference: PyTorch, CUDA semantics, "Whole-network capture".
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay():
        graph.replay()
        return results

    return replay


def to_numpy(x: torch.Tensor) -> np.ndarray:
    """`(b, c, *spatial)` -> float32 `(b, *spatial, c)`; fewer axes are left as they are."""
    array = x.detach().float().cpu().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 5 else array


class Peer:
    """The network with its image and target on the device, in one variant.

    Args:
      size: of the volume, see `inputs.sample`.
      variant: how it is run.
      weights: Flax path -> array; None keeps torch's own, for memory.
      dtype: "float32", "float64", or "bfloat16" by `torch.autocast`.
      net: another network than DX-Net, with the same input and output.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        variant: Variant,
        weights: Mapping[str, np.ndarray] | None = None,
        dtype: str = "float32",
        net: torch.nn.Module | None = None,
    ):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self.variant, self.weights, self.dtype, self.device = variant, weights, dtype, device()
        self.net = net or peer.DXNet(norm=variant.norm)
        if weights is not None:
            peer.load(self.net, weights)
        layout = FORMATS[variant.layout]
        self.net = self.net.to(self.device)
        if variant.layout == "channels_last":  # of each kernel, whatever its rank
            for parameter in self.net.parameters():
                if parameter.ndim in RANKS:
                    parameter.data = parameter.data.to(memory_format=RANKS[parameter.ndim])
        self.image, self.target = (
            torch.from_numpy(np.moveaxis(a, -1, 1).copy())
            .to(self.device)
            .contiguous(memory_format=layout)
            for a in inputs.sample(size)
        )
        if dtype == "float64":
            self.net, self.image = self.net.double(), self.image.double()
            self.target = self.target.double()

    def _autocast(self):
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16", cache_enabled=False
        )

    def _predict(self, image):
        with self._autocast():
            return peer.wide(self.net(image))

    def _loss(self, image, target):
        return peer.dice_bce(self._predict(image), target)

    def _built(self, function):
        return torch.compile(function) if self.variant.compiled else function

    def _finished(self, step):
        return recorded(step) if self.variant.graph else step

    def forward(self) -> Contestant:
        """The logits, without a tape."""
        self.net.eval()
        function = self._built(self._predict)

        def plain():
            with torch.no_grad():
                return function(self.image)

        step = self._finished(plain)
        return Contestant(str(self.variant), step, wait, lambda: {"logits": to_numpy(step())})

    def _backward(self):
        function = self._built(self._loss)

        def step():
            self.net.zero_grad(set_to_none=True)
            loss = function(self.image, self.target)
            loss.backward()
            return loss.detach()

        return step

    def loss_and_gradient(self) -> Contestant:
        """The mean loss and its gradient by every parameter."""
        step = self._finished(self._backward())

        def arrays():
            loss = to_numpy(step())
            wait()
            gradients = peer.gradients(self.net, self.weights)
            return {"loss": loss} | {f"gradient:{path}": g for path, g in gradients.items()}

        return Contestant(str(self.variant), step, wait, arrays)

    def training_step(self) -> Contestant:
        """Loss, gradient, Nadam in lookahead."""
        capturable = self.variant.graph and self.device.type == "cuda"
        optimizer = LookaheadNAdam(self.net.parameters(), capturable=capturable)
        start = [p.detach().clone() for p in optimizer.fast] if self.variant.graph else []
        backward = self._backward()

        def update():
            loss = backward()
            optimizer.nadam.step()
            return loss

        run = self._finished(update)
        if start:  # recording a graph took steps of its own
            optimizer.restart(start)

        def first_three():
            losses, found = [to_numpy(run()).copy()], {}
            for path, gradient in peer.gradients(self.net, self.weights).items():
                found[f"gradient:{path}"] = gradient.copy()
            losses += [to_numpy(run()).copy() for _ in range(2)]
            optimizer.count += 3
            return {f"loss {i}": loss for i, loss in enumerate(losses)} | found

        def step():
            loss = run()
            optimizer.synchronise()
            return loss

        return Contestant(str(self.variant), step, wait, first_three)


NETWORKS = {"dxnet": peer.DXNet, "dsnet": dsnet_peer.DSNet}


def contestant(
    task: str,
    size: int | Sequence[int],
    variant: Variant,
    weights: Mapping[str, np.ndarray],
    dtype: str,
    network: str = "dxnet",
) -> Contestant:
    """One of `ours.TASKS` on a volume of that size with the peer."""
    made = Peer(size, variant, weights, dtype, NETWORKS[network](norm=variant.norm))
    return getattr(made, task.replace(" ", "_"))()
