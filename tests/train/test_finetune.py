"""Fine-tuning: starting from other weights, and training only the decoder."""

import jax
import numpy as np
import pytest
from etils import epath

from vidlatent import config as configs
from vidlatent.checkpoint.digests import read_manifest
from vidlatent.codec.codec import Codec
from vidlatent.errors import VidlatentError
from vidlatent.models.load import abstract_params, model_of
from vidlatent.train.init_from import check_init_from
from vidlatent.train.loop import train
from vidlatent.weights.tables import initialize_from


def config(**model):
    loaded = configs.load("tests/tiny.py", {"train.steps": "2", "eval.every": "0"})
    loaded.data.buckets = ((5, 16, 16, 8),)
    with loaded.unlocked():
        loaded.model.update(model)
    return loaded


LOOKING = {"cross_stages": (2,), "cross_head_dim": 8, "noise_weight": 0.05}
FORMS = {
    "standard": {**LOOKING, "decoder_time": "centred"},
    "lite": {**LOOKING, "decoder_time": "group", "decoder_widths": (4, 8, 16)},
}


def finetuned(form, source="", follows=()):
    """As in ``fsae:paper,stage=<form>``: train only the decoder, from the previous run."""
    loaded = config(**FORMS[form])
    with loaded.unlocked():
        loaded.recipe = f"fsae {form}"
        loaded.train.init_kind, loaded.train.init_from = form, str(source)
        loaded.train.init_recipes = follows
        loaded.optim.freeze = "encoder/"
    return loaded


@pytest.fixture(scope="module")
def runs(one_device, tmp_path_factory):
    """Workdirs of a causal run and of a Standard run that is fine-tuned from it."""
    folder = tmp_path_factory.mktemp("finetune")
    base, standard = folder / "base", folder / "standard"
    train(config(), base)
    train(finetuned("standard", base), standard)
    return base, standard


def check_finetuned(before, after):
    """The encoder is unchanged; the decoder's end and the attention to frame 0 have changed."""
    first, second = Codec.from_workdir(before), Codec.from_workdir(after)
    assert first.encoder == second.encoder  # latents of one are the other's
    old, new = first.params, second.params
    jax.tree.map(np.testing.assert_array_equal, new["encoder"], old["encoder"])
    assert np.any(new["decoder"]["first_frame_attn_2"]["to_out"]["kernel"])
    # The optimizer keeps no moments for frozen parameters.
    manifest = read_manifest(epath.Path(after / "checkpoints" / "2" / "digests"))
    assert not any("encoder" in name for name in manifest.item("opt"))
    return old["decoder"], new["decoder"]


def test_standard_from_a_causal_run_with_the_encoder_frozen(runs, tmp_path):
    with pytest.raises(VidlatentError, match="init_from"):
        train(finetuned("standard"), tmp_path)
    old, new = check_finetuned(*runs)
    assert np.abs(new["conv_out"]["kernel"] - old["conv_out"]["kernel"]).max() > 0


def test_lite_starts_from_standard_and_nothing_else(tmp_path):
    for source in ("fsae 1", "fsae 3", "fsae vf"):
        former = config()
        with former.unlocked():
            former.recipe = source
        (tmp_path / source / "checkpoints").mkdir(parents=True)
        configs.write(former, tmp_path / source)
        wrong = finetuned("lite", tmp_path / source, ("fsae standard",))
        with pytest.raises(
            VidlatentError, match=f"'{source}', but 'fsae lite' follows on 'fsae st"
        ):
            check_init_from(wrong)
    lite, causal, centred = (
        abstract_params(model_of(loaded))
        for loaded in (finetuned("lite"), config(), finetuned("standard"))
    )
    # The table is recognised by the tensors in the file.
    with pytest.raises(VidlatentError, match="belong to another form.*first_frame_attn_2"):
        jax.eval_shape(lambda *params: initialize_from("lite", *params), causal, lite)
    started = jax.eval_shape(lambda *params: initialize_from("lite", *params), centred, lite)
    assert jax.tree.map(lambda x: x.shape, started) == jax.tree.map(lambda x: x.shape, lite)


@pytest.mark.slow
def test_lite_is_trained_from_standard(runs, one_device, tmp_path):
    _, standard = runs
    train(finetuned("lite", standard, ("fsae standard",)), tmp_path)
    old, new = check_finetuned(standard, tmp_path)
    # The narrower outer stages are new; the inner one keeps its weights.
    assert new["conv_out"]["kernel"].shape != old["conv_out"]["kernel"].shape
    assert np.abs(new["conv_in"]["kernel"] - old["conv_in"]["kernel"]).max() < 0.1


def test_a_pattern_that_freezes_nothing_is_refused(tmp_path):
    wrong = config()
    wrong.optim.freeze = "encodr/"
    with pytest.raises(VidlatentError, match="matches no parameter"):
        train(wrong, tmp_path)
