"""The tasks of probes against their definitions in plain Python, and where pictures of digits come from."""

import gzip
import itertools
import math
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memax_rl.probes import tasks
from memax_rl.probes.learner import add_up, sample_batch, score
from memax_rl.probes.tasks import digits


def draw(name: str, count: int = 4, **options) -> list[tuple[np.ndarray, ...]]:
    """Return inputs, targets and marks of random sequences."""
    task = tasks.make(name, options)
    sample = jax.jit(jax.vmap(task.sample))
    drawn = sample(jax.random.split(jax.random.key(0), count))
    return [tuple(np.asarray(leaf[i]) for leaf in drawn) for i in range(count)]


# Tasks: what a reader of the definition would compute by hand


def test_copying_asks_for_the_first_symbols_in_order():
    for inputs, targets, where in draw("copying", length=20, symbols=4, alphabet=5):
        assert (inputs[:4] >= 2).all()
        assert inputs[4:].tolist() == [0] * 12 + [1] * 4
        assert where.tolist() == [False] * 16 + [True] * 4
        assert (targets[where] == inputs[:4] - 2).all()


def test_selective_copying_asks_for_the_symbols_wherever_they_stand():
    places = set()
    for inputs, targets, where in draw("selective_copying", length=20, symbols=4, alphabet=5):
        found = [i for i in range(16) if inputs[i] != 0]
        places.add(tuple(found))
        assert len(found) == 4
        assert inputs[16:].tolist() == [1] * 4
        assert where.tolist() == [False] * 16 + [True] * 4
        assert targets[where].tolist() == [inputs[i] - 2 for i in found]
    assert len(places) == 4


@pytest.mark.parametrize(("doublings", "asked"), [(False, [10]), (True, [1, 2, 4, 8, 10])])
def test_first_symbol_asks_at_the_end_and_at_doublings(doublings, asked):
    for inputs, targets, where in draw("first_symbol", length=11, alphabet=3, doublings=doublings):
        assert np.flatnonzero(where).tolist() == asked
        assert inputs[10] == 3
        assert inputs[:10].max() < 3
        assert (targets[where] == inputs[0]).all()


def test_induction_heads_asks_what_followed_the_special_symbol():
    for inputs, targets, where in draw("induction_heads", 16, length=6, alphabet=3):
        place = inputs.tolist().index(3)
        assert inputs.tolist().count(3) == 2
        assert inputs[5] == 3
        assert np.flatnonzero(where).tolist() == [5]
        assert targets[5] == inputs[place + 1] < 3


def test_associative_recall_asks_every_key_once():
    for inputs, targets, where in draw("associative_recall", length=14, pairs=3, keys=6, values=4):
        pairs = {inputs[2 * i]: inputs[2 * i + 1] for i in range(3)}
        assert len(pairs) == 3
        assert all(1 <= key <= 6 and 7 <= value <= 10 for key, value in pairs.items())
        asked = np.flatnonzero(where)
        assert asked.min() >= 6
        assert sorted(inputs[asked]) == sorted(pairs)
        assert [pairs[inputs[i]] - 7 for i in asked] == targets[asked].tolist()
        assert (inputs[6:][~where[6:]] == 0).all()


def test_needle_asks_for_the_flagged_symbol():
    for inputs, targets, where in draw("needle", length=12, alphabet=4, noise=2.0):
        (place,) = np.flatnonzero(inputs[:, 4])
        assert place < 11
        assert np.flatnonzero(where).tolist() == [11]
        assert inputs[place].tolist() == [*np.eye(4)[targets[11]], 1]
        assert np.delete(inputs[:, :4], place, axis=0).std() > 1


@pytest.mark.parametrize(("name", "modulus"), [("parity", 2), ("modular_counting", 3)])
@pytest.mark.parametrize("every", [True, False])
def test_counting_is_a_sum_modulo(name, modulus, every):
    options = {} if name == "parity" else {"modulus": modulus}
    for inputs, targets, where in draw(name, length=11, every=every, **options):
        total = 0
        for number, target in zip(inputs, targets, strict=True):
            assert 0 <= number < modulus
            total = (total + number) % modulus
            assert target == total
        assert where.tolist() == [every] * 10 + [True]


@pytest.mark.parametrize("points", [3, 5])
def test_permutations_are_composed_the_earlier_one_first(points):
    known = list(itertools.permutations(range(points)))
    for inputs, targets, _ in draw("permutations", length=9, points=points):
        product = tuple(range(points))
        for number, target in zip(inputs, targets, strict=True):
            product = tuple(known[number][product[x]] for x in range(points))
            assert known[target] == product


def test_flip_flop_asks_for_the_last_written_bit():
    kinds = set()
    for inputs, targets, where in draw("flip_flop", 16, length=20, ignore=0.4):
        stored = None
        for i in range(0, 20, 2):
            kind, bit = inputs[i], inputs[i + 1]
            kinds.add(kind)
            assert bit in (0, 1)
            stored = bit if kind == 2 else stored
            assert where[i] == (kind == 3)
            assert not where[i + 1]
            if kind == 3:
                assert targets[i] == bit == stored
        assert inputs[0] == 2
        assert inputs[18] == 3
    assert kinds == {2, 3, 4}


def test_adding_adds_one_number_of_each_half():
    for inputs, targets, where in draw("adding", length=9):
        first, second = np.flatnonzero(inputs[:, 1])
        assert first < 4 <= second
        assert np.flatnonzero(where).tolist() == [8]
        np.testing.assert_allclose(targets[8], [inputs[first, 0] + inputs[second, 0]], rtol=1e-6)


@pytest.mark.parametrize("angle", [math.pi, 0.1])
def test_localization_composes_turns_and_steps_in_the_local_frame(angle):
    from scipy.spatial.transform import Rotation

    for inputs, targets, _ in draw("localization", length=30, angle=angle):
        position, frame = np.zeros(3), Rotation.identity()
        for (*turn, x, y, z), target in zip(inputs, targets, strict=True):
            assert np.linalg.norm(turn) <= angle + 1e-5
            position = position + frame.apply([x, y, z])
            frame = frame * Rotation.from_rotvec(turn)
            np.testing.assert_allclose(target[:3] * (8 * 30 / 3) ** 0.5, position, atol=1e-3)
            np.testing.assert_allclose(target[3:], frame.as_matrix()[:2].reshape(6), atol=1e-4)


def test_localization_targets_have_about_unit_variance_at_the_end():
    ends = np.stack([targets[-1, :3] for _, targets, _ in draw("localization", 400, length=20)])
    np.testing.assert_allclose(ends.std(axis=0), 1, atol=0.15)


@pytest.mark.parametrize("name", [name for name in tasks.names() if "digit" not in name])
def test_a_guess_reaches_chance_and_no_more(name):
    """The most frequent answer, or the mean, of many sequences."""
    task = tasks.make(name)
    task = task.at_length(min(task.length, 60))
    batch = sample_batch(task, jax.random.key(0), 256, 1, ())
    marked = np.asarray(batch.targets)[np.asarray(batch.where)]
    if task.classes:
        found = np.bincount(marked, minlength=task.classes).max() / len(marked)
        assert task.chance <= found + 1e-6
        np.testing.assert_allclose(found, task.chance, atol=0.12)
    else:
        outputs = jnp.broadcast_to(jnp.asarray(marked.mean(axis=0)), batch.targets.shape)
        np.testing.assert_allclose(score(task, add_up(task, outputs, batch)), task.chance, atol=1e-3)


def test_every_task_says_what_is_known_of_it():
    for name in tasks.names():
        model = tasks.spec(name)
        assert model.known
        assert model.source
        assert (model.__doc__ or "").strip()
        assert all(field.description for field in model.model_fields.values())


# Digits


def write_idx(folder, split: str, images: np.ndarray, labels: np.ndarray, compressed: bool = False) -> None:
    """Write pictures and labels as MNIST's files are."""
    for name, array in zip(digits._FILES[split], (images, labels), strict=True):
        content = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
        path = folder / (name + ".gz" * compressed)
        path.write_bytes(gzip.compress(content) if compressed else content)


@pytest.fixture
def folder(tmp_path):
    """A folder of pictures of which each has the brightness 10 times its digit, and one pixel of 255."""
    digits.load_digits.cache_clear()
    labels = np.arange(20, dtype=np.uint8) % 10
    images = np.broadcast_to(10 * labels[:, None, None], (20, 28, 28)).copy()
    images[:, 0, 1] = 255
    write_idx(tmp_path, "train", images, labels)
    write_idx(tmp_path, "test", images[:5], labels[:5], compressed=True)
    return tmp_path


def test_sequential_digits_shows_a_picture_row_by_row_and_asks_at_the_end(folder):
    task = tasks.make("sequential_digits", {"pictures": str(folder)})
    assert task.length == 784
    assert task.data("train").images.shape == (20, 784)
    assert task.data("test").images.shape == (5, 784), "the compressed file"
    for i in range(4):
        inputs, targets, where = task.sample(jax.random.key(i), task.data("train"))
        assert inputs.shape == (784, 1)
        assert inputs[1, 0] == 1
        np.testing.assert_allclose(inputs[2:, 0] * 25.5, np.full(782, targets[-1]), rtol=1e-5)
        assert np.flatnonzero(where).tolist() == [783]


@pytest.mark.parametrize("images", [1, 2, 5, 6])
def test_digit_math_adds_and_subtracts_what_the_pictures_show(folder, images):
    task = tasks.make("digit_math", {"pictures": str(folder), "images": images})
    data = task.data("train")
    plus, minus = digits.operator_images(28)
    bounds, results = digits.result_bounds(images)
    signs = set()
    for i in range(6):
        inputs, targets, where = task.sample(jax.random.key(i), data)
        pixels = np.asarray(inputs).reshape(images, 784) * 255
        result, sign = 0, 1
        for place, picture in enumerate(pixels):
            if (images - place) % 2:
                result += sign * round(float(picture[2]) / 10)
                assert picture[1] == pytest.approx(255)
            else:
                sign = 1 if np.abs(picture - plus).mean() < np.abs(picture - minus).mean() else -1
                signs.add(sign)
                closest = plus if sign == 1 else minus
                assert 1 < np.abs(picture - closest).mean() < 30, "it is noisy"
        assert targets[-1] == max(0, np.searchsorted(bounds, result, side="right") - 1)
        assert np.flatnonzero(where).tolist() == [images * 784 - 1]
    assert images == 1 or signs == {1, -1}
    most = (images + 1) // 2 * 9
    assert results.max() <= most
    assert results.min() >= (-most if images > 1 else 0)


def test_tenths_of_long_sums_are_about_equal_and_chance_is_the_largest():
    task = tasks.make("digit_math", {"images": 1_000})
    bounds, _ = digits.result_bounds(1_000)
    assert task.chance == pytest.approx(0.1, abs=0.01)
    # A signed digit has variance 28.5; half of the results are below zero.
    assert bounds[5] == pytest.approx(0, abs=3)
    assert bounds[9] == pytest.approx(1.2816 * math.sqrt(500 * 28.5), rel=0.03)


def test_digits_of_scikit_learn():
    pytest.importorskip("sklearn")
    digits.load_digits.cache_clear()
    task = tasks.make("sequential_digits")
    train, test = task.data("train"), task.data("test")
    assert task.length == train.images.shape[1] == 64
    assert len(train.labels) + len(test.labels) == 1797
    assert train.images.max() == 255
    assert sorted(set(np.asarray(test.labels).tolist())) == list(range(10))


@pytest.mark.parametrize(
    ("pictures", "module", "says"),
    [
        ("digits", "sklearn.datasets", "scikit-learn, which is not installed; install it with"),
        ("hf:ylecun/mnist", "datasets", "needs the package datasets, which is not installed; install it with"),
        ("nowhere", None, "nowhere has no file train-images-idx3-ubyte"),
    ],
)
def test_what_a_task_lacks_is_told_in_one_line(pictures, module, says, monkeypatch):
    digits.load_digits.cache_clear()
    if module:
        monkeypatch.setitem(sys.modules, module, None)
    task = tasks.make("sequential_digits", {"pictures": pictures})
    with pytest.raises(ValueError, match=r"^pictures: ") as error:
        task.data("train")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "unpack requires"),
        (struct.pack(">4I", 0x803, 20, 28, 28), "cannot reshape"),
        (struct.pack(">4I", 0x803, 2**31, 28, 28), "its header is not"),
        (struct.pack(">4I", 0x801, 20, 28, 28), "its header is not"),
        (struct.pack(">4I", 0x803, 1_000_000, 1_000, 1_000), "its header is not"),
        (struct.pack(">4I", 0x803, 2, 3, 3) + bytes(18), "needs as many pictures of 28 x 28 as labels"),
    ],
    ids=["empty", "short", "many", "magic", "huge", "small"],
)
def test_a_damaged_file_of_pictures_is_told(folder, content, says):
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        tasks.make("sequential_digits", {"pictures": str(folder)}).data("train")


@pytest.mark.parametrize("place", range(10, 30))
def test_a_damaged_compressed_file_of_pictures_is_told(folder, place):
    path = folder / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^pictures: .*cannot be read") as error:
        tasks.make("sequential_digits", {"pictures": str(folder)}).data("test")
    assert "\n" not in str(error.value)


def test_pictures_of_hugging_face(tmp_path):
    """A folder in its format, as the hub holds it: no network."""
    datasets = pytest.importorskip("datasets")
    images = [np.full((28, 28), 9 * i, np.uint8) for i in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    made = datasets.Dataset.from_dict({"image": images, "label": list(range(6))}, features=features)
    for split in ("train", "test"):
        made.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    digits.load_digits.cache_clear()
    data = tasks.make("sequential_digits", {"pictures": f"hf:{tmp_path}"}).data("test")
    assert data.labels.tolist() == list(range(6))
    assert data.images[3].tolist() == [27] * 784
