"""Out-of-distribution score per modality. Detects noise and dropped frames without labels."""

from __future__ import annotations

import torch
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ebmc_msa.data.augment import corrupt_at_random
from ebmc_msa.data.frames import frame_mask, std_or_one
from ebmc_msa.data.split import SplitView, by_length
from modbalance import masked_mean


class OODScore(nn.Module):
    r"""Log-probability, by sample, that the input of one modality is in distribution.

    $$\log \frac{p}{1 - p} = w_0 + w_1 \log d + w_2 \log n, \qquad d = \tfrac1D (x - \mu)^\top \Sigma^{-1} (x - \mu)$$

    x is the mean over n frames; mu and Sigma are those of the training split; w are the weights of a logistic
    regression that separates validation samples from corrupted copies of them. It works also where a teacher's
    variance is uninformative. Before `fit` the score is 0 for all samples.

    Args:
        feature_std: standard deviation of each feature in training, `(D,)`.

    Source: Lee et al., A simple unified framework for detecting out-of-distribution samples, NeurIPS 2018, for the
    Mahalanobis distance; Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices,
    2004.
    """

    mean: Tensor
    whiten: Tensor
    weight: Tensor
    feature_std: Tensor

    def __init__(self, feature_std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros_like(feature_std))
        self.register_buffer("whiten", torch.eye(len(feature_std)).to(feature_std))
        self.register_buffer("weight", torch.tensor([50.0, 0.0, 0.0]).to(feature_std))
        self.register_buffer("feature_std", feature_std.clone(), persistent=False)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return logsigmoid(self.features(x, lengths) @ self.weight)

    def features(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """1, log d and log n, `(B, 3)`."""
        n = torch.ones(len(x), device=x.device) if lengths is None else lengths.clamp(min=1)
        d = ((pooled(x, lengths) - self.mean) @ self.whiten).square().mean(-1)
        return torch.stack([torch.ones_like(d), d.clamp(min=1e-12).log(), n.log()], -1)

    def fit(self, name: str, train: SplitView, valid: SplitView) -> None:
        """Fit on the samples of two splits that have the modality `name`; does nothing with fewer than two."""
        train, valid = (split.select(split.present[name]) for split in (train, valid))
        if len(train) < 2 or not len(valid):
            return
        batches = (train.rows(rows) for rows in by_length(train))
        x = torch.cat([pooled(batch.features[name], batch.lengths.get(name)) for batch in batches]).cpu().double()
        spread = std_or_one(x.std(0), x.mean(0))
        covariance = torch.from_numpy(LedoitWolf().fit(((x - x.mean(0)) / spread).numpy()).covariance_)
        root = torch.linalg.cholesky(covariance + 1e-6 * torch.eye(len(covariance)))  # of a constant modality it is 0
        self.mean.copy_(x.mean(0))
        self.whiten.copy_(torch.linalg.inv(root).T / spread[:, None])

        generator, features, clean = torch.Generator().manual_seed(0), [], []
        for batch in (valid.rows(rows) for rows in by_length(valid)):
            for one in (batch, corrupt_at_random(batch, {name: self.feature_std}, 1.0, generator)):
                features.append(self.features(one.features[name], one.lengths.get(name)).cpu())
                clean += [one is batch] * len(one)
        fitted = LogisticRegression(fit_intercept=False).fit(torch.cat(features).double().numpy(), clean)
        self.weight.copy_(torch.from_numpy(fitted.coef_[0]))


def pooled(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean over the valid frames, `(B, D)`."""
    if lengths is None:
        return x
    return masked_mean(x, frame_mask(x.shape[1], lengths), dim=1)
