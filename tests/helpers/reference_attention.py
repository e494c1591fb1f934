"""Float64 references for Gaussian and Skyformer attention, one line of code per formula and no cleverness.

Paper: Chen, Zeng, Ji, Yang, "Skyformer", NeurIPS 2021 (arXiv 2111.00035).

Shapes: B batch, H heads, L queries, S keys, P head dimension, D landmarks. Masks are boolean, True = takes
part. Rows that a mask rules out are removed before anything is computed, so they cannot leak in. Everything
is differentiable, so the same code is the reference for gradients.
"""

import torch


def gaussian_kernel(x, y):
    """kappa(x_i, y_j) = exp(-||x_i - y_j||^2 / 2) from the differences: (N, P), (M, P) -> (N, M)."""
    difference = x[:, None, :] - y[None, :, :]
    return torch.exp(-difference.square().sum(-1) / 2)


def default_scale(head_dim):
    """P^(-1/4), given to query and key alike, so that the product q.k carries the usual 1 / sqrt(P)."""
    return head_dim**-0.25


def gaussian_attention(query, key, value, mask=None, *, scale=None):
    """Eq. 3: C V with C = kappa(Q / P^(1/4), K / P^(1/4)); no normaliser."""
    scale = default_scale(query.shape[-1]) if scale is None else scale

    def one_head(b, h):
        keep = _kept(mask, b, key.shape[2])
        return gaussian_kernel(query[b, h] * scale, key[b, h, keep] * scale) @ value[b, h, keep]

    return _over_heads(one_head, query)


def nystrom_gaussian_attention(query, key, value, landmarks, mask=None, ridge=0.1, *, scale=None, landmark_mask=None):
    """Eq. 4-6: kappa(Q, W) (kappa(W, W) + ridge I)^-1 kappa(W, K) V, with W = landmarks, already scaled."""
    scale = default_scale(query.shape[-1]) if scale is None else scale

    def one_head(b, h):
        keep = _kept(mask, b, key.shape[2])
        w = landmarks[b, h, _kept(landmark_mask, b, landmarks.shape[2])]
        c = nystrom_kernel(query[b, h] * scale, key[b, h, keep] * scale, w, ridge)
        return c @ value[b, h, keep]

    return _over_heads(one_head, query)


def nystrom_kernel(query, key, landmarks, ridge):
    """The L x S matrix C~ of Eq. 6 for one head (query and key already scaled)."""
    system = gaussian_kernel(landmarks, landmarks) + ridge * _identity(landmarks)
    return gaussian_kernel(query, landmarks) @ torch.linalg.solve(system, gaussian_kernel(landmarks, key))


def nystrom_softmax_attention(query, key, value, landmarks, mask=None, ridge=0.1, *, scale=None, landmark_mask=None):
    """D~^-1 A~ V with A~ = diag(e^(|q|^2 / 2)) C~ diag(e^(|k|^2 / 2)), C~ of Eq. 6, and D~ the row sums of A~.

    A row whose sum is not positive takes the mean of the values. Results are clamped to the range of the values.
    """
    scale = default_scale(query.shape[-1]) if scale is None else scale

    def one_head(b, h):
        keep = _kept(mask, b, key.shape[2])
        w = landmarks[b, h, _kept(landmark_mask, b, landmarks.shape[2])]
        q, k, v = query[b, h] * scale, key[b, h, keep] * scale, value[b, h, keep]
        half_q, half_k = (x.square().sum(-1) / 2 for x in (q, k))
        a = torch.exp(half_q)[:, None] * nystrom_kernel(q, k, w, ridge) * torch.exp(half_k)
        total = a.sum(-1, keepdim=True)
        quotient = torch.where(total > 0, (a @ v) / torch.where(total > 0, total, 1), v.mean(0))
        return torch.minimum(torch.maximum(quotient, v.amin(0)), v.amax(0))

    return _over_heads(one_head, query)


def matched_keys(query, key, mask=None):
    """K + mean(Q) - mean(K), means over the tokens that the mask leaves."""

    def one_head(b, h):
        keep = _kept(mask, b, key.shape[2])
        return key[b, h] + query[b, h, keep].mean(0) - key[b, h, keep].mean(0)

    return _over_heads(one_head, query)


def softmax_attention(query, key, value, mask=None, *, scale=None):
    """softmax(Q K^T / sqrt(P)) V."""
    scale = default_scale(query.shape[-1]) if scale is None else scale

    def one_head(b, h):
        keep = _kept(mask, b, key.shape[2])
        return torch.softmax(query[b, h] @ key[b, h, keep].T * scale**2, dim=-1) @ value[b, h, keep]

    return _over_heads(one_head, query)


def completion(query, key):
    """Eq. 4: the positive semidefinite matrix kappa([Q; K], [Q; K]) that has C as its upper right block."""
    rows = torch.cat([query, key])
    return gaussian_kernel(rows, rows)


def nystrom_from_rows(query, key, rows, ridge):
    """Eq. 5: the block of Cbar S (S^T Cbar S + ridge I)^-1 S^T Cbar for C, S the 0/1 selector of ``rows``."""
    c_bar = completion(query, key)
    s = _identity(c_bar)[:, rows]
    system = s.T @ c_bar @ s + ridge * _identity(s.T)
    whole = c_bar @ s @ torch.linalg.inv(system) @ s.T @ c_bar
    return whole[: len(query), len(query) :]


def leverage_scores(query, key, regularisation):
    """diag(Cbar (Cbar + lambda I)^-1): how much each of the rows of [Q; K] is needed at accuracy lambda."""
    c_bar = completion(query, key)
    # The two factors commute, so the product may be had by one solve.
    return torch.linalg.solve(c_bar + regularisation * _identity(c_bar), c_bar).diagonal()


def statistical_dimension(query, key, regularisation):
    """d_stat = Tr Cbar (Cbar + lambda I)^-1 of Theorem 2: the sum of the leverage scores."""
    return leverage_scores(query, key, regularisation).sum()


def normalised_landmark_kernel(landmarks, ridge):
    """Section 4.4: D_M^(-1/2) (M + ridge I) D_M^(-1/2), M = kappa(W, W), D_M the row sums of M + ridge I."""
    system = gaussian_kernel(landmarks, landmarks) + ridge * _identity(landmarks)
    half = torch.diag(system.sum(-1).rsqrt())
    return half @ system @ half


def released_inverse(matrix):
    """Six steps of Section 4.4 for one matrix, from A^T over the largest column sum, as in the released code."""
    identity = _identity(matrix)
    inverse = matrix.T / matrix.abs().sum(0).max()
    for _ in range(6):
        near = matrix @ inverse
        inverse = inverse @ (13 * identity - near @ (15 * identity - near @ (7 * identity - near))) / 4
    return inverse


def _kept(mask, b, count):
    return slice(0, count) if mask is None else mask[b].nonzero().squeeze(-1)


def _over_heads(one_head, query):
    batch, heads = query.shape[:2]
    return torch.stack([torch.stack([one_head(b, h) for h in range(heads)]) for b in range(batch)])


def _identity(like):
    return torch.eye(len(like), dtype=like.dtype)
