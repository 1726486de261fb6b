"""Local training: the hot path."""

import copy

import torch
from torch import Tensor, nn

from privbench.attacks.inference.canaries import Drawn, Own
from privbench.attacks.poisoning.steering import Steering
from privbench.benchmarks.federation.randomness import stream
from privbench.benchmarks.federation.settings import LocalWork
from privbench.benchmarks.federation.update import Layout, Update
from privbench.benchmarks.tasks.task import Split
from privbench.defenses.accounting.plan import Plan, RecordPlan
from privbench.defenses.local import Local
from privbench.defenses.local.per_sample import Patients, Units
from privbench.defenses.local.per_sample.engine import Loss

_AT_ONCE = 256
"""Records of which a poisoner's clean gradient is computed at once; it bounds memory."""


class Trainer:
    """A model whose parameters and gradients are views into two flat vectors, reused for every client of a process.

    A step of SGD is then one addition, and convolution weights lie channels-last, which a CPU runs about 1.4 times
    as fast as ``nn.Module`` with ``torch.optim`` (``benchmarks/speed/federation.py``).

    Attributes:
        model: what is trained.
        prepared: what the local mechanism made for it.
        weights, gradient: flat, ``(layout.trainable,)``, in this trainer's own order of entries.
        drawn: an audit's gradient canaries in the batch at hand, ``None`` outside of one.
    """

    def __init__(self, model: nn.Module, layout: Layout, loss: Loss, local: Local, device: torch.device):
        self.layout, self.loss, self.local, self.device = layout, loss, local, device
        self.model = copy.deepcopy(model).to(device).train()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.weights = torch.empty(layout.trainable, device=device)
        self.gradient = torch.zeros(layout.trainable, device=device)
        self.drawn: Drawn | None = None
        self.images = any(p.dim() == 4 for p in parameters)
        start = 0
        for p in parameters:
            end = start + p.numel()
            p.data, p.grad = _place(self.weights[start:end], p), _place(self.gradient[start:end], p)
            start = end
        # A cumulative average (momentum=None) counts batches: every client counts from where the model began.
        counters = {n: b for n, b in self.model.named_buffers() if not b.is_floating_point()}
        self._counters = [(buffer, buffer.clone()) for buffer in counters.values()]
        self.prepared = local.prepare(self.model, loss)

    def train(
        self,
        received: Tensor,
        records: Split,
        work: LocalWork,
        client: int,
        plan: Plan | None,
        seed: int,
        round: int,
        canaries: Own | None = None,
        steering: Steering | None = None,
        clean: Split | None = None,
        attempt: int = 1,
    ) -> Update:
        """One client's round.

        Args:
            received: the model sent to it, ``(layout.size,)``, on the CPU.
            records: its training data.
            work: how much to train, and what to share.
            client, seed, round: name the random streams.
            plan: the privacy plan, if any.
            canaries: an audit's, which batches are drawn from as from ``records``.
            steering: a poisoner's, at each step.
            clean: its client's own records before they were poisoned; ``None``: ``records``.
            attempt: at the round, from 1, where each draws its own batches.

        Returns:
            The update before :meth:`Local.send`, on the CPU.
        """
        batches = stream(seed, "batches", round, client, attempt)
        noise = stream(seed, "noise", round, client)
        changes = stream(seed, "augmentation", round, client)
        self.layout.write(received, self.model)
        for buffer, start in self._counters:
            buffer.copy_(start)
        own = len(records)
        patients = self._patients(records, plan)
        enrolled = own + (len(canaries) if canaries else 0)
        units = len(patients) if patients else enrolled
        records = canaries.joined(records) if canaries else records
        x, y = records.x.to(self.device), records.y.to(self.device)
        if self.images and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        anchor = self.weights.clone() if work.proximal or steering else None
        honest = self._of_all(clean or records) if steering and steering.looks else self.weights[:0]
        velocity = torch.zeros_like(self.weights) if work.momentum else None
        total = torch.zeros_like(self.weights) if work.share == "gradient" else None
        with torch.random.fork_rng(devices=[]):
            # Dropout layers draw from torch's global generator; here it is this client's own stream.
            torch.manual_seed(stream(seed, "layers", round, client).initial_seed())
            for index in self.local.batches(units, work, batches):
                if canaries:
                    index, numbers = canaries.parted(index, own)
                    self.drawn = canaries.drawn(numbers, self.layout.trainable)
                drawn = patients.drawn(x, y, index, changes) if patients else [Units(x[index], y[index])]
                parts = [self._augmented(part, work, changes) for part in drawn]
                self.local.gradient(self, parts, client, plan, noise)
                if total is not None:
                    total += self.gradient
                    continue
                if anchor is not None and work.proximal:
                    self.gradient.add_(self.weights - anchor, alpha=work.proximal)
                if work.weight_decay:
                    self.gradient.add_(self.weights, alpha=work.weight_decay)
                if steering is not None and anchor is not None:
                    steering.gradient(self, anchor, honest)
                step = self.gradient if velocity is None else velocity.mul_(work.momentum).add_(self.gradient)
                self.weights.add_(step, alpha=-work.learning_rate)
                if steering is not None and anchor is not None:
                    steering.settle(self, anchor)
        if total is not None:
            self.weights.copy_(total / work.local_steps(units))
        vector = self.layout.read(self.model).cpu()
        p = self.layout.trainable
        if total is None:
            vector -= received
        else:
            vector[p:] -= received[p:]
        self.drawn = None
        return Update(vector, self.layout, work.share, enrolled)

    def _of_all(self, records: Split) -> Tensor:
        """The mean gradient of ``records`` at the model as it is, ``(layout.trainable,)`` in this trainer's order."""
        self.gradient.zero_()
        mode = [m for m in self.model.modules() if m.training]
        self.model.eval()  # batch statistics stay as they were received
        for index in torch.arange(len(records)).split(_AT_ONCE):
            x, y = records.x[index].to(self.device), records.y[index].to(self.device)
            (self.loss(self.model, (x, y)) * (len(index) / len(records))).backward()
        for module in mode:
            module.training = True
        found = self.gradient.clone()
        self.gradient.zero_()
        return found

    def _patients(self, records: Split, plan: Plan | None) -> Patients | None:
        """Whom the local mechanism draws, where it isn't records."""
        if not self.local.private or not isinstance(plan, RecordPlan) or plan.unit != "patient":
            return None
        assert records.group is not None  # the federation refuses a data set without
        return Patients.of(records.group, plan.guarantee.per_patient)

    @staticmethod
    def _augmented(batch: Units, work: LocalWork, generator: torch.Generator) -> Units:
        """A batch as the local mechanism gets it."""
        augmentation = work.augmentation
        if augmentation.idle or len(batch) == 0:
            return batch
        x, y = augmentation.views(batch.x, batch.y, generator)
        return Units(x, y, batch.views * augmentation.multiplicity)

    def add(self, vector: Tensor) -> None:
        """Add ``vector``, ``(layout.trainable,)`` in the layout's order, to the gradient."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        for p, part in zip(parameters, vector.to(self.device).split([p.numel() for p in parameters]), strict=True):
            assert p.grad is not None
            p.grad.add_(part.view(p.shape))


def _place(flat: Tensor, like: Tensor) -> Tensor:
    """A view of ``flat`` with the shape of ``like``; convolution weights lie channels-last."""
    if like.dim() != 4:
        return flat.view(like.shape)
    out, channels, height, width = like.shape
    return flat.view(out, height, width, channels).permute(0, 3, 1, 2)
