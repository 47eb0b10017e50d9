"""What each diagonal, attention and nonlinear memory computes, and what it can remember."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl import memory, ops
from memax_rl.memory import aaren, dlse, ind_rnn, nmax

IN, OUT = 3, 8


def _make(name, key, **options):
    """A model away from its special initial values, such as biases of zero."""
    model = memory.make(name, in_size=IN, out_size=OUT, key=key, **options)
    leaves, treedef = jax.tree.flatten(model)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(k, leaf.shape) if eqx.is_inexact_array(leaf) else leaf
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


def _sigmoid(u):
    return 1 / (1 + np.exp(-u))


def _silu(u):
    return u * _sigmoid(u)


def _softplus(u):
    return np.logaddexp(u, 0)


def _softmax(s):
    e = np.exp(s - np.max(s))
    return e / np.sum(e)


def _diagonal(u, d):
    return u * d if d.ndim == 1 else u @ d


# Each loop takes the model with float64 parameters, and the inputs of one episode; it returns the outputs.


def _elman(p, xs):
    h = np.zeros(OUT)
    for x in xs:
        h = np.tanh(x @ p.w + p.b + h @ p.u)
        yield h


def _gru(p, xs):
    h = np.zeros(OUT)
    u_z, u_r, u_n = np.split(p.u, 3, axis=1)
    for x in xs:
        z = _sigmoid(x @ p.w_z + p.b_z + h @ u_z)
        r = _sigmoid(x @ p.w_r + p.b_r + h @ u_r)
        n = np.tanh(x @ p.w_n + p.b_n + r * (h @ u_n + p.c_n))
        h = (1 - z) * n + z * h
        yield h


def _lstm(p, xs):
    h = c = np.zeros(OUT)
    for x in xs:
        i, f, o, g = (x @ w + b + h @ u for w, b, u in zip(p.w, p.b, p.u, strict=True))
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * np.tanh(c)
        yield h


def _mgu(p, xs):
    h = np.zeros(OUT)
    u_f, u_n = np.split(p.u, 2, axis=1)
    for x in xs:
        f = _sigmoid(x @ p.w_f + p.b_f + h @ u_f)
        n = np.tanh(x @ p.w_n + p.b_n + f * (h @ u_n + p.c_n))
        h = (1 - f) * h + f * n
        yield h


def _slstm(p, xs):
    heads, size, _ = p.r[0].shape
    y = c = n = np.zeros(OUT)
    for x in xs:
        recurrent = [np.concatenate([y[j * size : (j + 1) * size] @ r[j] for j in range(heads)]) for r in p.r]
        z, i, f, o = (x @ w + b + r for w, b, r in zip(p.w, p.b, recurrent, strict=True))
        # Without the stabiliser.
        c = _sigmoid(f) * c + np.exp(i) * np.tanh(z)
        n = _sigmoid(f) * n + np.exp(i)
        y = _sigmoid(o) * c / n
        by_head = y.reshape(heads, size)
        centered = by_head - by_head.mean(axis=1, keepdims=True)
        yield (centered / np.sqrt(by_head.var(axis=1, keepdims=True) + 1e-5)).ravel() * p.norm


def _m2rnn(p, xs):
    s = np.zeros((p.heads, p.head_size, p.head_size))
    for x in xs:
        q, k, v = ((x @ w).reshape(p.heads, -1) for w in (p.w_q, p.w_k, p.w_v))
        f = np.exp(-np.exp(p.a_log) * _softplus(x @ p.w_f + p.f_bias))
        reads = []
        for j in range(p.heads):
            written = np.tanh(s[j] @ p.w[j] + np.outer(k[j], v[j]))
            s[j] = f[j] * s[j] + (1 - f[j]) * written
            reads.append(s[j].T @ q[j] + p.d[j] * v[j])
        gated = np.concatenate(reads) * _silu(x @ p.w_g)
        yield (gated / np.sqrt(np.mean(gated**2) + 1e-5) * p.norm) @ p.w_o


def _para_gru(p, xs):
    h = np.zeros(OUT)
    for x in xs:
        z, r, n = (x @ w + b for w, b in zip(p.w, p.b, strict=True))
        z, r = _sigmoid(z + p.a[0] * h), _sigmoid(r + p.a[1] * h)
        h = (1 - z) * h + z * np.tanh(n + p.a[2] * h * r)
        yield h


def _para_lstm(p, xs):
    h = c = np.zeros(OUT)
    for x in xs:
        f, n, o = (x @ w + b for w, b in zip(p.w, p.b, strict=True))
        f = _sigmoid(f + p.a[0] * h + p.p[0] * c)
        c = f * c + (1 - f) * np.tanh(n + p.a[1] * h)
        h = _sigmoid(o + p.a[2] * h + p.p[1] * c) * np.tanh(c)
        yield h


def _ind_rnn(p, xs):
    h = np.zeros(OUT)
    for x in xs:
        bound = 2 ** (1 / p.horizon)
        h = np.maximum(x @ p.w + p.b + np.clip(p.u, -bound, bound) * h, 0)
        yield h


def _lrnn(p, xs):
    h = np.zeros(OUT)
    for x in xs:
        g = _sigmoid(x @ p.w_g + p.b_g)
        h = g * h + (1 - g) * np.tanh(x @ p.w_i + p.b_i)
        yield h


def _lru(p, xs):
    lam = np.exp(-np.exp(p.nu_log) + 1j * np.exp(p.theta_log))
    h = np.zeros(lam.shape)
    for x in xs:
        h = lam * h + np.exp(p.gamma_log) * (x @ (p.b_re + 1j * p.b_im))
        yield np.real(h @ (p.c_re + 1j * p.c_im)) + _diagonal(x, p.d)


def _min_gru(p, xs):
    h = np.zeros(OUT)
    for x in xs:
        z, u = _sigmoid(x @ p.w_z + p.b_z), x @ p.w_h + p.b_h
        h = (1 - z) * h + z * np.where(u >= 0, u + 0.5, _sigmoid(u))
        yield h


def _min_lstm(p, xs):
    h = np.zeros(OUT)
    for x in xs:
        f, i, u = _sigmoid(x @ p.w_f + p.b_f), _sigmoid(x @ p.w_i + p.b_i), x @ p.w_h + p.b_h
        h = (f * h + i * np.where(u >= 0, u + 0.5, _sigmoid(u))) / (f + i)
        yield h


def _s5(p, xs):
    continuous = np.minimum(p.lam_re, -1e-4) + 1j * p.lam_im
    lam = np.exp(continuous * np.exp(p.log_dt))
    h = np.zeros(lam.shape)
    for x in xs:
        h = lam * h + (lam - 1) / continuous * (x @ (p.b_re + 1j * p.b_im))
        yield 2 * np.real(h @ (p.c_re + 1j * p.c_im)) + _diagonal(x, p.d)


def _s6(p, xs):
    h, tail = np.zeros(p.a_log.shape), [np.zeros(p.d.shape)] * 3
    taps = p.conv.weights
    for x in xs:
        tail = [x @ p.w_u, *tail[:3]]
        u = _silu(sum(w * t for w, t in zip(taps, tail, strict=True)) + p.b_conv)
        dt = _softplus((u @ p.w_down) @ p.w_up + p.dt_bias)
        h = np.exp(-dt[:, None] * np.exp(p.a_log)) * h + np.outer(dt * u, u @ p.w_b)
        yield ((h @ (u @ p.w_c) + p.d * u) * _silu(x @ p.w_z)) @ p.w_y


def _ffm(p, xs):
    gamma = np.exp(-np.abs(p.decay)[:, None] + 1j * p.frequency[None])
    s = np.zeros(gamma.shape)
    for x in xs:
        s = gamma * s + ((x @ p.w_p + p.b_p) * _sigmoid(x @ p.w_i + p.b_i))[:, None]
        g = _sigmoid(x @ p.w_g + p.b_g)
        z = (np.concatenate([s.real.ravel(), s.imag.ravel()]) @ p.w_m + p.b_m) * g
        yield (z - z.mean()) / np.sqrt(z.var() + 1e-5) + (x @ p.w_s + p.b_s) * (1 - g)


def _rot_rnn(p, xs):
    heads, size, _ = p.m.shape
    gamma = np.exp(-np.exp(p.log_rate))
    # expm of a skew-symmetric matrix, by the eigenvectors of a Hermitian one.
    values, vectors = np.linalg.eigh(-1j * (p.m - p.m.swapaxes(1, 2)))
    turn = np.real(vectors * np.exp(1j * values)[:, None, :] @ vectors.conj().swapaxes(1, 2))
    theta = np.zeros((heads, size, size))
    for j in range(heads):
        for i, angle in enumerate(p.theta[j]):
            c, s = np.cos(angle), np.sin(angle)
            theta[j, 2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[c, -s], [s, c]]
    h = np.zeros((heads, size))
    for x in xs:
        y = _diagonal(x, p.d)
        for j in range(heads):
            xi = np.sqrt((1 - gamma[j] ** 2) / np.sum(p.b[j] ** 2))
            h[j] = gamma[j] * theta[j] @ h[j] + xi * turn[j].T @ (x @ p.b[j])
            y = y + (turn[j] @ h[j]) @ p.c[j]
        yield y


def _nmax(p, xs):
    h = np.zeros(p.logit.shape)
    for x in xs:
        h = np.maximum(_sigmoid(p.logit) * h, x @ p.w_u + p.b_u)
        yield h @ p.w_y + p.b_y


def _dlse(p, xs):
    total = np.zeros(p.rate.shape)
    for x in xs:
        # The leaky sum itself.
        total = np.exp(-_softplus(p.rate)) * total + np.exp(x @ p.w_u + p.b_u)
        yield np.log(total) @ p.w_y + p.b_y


def _bmru(p, xs):
    h = np.where(p.first < 0, -1, 1)
    for x in xs:
        c = x @ p.w_c + p.b_c
        z = np.abs(c) >= np.abs(x @ p.w_beta + p.b_beta)
        h = np.where(z, np.where(c < 0, -1, 1) + p.eps * h, h)
        yield (p.alpha * h) @ p.w_o + p.b_o


def _aaren(p, xs):
    scores, values = [], []
    for x in xs:
        k, v = ((x @ w).reshape(p.query.shape) for w in (p.w_k, p.w_v))
        scores.append(np.sum(p.query * k, axis=1) / np.sqrt(k.shape[1]))
        values.append(v)
        weights = np.apply_along_axis(_softmax, 0, np.array(scores))
        yield np.einsum("th,thd->hd", weights, np.array(values)).reshape(-1) @ p.w_o


def _attention(p, xs, bias=None, turn=None):
    heads = p.heads
    q, k, v = (np.array(xs @ w).reshape(len(xs), heads.heads, -1) for w in (heads.w_q, heads.w_k, heads.w_v))
    for t in range(len(xs)):
        seen = range(max(0, t - p.window + 1), t + 1)
        reads = []
        for h in range(heads.heads):
            scores = [q[t, h] @ (turn(k[j, h], j - t) if turn else k[j, h]) for j in seen]
            scores = np.array(scores) / np.sqrt(heads.head_size)
            if bias:
                scores = scores + np.array([bias(h, t - j) for j in seen])
            reads.append(_softmax(scores) @ v[list(seen), h])
        yield np.concatenate(reads) @ heads.w_o


def _alibi(p, xs):
    slopes = {2: [-4, -8], 3: [-4, -8, -2], 6: [-2, -4, -6, -8, -1, -3]}[p.heads.heads]
    return _attention(p, xs, bias=lambda h, back: -(2.0 ** slopes[h]) * back)


def _rope(p, xs):
    half = p.heads.head_size // 2

    def turn(k, position):
        z = (k[:half] + 1j * k[half:]) * np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag])

    return _attention(p, xs, turn=turn)


def _frame_stack(p, xs):
    for t in range(len(xs)):
        y = p.b.copy()
        for back in range(min(p.window, t + 1)):
            y = y + (xs[t - back] @ p.w_u) @ p.w_y[p.window - 1 - back]
        yield y


SMALL = {"heads": 2, "head_size": 4}
MODELS = {
    "aaren": (_aaren, SMALL),
    "alibi_attention": (_alibi, {"window": 5, **SMALL}),
    "alibi_attention, 3 heads": (_alibi, {"window": 5, "heads": 3, "head_size": 4}),
    "alibi_attention, 6 heads": (_alibi, {"window": 5, "heads": 6, "head_size": 4}),
    "attention": (_attention, {"window": 5, **SMALL}),
    "bmru": (_bmru, {"eps": 0.5}),
    "dlse": (_dlse, {}),
    "elman": (_elman, {}),
    "ffm": (_ffm, {}),
    "frame_stack": (_frame_stack, {"window": 5, "frame_size": 4}),
    "gru": (_gru, {}),
    "ind_rnn": (_ind_rnn, {}),
    "lrnn": (_lrnn, {}),
    "lru": (_lru, {}),
    "lstm": (_lstm, {}),
    "m2rnn": (_m2rnn, SMALL),
    "mgu": (_mgu, {}),
    "min_gru": (_min_gru, {}),
    "min_lstm": (_min_lstm, {}),
    "nmax": (_nmax, {}),
    "para_gru": (_para_gru, {}),
    "para_lstm": (_para_lstm, {}),
    "rope_attention": (_rope, {"window": 5, **SMALL}),
    "rot_rnn": (_rot_rnn, SMALL),
    "s5": (_s5, {}),
    "s6": (_s6, {"state_size": 4}),
    "slstm": (_slstm, {"heads": 2}),
}


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_textbook_loop(name, key):
    textbook, options = MODELS[name]
    model = _make(name.split(",")[0], key, **options)
    xs = jax.random.normal(key, (27, IN))
    starts = jnp.isin(jnp.arange(27), jnp.array([0, 9, 10]))
    ys = eqx.filter_jit(model.scan)(model.initial_state(), xs, starts)[1]
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64) if eqx.is_array(a) else a, model)
    episodes = np.split(np.asarray(xs, np.float64), [9, 10])
    want = np.concatenate([list(textbook(exact, episode)) for episode in episodes])
    np.testing.assert_allclose(ys, want, atol=2e-5 * (1 + np.max(np.abs(want))))


@pytest.mark.parametrize("name", ["attention", "rope_attention", "alibi_attention", "frame_stack"])
def test_window_models_forget_exactly_at_the_window(name, key):
    model = _make(name, key, window=6)
    xs = jax.random.normal(key, (20, IN))
    grads = jax.jit(jax.grad(lambda xs: jnp.sum(model.scan(model.initial_state(), xs, jnp.zeros(20, bool))[1][15])))(xs)
    used = np.any(np.asarray(grads) != 0, axis=1)
    np.testing.assert_array_equal(np.flatnonzero(used), np.arange(10, 16))


def _cue(model, first):
    """The output after a first input and a thousand of another kind."""
    xs = jnp.concatenate([first[None], jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0]), (1000, IN))])
    return eqx.filter_jit(model.scan)(model.initial_state(), xs, jnp.arange(1001) == 0)[1][-1]


@pytest.mark.parametrize("name", ["aaren", "bmru", "ind_rnn", "nmax", "slstm"])
def test_a_first_input_is_recalled_after_1000_steps(name, key):
    model: Any = memory.make(name, in_size=IN, out_size=OUT, key=key)
    cue, other = 4.0, np.zeros((IN, OUT), np.float32)
    # Parameters such as training would find: the first feature writes, the third (noise) does not.
    write = other.copy()
    write[0] = 1
    if name == "aaren":
        # Its score rises with the size of the first feature, its value is the first feature.
        model = eqx.tree_at(
            lambda m: (m.query, m.w_k, m.w_v),
            model,
            (
                jnp.ones_like(model.query),
                jnp.zeros_like(model.w_k).at[1].set(8.0),
                jnp.zeros_like(model.w_v).at[0].set(1),
            ),
        )
    elif name == "bmru":
        model = eqx.tree_at(lambda m: (m.w_c, m.w_beta), model, (jnp.asarray(write), jnp.asarray(other)))
    elif name == "ind_rnn":
        model = eqx.tree_at(lambda m: (m.w, m.u), model, (jnp.asarray(write), jnp.ones(OUT)))
    elif name == "nmax":
        model = eqx.tree_at(lambda m: (m.w_u, m.logit), model, (jnp.asarray(write), jnp.full(OUT, 9.0)))
    else:
        # The third feature shuts the input gate; forget gates are open.
        shut = other.copy()
        shut[2] = -40
        w, b = list(model.w), list(model.b)
        w[0], w[1], w[2] = (jnp.asarray(x) for x in (write, shut, other))
        b[2] = jnp.full(OUT, 12.0)
        model = eqx.tree_at(lambda m: (m.w, m.b, m.r), model, (tuple(w), tuple(b), tuple(map(jnp.zeros_like, model.r))))
    high, low = (_cue(model, jnp.array([sign * cue, 1.0, 0.0])) for sign in (1, -1))
    assert float(jnp.max(jnp.abs(high - low))) > 0.1


@pytest.mark.parametrize("module", [ind_rnn, nmax, dlse, aaren])
def test_maps_compose_associatively(module, key):
    """At slopes of either sign and zero, at extreme states, and after a constant map (a reset)."""
    maps = module._MAPS
    keys = jax.random.split(key, 2)
    slopes = jnp.array([-1.3, -0.4, 0.0, 0.7, 1.0, 1e-30])
    if module is nmax:
        slopes = jnp.abs(slopes)
    elif module is dlse:
        slopes = -jnp.abs(slopes)
    lifted = [
        maps.lift(jnp.roll(slopes, i), 3 * jax.random.normal(jax.random.fold_in(keys[0], i), (6,))) for i in range(3)
    ]
    extreme = jnp.array([1e30, -1e30, 0.0, 1e-30, -5.0, 5.0])
    for a, b, c in ((lifted[0], lifted[1], lifted[2]), (maps.constant((extreme,)), lifted[1], lifted[2])):
        left = maps.combine(maps.combine(a, b), c)
        right = maps.combine(a, maps.combine(b, c))
        for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    assert all(bool(jnp.all(jnp.isfinite(v))) for v in maps.value(left))


@pytest.mark.parametrize("module", [ind_rnn, nmax, dlse])
def test_the_tree_equals_the_loop_with_all_gradients(module, key):
    keys = jax.random.split(key, 3)
    weights = jax.random.uniform(keys[0], (4,), minval=-1, maxval=1)
    weights = {ind_rnn: weights, nmax: jnp.abs(weights), dlse: -jnp.abs(weights)}[module]
    xs, h = jax.random.normal(keys[1], (63, 4)), jax.random.normal(keys[2], (4,))
    starts = jnp.isin(jnp.arange(63), jnp.array([20, 21, 62]))
    initial = (jnp.full(4, -jnp.inf),) if module is dlse else None

    def objective(weights, xs, h, method):
        (hs,) = ops.elementwise_recurrence(
            module._cell, weights, xs, (h,), starts, initial=initial, method=method, maps=module._MAPS
        )
        return jnp.sum(jnp.cos(jnp.arange(hs.size).reshape(hs.shape)) * hs), hs

    run = jax.jit(jax.value_and_grad(objective, argnums=(0, 1, 2), has_aux=True), static_argnums=3)
    for tree, loop in zip(
        *(jax.tree.leaves(run(weights, xs, h, m)) for m in ("associative", "sequential")), strict=True
    ):
        np.testing.assert_allclose(tree, loop, atol=2e-5 * (1 + np.max(np.abs(loop))))


def test_rotations_keep_their_precision_after_a_million_steps():
    from memax_rl.memory.layers import rotary as _rotary

    cos, sin = _rotary._rotations(1_000_000, 70, 8, 10_000.0, jnp.float32)
    angle = (1_000_000 + np.arange(70))[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(cos, np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angle), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("attention", {"window": 0}, "window"),
        ("frame_stack", {"frame_size": 0}, "frame_size"),
        ("rope_attention", {"head_size": 5}, "even"),
        ("rot_rnn", {"head_size": 5}, "even"),
        ("rot_rnn", {"gamma_min": 0.99, "gamma_max": 0.9}, "gamma_min"),
        ("s5", {"state_size": 7}, "even"),
        ("s6", {"dt_min": 0.2}, "dt_min"),
        ("slstm", {"heads": 3}, "divide"),
        ("para_gru", {"solver": "euler"}, "solver"),
        ("bmru", {"eps": 2}, "eps"),
        ("ind_rnn", {"horizon": 0}, "horizon"),
    ],
)
def test_bad_options_name_themselves(name, options, message, key):
    with pytest.raises(ValueError, match=message):
        memory.make(name, in_size=IN, out_size=OUT, key=key, **options)
