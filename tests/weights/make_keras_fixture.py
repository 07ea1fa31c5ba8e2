"""The recipe of the Keras fixture: a CaiT SavedModel written by the real TensorFlow, and its logits.

The layers are ours; names, nesting and order of variables are those that a SavedModel of cait-tf has (its
`cait/models.py` says which attribute holds what). Every variable is drawn at random with gammas of order 1, so that
no exchanged or transposed tensor hides. Needs an environment of its own:

    python -m venv tf && tf/bin/pip install tensorflow-cpu==2.21.0 tf_keras==2.21.0
    tf/bin/python tests/weights/make_keras_fixture.py tests/weights/keras/classifier --prune
    tf/bin/python tests/weights/make_keras_fixture.py tests/weights/keras/features --prune --features --depth 1

`--prune` empties saved_model.pb (a megabyte of traced functions, which our reader never opens) and removes what
else only Keras reads; the variables stay as TensorFlow wrote them. `--again` loads what was saved without the
layers' classes and saves that, as a service would that converts models it does not know. `--untraced` saves
without traced functions: then the keys of the variables are paths, not numbers.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tf_keras import layers

EPSILON = 1e-6


def split_heads(tokens_BTD: tf.Tensor, heads: int) -> tf.Tensor:
    """(B, T, D) -> (B, A, T, E)."""
    batch, count, width = tf.unstack(tf.shape(tokens_BTD))
    return tf.transpose(tf.reshape(tokens_BTD, (batch, count, heads, width // heads)), (0, 2, 1, 3))


def join_heads(tokens_BATE: tf.Tensor) -> tf.Tensor:
    batch, heads, count, each = tf.unstack(tf.shape(tokens_BATE))
    return tf.reshape(tf.transpose(tokens_BATE, (0, 2, 1, 3)), (batch, count, heads * each))


class TalkingHeadAttn(layers.Layer):
    """Self-attention whose heads are mixed before and after the softmax (the paper's patch stage)."""

    def __init__(self, dim: int, heads: int, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.qkv = layers.Dense(3 * dim)
        self.proj = layers.Dense(dim)
        self.proj_l = layers.Dense(heads)
        self.proj_w = layers.Dense(heads)

    def call(self, tokens):
        query, key, value = (split_heads(part, self.heads) for part in tf.split(self.qkv(tokens), 3, axis=-1))
        each = tf.cast(tf.shape(query)[-1], query.dtype)
        scores_BTTA = tf.transpose(tf.matmul(query * each**-0.5, key, transpose_b=True), (0, 2, 3, 1))
        mixed_BATT = tf.transpose(self.proj_l(scores_BTTA), (0, 3, 1, 2))
        weights_BATT = tf.transpose(self.proj_w(tf.transpose(tf.nn.softmax(mixed_BATT), (0, 2, 3, 1))), (0, 3, 1, 2))
        return self.proj(join_heads(tf.matmul(weights_BATT, value))), weights_BATT


class ClassAttn(layers.Layer):
    """Attention of the class token to itself and the patches (the paper's class stage)."""

    def __init__(self, dim: int, heads: int, **kwargs):
        super().__init__(**kwargs)
        self.heads = heads
        self.q = layers.Dense(dim)
        self.k = layers.Dense(dim)
        self.v = layers.Dense(dim)
        self.proj = layers.Dense(dim)

    def call(self, tokens):
        query, key, value = (
            split_heads(part, self.heads) for part in (self.q(tokens[:, :1]), self.k(tokens), self.v(tokens))
        )
        each = tf.cast(tf.shape(query)[-1], query.dtype)
        weights = tf.nn.softmax(tf.matmul(query * each**-0.5, key, transpose_b=True))
        return self.proj(join_heads(tf.matmul(weights, value))), weights


class LayerScale(layers.Layer):
    """A learnt factor for each channel."""

    def __init__(self, dim: int, **kwargs):
        super().__init__(**kwargs)
        self.gamma = tf.Variable(tf.ones((dim,)))  # unnamed, and not made by add_weight

    def call(self, tokens):
        return tokens * self.gamma


def finish_block(tokens, dim: int):
    """The second half of either block: LayerNorm, MLP, LayerScale, added."""
    hidden = layers.Dense(4 * dim, activation=tf.nn.gelu)(layers.LayerNormalization(epsilon=EPSILON)(tokens))
    branch = LayerScale(dim)(layers.Dropout(0.0)(layers.Dense(dim)(layers.Dropout(0.0)(hidden))))
    return layers.Add()([tokens, branch])


def patch_block(dim: int, heads: int, name: str) -> keras.Model:
    tokens = keras.Input((None, dim))
    branch, weights = TalkingHeadAttn(dim, heads)(layers.LayerNormalization(epsilon=EPSILON)(tokens))
    out = finish_block(layers.Add()([tokens, LayerScale(dim)(branch)]), dim)
    return keras.Model(tokens, [out, weights], name=name)


def class_block(dim: int, heads: int, name: str) -> keras.Model:
    patches, token = keras.Input((None, dim)), keras.Input((None, dim))
    both = layers.LayerNormalization(epsilon=EPSILON)(layers.Concatenate(axis=1)([token, patches]))
    branch, weights = ClassAttn(dim, heads)(both)
    out = finish_block(layers.Add()([token, LayerScale(dim)(branch)]), dim)
    return keras.Model([patches, token], [out, weights], name=name)


class CaiT(keras.Model):
    """The network, with the attributes that hold the variables under the names of cait-tf."""

    def __init__(self, options: argparse.Namespace, **kwargs):
        super().__init__(**kwargs)
        dim, heads, patch = options.dim, options.heads, options.patch
        self.projection = keras.Sequential(
            [
                layers.Conv2D(dim, patch, strides=patch, name="conv_projection"),
                layers.Reshape((-1, dim), name="flatten_projection"),
            ],
            name="projection",
        )
        self.cls_token = tf.Variable(tf.zeros((1, 1, dim)))
        self.pos_embed = tf.Variable(tf.zeros((1, (options.img_size // patch) ** 2, dim)))
        self.pos_drop = layers.Dropout(0.0, name="projection_dropout")
        self.blocks = [patch_block(dim, heads, f"sa_ffn_block_{i}") for i in range(options.depth)]
        self.blocks_token_only = [class_block(dim, heads, f"ca_ffn_block_{i}") for i in range(2)]
        self.norm = layers.LayerNormalization(epsilon=EPSILON, name="head_norm")
        self.head = None if options.features else layers.Dense(options.classes, name="classification_head")

    def call(self, images):
        patches = self.pos_drop(self.projection(images) + self.pos_embed)
        seen = {}
        for block in self.blocks:
            patches, seen[f"{block.name}_att"] = block(patches)
        token = tf.tile(self.cls_token, (tf.shape(images)[0], 1, 1))
        class_seen = {}
        for block in self.blocks_token_only:
            token, class_seen[f"{block.name}_att"] = block([patches, token])
        token = self.norm(tf.concat([token, patches], axis=1))[:, 0]
        return (token if self.head is None else self.head(token)), seen, class_seen


def randomise(model: keras.Model, seed: int, features: bool) -> None:
    """Draw every variable; a feature extractor's last norm stays as cait-tf's converter leaves it."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        shape = variable.shape.as_list()
        fan_in = np.prod(shape[:-1]) if len(shape) in (2, 4) else 4
        variable.assign(generator.standard_normal(shape).astype(np.float32) * fan_in**-0.5)
    if features:
        model.norm.gamma.assign(tf.ones_like(model.norm.gamma))
        model.norm.beta.assign(tf.zeros_like(model.norm.beta))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    for name, value in (("dim", 16), ("heads", 4), ("depth", 2), ("patch", 4), ("img-size", 16), ("classes", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name in ("features", "untraced", "again", "prune"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    model = CaiT(options)
    shape = (2, options.img_size, options.img_size, 3)
    images = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    model(images)
    randomise(model, 0, options.features)
    output = model(images)[0].numpy()
    model.save(options.out, include_optimizer=False, save_traces=not options.untraced)
    if options.again:
        keras.models.load_model(options.out, compile=False).save(options.out, include_optimizer=False)
    if options.prune:
        (options.out / "saved_model.pb").write_bytes(b"")
        for name in ("keras_metadata.pb", "fingerprint.pb"):
            (options.out / name).unlink()
        (options.out / "assets").rmdir()
    np.savez(options.out / "expected.npz", images=images, output=output)


if __name__ == "__main__":
    main()
