"""VideoAlign's files: released layouts, adapters, the template and the tokenizer."""

import importlib.util
import json
import logging

import jax
import numpy as np
import pytest

from vidlatent.convert.networks import main
from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import NETWORKS, random_params
from vidlatent.models.pretrained.load import load_network, load_network_params, read_network
from vidlatent.models.rewards.videoalign.template import (
    INSTRUCTION,
    Template,
    encode_prompts,
    load_encoder,
    load_template,
    make_template,
    read_template,
)
from vidlatent.weights.importer import export_params
from vidlatent.weights.peft import merge_peft
from vidlatent.weights.safetensors import load_safetensors, save_safetensors
from vidlatent.weights.tables import TABLES

NAME = "videoalign_tiny"
RANK = 64  # of the release; small kernels have a larger one here than they could need


@pytest.fixture(scope="module")
def module():
    return NETWORKS.get(NAME).module()


@pytest.fixture(scope="module")
def plain():
    return export_params(random_params(NAME, 3), TABLES.get("videoalign"))


@pytest.fixture(scope="module")
def released(plain):
    """The released layout: wrapped names, adapters apart, a second copy of the token table."""
    rng = np.random.default_rng(4)
    found = {}
    for name, x in plain.items():
        if name.startswith("model.layers.") and "_proj." in name:
            base, _, kind = name.rpartition(".")
            found[f"base_model.model.{base}.base_layer.{kind}"] = x
            if kind == "weight":
                for part, shape in (("A", (RANK, x.shape[1])), ("B", (x.shape[0], RANK))):
                    factor = np.float32(rng.normal(0, 0.05, shape))
                    found[f"base_model.model.{base}.lora_{part}.default.weight"] = factor
        else:
            found[f"base_model.model.{name}"] = x
    found["base_model.model.lm_head.weight"] = plain["model.embed_tokens.weight"]
    return found


def merged_of(plain, released):
    """Every adapted kernel by the formula, 128 / 64 times the factors' product."""
    expected = dict(plain)
    for name in plain:
        base = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{base}.lora_A.default.weight" in released:
            a, b = (np.float64(released[f"{base}.lora_{p}.default.weight"]) for p in "AB")
            expected[name] = plain[name] + 2.0 * b @ a
    return expected


def write(path, tensors):
    save_safetensors(tensors, path)
    return path


def test_the_released_layout(tmp_path, plain, released):
    params = read_network(NAME, [write(tmp_path / "model.safetensors", released)])
    found = export_params(params, TABLES.get("videoalign"))
    expected = merged_of(plain, released)
    assert set(found) == set(expected)
    changed = 0
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, expected[name], atol=2e-6, err_msg=name)
        changed += not np.array_equal(tensor, plain[name])
    assert changed == 7 * 2


def test_adapter_and_other_weights_in_files_of_their_own(tmp_path, plain, released):
    """The trainer's other layout: base model, adapter without the adapter's name, all the rest."""
    adapter = {n.replace(".default.", "."): x for n, x in released.items() if ".lora_" in n}
    rest = {n: x for n, x in released.items() if "visual." in n or "rm_head" in n}
    base = {n: np.zeros_like(x) if "visual." in n else x for n, x in plain.items()}
    base.pop("rm_head.weight")
    # As newer versions of transformers name it.
    base = {
        n.replace("model.", "model.language_model.", 1)
        if n.startswith("model.")
        else f"model.{n}": x
        for n, x in base.items()
    }
    paths = [
        write(tmp_path / f"{name}.safetensors", tensors)
        for name, tensors in {"base": base, "adapter": adapter, "rest": rest}.items()
    ]
    whole = read_network(NAME, [write(tmp_path / "model.safetensors", released)])
    jax.tree.map(np.testing.assert_array_equal, read_network(NAME, paths), whole)


def test_the_second_copy_of_the_token_table_counts(tmp_path, released, caplog):
    other = released | {
        "base_model.model.lm_head.weight": released["base_model.model.lm_head.weight"] + 1
    }
    with caplog.at_level(logging.WARNING):
        params = read_network(NAME, [write(tmp_path / "other.safetensors", other)])
    np.testing.assert_array_equal(
        params["text"]["embedding"]["kernel"], other["base_model.model.lm_head.weight"]
    )
    assert "differ" in caplog.text


def test_merged_kernels_keep_float32(tmp_path, released):
    half = {n: x.astype(jax.numpy.bfloat16) for n, x in released.items()}
    params = read_network(NAME, [write(tmp_path / "half.safetensors", half)])
    assert params["text"]["blocks"]["fc1"]["kernel"].dtype == np.float32
    assert params["visual"]["blocks"]["mlp"]["fc1"]["kernel"].dtype == jax.numpy.bfloat16


def test_the_released_file_is_a_torch_file(tmp_path, released):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save(
        {n: torch.from_numpy(x.copy()).to(torch.bfloat16) for n, x in released.items()}, path
    )
    half = {n: x.astype(jax.numpy.bfloat16) for n, x in released.items()}
    expected = read_network(NAME, [write(tmp_path / "half.safetensors", half)])
    found = read_network(NAME, [path])
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(
        a.dtype == b.dtype
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )


def test_without_torch_the_released_file_is_refused_with_the_remedy(tmp_path, monkeypatch, capsys):
    path = tmp_path / "model.pth"
    path.write_bytes(b"x")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([f"--name={NAME}", f"--from={path}", f"--to={tmp_path}/a.safetensors"]) == 1
    assert "torch is not installed: install it, or" in capsys.readouterr().err


def test_convert_stores_the_template(tmp_path, module, released, capsys):
    source = write(tmp_path / "model.safetensors", released)
    text = tmp_path / "instruction.txt"
    text.write_text(INSTRUCTION)
    target = tmp_path / "videoalign.safetensors"
    arguments = [f"--name={NAME}", f"--from={source}", f"--to={target}"]
    assert main([*arguments, f"--template={text}", "--tokenizer=words"]) == 0
    assert "wrote" in capsys.readouterr().out
    stored = load_safetensors(target)
    template = make_template(INSTRUCTION, load_encoder("words", module))
    assert load_template(target) == template
    # The file holds plain names and loads without the template.
    assert not any("lora" in name or "lm_head" in name for name in stored)
    first, again = (load_network(NAME, path).params for path in (source, target))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    # Without a template it is said what then differs.
    bare = tmp_path / "bare.safetensors"
    assert main([f"--name={NAME}", f"--from={source}", f"--to={bare}"]) == 0
    assert load_template(bare) is None and load_template("model.pth") is None
    assert main([*arguments, "--template=none.txt"]) == 1
    assert "--template=none.txt: there is no such file" in capsys.readouterr().err
    assert main(["--name=lpips_tiny", "--from=a", "--to=b.safetensors", "--template=x"]) == 1
    assert "lpips_tiny reads no text around a prompt" in capsys.readouterr().err


def test_three_outputs_are_seen_by_the_shape(tmp_path, module, plain):
    three = plain | {"rm_head.weight": np.ones((3, plain["rm_head.weight"].shape[1]), np.float32)}
    path = write(tmp_path / "three.safetensors", three)
    params = read_network(NAME, [path])
    assert params["head"]["kernel"].shape[-1] == 3
    target = tmp_path / "again.safetensors"
    assert main([f"--name={NAME}", f"--from={path}", f"--to={target}"]) == 0
    assert load_safetensors(target)["rm_head.weight"].shape[0] == 3
    two = plain | {"rm_head.weight": np.ones((2, plain["rm_head.weight"].shape[1]), np.float32)}
    with pytest.raises(VidlatentError, match="misshaped: rm_head.weight"):
        read_network(NAME, [write(tmp_path / "two.safetensors", two)])
    abstract = jax.eval_shape(lambda: params)
    jax.tree.map(
        np.testing.assert_array_equal, load_network_params(NAME, str(path), abstract), params
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("q.lora_A.weight"), "adapter of q is not whole"),
        (lambda t: t.pop("q.base_layer.weight"), "adapter of q is not whole.*q.weight"),
        (lambda t: t.update({"q.lora_magnitude_vector": np.ones(4)}), "q.lora_magnitude_vector is"),
        (lambda t: t.update({"q.lora_B.weight": np.ones((5, 2))}), r"q.weight \(4, 3\) has"),
    ],
)
def test_adapters_that_cannot_be_merged(change, sentence):
    tensors = {
        "q.base_layer.weight": np.ones((4, 3)),
        "q.lora_A.weight": np.ones((2, 3)),
        "q.lora_B.weight": np.ones((4, 2)),
    }
    np.testing.assert_array_equal(merge_peft(tensors, 6.0)["q.weight"], np.full((4, 3), 7.0))
    change(tensors)
    with pytest.raises(VidlatentError, match=sentence):
        merge_peft(tensors, 6.0)


def test_merged_equals_unmerged():
    rng = np.random.default_rng(5)
    w, a, b, x = (np.float32(rng.normal(size=s)) for s in ((40, 30), (8, 30), (40, 8), (7, 30)))
    tensors = {"p.weight": w, "p.lora_A.weight": a, "p.lora_B.weight": b}
    merged = x @ merge_peft(tensors, 16.0)["p.weight"].T
    apart = x @ w.T + 16.0 / 8 * (x @ a.T) @ b.T
    np.testing.assert_allclose(merged, apart, atol=4e-6 * np.abs(apart).max())


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory, module):
    """A byte-level tokenizer.json of the small network: bytes, some merges, the special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), (".", "Ċ"), ("Ġ", "a"), ("Ġ", "the"), ("r", "e")]
    words = [*letters, *("".join(pair) for pair in merges)]
    numbers = {word: i for i, word in enumerate(words)}
    numbers |= {f"unused{i}": i for i in range(len(numbers), module.picture_token)}
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(numbers, merges))
    encoder.normalizer = tokenizers.normalizers.NFC()
    # As Qwen2 cuts texts: a space belongs to the word behind it, line ends to what they close.
    cut = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(cut), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    names = ["<|image_pad|>", "<|video_pad|>", "<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"]
    encoder.add_special_tokens(names)
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    encoder.save(str(path))
    return path


def test_prompts_are_cut_where_tokens_end(vocabulary, module):
    """Head, prompt and tail together are the tokens of the whole text."""
    encode = load_encoder(vocabulary, module)
    template = make_template(INSTRUCTION, encode).check(module, "ours")
    marker = make_template("\n<|VQ_reward|> {prompt}\nEnd\n", encode)
    chat = encode("<|video_pad|>")
    assert template.head.count(chat[0]) == 1 and marker.head.count(chat[0]) == 1
    for prompt in ("the cat.", "a, b  ", "日本語", "{x} {}", "", "two\nlines", "ends\n"):
        own = encode_prompts([prompt], encode, module, 4)
        row = own["tokens"][0, : own["length"][0]].tolist()
        before, _, after = INSTRUCTION.partition(" {prompt}\n")
        whole = encode(f"{before} {prompt}\n{after}")
        joined = [*encode(before), *row, *encode(after)]
        assert joined == whole, prompt
        assert own["tokens"].shape[1] % 4 == 0


def test_the_words_need_no_file(module):
    encode = load_encoder("words", module)
    numbers = encode("Red <|VQ_reward|> red, blue")
    assert numbers[1] == module.score_tokens[0] and numbers[0] == numbers[2] != numbers[3]
    assert max(numbers[0], numbers[3]) < module.picture_token


def test_templates_of_numbers(tmp_path, module):
    path = tmp_path / "ids.json"
    head, tail = [1, module.video_token, *module.score_tokens[:2]], [module.score_tokens[2], 5]
    path.write_text(json.dumps({"head_ids": head, "tail_ids": tail}))
    assert read_template(path, module) == Template(tuple(head), tuple(tail))


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"head_ids": [1]}, "needs head_ids and tail_ids"),
        ({"head_ids": [1.5], "tail_ids": []}, "needs head_ids and tail_ids"),
        ({"head_ids": [508, 509, 510], "tail_ids": [3]}, "once each"),
        ({"head_ids": [509, 508, 510], "tail_ids": [511]}, "in this order"),
        ({"head_ids": [1], "tail_ids": [508, 509, 510, 511]}, "before the prompt"),
        ({"head_ids": [508, 507, 509, 510], "tail_ids": [511]}, "before the video"),
        ({"head_ids": [508, 509, 510, 999], "tail_ids": [511]}, "beyond the vocabulary of 512"),
    ],
)
def test_templates_that_are_none(tmp_path, module, numbers, sentence):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(numbers))
    with pytest.raises(VidlatentError, match=sentence):
        read_template(path, module)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rate <|VQ_reward|>", "0 times"),
        ("a {prompt}\nb {text_prompt}\nc", "2 times"),
        ("of{prompt}\nEnd", "after a word and a single space"),
        ("of  {prompt}\nEnd", "after a word and a single space"),
        ("of {prompt} is\nEnd", "at the end of its line"),
        ("of {prompt}\n\nEnd", "a word at the start of the next"),
    ],
)
def test_places_of_the_prompt_that_cannot_be_cut(module, text, sentence):
    with pytest.raises(VidlatentError, match=sentence):
        make_template(text, load_encoder("words", module))


def test_other_tokenizers_and_prompts_are_refused(tmp_path, vocabulary, module):
    with pytest.raises(VidlatentError, match="special token of VideoAlign.*take it out"):
        encode_prompts(["a <|MQ_reward|>"], load_encoder(vocabulary, module), module, 8)
    with pytest.raises(VidlatentError, match="no tokenizer at .*released VideoAlign"):
        load_encoder(tmp_path / "none.json", module)
    with pytest.raises(VidlatentError, match="is not VideoAlign's tokenizer: <.video_pad.> is"):
        load_encoder(vocabulary, module.clone(video_token=3))
