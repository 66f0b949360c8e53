"""Which form runs, by name, order, ``config.kernels`` and platform; and what is logged."""

import jax
import jax.numpy as jnp
import pytest

from vidlatent import config as configs
from vidlatent.errors import VidlatentError
from vidlatent.kernels import dispatch
from vidlatent.kernels.attention import attention_form
from vidlatent.kernels.conv3d import DENSE_FORMS, DEPTHWISE_FORMS
from vidlatent.kernels.dispatch import FORMS, choose, prefer, say_once, use_forms
from vidlatent.kernels.layer_mix import layer_mix
from vidlatent.main import _use_kernels

QUERIES = jnp.zeros((1, 200, 2, 64))


@pytest.fixture
def configured():
    """``configured(attention='xla')`` is a process whose config says so."""

    def use(**kernels):
        overrides = {f"kernels.{kind}": text for kind, text in kernels.items()}
        _use_kernels(configs.load("fsvideo_dit", overrides))

    say_once.cache_clear()
    yield use
    use_forms({})


def test_the_config_names_every_kernel():
    kernels = configs.load("fsae").kernels
    assert set(kernels) == set(FORMS) and set(kernels.values()) == {"auto"}
    assert set(FORMS["conv3d"]) == {*DENSE_FORMS, *DEPTHWISE_FORMS}


def test_the_config_stands_behind_what_code_asks_for(configured):
    configured(attention="splash", layer_mix="pallas")
    assert attention_form(QUERIES, platform="cpu") == ("splash", "asked for")
    assert attention_form(QUERIES, implementation="xla").name == "xla"
    with prefer(attention="xla"):
        assert attention_form(QUERIES, platform="tpu").name == "xla"
    with prefer(attention="auto"):
        assert attention_form(QUERIES, platform="gpu").name == "xla"
    with pytest.raises(VidlatentError, match="'splash' would pad 5 queries.*take 'xla' or 'auto'"):
        attention_form(QUERIES[:, :5])
    arrays = jnp.zeros((2, 1, 16, 128)), jnp.zeros((1, 16, 2))
    assert "pallas_call" in str(jax.make_jaxpr(lambda *a: layer_mix(*a, 0, 1))(*arrays))
    configured(attention="auto")
    assert attention_form(QUERIES, platform="cpu").name == "xla"
    assert "pallas_call" not in str(jax.make_jaxpr(lambda *a: layer_mix(*a, 0, 1))(*arrays))


@pytest.mark.parametrize(
    "text, says",
    [
        (
            "splahs",
            "kernels.attention=splahs: there is no form 'splahs'; did you mean 'splash'",
        ),
        ("splash,fast", "there is no form 'fast'; known: auto, cudnn, splash, xla."),
        ("", "there is no form ''; known: auto"),
    ],
)
def test_a_wrong_form_is_one_sentence_and_changes_nothing(text, says, configured):
    with pytest.raises(VidlatentError, match=says):
        configured(attention=text)
    assert attention_form(QUERIES, platform="tpu").name == "splash"
    with pytest.raises(VidlatentError, match="no kernel 'attenton': did you mean 'attention'"):
        with prefer(attenton="xla"):
            pass


@pytest.mark.parametrize("names", [("cudnn", "xla"), ["cudnn", "xla"], "cudnn, xla"])
def test_of_several_forms_the_first_that_can_runs(names, caplog, configured):
    half = QUERIES.astype(jnp.bfloat16)
    with caplog.at_level("INFO", logger="absl"):
        for _ in range(2):
            found = attention_form(QUERIES, implementation=names)
            assert found == ("xla", "'cudnn' does not know float32")
        assert attention_form(half, implementation=names) == ("cudnn", "asked for")
    said = [record.getMessage() for record in caplog.records]
    assert said == ["attention: 'cudnn' does not know float32; 'xla' runs instead"]
    both = "'cudnn' does not know float32; 'splash' would pad 5 queries to 128"
    with pytest.raises(VidlatentError, match=f"attention form {both}: take 'xla' or 'auto'"):
        attention_form(QUERIES[:, :5], implementation=("cudnn", "splash"))
    with pytest.raises(VidlatentError, match="did you mean 'cudnn'"):
        attention_form(half, implementation=("xla", "cuddn"))


def test_auto_explains_itself_once_for_every_kernel(caplog, configured):
    auto = {"tpu": "pallas", "default": "xla"}

    def lacks(name):
        return "needs whole heads" if name == "pallas" else ""

    with caplog.at_level("INFO", logger="absl"):
        for _ in range(2):
            assert choose("layer_mix", "auto", auto, platform="tpu").name == "pallas"
            assert choose("layer_mix", "auto", auto, platform="gpu").name == "xla"
            assert choose("qk_norm_rope", "auto", auto, platform="tpu", lacks=lacks).name == "xla"
            choose("layer_mix", "auto", auto, platform="cpu")
    assert [record.getMessage() for record in caplog.records] == [
        "layer_mix on tpu: 'pallas', the usual form on tpu",
        "layer_mix on gpu: 'xla', no other is made for gpu",
        "qk_norm_rope on tpu: 'xla', 'pallas' needs whole heads",
    ]


def test_threads_follow_the_config(configured):
    """A context variable would be lost in a thread that a data loader or a server starts."""
    from concurrent.futures import ThreadPoolExecutor

    configured(attention="splash")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(dispatch.list_wanted, "attention", "auto").result() == ("splash",)
