"""Sampling from small modules with and without a key-value cache, against a plain loop in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from assay.data.spec import ArraySpec, DataSpec
from assay.errors import ConfigError, DataError
from assay_plugins.objectives import sampling
from assay_plugins.objectives.next_token import NextToken
from assay_plugins.tokenizers.byte import Bytes
from assay_plugins.tokenizers.char import Char

LETTERS = "abcdefgh"
CONTEXT = 6
PADDED = 11  # logits for ids that there are not


class Plain(nnx.Module):
    """One causal attention with learned positions; logits strongly prefer ids past the vocabulary."""

    def __init__(self, rngs, vocab=8, context=CONTEXT):
        def normal(*shape):
            return nnx.Param(2 * jax.random.normal(rngs.params(), shape))

        self.embedding, self.position = normal(max(vocab, PADDED), 8), normal(context, 8)
        self.query, self.key, self.value = normal(8, 8), normal(8, 8), normal(8, 8)
        self.vocab = vocab

    def __call__(self, batch, *, train, rngs):
        assert not train
        x = self.embedding[...][batch["inputs"]] + self.position[...][None, : batch["inputs"].shape[1]]
        mask = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))[None]
        scores = jnp.where(mask, jnp.einsum("btd,bsd->bts", x @ self.query[...], x @ self.key[...]), -jnp.inf)
        return self._logits(x + jax.nn.softmax(scores / 8) @ (x @ self.value[...]))

    def _logits(self, x):
        return (x @ self.embedding[...].T / 4).at[..., self.vocab :].set(1e3)


class Cached(Plain):
    """The same, one token at a time."""

    def init_cache(self, batch, length, dtype):
        return tuple(jnp.zeros((batch, length, 8), dtype) for _ in range(2))

    def decode(self, tokens, cache, position):
        x = self.embedding[...][tokens] + self.position[...][position][None, None]
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, position, axis=1)
        keys, values = put(cache[0], x @ self.key[...]), put(cache[1], x @ self.value[...])
        mask = (jnp.arange(keys.shape[1]) <= position)[None, None]
        scores = jnp.where(mask, jnp.einsum("btd,bsd->bts", x @ self.query[...], keys), -jnp.inf)
        return self._logits(x + jax.nn.softmax(scores / 8) @ values), (keys, values)


def spec_of(tokenizer, context=CONTEXT, text=LETTERS, names=("inputs", "targets")):
    encoder = tokenizer.fit([text])
    return DataSpec({name: ArraySpec((context,), "int32") for name in names}, encoder.vocab_size, encoder=encoder)


SPEC = spec_of(Char())


def sample(module, *prompts, spec=SPEC, length=4, temperature=1.0, top_k=None, seed=0):
    return NextToken().sample(module, spec, prompts, length=length, temperature=temperature, top_k=top_k, seed=seed)


def greedy(module, prompt, length, context=CONTEXT):
    """The likeliest continuation, with the window moved on by half when it is full."""
    ids = [LETTERS.index(letter) for letter in prompt]
    start = 0
    for _ in range(length):
        if len(ids) - start > context:
            start = len(ids) - max(1, context // 2)
        logits = module({"inputs": jnp.asarray([ids[start:]])}, train=False, rngs=None)
        ids.append(int(np.argmax(np.asarray(logits)[0, -1, : len(LETTERS)])))
    return "".join(LETTERS[i] for i in ids[len(prompt) :])


@pytest.fixture(params=[Plain, Cached])
def module(request):
    return request.param(nnx.Rngs(params=3))


@pytest.mark.parametrize("length", [1, 2, CONTEXT, 20])
def test_temperature_0_is_greedy_past_the_context_too(module, length):
    prompts = ["a", "bcd", "hgfedc"]
    assert sample(module, *prompts, length=length, temperature=0.0) == [greedy(module, p, length) for p in prompts]


def test_a_window_of_one_token():
    module = Cached(nnx.Rngs(params=0), context=1)
    spec = spec_of(Char(), context=1)
    assert sample(module, "ab", spec=spec, length=5, temperature=0.0) == [greedy(module, "b", 5, context=1)]


def test_the_cache_changes_nothing():
    plain, cached = Plain(nnx.Rngs(params=3)), Cached(nnx.Rngs(params=3))
    assert sample(plain, "a", "fed", length=15) == sample(cached, "a", "fed", length=15)


def test_one_text_for_one_seed(module):
    texts = [sample(module, "a", "a", length=40, seed=seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]
    assert {len(text) for pair in texts for text in pair} == {40}
    assert set("".join(texts[0] + texts[2])) <= set(LETTERS)


def test_a_text_does_not_depend_on_the_other_prompts(module):
    assert sample(module, "a", "b", length=9)[0] == sample(module, "a", "cdefg", "h", length=9)[0]


def test_a_prompt_longer_than_the_context_is_cut_at_the_front(module):
    assert sample(module, "aaaa" + "hgfedc") == sample(module, "hgfedc")


def test_top_k(module):
    assert sample(module, "ab", top_k=1, length=12) == sample(module, "ab", temperature=0.0, length=12)
    assert sample(module, "ab", top_k=999, length=12) == sample(module, "ab", length=12)


class Fixed(nnx.Module):
    """The same scores everywhere."""

    def __init__(self, scores):
        self.scores = nnx.Param(jnp.asarray(scores, jnp.float32))

    def __call__(self, batch, *, train, rngs):
        return jnp.broadcast_to(self.scores[...][None, None], (*batch["inputs"].shape, self.scores[...].size))


def test_tokens_are_drawn_with_the_softmax_of_their_scores():
    scores = np.asarray([0.0, 1.0, 2.0, -1.0, 0.0, 0.5, 0.0, 3.0])
    (text,) = sample(Fixed(scores), "a", spec=spec_of(Char(), context=64), length=4000, temperature=2.0, top_k=3)
    found = np.asarray([text.count(letter) for letter in LETTERS]) / 4000
    expected = np.where(scores >= 1.0, np.exp(scores / 2), 0)
    np.testing.assert_allclose(found, expected / expected.sum(), atol=0.03)


def test_a_text_ends_with_its_document():
    spec = spec_of(Bytes(), context=8)
    separator = spec.encoder.separator_id
    scores = np.zeros(spec.encoder.vocab_size)
    scores[separator] = 9.0
    assert sample(Fixed(scores), "a", "", spec=spec, temperature=0.0) == ["", ""]
    scores[separator], scores[ord("x")] = 0.0, 9.0
    assert sample(Fixed(scores), "a", "", spec=spec, temperature=0.0) == ["xxxx", "xxxx"]


def test_what_an_empty_prompt_starts_from():
    lines, none = spec_of(Char(), text="b\na"), spec_of(Char(), text="ba")
    assert [sampling._encoded(s.encoder, "").tolist() for s in (lines, none)] == [[0], [0]]
    assert lines.encoder.decode(np.asarray([0])) == "\n"
    text = spec_of(Bytes())
    assert sampling._encoded(text.encoder, "").tolist() == [text.encoder.separator_id]


class Packed(Fixed):
    """Reads what packed documents have."""

    def __call__(self, batch, *, train, rngs):
        assert (batch["segment_ids"].shape, batch["positions"].shape) == (batch["inputs"].shape,) * 2
        return super().__call__(batch, train=train, rngs=rngs)


def test_modules_for_packed_documents():
    spec = spec_of(Char(), names=("inputs", "targets", "segment_ids", "positions"))
    assert sample(Packed(np.arange(8)), "a", spec=spec, temperature=0.0) == ["hhhh"]


def test_one_compilation_for_all_prompts_of_one_shape(module):
    sample(module, "a", "b")
    before = sampling._filled._cache_size()
    sample(module, "cd", "e", seed=5, temperature=0.3)
    sample(type(module)(nnx.Rngs(params=9)), "e", "fgh", temperature=0.0)
    assert sampling._filled._cache_size() == before


def test_parameters_divided_over_devices(module):
    whole = sample(module, "a", "bc", length=9)
    mesh = jax.make_mesh((8,), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    graph, state = nnx.split(module)
    rows = NamedSharding(mesh, PartitionSpec(None, "all"))
    assert sample(nnx.merge(graph, jax.device_put(state, rows)), "a", "bc", length=9) == whole


def test_no_prompts(module):
    assert sample(module) == []


@pytest.mark.parametrize(
    "wrong", [{"length": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}], ids=str
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        sample(Fixed(np.zeros(8)), "a", **wrong)


def test_data_that_is_no_text():
    with pytest.raises(ConfigError, match="no tokenizer"):
        sample(Fixed(np.zeros(8)), "a", spec=DataSpec({}, num_classes=3))


def test_a_prompt_that_cannot_be_encoded():
    with pytest.raises(DataError, match="'Z'"):
        sample(Fixed(np.zeros(8)), "aZ")
