"""Independent formulas: one row at a time, slow loops, no helper of the library.

`parts`, `outputs`, `features` map modality to `(B, ...)`; `present` maps modality to `(B,)` bool or is None.
"""

import math
from itertools import combinations, permutations

import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence


def mean(terms):
    return torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)


def is_there(present, name, i):
    return present is None or name not in present or bool(present[name][i])


def cosine(x, y):
    return x.dot(y) / (x.dot(x).sqrt() * y.dot(y).sqrt())


def counts(task, y, classes, ignore_index=-100):
    return task != "classification" or (int(y) != ignore_index and 0 <= int(y) < classes)


# One row: s are the outputs of a head, y is the label.


def normal(s):
    mu, r = s[: len(s) // 2], s[len(s) // 2 :]
    return Normal(mu, (r.clamp(-10, 10) / 2).exp())


def loss(task, s, y, class_weight=None):
    if task == "classification":
        return -Categorical(logits=s).log_prob(y) * (1.0 if class_weight is None else class_weight[y])
    if task == "multilabel":
        yes, no = Bernoulli(logits=s).log_prob(torch.ones_like(s)), Bernoulli(logits=s).log_prob(torch.zeros_like(s))
        return -(y * yes + (1 - y) * no).sum()
    y = y.reshape(-1)
    if task == "regression":
        return ((s - y) ** 2).sum()
    return -normal(s).log_prob(y).sum()


def uncertainty(task, s, temperature=1.0):
    if task == "classification":
        return Categorical(logits=s / temperature).entropy()
    if task == "multilabel":
        return Bernoulli(logits=s / temperature).entropy().sum()
    if task == "regression":
        return 0.0 * s.sum()
    return normal(s).entropy().sum()


def energy(task, z, head, y, *, alpha, beta, gamma, temperature=1.0, class_weight=None, normalize=False):
    """Energy of one row; `head` maps `(D,)` to `(width,)`, `y` None leaves the loss out."""
    s = head(z)
    value = alpha * (z**2).sum() / (len(z) if normalize else 1) + gamma * uncertainty(task, s, temperature)
    return value if y is None else value + beta * loss(task, s, y, class_weight)


def energy_penalty(task, features, heads, target, present=None, ignore_index=-100, **options):
    """Energies and squared gradient norms `(M, B)`, by double backward, row by row."""
    energies, penalties = [], []
    for m, (z, head) in enumerate(zip(features, heads, strict=True)):
        for i in range(len(z)):
            width = len(head(torch.zeros_like(z[i])))
            labelled = target is None or counts(task, target[i], width, ignore_index)
            if not labelled or (present is not None and not present[m, i]):
                energies.append(torch.zeros((), dtype=z.dtype))
                penalties.append(torch.zeros((), dtype=z.dtype))
                continue
            row = z[i] if z.requires_grad else z[i].clone().requires_grad_()
            e = energy(task, row, head, None if target is None else target[i], **options)
            (g,) = torch.autograd.grad(e, row, create_graph=True, materialize_grads=True)
            energies.append(e)
            penalties.append((g**2).sum())
    shape = (len(features), len(features[0]))
    return tuple(torch.stack(x).reshape(shape) if x else torch.zeros(shape) for x in (energies, penalties))


# Decoupler


def info_nce(parts, present=None, temperature=0.1):
    batch = len(next(iter(parts.values())))
    terms = []
    for m in parts:
        aggregates = {}
        for j in range(batch):
            others = [parts[n][j] for n in parts if n != m and is_there(present, n, j)]
            if others:
                aggregates[j] = sum(others) / len(others)
        for i in aggregates:
            if is_there(present, m, i):
                scores = {j: cosine(parts[m][i], a) / temperature for j, a in aggregates.items()}
                terms.append(torch.stack(list(scores.values())).logsumexp(0) - scores[i])
    return mean(terms)


def redundancy(parts, present=None, squared=True):
    terms = []
    for m, n in combinations(parts, 2):
        for i in range(len(parts[m])):
            if is_there(present, m, i) and is_there(present, n, i):
                terms.append(cosine(parts[m][i], parts[n][i]) ** (2 if squared else 1))
    return mean(terms)


def task_mean(task, outputs, target, present=None, class_weight=None, ignore_index=-100):
    """Mean loss over present modalities of labelled samples: L_uni, and CCE's label term."""
    terms = []
    for name, s in outputs.items():
        for i in range(len(s)):
            if is_there(present, name, i) and counts(task, target[i], s.shape[1], ignore_index):
                terms.append(loss(task, s[i], target[i], class_weight))
    return mean(terms)


# Enhancer


def reconstruction(enhanced, features, present=None):
    terms = []
    for name, x in enhanced.items():
        for i in range(len(x)):
            if is_there(present, name, i):
                terms.append(((x[i] - features[name][i].detach()) ** 2).mean())
    return mean(terms)


# Coordinator; energies are `(M, B)`, present is bool `(M, B)`


def gap(energies, present, kind):
    rows = [[i for i in range(len(e)) if p[i]] for e, p in zip(energies, present, strict=True)]
    if kind == "pull":
        means = [e[r].mean() for e, r in zip(energies, rows, strict=True) if r]
        return mean([(x - min(means).detach()) ** 2 for x in means])
    terms = []
    for m, n in permutations(range(len(energies)), 2):
        both = [i for i in rows[m] if i in rows[n]]
        if both and kind == "paper":
            terms.append((energies[m][both].mean() - energies[n][both].mean()) ** 2)
        elif both:
            terms.append(mean([(energies[m][i] - energies[n][i]) ** 2 for i in both]))
    return mean(terms)


def sum_of_means(values, present):
    return sum(mean([v[i] for i in range(len(v)) if p[i]]) for v, p in zip(values, present, strict=True))


# Distiller


def worth(variance, floor):
    v = [max(float(x), floor) for x in variance.reshape(-1)]
    return math.exp(-sum(math.sqrt(x) for x in v) / len(v)) / math.log(1 + sum(v))


def trust(variances, present=None, floor=1e-6, chance=None, power=1.0, bias=None):
    names, batch = list(variances), len(next(iter(variances.values())))
    weights = {name: [0.0] * batch for name in names}
    for i in range(batch):
        score = {}
        for name in names:
            if is_there(present, name, i):
                score[name] = worth(variances[name][i], floor)
                if chance is not None:
                    score[name] = max(score[name] - worth(chance, floor), 1e-3 * score[name])
                score[name] = score[name] ** power * math.exp(bias[name] if bias else 0)
        for name in score:
            weights[name][i] = score[name] / sum(score.values())
    return {name: torch.tensor(w, dtype=torch.float64) for name, w in weights.items()}


def distribution(task, s, temperature=1.0):
    if task == "classification":
        return Categorical(logits=s / temperature)
    if task == "multilabel":
        return Bernoulli(logits=s / temperature)
    if task == "regression":
        return Normal(s, torch.ones_like(s))
    return normal(s)


def distillation(task, student, teachers, weights, temperature=1.0, direction="paper"):
    terms = []
    for i in range(len(student)):
        row = []
        for name, t in teachers.items():
            if weights[name][i] > 0:
                p, q = distribution(task, student[i], temperature), distribution(task, t[i].detach(), temperature)
                kl = kl_divergence(p, q) if direction == "paper" else kl_divergence(q, p)
                scale = temperature**2 if task in ("classification", "multilabel") else 1.0
                row.append(scale * weights[name][i] * kl.sum())
        if row:
            terms.append(sum(row))
    return mean(terms)


def fusion(tensors, weights):
    rows = []
    for i in range(len(next(iter(tensors.values())))):
        row = torch.zeros_like(next(iter(tensors.values()))[i])
        for name, x in tensors.items():
            if weights[name][i] > 0:
                row = row + weights[name][i] * x[i]
        rows.append(row)
    return torch.stack(rows)
