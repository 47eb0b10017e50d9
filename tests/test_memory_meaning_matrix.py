"""What the models with a matrix state compute: each against a plain numpy float64 loop, and by meaning."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import memory, ops
from memax_rl.memory import testing
from memax_rl.memory.layers.heads import check_flag

T = 23
STARTS = np.isin(np.arange(T), [0, 9, 10])


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _silu(x):
    return x * _sigmoid(x)


def _softplus(x):
    return np.log1p(np.exp(x))


def _unit(x):
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def _rms(x):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5)


def _layer_norm(x, eps=1e-5):
    x = x - np.mean(x, axis=-1, keepdims=True)
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


def _conv(weights, u):
    """Causal convolution of u [T, width] that sees nothing from before the episode's start."""
    begin = np.maximum.accumulate(np.where(STARTS, np.arange(T), 0))
    return np.stack([sum(weights[j] * u[t - j] for j in range(4) if t - j >= begin[t]) for t in range(T)])


class _Double:
    """The parameters of a model as float64, by attribute."""

    def __init__(self, model):
        self._model = jax.tree.map(lambda a: np.asarray(a, np.float64) if eqx.is_array(a) else a, model)

    def __getattr__(self, name):
        return getattr(self._model, name)


def _model(name, **options):
    options = {"heads": 2, "head_size": 4, **options}
    model = memory.make(name, in_size=5, out_size=6, key=jax.random.key(1), **options)
    leaves, treedef = jax.tree.flatten(model)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        treedef,
        [a + np.float32(0.2) * rng.normal(size=a.shape).astype("f") if eqx.is_array(a) else a for a in leaves],
    )


def _heads(m, x):
    return x.reshape(m.heads, m.head_size)


def _delta(s, k, v, beta):
    return s - beta * np.outer(k, k) @ s + beta * np.outer(k, v)


def _phi(u):
    return 1 + np.where(u > 0, u, np.expm1(u))


def _linear_transformer(m, xs):
    """By sums over the past instead of a state; a query turns against a key by their distance in time."""
    begin = np.maximum.accumulate(np.where(STARTS, np.arange(T), 0))
    q, k, v = ((xs @ w).reshape(T, m.heads, m.head_size) for w in (m.w_q, m.w_k, m.w_v))
    q, k = _phi(q), _phi(k)
    half = m.head_size // 2
    angles = m.rotary_base ** (-np.arange(half) / half) if m.rotary_base else np.zeros(half)
    q_pairs, k_pairs = (u[..., :half] + 1j * u[..., half:] for u in (q, k))
    for t in range(T):
        past = np.arange(begin[t], t + 1)
        turned = np.exp(1j * (t - past)[:, None, None] * angles) * np.conj(k_pairs[past])
        scores = np.real(np.sum(q_pairs[t] * turned, axis=-1))
        reads = np.einsum("sh,shv->hv", scores, v[past])
        yield (reads / np.sum(q[t] * k[past], axis=(0, 2))[:, None]).ravel() @ m.w_o


def _fwp(m, xs):
    s = 0
    for x, start in zip(xs, STARTS, strict=True):
        q, k, v = (_heads(m, x @ w) for w in (m.w_q, m.w_k, m.w_v))
        s = 0 if start else s
        s = s + np.einsum("hk,hv->hkv", _phi(k), v)
        yield (_rms(np.einsum("hkv,hk->hv", s, _phi(q))).ravel() * m.norm) @ m.w_o


def _gla(m, xs):
    s = 0
    for x, start in zip(xs, STARTS, strict=True):
        q, k, v = (_heads(m, x @ w) for w in (m.w_q, m.w_k, m.w_v))
        alpha = _heads(m, _sigmoid(x @ m.w_1 @ m.w_2 + m.b) ** (1 / 16))
        s = 0 if start else s
        s = alpha[:, :, None] * s + np.einsum("hk,hv->hkv", k, v)
        y = _rms(np.einsum("hkv,hk->hv", s, q) / 2).ravel() * m.norm
        yield (y * _silu(x @ m.w_g + m.b_g)) @ m.w_o


def _mlstm(m, xs):
    c, n = 0, 0
    for x, start in zip(xs, STARTS, strict=True):
        q, k, v = (_heads(m, x @ w) for w in (m.w_q, m.w_k, m.w_v))
        i, f = np.exp(x @ m.w_i + m.b_i), _sigmoid(x @ m.w_f + m.b_f)
        c, n = (0, 0) if start else (c, n)
        c = f[:, None, None] * c + i[:, None, None] * np.einsum("hk,hv->hkv", k / 2, v)
        n = f[:, None] * n + i[:, None] * k / 2
        h = np.einsum("hkv,hk->hv", c, q) / np.maximum(np.abs(np.sum(n * q, axis=1)), 1)[:, None]
        yield (_sigmoid(x @ m.w_o + m.b_o) * _layer_norm(h).ravel() * m.norm) @ m.w_y


def _mamba2(m, xs):
    widths = np.cumsum([m.heads * m.head_size, m.state_size])
    u, b, c = np.split(_silu(_conv(m.conv.weights, xs @ m.w_xbc) + m.b_conv), widths, axis=1)
    s = 0
    for t, (x, start) in enumerate(zip(xs, STARTS, strict=True)):
        dt = _softplus(x @ m.w_dt + m.dt_bias)
        s = 0 if start else s
        s = np.exp(-np.exp(m.a_log) * dt)[:, None, None] * s
        s = s + np.einsum("n,hp->hnp", b[t], dt[:, None] * _heads(m, u[t]))
        y = np.einsum("hnp,n->hp", s, c[t]) + m.d[:, None] * _heads(m, u[t])
        yield (_rms(y.ravel() * _silu(x @ m.w_z)) * m.norm) @ m.w_o


def _delta_family(m, xs):
    substeps, gated = getattr(m, "substeps", 1), hasattr(m, "a_log")
    streams = np.split(_silu(_conv(m.conv.weights, xs @ m.w_qkv)), 1 + 2 * substeps, axis=1)
    s = np.zeros((m.heads, 4, 4))
    for t, (x, start) in enumerate(zip(xs, STARTS, strict=True)):
        q, *kv = (_heads(m, u[t]) for u in streams)
        betas = _sigmoid(x @ m.w_beta + m.b_beta).reshape(substeps, -1) * (1 + m.negative_eigenvalues)
        s = np.zeros((m.heads, 4, 4)) if start else s
        if gated and getattr(m, "gated", True):
            s = np.exp(-np.exp(m.a_log) * _softplus(x @ m.w_a + m.dt_bias))[:, None, None] * s
        for k, v, beta in zip(kv[:substeps], kv[substeps:], betas, strict=True):
            s = np.stack([_delta(*now) for now in zip(s, _unit(k), v, beta, strict=True)])
        y = _rms(np.einsum("hkv,hk->hv", s, _unit(q) / (2 if gated else 1))).ravel() * m.norm
        yield (y * _silu(x @ m.w_g) if gated else y) @ m.w_o


def _rwkv7(m, xs):
    """The paper's S [value, key] and right products."""
    (w_1, a_1, g_1), (w_2, a_2, g_2) = m.lora_in, m.lora_out
    s, x_prev = np.zeros((m.heads, 4, 4)), 0 * xs[0]
    for x, start in zip(xs, STARTS, strict=True):
        s, x_prev = (np.zeros((m.heads, 4, 4)), 0 * x) if start else (s, x_prev)
        x_r, x_w, x_k, x_v, x_a, x_g = (x * (1 - mu) + x_prev * mu for mu in m.mu)
        r, k, v = (u @ w for u, w in zip((x_r, x_k, x_v), m.w_rkv, strict=True))
        w = np.exp(-np.exp(-0.5) * _sigmoid(m.w_0 + np.tanh(x_w @ w_1) @ w_2))
        a = _sigmoid(m.a_0 + x_a @ a_1 @ a_2)
        kappa, k = _unit(_heads(m, k * m.k_k)), k * (1 + (a - 1) * m.k_a)
        r, k, v, w, a, bonus = (_heads(m, u) for u in (r, k, v, w, a, m.r_k))
        for h in range(m.heads):
            move = np.diag(w[h]) - np.outer(kappa[h], a[h] * kappa[h])
            s[h] = s[h] @ move + np.outer(v[h], k[h])
        y = _layer_norm(np.einsum("hvk,hk->hv", s, r), 64e-5).ravel() * m.norm + m.norm_bias
        y = y + (np.sum(r * bonus * k, axis=1, keepdims=True) * v).ravel()
        x_prev = x
        yield (y * (_sigmoid(x_g @ g_1) @ g_2)) @ m.w_o


def _mesa_net(m, xs):
    q, k = np.split(_silu(_conv(m.conv.weights, xs @ m.w_qk)), 2, axis=1)
    regularizer = np.stack([np.diag(row) for row in _softplus(m.lam) + 0.25])
    h, g = 0, 0
    for t, (x, start) in enumerate(zip(xs, STARTS, strict=True)):
        q_t, k_t, v_t = _unit(_heads(m, q[t])), _unit(_heads(m, k[t])), _heads(m, x @ m.w_v)
        beta, gamma = _sigmoid(x @ m.w_beta + m.b_beta), _sigmoid(x @ m.w_gamma + m.b_gamma)
        h, g = (0, 0) if start else (h, g)
        h, g = (
            gamma[:, None, None] * old + beta[:, None, None] * np.einsum("hk,hv->hkv", k_t, new)
            for old, new in ((h, k_t), (g, v_t))
        )
        p = np.linalg.solve(h + regularizer, q_t[:, :, None])[:, :, 0]
        yield (_rms(np.einsum("hkv,hk->hv", g, p)).ravel() * m.norm) @ m.w_o


def _ttt_linear(m, xs):
    size = m.head_size

    def loss_gradient(weight, bias, w, k, v):
        """The derivative of |k + LN(w' [k, 1]) - v|^2 / 2 by w, with the layer norm's written out."""
        z = np.append(k, 1) @ w
        scale = np.sqrt(np.var(z) + 1e-5)
        hat = (z - np.mean(z)) / scale
        d_hat = weight * (k + weight * hat + bias - v)
        dz = (d_hat - np.mean(d_hat) - hat * np.mean(d_hat * hat)) / scale
        return np.outer(np.append(k, 1), dz)

    w, begin = m.w_0, 0
    for t, (x, start) in enumerate(zip(xs, STARTS, strict=True)):
        q, k, v = (_heads(m, x @ w) for w in m.w_qkv)
        eta = m.rate * _sigmoid(x @ m.w_eta + m.b_eta) / size
        w, begin = (m.w_0, t) if start else (w, begin)
        place = (t - begin) % m.batch_size
        if place == 0:
            base, gradients = w, []
        by_heads = zip(m.inner_weight, m.inner_bias, base, k, v, strict=True)
        gradients.append(eta[:, None, None] * np.stack([loss_gradient(*head) for head in by_heads]))
        # The mean of the gradients so far, or what the trained share makes of it.
        w = base - max(1 / (place + 1) + m.share[place], 0) * np.sum(gradients, axis=0)
        z = np.einsum("hk,hkv->hv", np.append(q, np.ones((m.heads, 1)), axis=1), w)
        y = _layer_norm((q + m.inner_weight * _layer_norm(z) + m.inner_bias).ravel())
        yield (y * m.norm + m.norm_bias) @ m.w_o


def _spherical(m, xs):
    h = m.h_0
    for x, start in zip(xs, STARTS, strict=True):
        h = m.h_0 if start else h
        for w, b in zip(m.w_k, m.b_k, strict=True):
            k = _unit(_heads(m, x @ w + b))
            h = h - 2 * k * np.sum(k * h, axis=1, keepdims=True)
        yield h.ravel() @ m.w_o + x @ m.w_d


def _memory_caching(m, xs):
    segments = []
    for x, start in zip(xs, STARTS, strict=True):
        segments = [] if start else segments
        if not segments or len(segments[-1]) == m.segment_size:
            segments = [*segments, []][-m.cached - 1 :]
        q, k, v, u = (_heads(m, x @ w) for w in (m.w_q, m.w_k, m.w_v, m.w_u))
        segments[-1].append((_unit(k), v))
        reads = np.zeros_like(v)
        for h in range(m.heads):
            keys = [np.stack([k[h] for k, _ in segment]) for segment in segments]
            values = [np.stack([v[h] for _, v in segment]) for segment in segments]
            scores = np.array([u[h] @ k.mean(axis=0) for k in keys])
            gamma = np.exp(scores) / np.sum(np.exp(scores))
            reads[h] = sum(g * (_unit(q)[h] @ k.T @ v) for g, k, v in zip(gamma, keys, values, strict=True))
        yield (_rms(reads).ravel() * m.norm) @ m.w_o


TEXTBOOK = {
    "linear_transformer": (_linear_transformer, {}),
    "linear_transformer, rotary": (_linear_transformer, {"rotary_base": 100.0}),
    "fwp": (_fwp, {}),
    "gla": (_gla, {}),
    "mlstm": (_mlstm, {}),
    "mamba2": (_mamba2, {"state_size": 3}),
    "delta_net": (_delta_family, {"negative_eigenvalues": True}),
    "gated_delta_net": (_delta_family, {}),
    "delta_product": (_delta_family, {"substeps": 3}),
    "rwkv7": (_rwkv7, {}),
    "mesa_net": (_mesa_net, {}),
    "ttt_linear": (_ttt_linear, {"batch_size": 4, "rate": 3.0}),
    "spherical": (_spherical, {}),
    "memory_caching": (_memory_caching, {"segment_size": 3, "cached": 2}),
}


@pytest.mark.parametrize("name", TEXTBOOK)
def test_textbook_recurrence(name):
    loop, options = TEXTBOOK[name]
    model = _model(name.split(",")[0], **options)
    xs = np.random.default_rng(3).normal(size=(T, 5))
    want = np.stack(list(loop(_Double(model), xs)))
    state = model.initial_state()
    _, got = eqx.filter_jit(model.scan)(state, jnp.asarray(xs, jnp.float32), jnp.asarray(STARTS))
    # Norms of small reads magnify rounding.
    assert np.max(np.abs(np.asarray(got) - want)) < 3e-5 * max(1, np.max(np.abs(want)))


def test_rotary_obeys_the_laws(key):
    """The option changes the state's meaning, so the laws of the registry's default do not speak for it."""
    testing.check_memory(_model("linear_transformer", rotary_base=100.0), key)


def test_overwritten_value_is_gone():
    """With beta = 1 a unit key reads back its newest value, and other keys keep theirs."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype("f")
    v = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    k = jnp.asarray(basis[[0, 1, 0, 0]])
    q = jnp.asarray(basis[[0, 1, 1, 0]])
    starts = jnp.zeros(4, bool)
    last, ys = ops.delta_rule(q, k, v, jnp.ones(4), None, jnp.zeros((8, 3)), starts)
    assert jnp.allclose(ys, v[jnp.array([0, 1, 1, 3])], atol=1e-6)
    assert jnp.allclose(last, jnp.outer(k[3], v[3]) + jnp.outer(k[1], v[1]), atol=1e-6)


def test_first_value_is_kept_for_a_thousand_steps():
    rng = np.random.default_rng(0)
    k = rng.normal(size=(1001, 8))
    k[0], k[1:, 0] = np.eye(8)[0], 0
    k = jnp.asarray(k / np.linalg.norm(k, axis=1, keepdims=True), jnp.float32)
    v = jnp.asarray(rng.normal(size=(1001, 3)), jnp.float32)
    beta, starts = jnp.asarray(rng.uniform(0, 2, 1001), jnp.float32), jnp.zeros(1001, bool)
    last, _ = ops.delta_rule(k, k, v, beta, None, jnp.zeros((8, 3)), starts)
    assert jnp.allclose(last[0], beta[0] * v[0], atol=1e-6)


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net", "delta_product"])
def test_parity_needs_negative_eigenvalues(name):
    """Parameters that compute the parity of all bits so far: the read changes its sign with each 1.

    Inputs are (1, bit, first). The key is the same at all steps, the value is zero but at the first, and beta
    is 0 for a bit of 0 and 2 for a 1 or the first step. Without negative eigenvalues no parameters can do it:
    a step multiplies what is under the key by 1 - beta >= 0.
    """
    bits = np.random.default_rng(0).integers(0, 2, 40)
    bits[0] = 0
    xs = jnp.asarray(np.stack([np.ones(40), bits, np.arange(40) == 0], axis=1), jnp.float32)
    want = (-1.0) ** np.cumsum(bits)

    def reads(negative_eigenvalues):
        options = {"substeps": 1, "gated": False} if name == "delta_product" else {}
        model = memory.make(
            name,
            in_size=3,
            out_size=1,
            heads=1,
            head_size=2,
            key=jax.random.key(0),
            negative_eigenvalues=negative_eigenvalues,
            **options,
        )
        key_of = jnp.array([[5.0, 0], [0, 0], [0, 0]])
        value_of = jnp.array([[0.0, 0], [0, 0], [5, 5]])
        now = jnp.zeros((4, 2)).at[0].set(1)
        model = eqx.tree_at(
            lambda m: [m.w_qkv, m.conv.weights, m.w_beta, m.b_beta, m.w_o],
            model,
            [
                jnp.concatenate([key_of, key_of, value_of], axis=1),
                jnp.tile(now, (1, 3)),
                jnp.array([[-12.0], [24], [24]]),
                jnp.zeros(1),
                jnp.ones((2, 1)),
            ],
        )
        if name != "delta_net":
            model = eqx.tree_at(lambda m: m.w_g, model, jnp.array([[5.0, 5], [0, 0], [0, 0]]))
            model = eqx.tree_at(lambda m: m.a_log, model, jnp.array([-20.0]))
        return np.asarray(model.scan(model.initial_state(), xs, jnp.zeros(40, bool))[1][:, 0])

    assert np.all(np.sign(reads(True)) == want)
    without = reads(False)
    assert np.all(without > -1e-4 * np.max(without))


def test_mlstm_survives_large_input_gates():
    """An input gate of exp(200) overflows, but the stabiliser keeps it out of the state."""
    model = eqx.tree_at(lambda m: m.b_i, _model("mlstm"), jnp.full(2, 200.0))
    xs = jax.random.normal(jax.random.key(0), (T, 5))

    def total(model):
        return jnp.sum(model.scan(model.initial_state(), xs, jnp.asarray(STARTS))[1] ** 2)

    value, grads = eqx.filter_jit(eqx.filter_value_and_grad(total))(model)
    assert bool(jnp.isfinite(value))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))


def test_spherical_keeps_its_length():
    model = _model("spherical")
    xs = jax.random.normal(jax.random.key(0), (500, 5))
    last, _ = eqx.filter_jit(model.scan)(model.initial_state(), xs, jnp.zeros(500, bool))
    # 1,000 reflections along vectors whose length is 1 but for what `unit` adds under the root.
    assert jnp.allclose(jnp.linalg.norm(last, axis=1), jnp.linalg.norm(model.h_0, axis=1), rtol=3e-4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("delta_net", {"heads": 0}, "heads must be a whole number of at least 1"),
        ("linear_transformer", {"rotary_base": 0.5}, "rotary_base must be 0"),
        ("linear_transformer", {"rotary_base": 10.0, "head_size": 3}, "an even head_size"),
        ("delta_product", {"substeps": 0}, "substeps must be a whole number"),
        ("ttt_linear", {"batch_size": 0}, "batch_size must be a whole number"),
        ("memory_caching", {"cached": 0}, "cached must be a whole number"),
        ("mesa_net", {"iterations": 0}, "iterations must be a whole number"),
        ("mamba2", {"state_size": 0}, "state_size must be a whole number"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        memory.make(name, in_size=3, out_size=4, key=jax.random.key(0), **options)


def test_flags_are_booleans():
    # Called by itself: the type check of the tests would catch a wrong flag before the models do.
    with pytest.raises(ValueError, match="gated must be True or False, got 'no'"):
        check_flag("gated", "no")
