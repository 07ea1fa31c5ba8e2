"""CaiT once more, slowly: float64, numpy, one image and one head at a time, from the equations of the paper.

Written from PAPER.md 1.1-1.5 and from nothing else; it shares no line with deepcait/model.
"""

from __future__ import annotations

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def cait_logits(state: dict, config, images) -> np.ndarray:
    """Logits (B, K) of a state dict for images (B, C, H, W)."""
    weights = {name: np.asarray(tensor.detach().double().numpy()) for name, tensor in state.items()}
    return np.stack([_one_image(weights, config, np.asarray(image, dtype=np.float64)) for image in images])


def _one_image(w: dict, config, image: np.ndarray) -> np.ndarray:
    heads, side = config.num_heads, config.patch_size
    _, height, width = image.shape

    # 1.1: the patches, row by row; each is a vector, projected; then its position.
    kernel = w["patch_embed.proj.weight"]
    x = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            square = image[:, top : top + side, left : left + side]
            x.append([(channel * square).sum() for channel in kernel])
    x = np.array(x) + w["patch_embed.proj.bias"] + w["pos_embed"][0]

    # 1.2: pre-norm residual blocks with LayerScale.
    for i in range(config.depth):
        b = {name.removeprefix(f"blocks.{i}."): t for name, t in w.items() if name.startswith(f"blocks.{i}.")}
        x = x + b["gamma_1"] * _talking_heads(b, _norm(x, b, "norm1"), heads)
        x = x + b["gamma_2"] * _mlp(b, _norm(x, b, "norm2"))

    # 1.4: u = [cls, x]; the class token alone is updated.
    cls = w["cls_token"][0, 0]
    for i in range(config.cls_depth):
        start = f"blocks_token_only.{i}."
        b = {name.removeprefix(start): t for name, t in w.items() if name.startswith(start)}
        u = np.concatenate([cls[None], x])
        cls = cls + b["gamma_1"] * _class_attention(b, _norm(u, b, "norm1"), heads)
        cls = cls + b["gamma_2"] * _mlp(b, _norm(cls, b, "norm2"))

    # 1.5: the concatenated form of the released code.
    last = _norm(np.concatenate([cls[None], x]), w, "norm")[0]
    return w["head.weight"] @ last + w["head.bias"]


def _talking_heads(b: dict, z: np.ndarray, heads: int) -> np.ndarray:
    """1.3: A = proj_w(softmax(proj_l(q k' / sqrt(d_h)))), y = proj(concat_h(A_h v_h))."""
    n, d = z.shape
    e = d // heads
    # Rows of qkv: q, then k, then v; inside each, head after head.
    q, k, v = (
        z @ b["attn.qkv.weight"][p * d : (p + 1) * d].T + b["attn.qkv.bias"][p * d : (p + 1) * d] for p in range(3)
    )
    raw = np.empty((heads, n, n))
    for h in range(heads):
        own = slice(h * e, (h + 1) * e)
        raw[h] = q[:, own] @ k[:, own].T / math.sqrt(e)
    weights = np.empty_like(raw)
    for to in range(heads):
        talked = np.full((n, n), b["attn.proj_l.bias"][to])
        for source in range(heads):
            talked = talked + b["attn.proj_l.weight"][to, source] * raw[source]
        weights[to] = _softmax(talked)
    y = np.empty((n, d))
    for to in range(heads):
        talked = np.full((n, n), b["attn.proj_w.bias"][to])
        for source in range(heads):
            talked = talked + b["attn.proj_w.weight"][to, source] * weights[source]
        own = slice(to * e, (to + 1) * e)
        y[:, own] = talked @ v[:, own]
    return y @ b["attn.proj.weight"].T + b["attn.proj.bias"]


def _class_attention(b: dict, z: np.ndarray, heads: int) -> np.ndarray:
    """1.4: Q = W_q z_class + b_q, K = W_k z + b_k, V = W_v z + b_v, out = W_o softmax(Q K' / sqrt(d / h)) V + b_o."""
    d = z.shape[1]
    e = d // heads
    query = b["attn.q.weight"] @ z[0] + b["attn.q.bias"]
    out = np.empty(d)
    for h in range(heads):
        own = slice(h * e, (h + 1) * e)
        scores = [query[own] @ (b["attn.k.weight"][own] @ token + b["attn.k.bias"][own]) / math.sqrt(e) for token in z]
        values = np.array([b["attn.v.weight"][own] @ token + b["attn.v.bias"][own] for token in z])
        out[own] = _softmax(np.array(scores)) @ values
    return b["attn.proj.weight"] @ out + b["attn.proj.bias"]


def _mlp(b: dict, z: np.ndarray) -> np.ndarray:
    hidden = z @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
    hidden = hidden * 0.5 * (1.0 + _erf(hidden / math.sqrt(2.0)))
    return hidden @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]


def _norm(z: np.ndarray, b: dict, name: str) -> np.ndarray:
    mean = z.mean(-1, keepdims=True)
    variance = ((z - mean) ** 2).mean(-1, keepdims=True)
    return (z - mean) / np.sqrt(variance + 1e-6) * b[f"{name}.weight"] + b[f"{name}.bias"]


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)
