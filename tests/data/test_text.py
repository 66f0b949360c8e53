"""Text cleaning and tokenization."""

import json

import numpy as np
import pytest

from vidlatent.data.text.rules import (
    RULES,
    clean_basic,
    clean_caption,
    clean_caption_twice,
    clean_prompt,
    text_of_markup,
)
from vidlatent.data.text.tokens import load_tokenizer, word_tokens
from vidlatent.errors import VidlatentError
from vidlatent.models.pretrained import NETWORKS

PROMPTS = {
    "  a\u00a0cat \n\t sits\r\n here ": "a cat sits here",
    "sch\u00c3\u00b6n": "sch\u00f6n",  # UTF-8 read as Latin-1
    "\u201cquoted\u201d": '"quoted"',
    "R&amp;amp;D &lt;b&gt;": "R&D <b>",
    "\ufeffa\u200b": "a\u200b",
    "\uff21\uff22": "AB",  # full width
    "\u4e00\u53ea\u732b": "\u4e00\u53ea\u732b",
    "": "",
    "Keeps CASE, #tags and http://urls.com": "Keeps CASE, #tags and http://urls.com",
}


@pytest.mark.parametrize("text", PROMPTS)
def test_clean_prompt(text):
    pytest.importorskip("ftfy")
    assert clean_prompt(text) == PROMPTS[text]
    assert clean_prompt(PROMPTS[text]) == PROMPTS[text]


def test_clean_basic_keeps_inner_space():
    pytest.importorskip("ftfy")
    assert clean_basic(" a \n b&amp;nbsp; ") == "a \n b"


# One pass each; the right-hand sides are those of the published function.
CAPTIONS = {
    "A <PERSON> rides": "a person rides",
    "see https://example.com/a?b=c now": "see ?b=c now",
    "go to shop.net/page today": "go to today",
    "by @nick, 2020": "by , 2020",
    "<p>bold <b>cat</b></p><!-- x --><script>y</script>": "bold cat",
    "red+cat%20sits": "red cat sits",
    "\u96ea snow \u2014 cold": "snow - cold",
    "\u00abcat\u00bb \u2018s": '"cat" \'s',
    "ping 192.168.0.1 ok": "ping ok",
    "no #12 but #1234 and 1234567": "no but 1234 and",
    "photo.JPG of a dog": "of a dog",
    '***SALE*** """now""" ...': 'sale "now"',
    "this-is-my-cute-cat": "this is my cute cat",
    "a-b_c": "a-b_c",
    "code jc6640 jc6640vc 6640vc231 j2d1a2a": "code",
    "free shipping, click for more, page 3": ",",
    "size 10x20 and 10.5\u00d73": "size and",
    "word : next,one": "word: next, one",
    '"all of it"': "all of it",
    "-start": "start",
    "end-": "end",
    ".hidden": "",
    "line\\nbreak": "line break",
    "": "",
}


@pytest.mark.parametrize("text", CAPTIONS)
def test_clean_caption(text):
    pytest.importorskip("ftfy")
    assert clean_caption(text) == CAPTIONS[text]


def test_second_pass_matters():
    pytest.importorskip("ftfy")
    assert clean_caption("':a cat") == ":a cat"
    assert clean_caption_twice("':a cat") == "a cat"


def test_text_of_markup():
    assert text_of_markup("a&nbsp;b &copy; &#65;&#x42; &what; < 5 &lt;i&gt;") == (
        "a\u00a0b \u00a9 AB &what < 5 <i>"
    )
    assert text_of_markup("<style>p</style>x<![CDATA[k]]><!DOCTYPE html>y") == "xky"


def test_words():
    tokens, mask = word_tokens(["Red square", "red  SQUARE!", "", "a b c d e"], 3, 1000)
    assert tokens.dtype == mask.dtype == np.int32 and tokens.shape == (4, 3)
    np.testing.assert_array_equal(tokens[0], tokens[1])
    np.testing.assert_array_equal(mask.sum(axis=1), [2, 2, 0, 3])
    assert (tokens[mask > 0] > 0).all() and not tokens[mask == 0].any() and tokens.max() < 1000
    # The same in every process and release: checkpoints depend on it.
    assert tokens[0, :2].tolist() == [95, 239]
    with pytest.raises(VidlatentError, match="1 buckets"):
        word_tokens(["a"], 3, 1)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A vocabulary like T5's: pieces that mark spaces, pad 0, end 1, unknown 2."""
    tokenizers = pytest.importorskip("tokenizers")
    blank = "\u2581"
    pieces = ["<pad>", "</s>", "<unk>", blank, f"{blank}a", f"{blank}cat", "s", f"{blank}dog", "c"]
    model = tokenizers.models.Unigram([(p, -i / 10) for i, p in enumerate(pieces)], unk_id=2)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.add_special_tokens(pieces[:3])
    # Published files bring their own truncation and padding.
    made.enable_truncation(2)
    made.enable_padding(length=9)
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_tokenizer(tokenizer_file):
    pytest.importorskip("ftfy")
    encode = load_tokenizer("wan", tokenizer_file.parent)
    tokens, mask = encode(["a  cats", "", "a dog " * 400])
    assert tokens.shape == mask.shape == (3, 512) and tokens.dtype == np.int32
    assert tokens[0, :5].tolist() == [4, 5, 6, 1, 0] and mask[0].sum() == 4
    assert tokens[1, :2].tolist() == [1, 0] and mask[1].sum() == 1
    assert tokens[2, -3:].tolist() == [7, 4, 1]
    assert mask[2].all() and (tokens[2, :-1] != 1).all()
    short = load_tokenizer("reducio", tokenizer_file)
    assert short(["A CAT"])[0].shape == (1, 120)
    assert short(["A CAT"])[0][0, :3].tolist() == [4, 5, 1]  # lower case


@pytest.mark.parametrize("system", RULES)
def test_missing_tokenizer_names_file_and_source(system, tmp_path):
    for path in ("", tmp_path, tmp_path / "none.json"):
        with pytest.raises(VidlatentError) as caught:
            load_tokenizer(system, path)
        message = str(caught.value)
        assert "tokenizer.json" in message and RULES[system].source in message
        assert message.count(". ") == 0 and message.endswith(".")
    assert RULES[system].network in NETWORKS.names()


def test_odd_tokenizers(tmp_path, tokenizer_file):
    odd = tmp_path / "tokenizer.json"
    for text in ("no json", "[]", "{}"):
        odd.write_text(text)
        with pytest.raises(VidlatentError, match="is no tokenizer.json"):
            load_tokenizer("wan", odd)
    described = json.loads(tokenizer_file.read_text())
    described["added_tokens"] = described["added_tokens"][1:]
    described["model"]["vocab"][0][0] = "[PAD]"
    odd.write_text(json.dumps(described))
    with pytest.raises(VidlatentError, match="has no <pad>: it is not a T5 tokenizer"):
        load_tokenizer("wan", odd)
    with pytest.raises(VidlatentError, match="did you mean 'reducio'"):
        load_tokenizer("reduco", odd)
