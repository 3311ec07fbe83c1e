"""A step of training: losses and gradients of a batch, AdamW, and the moving average of the weights.

Whatever changes from one step to the next is in tensors, so that a CUDA graph of the step can be replayed.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from defectdiffu.training.checkpoints import load_optimizer_tensors, optimizer_tensors
from defectdiffu.training.graph import Graphed

Batch = dict[str, Tensor]


class TrainingStep:
    """`step(batch)` trains `module` on a batch and returns the mean loss terms, on the device.

    module: from a batch of tensors (B, ...) to its named losses, of which "loss" is minimised. Gradients are clipped to
    the norm `max_grad_norm`; `average` a follows the weights w by a + (1 - decay) (w - a), in full precision.
    accumulate: parts in which a batch is computed, one after another. average_on_cpu: keep the average in the CPU's
    memory. cuda_graph: record the step once and replay it; batches must then have one shape.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        *,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        accumulate: int = 1,
        average_on_cpu: bool = False,
        cuda_graph: bool = False,
    ):
        self.accelerator = accelerator
        self.module = module
        self.max_grad_norm = max_grad_norm
        self.accumulate = accumulate
        self.cuda_graph = cuda_graph
        self._graphed: Callable[[Batch], Batch] | None = None
        optimizer = torch.optim.AdamW(
            parameter_groups(module, weight_decay),
            torch.zeros((), device=accelerator.device),  # the learning rate
            betas=(0.9, 0.99),
            fused=True,
            capturable=cuda_graph,
        )
        self.wrapped, self.optimizer = accelerator.prepare(module, optimizer)
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.names, self.parameters = list(named), list(named.values())
        self.average = [p.detach().to("cpu" if average_on_cpu else p.device, copy=True) for p in self.parameters]
        self.weight = torch.ones((), device=self.average[0].device)  # of the newest weights in the average

    def __call__(self, batch: Batch) -> Batch:
        if self.cuda_graph and self._graphed is None:
            self._graphed = self._record(batch)
        return (self._graphed or self._take)(batch)

    def set(self, learning_rate: float, decay: float) -> None:
        """The learning rate, and the decay of the average, of the steps from now on."""
        for group in self.optimizer.param_groups:
            group["lr"].fill_(learning_rate)
        self.weight.fill_(1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, averages and the optimiser's state by name."""
        named: dict[str, Tensor] = {f"model.{n}": p for n, p in zip(self.names, self.parameters, strict=True)}
        named |= {f"ema.{n}": p for n, p in zip(self.names, self.average, strict=True)}
        return named | {f"optimizer.{n}": v for n, v in optimizer_tensors(self.optimizer, self.parameters).items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`. Raises `LookupError` or `RuntimeError` for those of another model."""
        for name, parameter, average in zip(self.names, self.parameters, self.average, strict=True):
            parameter.copy_(tensors[f"model.{name}"])
            average.copy_(tensors[f"ema.{name}"])
        prefix = "optimizer."
        state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        load_optimizer_tensors(self.optimizer, self.parameters, state)
        self._graphed = None  # it would go on with the state from before

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """After this block weights, averages and the optimiser's state are as before it, in the same memory."""
        kept = [value.detach().clone() for value in (*self.parameters, *self.average)]
        states = {p: {k: v.clone() for k, v in state.items()} for p, state in self.optimizer.state.items()}
        try:
            yield
        finally:
            with torch.no_grad():
                for value, before in zip((*self.parameters, *self.average), kept, strict=True):
                    value.copy_(before)
                for p, state in self.optimizer.state.items():
                    for name, value in state.items():
                        value.copy_(states[p][name]) if p in states else value.zero_()

    def averaged_weights(self) -> None:
        """Give `module` the averaged weights."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)

    def _record(self, batch: Batch) -> Callable[[Batch], Batch]:
        try:
            with self.undone(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
                return Graphed(self._take, batch)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            print(f"training.cuda_graph: the step could not be recorded, it runs without ({reason})", file=sys.stderr)
            return self._take

    def _take(self, batch: Batch) -> Batch:
        terms: Batch = {}
        parts = split_batch(batch, self.accumulate)
        for part in parts:
            last = part is parts[-1]  # processes exchange gradients only then
            alone = contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped)
            with alone, self.accelerator.autocast(), attention_kernel(self.accelerator):
                out = self.wrapped(part)
                self.accelerator.backward(out["loss"] / self.accumulate)
            terms = {key: terms.get(key, 0) + value.detach() / self.accumulate for key, value in out.items()}
        self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        follow(self.average, self.parameters, self.weight)
        return terms


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """The trained parameters in two groups for the optimiser: biases, norms and embeddings do not decay."""
    embeddings = {p for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups[parameter.dim() > 1 and parameter not in embeddings].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


@torch.no_grad()
def follow(average: list[Tensor], parameters: Sequence[Tensor], weight: Tensor) -> None:
    """average += weight (parameters - average), for all tensors together."""
    newest = [p.to(weight.device) for p in parameters]
    if weight.device.type == "cpu":
        torch._foreach_lerp_(average, newest, float(weight))  # reads and writes everything only once
    else:  # a number would be fixed in a CUDA graph
        change = torch._foreach_sub(newest, average)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(average, change)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """A batch as equal parts."""
    chunks = (value.chunk(parts) for value in batch.values())
    return [dict(zip(batch, values, strict=True)) for values in zip(*chunks, strict=True)]


def attention_kernel(accelerator: Accelerator) -> contextlib.AbstractContextManager:
    """On a CPU, attention as plain matrix products: with the few tokens of the small presets the fused kernel's
    backward pass takes several times longer."""
    return sdpa_kernel(SDPBackend.MATH) if accelerator.device.type == "cpu" else contextlib.nullcontext()
