"What was tried for one kind of pair and is not in the package: `disentangle_study results/tried.json` trains with it"
import math

import torch
from torch import nn

from disentangle_nb.infonce import InfoMax, SliceLoss, joined, partner, reduced, similarity, unit
from disentangle_nb.losses import BASES, REGULARIZERS
from disentangle_nb.model import split_slices
from disentangle_nb.regularizers import centre, sum_pairs
from disentangle_nb.run import disentangle_run


class DistanceCorrelation(SliceLoss):
    "Squared distance correlation of unit slices, mean of the two views (Szekely, Rizzo and Bakirov 2007)"
    name = 'dcor'

    def loss(self, z0, z1):
        distances = lambda s: torch.cdist(s, s, compute_mode='donot_use_mm_for_euclid_dist')
        with joined(z0, z1) as z:
            slices = [unit(centre(distances(unit(s).unflatten(0, (2, -1)))).flatten(1)) for s in split_slices(z, self.n_slices)]
            return sum_pairs(lambda a, b: (a * b).sum(1).mean(), slices)


class CrossCovariance(SliceLoss):
    "Squared covariances between coordinates of different slices, in units of the narrower slice (Barlow Twins, VICReg)"
    name = 'crosscov'

    def loss(self, z0, z1):
        with joined(z0, z1) as z:
            slices = split_slices(z - z.mean(0), self.n_slices)
            return sum_pairs(lambda a, b: (a.T @ b / len(z)).square().sum() / min(a.shape[1], b.shape[1]), slices)


class JointEntropy(SliceLoss):
    "Minus the joint entropy of unit slices by a kernel estimate (SepCLR, Louiset et al. 2024)"
    name = 'joint_entropy'

    def loss(self, z0, z1):
        with joined(z0, z1) as z:
            return sum(similarity(s, s, self.tau) for s in map(unit, split_slices(z, self.n_slices))).logsumexp(1).mean()


class CLUB(SliceLoss):
    "Upper bound of the information between the first slice and the others, by a Gaussian network that is trained along (Cheng et al. 2020); a resumed run trains it anew"
    name = 'club'

    def log_density(self, x, y):
        mean, log_var = self.network(x).chunk(2, 1)
        return -((y - mean).square() / log_var.tanh().exp() + log_var.tanh()).sum(1).mean() / 2

    def fit(self, x, y):
        if not hasattr(self, 'opt'):
            object.__setattr__(self, 'network', nn.Sequential(nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, 2 * y.shape[1])).to(x)) # no part of the state
            self.opt = torch.optim.Adam(self.network.parameters(), 1e-3)
        for _ in range(5):
            self.opt.zero_grad()
            (-self.log_density(x, y)).backward()
            self.opt.step()

    def loss(self, z0, z1):
        with joined(z0, z1) as z:
            x, *rest = split_slices(z, self.n_slices)
            y = torch.cat(rest, 1)
            with torch.enable_grad(): self.fit(x.detach(), y.detach())
            return self.log_density(x, y) - self.log_density(x, y.roll(1, 0))


class ModifiedMax(InfoMax):
    "NT-Xent, and NT-Xent with every similarity moved against it by 0.1 (implicit feature modification, Robinson et al. 2021)"
    name = 'modifiedmax'

    def loss(self, z0, z1):
        with joined(z0, z1) as z:
            z, pair = unit(z), partner(torch.arange(2 * len(z0), device=z0.device))[:, None]
            plain = similarity(z, z, self.tau)
            moved = (plain + .1 / self.tau).scatter_add(1, pair, torch.full_like(plain[:, :1], -.2 / self.tau))
            return reduced(sum((s.logsumexp(1) - s.gather(1, pair)[:, 0]).sum() / 2 for s in (plain, moved)), len(z), self.reduction)


class ConditionalMax(SliceLoss):
    "NT-Xent of the first slice; later of the others too, with negatives weighted by their likeness in the first slice (conditional contrast with kernels, Tsai et al. 2022)"
    name, ready = 'conditionalmax', False

    def loss(self, z0, z1):
        with joined(z0, z1) as z:
            first, *rest = map(unit, split_slices(z, self.n_slices))
            total = InfoMax(tau=self.tau, reduction='sum')(*first.chunk(2))
            if self.ready:
                c = unit(sum(first.detach().chunk(2)))
                log_weight = similarity(c, c, self.tau).log_softmax(1).repeat(2, 2) + math.log(len(c) - 1)
                for s in rest:
                    positive = (s * partner(s)).sum(1) / self.tau
                    negatives = (similarity(s, s, self.tau) + log_weight).logsumexp(1)
                    total = total + (torch.logaddexp(positive, negatives) - positive).sum()
            return reduced(total, len(z), self.reduction)


REGULARIZERS |= {r.name: r for r in (DistanceCorrelation, CrossCovariance, JointEntropy, CLUB)}
BASES |= {'modified': ModifiedMax, 'conditional': ConditionalMax}
if __name__ == '__main__': disentangle_run()
