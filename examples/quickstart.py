"""Is one view of a handwritten digit starved by the other, and what changes with one component?

python examples/quickstart.py      three seeds, under twenty seconds; writes quickstart.png
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from modbalance import EnergyCoordinator
from modbalance.diagnostics import ModalityMonitor, plot

torch.set_num_threads(1)
pixels, y = (torch.tensor(x) for x in load_digits(return_X_y=True))
image = pixels.float().view(-1, 8, 8)
views = {"image": image.flatten(1), "profile": torch.cat([image.sum(1), image.sum(2)], 1)}  # profile: columns, rows
order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
train, test = order[:1000], order[1400:]  # settings were chosen on the 400 between them
views = {m: (x - x[train].mean(0)) / x[train].std(0).clamp(min=1e-6) for m, x in views.items()}


def fuse(head, z, present):
    return head(torch.cat([x * present[m][:, None] for m, x in z.items()], 1))


def fit(names, seed, monitor=None, balanced=False):
    """Train one encoder a view and a head on all of them; the head, and the features of the test images."""
    torch.manual_seed(seed)
    sizes = {m: views[m].shape[1] for m in names}
    encoders = nn.ModuleDict(
        {m: nn.Sequential(nn.Linear(d, 64), nn.ReLU(), nn.Linear(64, 32)) for m, d in sizes.items()}
    )
    head, balance = nn.Linear(32 * len(names), 10), EnergyCoordinator({"image": 32, "profile": 32}, 10)
    optimizer = torch.optim.SGD([*nn.ModuleList([encoders, head, balance]).parameters()], lr=0.03, momentum=0.9)
    for rows in (r for _ in range(20) for r in train[torch.randperm(len(train))].split(64)):
        z = {m: encoders[m](views[m][rows]) for m in names}
        loss = cross_entropy(head(torch.cat([*z.values()], 1)), y[rows])
        if balanced:
            loss = loss + balance(z, y[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if monitor:
            monitor.update_gradients(encoders)
    with torch.no_grad():
        return head, {m: encoders[m](views[m][test]) for m in names}


found = {"task loss alone": [], "with EnergyCoordinator": []}
for seed in range(3):
    alone = {m: fit([m], seed)[1][m] for m in views}
    for name in found:
        monitor = ModalityMonitor(list(views), num_outputs=10)
        head, z = fit(list(views), seed, monitor, balanced=name.startswith("with"))
        monitor.update(lambda z, present, head=head: fuse(head, z, present), z, y[test], alone=alone)
        found[name].append(monitor.compute())
        print(f"seed {seed}, {name}: test accuracy {found[name][-1].score:.3f}", flush=True)
for name, seeds in found.items():
    print(f"\nseed 0, {name}:\n{seeds[0]}")
plot(found).savefig("quickstart.png", dpi=110)
print("Written to quickstart.png.")
