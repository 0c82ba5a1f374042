"The formulas of the papers once more, slow and obvious, in plain NumPy: what the metrics are compared with"
import math

import numpy as np
import torch
from scipy.spatial.distance import cdist, pdist, squareform
from scipy.special import digamma
from sklearn.metrics import balanced_accuracy_score, mutual_info_score


def random(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_matrix(seed):
    "Non-negative (codes, factors), of 2 to 8 codes and 2 to 5 factors, sometimes with a dead code"
    rng = np.random.default_rng(seed)
    M = rng.gamma(0.5, size=(int(rng.integers(2, 9)), int(rng.integers(2, 6))))
    if seed % 4 == 0: M[0] = 0
    return M


def random_data(seed, n=300, D=5):
    "Embeddings (n, D) of two factors with 3 and 4 classes, and the factors"
    rng = np.random.default_rng(seed)
    y = np.stack([rng.integers(c, size=n) for c in (3, 4)], 1)
    x = rng.normal(size=(n, D)) + rng.normal(size=(3, D))[y[:, 0]] + rng.normal(size=(4, D))[y[:, 1]]
    return x.astype(np.float32), y


def random_pair(seed, n=None):
    "Two dependent arrays with the same 20 to 79 rows and 1 to 5 columns"
    rng = np.random.default_rng(seed)
    n, D, E = n or int(rng.integers(20, 80)), *rng.integers(1, 6, 2)
    x = rng.normal(size=(n, D)).astype(np.float32)
    y = (rng.uniform(0, 1.5) * x[:, :1]**2 + rng.normal(size=(n, E)) * rng.choice([.1, 1, 10])).astype(np.float32)
    return x.astype(float), y.astype(float)


def entropy(p, base): return -sum(v * math.log(v, base) for v in p if v > 0)


def dci(R):
    "Disentanglement and completeness: Eastwood and Williams 2018, section 2"
    D, F = R.shape
    dis = com = 0.
    for i in range(D):
        if R[i].sum() > 0: dis += R[i].sum() / R.sum() * (1 - entropy(R[i] / R[i].sum(), F))
    for j in range(F): com += R[:, j].sum() / R.sum() * (1 - entropy(R[:, j] / R[:, j].sum(), D))
    return dis, com


def explicitness_area(losses, capacities, baseline):
    "Eastwood et al. 2023: area between the best loss so far, the baseline at most, and the best of all, over the triangle under the baseline"
    best = np.array([min(baseline, *losses[:t + 1]) for t in range(len(losses))])
    return 1 - np.trapezoid(best - best.min(), capacities) / (0.5 * (capacities[-1] - capacities[0]) * baseline)


def mig(I, H):
    "Chen et al. 2018"
    score = 0.
    for j in range(I.shape[1]):
        best, second = sorted(I[:, j], reverse=True)[:2]
        score += (best - second) / H[j] / I.shape[1]
    return score


def modularity(I):
    "Ridgeway and Mozer 2018, section 3"
    score = 0.
    for row in I:
        best = max(range(len(row)), key=lambda j: row[j])
        if row[best] == 0: continue
        template = [row[j] if j == best else 0 for j in range(len(row))]
        score += 1 - sum((v - t)**2 for v, t in zip(row, template)) / (row[best]**2 * (len(row) - 1))
    return score / len(I)


def infom_infoc(N):
    "Hsu et al. 2023, on shares of active codes; a code without any information does not count"
    D, F = N.shape
    live = [i for i in range(D) if sum(N[i]) > 0]
    m = sum(max(N[i]) / sum(N[i]) for i in live) / len(live)
    c = sum(max(N[:, j]) / sum(N[:, j]) for j in range(F)) / F
    return (m - 1 / F) / (1 - 1 / F), (c - 1 / D) / (1 - 1 / D)


def med(I): return dci(I / I.sum(0))[0]


def top_k_med(I, k):
    "Cao et al. 2022: of the codes that each factor claims, the k most disentangled"
    R = I / I.sum(0)
    D, F = R.shape
    dis = [1 - entropy(R[i] / R[i].sum(), F) if R[i].sum() > 0 else 0 for i in range(D)]
    keep = []
    for j in range(F):
        mine = [i for i in range(D) if max(range(F), key=lambda f: R[i, f]) == j]
        keep += sorted(mine, key=lambda i: -dis[i])[:k]
    return sum(dis[i] * R[i].sum() for i in keep) / sum(R[i].sum() for i in keep)


def bins(v, n=20): return np.digitize(v.astype(float), np.histogram_bin_edges(v.astype(float), n)[:-1])


def binned_information(v, y): return mutual_info_score(bins(v), y)


def standard(v): return (v.astype(float) - v.astype(float).mean()) / v.astype(float).std()


def ross(v, y, k=10):
    "Information of a continuous vector and classes: Ross 2014"
    v, ks, ms, ns = standard(v), [], [], []
    for i in range(len(v)):
        same = np.sort(np.abs(v[y == y[i]] - v[i]))
        near = min(k, len(same) - 1)
        ks.append(digamma(near)), ns.append(digamma(len(same)))
        ms.append(digamma((np.abs(v - v[i]) < same[near] * (1 - 1e-9)).sum()))
    return max(0, digamma(len(v)) + np.mean(ks) - np.mean(ns) - np.mean(ms))


def kraskov(v, w, k=10):
    "Information of two continuous vectors: Kraskov et al. 2004, first estimate"
    a, b, parts = standard(v), standard(w), []
    for i in range(len(v)):
        da, db = np.abs(a - a[i]), np.abs(b - b[i])
        r = np.sort(np.maximum(da, db))[k] * (1 - 1e-9)
        parts.append(digamma((da < r).sum()) + digamma((db < r).sum()))
    return max(0, digamma(len(v)) + digamma(k) - np.mean(parts))


def sap(x, y, xt, yt, n_bins=20):
    "Kumar et al. 2018: balanced accuracy of one dimension cut at the edges of equal-width bins of its training rows"
    edges, named = np.histogram_bin_edges(x, n_bins), {}
    where = lambda v: min(max(np.searchsorted(edges, v, side="right") - 1, 0), n_bins - 1)
    for b in range(n_bins):
        inside = np.array([where(v) == b for v in x])
        share = [(inside & (y == c)).sum() / (y == c).sum() for c in range(y.max() + 1)]
        if inside.any(): named[b] = share.index(max(share))
    return balanced_accuracy_score(yt, [named[min(named, key=lambda b: abs(b - where(v)))] for v in xt])


def kernel_matrix(x, kernel):
    if kernel == "linear": return (x - x.mean(0)) @ (x - x.mean(0)).T
    if kernel == "white":
        C = np.cov(x.T, bias=True).reshape(x.shape[1], -1)
        d = cdist(x, x, "mahalanobis", VI=np.linalg.inv(C + 1e-4 * np.trace(C) / len(C) * np.eye(len(C))))
        return np.exp(-d**2 / (2 * (np.median(squareform(d, checks=False)) / 2)**2))
    d = cdist(x, x)
    return d if kernel == "distance" else np.exp(-d**2 / (2 * np.median(pdist(x))**2))


def hsic(K, L, unbiased):
    "Gretton et al. 2008, with 1/n^2; unbiased: Song et al. 2012"
    n = len(K)
    H = np.eye(n) - 1 / n
    if not unbiased: return np.trace(K @ H @ L @ H) / n**2
    K, L, one = K - np.diag(np.diag(K)), L - np.diag(np.diag(L)), np.ones(n)
    return (np.trace(K @ L) + one @ K @ one * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ K @ L @ one) / (n * (n - 3))


def cka(x, y, kernel, unbiased):
    K, L = kernel_matrix(x, kernel), kernel_matrix(y, kernel)
    return hsic(K, L, unbiased) / np.sqrt(hsic(K, K, unbiased) * hsic(L, L, unbiased))
