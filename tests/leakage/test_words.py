"""Text as counts of words: what a linear layer's gradient says of sentences."""

import torch
from torch import nn

from privbench.attacks.leakage.linear import LinearInversion
from privbench.benchmarks.tasks.task import Split

SENTENCES = (
    "patient denies chest pain and denies shortness of breath",
    "acute chest pain radiating to the left arm",
    "follow up after stent no pain no fever",
)


def test_words_of_three_notes_come_out_exactly_from_one_gradient(scene, generator):
    words = sorted({w for s in SENTENCES for w in s.split()})
    counts = torch.tensor([[float(sum(v == w for v in s.split())) for w in words] for s in SENTENCES])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(len(words), 64), nn.ReLU(), nn.Linear(64, 10))
    mean, std = torch.full((len(words),), 0.1), torch.full((len(words),), 0.4)
    s = scene(model, Split((counts - mean) / std, torch.tensor([3, 7, 1])), mean=mean, std=std)
    found = LinearInversion().reconstruct(s.view(), s.observation(), generator)
    notes = {tuple((row * std + mean).round().int().tolist()): int(y) for row, y in zip(found.x, found.y, strict=True)}
    assert notes == {tuple(c.int().tolist()): y for c, y in zip(counts, (3, 7, 1), strict=True)}
