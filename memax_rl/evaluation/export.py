"""A policy as a folder of files that need no memax_rl: StableHLO by `jax.export`, and ONNX where jax2onnx can.

| file | holds |
|---|---|
| `policy.stablehlo` | the function of one step, with the network's weights in it, for cpu and cuda |
| `carry.npz` | its first argument before the first step |
| `metadata.json` | names, shapes and dtypes of all arguments and results, and where they come from |
| `policy.onnx` | the same function for ONNX Runtime, if asked for |
"""

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.extend.core import jaxpr_as_fun

from memax_rl._version import __version__
from memax_rl.envs.spaces import value_counts
from memax_rl.evaluation.policy import PolicyStep, choose
from memax_rl.ops import kernels, plain_products
from memax_rl.paths import expanded
from memax_rl.rollout.streams import seed_key
from memax_rl.runs.build import Trained
from memax_rl.runs.files import check_folder, folder_beside
from memax_rl.runs.run import Checkpoint, RunError

PLATFORMS = ("cpu", "cuda")


class ExportError(ValueError):
    """A policy cannot be exported as asked. The message says why."""


class _Exported:
    """The function that is exported, and its arguments.

    (carry, observation, reward, start, action_mask, key) -> (carry, action); without `action_mask` where all actions
    are always legal, and without `key` where the policy is greedy. Carry and observation are lists of arrays.
    """

    def __init__(self, step: PolicyStep, greedy: bool, batch_size: int | None):
        self._step, self._greedy = step, greedy
        self._batch = () if batch_size is None else (batch_size,)
        self.carry = [np.broadcast_to(x, (*self._batch, *x.shape)).copy() for x in jax.tree.leaves(step.initial)]
        self._tree = jax.tree.structure(step.initial)
        self._key = np.asarray(jax.random.key_data(seed_key(0)))
        self.greedy = greedy

    def __call__(self, carry: list[Any], observation: list[Any], reward: Any, start: Any, *rest: Any) -> Any:
        """Return carry and action after a step."""
        mask, key = (rest[:1], rest[1:]) if self._step.needs_mask else ((), rest)
        bits = key[0] if key else jnp.broadcast_to(jnp.asarray(self._key), (*self._batch, *self._key.shape))
        keys = jax.random.wrap_key_data(bits, impl="philox4x32")
        state = jax.tree.unflatten(self._tree, carry)
        step = self._step if not self._batch else jax.vmap(self._step, in_axes=(None, *[0] * (5 + len(mask))))
        state, action = step(self._step.leaves, state, tuple(observation), reward, start, keys, *mask)
        return jax.tree.leaves(state), action

    def arguments(self) -> list[Any]:
        """Return shapes and dtypes of the arguments."""

        def of(shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*self._batch, *shape), dtype)

        carry = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in self.carry]
        observation = [of(leaf.shape, dtype) for _, leaf, dtype in self._step.observations]
        mask = [of((sum(value_counts(self._step.mask_space)),), np.bool_)] if self._step.needs_mask else []
        key = [] if self._greedy else [of(self._key.shape, self._key.dtype)]
        return [carry, observation, of((), np.float32), of((), np.bool_), *mask, *key]


def export(
    run: str | Path,
    out: str | Path,
    *,
    seed: int | None = None,
    checkpoint: Checkpoint = "newest",
    greedy: bool | None = None,
    batch_size: int | None = None,
    wrapped: bool = False,
    onnx: bool = False,
    imports: Iterable[str] = (),
    trust: bool = False,
) -> Path:
    """Write the policy of a run into a new folder that needs no memax_rl to be used (docs/policy.md).

    Args:
        run: The run folder.
        out: The folder to make.
        seed, checkpoint, greedy, batch_size, wrapped, imports, trust: As for `load`.
        onnx: Whether to write policy.onnx too, which needs `pip install 'memax_rl[onnx]'`.

    Returns:
        The folder.

    Raises:
        RunError: As `load`, or if there is something in the folder already.
        ExportError: If the policy cannot be exported. Nothing is left of the folder then.
        ValueError: As `load`.
    """
    trained, chosen, is_greedy = choose(run, seed, checkpoint, batch_size, greedy, imports, trust)
    return export_trained(
        trained, chosen, expanded(out), greedy=is_greedy, batch_size=batch_size, wrapped=wrapped, onnx=onnx
    )


def export_trained(
    trained: Trained,
    seed: int,
    out: Path,
    *,
    greedy: bool,
    batch_size: int | None = None,
    wrapped: bool = False,
    onnx: bool = False,
) -> Path:
    """Write the policy of one of the trained seeds. Arguments and errors: see `export`."""
    if out.exists() or out.is_symlink():
        raise RunError(f"{out} exists; choose another with --out, or delete it")
    check_folder(out)
    if onnx:
        _require_jax2onnx(greedy)
    step = PolicyStep(trained, trained.seeds.index(seed), greedy, wrapped)
    function = _Exported(step, greedy, batch_size)
    metadata = _describe(trained, step, function, seed, batch_size, wrapped)
    try:
        with folder_beside(out) as made:
            (made / "policy.stablehlo").write_bytes(_to_stablehlo(function))
            (made / "carry.npz").write_bytes(_to_npz(function.carry))
            (made / "metadata.json").write_text(json.dumps(metadata, indent=1, allow_nan=False) + "\n")
            if onnx:
                _write_onnx(function, made / "policy.onnx", metadata)
            out.parent.mkdir(parents=True, exist_ok=True)
            os.rename(made, out)
    except OSError as error:
        raise RunError(f"the folder {out} cannot be written: {error.strerror}") from None
    return out


def _to_stablehlo(function: _Exported) -> bytes:
    try:
        # `jax.export` refuses kernels, whose compiled form is not kept from version to version.
        with kernels.use("0"):
            exported = jax_export.export(jax.jit(function.__call__), platforms=PLATFORMS)(*function.arguments())
        return bytes(exported.serialize())
    except ImportError as error:
        raise ExportError(f"jax.export cannot write: {error}") from None
    except (NotImplementedError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"the policy cannot be exported for {' and '.join(PLATFORMS)}: {reason}") from error


def _to_npz(carry: list[np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{f"carry_{i}": x for i, x in enumerate(carry)})
    return buffer.getvalue()


def _describe(
    trained: Trained, step: PolicyStep, function: _Exported, seed: int, batch_size: int | None, wrapped: bool
) -> dict[str, Any]:
    """Return what metadata.json holds."""
    carry, observation, reward, start, *rest = function.arguments()
    rest = dict(zip([*["action_mask"] * step.needs_mask, "key"], rest, strict=False))
    after, action = jax.eval_shape(function.__call__, *function.arguments())
    paths = [list(path) for path, _, _ in step.observations]
    return {
        "format": "memax_rl policy",
        "version": 1,
        "made_with": {"memax_rl": __version__, "jax": jax.__version__},
        "env": trained.config.env,
        "agent": trained.config.agent,
        "memory": trained.config.network.memory,
        "seed": seed,
        "greedy": function.greedy,
        "wrapped": wrapped,
        "batch_size": batch_size,
        "platforms": list(PLATFORMS),
        "spaces": step.spaces.model_dump(mode="json"),
        "arguments": {
            "carry": [_array(f"carry_{i}", x) for i, x in enumerate(carry)],
            "observation": [
                {**_array(f"observation_{i}", x), "path": path}
                for i, (x, path) in enumerate(zip(observation, paths, strict=True))
            ],
            "reward": _array("reward", reward),
            "start": _array("start", start),
            **{name: _array(name, x) for name, x in rest.items()},
        },
        "results": {
            "carry": [_array(f"next_carry_{i}", x) for i, x in enumerate(after)],
            "action": _array("action", action),
        },
    }


def _array(name: str, x: Any) -> dict[str, Any]:
    return {"name": name, "shape": list(x.shape), "dtype": np.dtype(x.dtype).name}


def _require_jax2onnx(greedy: bool) -> None:
    """Raise `ExportError` unless jax2onnx is there, and the policy has no random numbers, which it cannot convert."""
    if not greedy:
        raise ExportError("ONNX has none of JAX's random numbers; export a greedy policy, with --greedy")
    try:
        import jax2onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ExportError("--onnx needs jax2onnx; pip install 'memax_rl[onnx]'") from None


def _write_onnx(function: _Exported, path: Path, metadata: dict[str, Any]) -> None:
    """Write the function for ONNX Runtime, its arguments in the order of metadata.json, and run it there once.

    Raises:
        ExportError: If it cannot be converted, or is not the same function there.
    """
    import jax2onnx  # pyright: ignore[reportMissingImports]

    flat, tree = jax.tree.flatten(function.arguments())

    def called(*leaves: Any) -> Any:
        return jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves)))

    # Traced here: jax2onnx puts functions of its own in the place of some of JAX's while it traces.
    with plain_products():
        traced = jaxpr_as_fun(jax.make_jaxpr(called)(*flat))
    names, results = (
        [x["name"] for part in metadata[kind].values() for x in (part if isinstance(part, list) else [part])]
        for kind in ("arguments", "results")
    )
    try:
        jax2onnx.to_onnx(
            traced,
            inputs=flat,
            model_name="policy",
            return_mode="file",
            output_path=str(path),
            input_names=names,
            output_names=results,
        )
        same = _is_same(function, path)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ExportError(f"{_cannot(metadata)}: {reason}; leave --onnx out") from error
    if not same:
        raise ExportError(f"{_cannot(metadata)}: in ONNX Runtime it is not the same function; leave --onnx out")


def _cannot(metadata: dict[str, Any]) -> str:
    return f"jax2onnx cannot convert this policy with the memory {metadata['memory']}"


def _is_same(function: _Exported, path: Path) -> bool:
    """Return whether two steps in ONNX Runtime give the same as the function."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    # Errors alone: it warns of constants that the converter left unused.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names, run = [x.name for x in session.get_inputs()], jax.jit(function.__call__)
    carry, (_, observation, reward, _, *mask) = function.carry, function.arguments()
    shown, paid = [np.ones(x.shape, x.dtype) for x in observation], np.ones(reward.shape, reward.dtype)
    legal = [np.ones(x.shape, x.dtype) for x in mask]
    for start in (True, False):
        starts = np.full(reward.shape, start)
        wanted = [np.asarray(x) for x in jax.tree.leaves(run(carry, shown, paid, starts, *legal))]
        got = session.run(None, dict(zip(names, [*carry, *shown, paid, starts, *legal], strict=True)))
        if not all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(wanted, got, strict=True)):
            return False
        carry = wanted[:-1]
    return True
