"""Diffusion against closed forms: moments of the forward process, preconditioning, samplers on Gaussian data, guidance, evaluation."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from assay import config, registry
from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError
from assay.evaluate.sample import ImageSampler
from assay.kinds import Objective
from assay_plugins.models.dit import DiT
from assay_plugins.objectives.ddpm import DDPM
from assay_plugins.objectives.diffusion import content_hash, guided
from assay_plugins.objectives.diffusion_samplers import (
    alpha_bars,
    ancestral_step,
    clean_of,
    ddim_sigma,
    ddim_step,
    karras_sigmas,
    posterior,
)
from assay_plugins.objectives.edm import EDM, preconditioning

SPEC = DataSpec({"image": ArraySpec((4, 4, 1), "float32"), "label": ArraySpec((), "int32")}, num_classes=3)
OBJECTIVES = {"ddpm": DDPM(), "edm": EDM()}
MEAN, STD = 0.2, 0.15  # of the Gaussian images


class Seen(nnx.Module):
    """Keeps what it is shown and returns zeros."""

    def __call__(self, batch, *, train, rngs):
        self.batch = nnx.data(dict(batch))
        return jnp.zeros_like(batch["image"])


class GaussianNoise(nnx.Module):
    """E[noise | x] for images from N(MEAN, STD^2)."""

    def __call__(self, batch, *, train, rngs):
        x, a = batch["image"], jax.nn.sigmoid(-8 * batch["noise_level"])[:, None, None, None]
        clean = MEAN + STD**2 * jnp.sqrt(a) / (a * STD**2 + 1 - a) * (x - jnp.sqrt(a) * MEAN)
        return (x - jnp.sqrt(a) * clean) / jnp.sqrt(1 - a)


class GaussianEDM(nnx.Module):
    """What makes D the posterior mean for images from N(MEAN, STD^2); written without the code under test."""

    def __call__(self, batch, *, train, rngs):
        sigma = jnp.exp(4 * batch["noise_level"])[:, None, None, None]
        x = batch["image"] * jnp.sqrt(sigma**2 + 0.25)
        clean = MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)
        return (clean - 0.25 / (sigma**2 + 0.25) * x) * jnp.sqrt(sigma**2 + 0.25) / (0.5 * sigma)


class PerClass(nnx.Module):
    """E[noise | x] where all images of class c are -0.5, 0 or 0.5, and those without a label 0.9."""

    def __call__(self, batch, *, train, rngs):
        x, a = batch["image"], jax.nn.sigmoid(-8 * batch["noise_level"])[:, None, None, None]
        clean = jnp.where(batch["label"] < 0, 0.9, (batch["label"] - 1) / 2)[:, None, None, None]
        return (x - jnp.sqrt(a) * clean) / jnp.sqrt(1 - a)


def rows(count, seed=0):
    generator = np.random.default_rng(seed)
    image = generator.uniform(size=(count, 4, 4, 1)).astype(np.float32)
    return {"image": jnp.asarray(image), "label": jnp.asarray(generator.integers(0, 3, count).astype(np.int32))}


def shown(objective, batch, *, train=True, seed=0):
    """(what the network was shown, the outcome)."""
    seen = Seen()
    outcome = objective(seen, batch, train=train, rngs=nnx.Rngs(seed) if train else None)
    return seen.batch, outcome


@pytest.mark.parametrize("name", OBJECTIVES)
def test_plugins_of_their_kind(name):
    assert isinstance(OBJECTIVES[name], Objective)
    assert isinstance(OBJECTIVES[name], ImageSampler)
    assert hash(OBJECTIVES[name]) == hash(type(OBJECTIVES[name])())


def test_the_linear_schedule_has_its_known_end():
    table = alpha_bars("linear", 1000)
    assert (table[0], len(table)) == (1.0, 1001)
    assert table[1] == pytest.approx(1 - 1e-4)
    assert table[1000] == pytest.approx(4.0358e-5, rel=1e-4)  # alphas_cumprod[-1] of the DDPM implementations
    assert math.sqrt(1 / table[1000] - 1) == pytest.approx(157.41, rel=1e-4)


def test_the_cosine_schedule_is_a_squared_cosine():
    table = alpha_bars("cosine", 1000)
    f = np.cos((np.arange(999) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(table[:999], f / f[0], rtol=1e-6)
    assert table[1000] / table[999] == pytest.approx(1 - 0.999)


def test_noise_levels_of_samples_are_even_in_the_seventh_root():
    found = karras_sigmas(18, 0.002, 80.0, 7.0)
    assert (found[0], found[-2], found[-1]) == pytest.approx((80.0, 0.002, 0.0))
    np.testing.assert_allclose(np.diff(found[:-1] ** (1 / 7)), (0.002 ** (1 / 7) - 80 ** (1 / 7)) / 17, rtol=1e-9)
    assert karras_sigmas(1, 0.002, 80.0, 7.0) == pytest.approx([80.0, 0.0])


@pytest.mark.parametrize("time", [1, 250, 500, 1000])
def test_moments_of_the_forward_process_are_the_closed_form(time):
    clean = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1)
    noise = jax.random.normal(jax.random.key(0), (20_000, 4, 4, 1))
    uniform = jnp.full(len(noise), (time - 0.5) / 1000)
    found = np.asarray(DDPM().task(jnp.broadcast_to(clean, noise.shape), noise, uniform).image, np.float64)
    a = float(np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:time]))
    error = math.sqrt((1 - a) / len(noise))
    np.testing.assert_allclose(found.mean(0), math.sqrt(a) * clean[0], atol=5 * error + 1e-6)
    np.testing.assert_allclose(found.var(0), 1 - a, rtol=0.06)


def test_the_objective_trains_on_the_forward_process():
    batch = rows(6000)
    seen, outcome = shown(DDPM(label_dropout=0.3), batch)
    a = np.asarray(jax.nn.sigmoid(-8 * seen["noise_level"]), np.float64)[:, None, None, None]
    noise = (np.asarray(seen["image"]) - np.sqrt(a) * (2 * np.asarray(batch["image"], np.float64) - 1)) / np.sqrt(1 - a)
    np.testing.assert_allclose(outcome.losses, np.square(noise).mean((1, 2, 3)), rtol=1e-2)
    assert abs(noise.mean()) < 0.02
    assert noise.var() == pytest.approx(1, rel=0.02)
    times = np.searchsorted(-alpha_bars("linear", 1000), -a.ravel() - 1e-9)
    assert np.histogram(times, 4, (0, 1000))[0] == pytest.approx(1500, rel=0.1)
    kept = np.asarray(seen["label"]) == np.asarray(batch["label"])
    assert kept.mean() == pytest.approx(0.7, abs=0.03)
    assert np.all(np.asarray(seen["label"])[~kept] == -1)


def test_preconditioned_inputs_and_targets_have_variance_one():
    objective, noise = EDM(sigma_data=0.5), jax.random.normal(jax.random.key(1), (40_000, 1, 1, 4))
    clean = 0.5 * jax.random.normal(jax.random.key(0), noise.shape)
    for share in (0.02, 0.5, 0.98):
        task = objective.task(clean, noise, jnp.full(len(noise), share))
        assert float(jnp.var(task.image)) == pytest.approx(1, rel=0.02)
        assert float(jnp.var(task.target)) == pytest.approx(1, rel=0.02)
        assert float(jnp.mean(task.image * task.target)) == pytest.approx(
            0, abs=0.02
        )  # c_skip makes the error smallest


def test_noise_of_training_is_log_normal():
    seen, _ = shown(EDM(), rows(6000))
    logs = 4 * np.asarray(seen["noise_level"])
    assert (logs.mean(), logs.std()) == pytest.approx((-1.2, 1.2), abs=0.05)


def test_the_loss_is_the_weighted_error_of_the_denoiser():
    batch, objective = rows(5), EDM()
    seen, outcome = shown(objective, batch)
    sigma = np.exp(4 * np.asarray(seen["noise_level"], np.float64))[:, None, None, None]
    c = preconditioning(sigma, 0.5)
    clean, noised = 2 * np.asarray(batch["image"], np.float64) - 1, np.asarray(seen["image"]) * np.sqrt(sigma**2 + 0.25)
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    expected = (weight * np.square(np.asarray(c.skip) * noised - clean)).mean((1, 2, 3))
    np.testing.assert_allclose(outcome.losses, expected, rtol=1e-3)


def test_ddim_with_eta_one_is_the_ancestral_step():
    table = jnp.asarray(alpha_bars("linear", 1000), jnp.float32)
    clean, x, noise = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 1))
    for time, before in ((1000, 900), (500, 499), (20, 10), (10, 0)):
        pair = table[time], table[before]
        assert float(ddim_sigma(*pair, 1.0)) ** 2 == pytest.approx(float(posterior(clean, x, *pair)[1]), rel=1e-3)
        one, two = ddim_step(clean, x, *pair, noise, 1.0), ancestral_step(clean, x, *pair, noise)
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3)


def test_the_posterior_is_bayes_rule():
    # q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0), both Gaussian.
    a, s, clean, x = 0.3, 0.7, 0.4, -0.9
    alpha = a / s
    precision = alpha / (1 - alpha) + 1 / (1 - s)
    mean = (math.sqrt(alpha) / (1 - alpha) * x + math.sqrt(s) / (1 - s) * clean) / precision
    found = posterior(jnp.asarray(clean), jnp.asarray(x), jnp.asarray(a), jnp.asarray(s))
    np.testing.assert_allclose(found, (mean, 1 / precision), rtol=1e-5)


def test_the_clean_image_is_found_again():
    clean, noise = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 1))
    task = DDPM().task(clean, noise, jnp.asarray([0.2, 0.4]))
    a = jax.nn.sigmoid(-8 * task.noise_level)[:, None, None, None]
    np.testing.assert_allclose(clean_of(task.image, noise, a), clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("objective", "module"),
    [
        (DDPM(schedule="cosine", sampler="ddpm", sampling_steps=500), GaussianNoise()),
        (DDPM(schedule="cosine", sampler="ddim", sampling_steps=500), GaussianNoise()),
        (DDPM(schedule="cosine", sampler="ddim", sampling_steps=500, eta=0.5), GaussianNoise()),
        (EDM(sampling_steps=40), GaussianEDM()),
    ],
    ids=["ddpm", "ddim", "ddim_eta", "edm"],
)
def test_samplers_with_the_exact_denoiser_give_the_gaussian(objective, module):
    found = 2 * objective.generate(module, SPEC, np.zeros(1000, int), seed=0) - 1
    assert found.shape == (1000, 4, 4, 1)
    assert found.mean() == pytest.approx(MEAN, abs=0.005)
    assert found.std() == pytest.approx(STD, rel=0.03)


def test_samples_get_better_with_steps_and_depend_on_the_seed_alone():
    spread = [2 * EDM(sampling_steps=n).generate(GaussianEDM(), SPEC, [0] * 500, seed=0).std() for n in (3, 6, 12, 24)]
    off = [abs(s - spread[-1]) for s in spread[:-1]]
    assert off == sorted(off, reverse=True)
    draw = functools.partial(DDPM(sampling_steps=3).generate, GaussianNoise(), SPEC, [0, 1])
    np.testing.assert_array_equal(draw(seed=1), draw(seed=1))
    assert np.abs(draw(seed=1) - draw(seed=2)).max() > 1e-3


def test_guidance_of_one_is_the_conditional_model_and_of_zero_the_unconditional():
    x, labels = jnp.ones((2, 4, 4, 1)), jnp.asarray([0, 2])

    def predict(x, level, labels):
        return x * (labels + 2.0)[:, None, None, None]

    found = {s: np.asarray(guided(predict, x, jnp.zeros(()), labels, s))[:, 0, 0, 0] for s in (0.0, 1.0, 3.0)}
    np.testing.assert_array_equal(found[1.0], [2, 4])
    np.testing.assert_array_equal(found[0.0], [1, 1])
    np.testing.assert_array_equal(found[3.0], [1 + 3 * 1, 1 + 3 * 3])


def test_samples_follow_label_and_guidance():
    def brightness(scale, clip=True):
        objective = DDPM(sampling_steps=4, guidance_scale=scale, clip=clip, pixel_low=-1.0)
        return objective.generate(PerClass(), SPEC, [0, 1, 2, -1], seed=0)[:, 0, 0, 0]

    np.testing.assert_allclose(brightness(1.0), [-0.5, 0.0, 0.5, 0.9], atol=1e-3)
    np.testing.assert_allclose(brightness(0.0), [0.9] * 4, atol=1e-3)
    np.testing.assert_allclose(brightness(1.2), [-0.78, -0.18, 0.42, 0.9], atol=1e-3)


def test_the_grid_has_a_row_for_each_class():
    found = DDPM(sampling_steps=4, grid_columns=5).sample_images(PerClass(), SPEC, seed=0)["samples"]
    assert (found.shape, found.dtype) == ((3 * 5 - 1, 5 * 5 - 1, 1), np.uint8)
    brightness = found[[1, 6, 11], 7, 0].astype(float)
    np.testing.assert_allclose(brightness, 255 * np.asarray([0.25, 0.5, 0.75]), atol=0.5001)
    assert not found[4].any()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_evaluation_is_the_same_in_any_batches(name):
    batch, objective = rows(12), OBJECTIVES[name]
    losses = jax.jit(lambda b: objective(Seen(), b, train=False, rngs=None).losses)
    whole = np.asarray(losses(batch))
    parts = [np.asarray(losses({k: v[i : i + 3] for k, v in batch.items()})) for i in range(0, 12, 3)]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)  # other noise puts some off by half
    np.testing.assert_allclose(losses({k: v[::-1] for k, v in batch.items()}), whole[::-1], rtol=1e-5)
    assert len(np.unique(whole)) == 12
    seen, _ = shown(objective, batch, train=False)
    np.testing.assert_array_equal(seen["label"], batch["label"])


def test_every_pixel_and_its_place_decide_the_noise_of_evaluation():
    image = np.asarray(rows(1)["image"])
    others = np.concatenate([image, image[:, ::-1], image[:, :, ::-1], image + np.float32(1e-6), 0 * image])
    hashes = np.asarray(content_hash(jnp.asarray(others)))
    assert len(np.unique(hashes)) == 5
    many = np.asarray(content_hash(rows(20_000)["image"]))
    assert len(np.unique(many)) >= 20_000 - 3
    assert np.histogram(many, 8, (0, 2**32))[0] == pytest.approx(2500, rel=0.1)


def test_training_draws_differ_by_key_and_padding_does_not_count():
    one, two = (shown(DDPM(), rows(4), seed=seed)[1] for seed in (0, 1))
    assert np.abs(np.asarray(one.losses) - np.asarray(two.losses)).max() > 1e-3
    total, weight = one.masked(jnp.asarray([True, True, False, False])).total()
    assert float(weight) == 2
    assert float(total) == pytest.approx(float(one.losses[:2].sum()))


def test_data_without_labels_are_unconditional():
    batch = rows(3)
    seen, _ = shown(EDM(), {"image": batch["image"]})
    np.testing.assert_array_equal(seen["label"], [-1] * 3)
    assert EDM(sampling_steps=1).sample_images(Seen(), DataSpec(SPEC.elements), seed=0)["samples"].shape == (4, 39, 1)


def test_a_model_that_returns_no_image_is_named():
    class Logits(nnx.Module):
        def __call__(self, batch, *, train, rngs):
            return jnp.zeros((len(batch["image"]), 10))

    module = Logits()
    with pytest.raises(ConfigError, match=r"returns an image \(4, 4, 1\); Logits returned \(10,\) .* @model\.unet\(\)"):
        DDPM()(module, rows(2), train=False, rngs=None)


def test_data_without_images_are_named():
    with pytest.raises(ConfigError, match=r"needs a dataset with images .* has inputs"):
        DDPM()(Seen(), {"inputs": jnp.zeros((2, 4), int)}, train=False, rngs=None)


@pytest.mark.parametrize(
    ("plugin", "wrong"),
    [
        (DDPM, {"timesteps": 1}),
        (DDPM, {"sampling_steps": 1001}),
        (DDPM, {"eta": 1.1}),
        (DDPM, {"label_dropout": -0.1}),
        (DDPM, {"guidance_scale": -1.0}),
        (DDPM, {"pixel_high": 0.0}),
        (EDM, {"grid_columns": 0}),
        (EDM, {"sigma_data": 0.0}),
        (EDM, {"sigma_max": 0.001}),
        (EDM, {"rho": float("nan")}),
    ],
)
def test_settings_out_of_range(plugin, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plugin(**wrong)


EXPERIMENT = """
experiment.model = @model.dit()
model.dit.patch = 4
model.dit.width = 32
model.dit.layers = 1
model.dit.heads = 2
experiment.dataset = @dataset.digits()
experiment.objective = @objective.edm()
objective.edm.sigma_data = 0.8
objective.edm.sampling_steps = 2
experiment.optimizer = @optimizer.adamw()
optimizer.adamw.learning_rate = 3e-3
experiment.parallelism = @parallelism.data_parallel()
parallelism.data_parallel.data = 2
experiment.trackers = []
experiment.steps = 200
experiment.batch_size = 64
experiment.ema_decay = 0.9
experiment.sample_every = 200
"""


@pytest.mark.slow
def test_an_experiment_learns_and_leaves_a_grid_in_its_run(tmp_path: Path) -> None:
    from assay.train.launch import start

    with registry.temporary("model", "dit", DiT), registry.temporary("objective", "edm", EDM):
        finished = start(config.load_text(EXPERIMENT, "digits.gin"), tmp_path)
    assert finished.values["validation/loss"] < 0.75  # 1 at first
    assert [path.suffix for path in finished.run.samples.iterdir()] == [".png"]


@pytest.mark.slow
def test_a_folder_of_colour_images_is_trained_on_and_sampled(tmp_path: Path) -> None:
    from assay.train.launch import start

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    for i, image in enumerate(pixels):
        for split in ("train", "validation"):
            folder = tmp_path / "images" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    folder_of = f"@dataset.image_folder()\ndataset.image_folder.directory = '{tmp_path / 'images'}'"
    text = EXPERIMENT.replace("@dataset.digits()", f"{folder_of}\ndataset.image_folder.image_size = 8")
    text = (
        text.replace("sigma_data", "label_dropout")
        .replace("edm", "ddpm")
        .replace("= 200", "= 2")
        .replace("= 64", "= 4")
    )
    with registry.temporary("model", "dit", DiT), registry.temporary("objective", "ddpm", DDPM):
        finished = start(config.load_text(text, "folder.gin"), tmp_path / "runs")
    (grid,) = finished.run.samples.iterdir()
    with Image.open(grid) as found:
        assert (found.mode, found.size) == ("RGB", (71, 17))
