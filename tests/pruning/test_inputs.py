"""Models with an encoder and a decoder, of images and of audio, compared with hooks on their projections."""

import copy
import re
import warnings

import pytest
import torch
import transformers
from torch import nn

from pruning import prune
from pruning.model.ffn import find_ffns
from pruning.observe.batches import Inputs, Windows, with_decoder
from pruning.observe.calibration import calibration_windows
from pruning.observe.capture import capture
from pruning.repair.stream import Stream
from pruning.settings import Settings

from tiny import ARCHITECTURES, assert_unchanged, state_of, tiny

COMMON = {"ratio": 0.25, "multiple_of": 2, "repair": "lstsq"}
IMAGE = 259
pytestmark = pytest.mark.filterwarnings("ignore:calibration:UserWarning")  # few tokens are enough here
OUTPUTS = r".*\.(wo|fc2|output\.dense|down_proj)"
"""The names of the output projections of all FFNs here."""
PRUNED = {
    "T5ForConditionalGeneration": {"d_ff": 30},
    "BartForConditionalGeneration": {"encoder_ffn_dim": 30, "decoder_ffn_dim": 36},
    "WhisperForConditionalGeneration": {"encoder_ffn_dim": 30, "decoder_ffn_dim": 36},
    "ViTModel": {"intermediate_size": 30},
    "CLIPModel": {"text_config": 36, "vision_config": 30},
}
"""The config of each class without a quarter of its neurons."""
every_class = pytest.mark.parametrize("class_name", PRUNED)


def random_ids(seed, *shape):
    return torch.randint(3, IMAGE, shape, generator=torch.Generator().manual_seed(seed))


def batches(class_name):
    """Two batches of all that a class reads; the ids of the encoder and of the decoder have different lengths."""
    found = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(10, 3, 16, 16, generator=generator)
        sound = torch.randn(10, 8, 16, generator=generator)
        ids, decoder_ids = random_ids(seed, 10, 14), random_ids(seed + 9, 10, 11)
        found.append(
            {
                "ViTModel": {"pixel_values": images},
                "CLIPModel": {"pixel_values": images, "input_ids": ids},
                "WhisperForConditionalGeneration": {
                    "input_features": sound,
                    "decoder_input_ids": decoder_ids,
                },
            }.get(class_name, {"input_ids": ids, "decoder_input_ids": decoder_ids})
        )
    return found


def output_projections(model):
    """The output projections by name, in the order of the model, without those of attention and heads."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(OUTPUTS, name) and "attention" not in name
    }


@torch.no_grad()
def hooked(model, inputs, rows=lambda name: slice(None)):
    """The inputs `[T, N]` of all output projections, at the rows that count."""
    seen = {name: [] for name in output_projections(model)}
    handles = [
        module.register_forward_pre_hook(
            lambda _module, args, name=name: seen[name].append(args[0].flatten(0, -2)[rows(name)])
        )
        for name, module in output_projections(model).items()
    ]
    for batch in inputs:
        model(**batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(z) for name, z in seen.items() if z}


def assert_moments(statistics, z):
    assert statistics.n_tokens == len(z)
    torch.testing.assert_close(statistics.mean, z.double().mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics.covariance, z.t().cov(correction=0), rtol=1e-3, atol=1e-5)


def silence(model, report):
    """Set the columns of the dropped neurons to zero."""
    for layer in report.layers:
        (module,) = (m for n, m in output_projections(model).items() if n.startswith(f"{layer.name}."))
        with torch.no_grad():
            module.weight[:, layer.dropped] = 0


def flat(output):
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


@every_class
def test_statistics_are_those_of_hooks_on_the_projections(class_name):
    model, given = tiny(class_name), batches(class_name)
    found = capture(model, find_ffns(model), given, sample_size=64)
    expected = hooked(model, given)
    assert len(found) == len(expected) == 2 * (1 if class_name == "ViTModel" else 2)
    for statistics, (name, z) in zip(found, expected.items(), strict=True):
        assert name.startswith(f"{statistics.name}.")
        assert_moments(statistics, z)


@every_class
def test_pruning_is_the_same_as_silencing_the_dropped_neurons_and_reloads_to_the_bit(class_name, tmp_path):
    dense, given = tiny(class_name), batches(class_name)
    pruned, silent = copy.deepcopy(dense), copy.deepcopy(dense)
    report = prune(pruned, None, calibration=given, **COMMON | {"repair": "none"})
    assert report.notes["ffns"] == {"pruned": len(report.layers), "of": len(report.layers), "left": {}}
    silence(silent, report)
    for entry, value in PRUNED[class_name].items():
        found = getattr(pruned.config, entry)
        assert (found if isinstance(found, int) else found.intermediate_size) == value
    pruned.save_pretrained(tmp_path)
    loaded = getattr(transformers, class_name).from_pretrained(tmp_path)
    assert_unchanged(loaded, state_of(pruned))
    with torch.no_grad():
        after, masked, before = (flat(model(**given[0])) for model in (pruned, silent, dense))
    for one, other in zip(after, masked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert any(not torch.allclose(one, other, atol=1e-2) for one, other in zip(before, masked, strict=True))


@pytest.mark.parametrize("class_name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_windows_of_text_are_read_by_the_encoder_and_behind_a_start_token_by_the_decoder(class_name):
    model, ids = tiny(class_name), random_ids(1, 12, 10)
    start = model.config.decoder_start_token_id
    windows = calibration_windows(model, None, ids, Settings())
    shifted = torch.cat([torch.full((12, 1), start), ids[:, :-1]], 1)
    for batch, part, decoder in zip(windows.split(5), ids.split(5), shifted.split(5), strict=True):
        assert batch.keys() == {"input_ids", "decoder_input_ids"}
        assert torch.equal(batch["input_ids"], part)
        assert torch.equal(batch["decoder_input_ids"], decoder)
    # What the loss of the class reads.
    assert torch.equal(shifted, model.prepare_decoder_input_ids_from_labels(labels=ids))
    report = prune(model, None, calibration=ids, **COMMON | {"repair": "auto"})
    assert report.settings["repair"] == "lstsq"
    assert (report.calibration_tokens, len(report.layers)) == (120, 4)


def test_the_decoder_of_padded_windows_has_the_same_padding():
    batch = Windows(list(random_ids(1, 2, 6)) + list(random_ids(2, 1, 4)), decoder_start=7).split(3)[0]
    assert batch["decoder_input_ids"][:, 0].tolist() == [7, 7, 7]
    assert batch["decoder_attention_mask"].tolist() == [[1] * 6, [1] * 6, [1] * 4 + [0] * 2]
    assert "attention_mask" not in with_decoder(random_ids(1, 2, 6), 7)


@pytest.mark.parametrize("class_name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_padding_in_encoder_and_decoder_does_not_count(class_name):
    model = tiny(class_name)
    lengths = [(14, 6), (5, 11), (9, 9), (14, 11), (3, 2), (8, 11)] * 4
    ids, decoder_ids = random_ids(3, 24, 14), random_ids(4, 24, 11)
    single = [
        {"input_ids": ids[i : i + 1, :n], "decoder_input_ids": decoder_ids[i : i + 1, :m]}
        for i, (n, m) in enumerate(lengths)
    ]
    mask, decoder_mask = (
        torch.stack([(torch.arange(size) < pair[side]).long() for pair in lengths])
        for side, size in enumerate((14, 11))
    )
    padded = {
        "input_ids": ids * mask,
        "attention_mask": mask,
        "decoder_input_ids": decoder_ids * decoder_mask,
        "decoder_attention_mask": decoder_mask,
    }
    found = capture(model, find_ffns(model), [padded], sample_size=64)
    expected = hooked(model, single)
    for statistics, z in zip(found, expected.values(), strict=True):
        assert_moments(statistics, z)
    total = [sum(pair[side] for pair in lengths) for side in range(2)]
    assert [s.n_tokens for s in found] == [total[0]] * 2 + [total[1]] * 2
    reports = [prune(tiny(class_name), None, calibration=given, **COMMON) for given in ([padded], single)]
    assert [report.calibration_tokens for report in reports] == [max(total)] * 2
    kept = [[layer.kept.tolist() for layer in report.layers] for report in reports]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("class_name", ["T5ForConditionalGeneration", "BartForConditionalGeneration"])
def test_labels_are_what_the_decoder_reads_one_place_later(class_name):
    model = tiny(class_name)
    ids, labels = random_ids(3, 6, 14), random_ids(4, 6, 11)
    mask = (torch.arange(11) < torch.tensor([6, 11, 9, 11, 2, 11])[:, None]).long()
    labels = labels.masked_fill(mask == 0, -100)
    batch = calibration_windows(model, None, {"input_ids": ids, "labels": labels}, Settings()).split(1)[0]
    shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)  # what the loss of the class reads
    assert torch.equal(batch["decoder_input_ids"] * mask, shifted * mask)
    assert torch.equal(batch["decoder_attention_mask"], mask)
    assert "labels" not in batch
    report = prune(model, None, calibration=[{"input_ids": ids, "labels": labels}], **COMMON)
    assert [layer.n_tokens for layer in report.layers] == [84, 84, 50, 50]


def test_padding_of_what_a_decoder_reads_is_warned_of_where_no_mask_names_it():
    model, ids = tiny("T5ForConditionalGeneration"), random_ids(3, 2, 14)
    padding = model.config.pad_token_id
    padded = random_ids(4, 2, 11)
    padded[1, 6:] = padding
    for given, words in (
        ({"decoder_input_ids": padded}, "pass a dict with decoder_attention_mask"),
        ({"labels": padded}, "pass a dict with -100 for padding in labels"),
    ):
        with pytest.warns(UserWarning, match=words):
            calibration_windows(model, None, {"input_ids": ids, **given}, Settings())
    start = torch.full((2, 1), model.config.decoder_start_token_id)  # which is the padding token of T5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for decoder in (torch.cat([start, padded[:, :5]], 1), start):
            calibration_windows(model, None, {"input_ids": ids, "decoder_input_ids": decoder}, Settings())


def test_only_takes_one_side_and_names_the_other():
    model, given = tiny("CLIPModel"), batches("CLIPModel")
    before = state_of(model)
    report = prune(model, None, calibration=given, only="vision_config", **COMMON)
    assert [layer.name for layer in report.layers] == [
        f"vision_model.encoder.layers.{i}.mlp" for i in range(2)
    ]
    assert report.notes["ffns"] == {
        "pruned": 2,
        "of": 4,
        "left": {
            "text_config.intermediate_size": "2 FFNs such as text_model.encoder.layers.0.mlp, by only='vision_config'"
        },
    }
    assert (model.config.vision_config.intermediate_size, model.config.text_config.intermediate_size) == (
        30,
        48,
    )
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items() if n.startswith("text"))


@pytest.mark.parametrize("only", ["audio_config", "vision", "text_config.hidden_size"])
def test_an_entry_that_is_no_knob_is_answered_with_all_that_are(only):
    model = tiny("CLIPModel")
    before = state_of(model)
    expected = "text_config.intermediate_size, vision_config.intermediate_size, got '" + only
    with pytest.raises(ValueError, match=f"only: expected the beginning of one of {re.escape(expected)}"):
        prune(model, None, calibration=batches("CLIPModel"), only=only, **COMMON)
    assert_unchanged(model, before)


@pytest.mark.parametrize("only", ["", "a b", "text_config.", 7])
def test_what_cannot_be_an_entry_is_refused_by_the_settings(only):
    with pytest.raises(ValueError, match="only: expected the beginning of a config entry, got"):
        Settings(only=only)


@pytest.fixture
def llava():
    torch.manual_seed(0)
    text = {**ARCHITECTURES["LlamaForCausalLM"], "intermediate_size": 48}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**ARCHITECTURES["ViTModel"], projection_dim=16),
        text_config=transformers.LlamaConfig(**text),
        image_token_index=IMAGE,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_text_alone_leaves_the_vision_tower_and_says_so(llava):
    before = state_of(llava)
    report = prune(llava, None, calibration=random_ids(1, 24, 12), **COMMON)
    assert report.notes["ffns"]["pruned"] == 2
    assert report.notes["ffns"]["of"] == 4
    (left,) = report.notes["ffns"]["left"].items()
    assert left[0] == "vision_config.intermediate_size"
    assert re.fullmatch(
        r"2 FFNs such as \S*vision_tower\S*\.0\.mlp, which the calibration does not reach", left[1]
    )
    assert (
        llava.config.text_config.intermediate_size,
        llava.config.vision_config.intermediate_size,
    ) == (36, 40)
    vision = {name for name in before if "vision_tower" in name}
    assert vision
    assert all(torch.equal(llava.state_dict()[name], before[name]) for name in vision)


@pytest.mark.parametrize("options", [{}, {"repair": "sequential", "only": "text_config"}], ids=str)
def test_images_reach_both_towers_and_padding_of_text_does_not_count(llava, options):
    ids = torch.cat([torch.full((10, 4), IMAGE), random_ids(1, 10, 10)], 1)
    mask = torch.ones_like(ids)
    mask[::2, 11:] = 0
    batch = {"input_ids": ids * mask, "attention_mask": mask, "pixel_values": torch.randn(10, 3, 16, 16)}
    found = {s.name: s for s in capture(llava, find_ffns(llava), [batch], sample_size=64)}
    rows = mask.bool().flatten()
    expected = hooked(llava, [batch], lambda name: rows if "language" in name else slice(None))
    assert len(found) == 4
    for name, z in expected.items():
        if name.rpartition(".")[0] in found:  # the last layer of the tower does not run
            assert_moments(found[name.rpartition(".")[0]], z)
    report = prune(llava, None, calibration=[batch], **COMMON | options)
    assert report.notes["ffns"]["pruned"] == (2 if options else 4)
    assert report.calibration_tokens == int(mask.sum())


def test_a_mask_of_text_does_not_apply_to_as_many_patches_of_images(llava):
    ids = torch.cat([torch.full((10, 4), IMAGE), random_ids(1, 10, 1)], 1)
    mask = torch.ones_like(ids)
    mask[::2, 4] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.randn(10, 3, 16, 16)}
    tower = [ffn for ffn in find_ffns(llava) if "vision" in ffn.name]
    (first, *_) = capture(llava, tower, [batch], sample_size=64)
    assert first.n_tokens == mask.numel()  # four patches and a class token


def test_no_batch_attends_to_the_cached_tokens_of_the_one_before_where_only_the_language_model_takes_use_cache(
    llava,
):
    ffns = [ffn for ffn in find_ffns(llava) if "language" in ffn.name]
    ids = random_ids(1, 24, 12)
    stream = Stream(llava, ffns, ids.split(8))
    for index in range(len(ffns)):
        stream.advance(index)
    seen = []
    ffns[-1].layer.register_forward_hook(lambda _module, _args, output: seen.append(output))
    with torch.no_grad():
        for batch in ids.split(8):
            llava(input_ids=batch)
    torch.testing.assert_close(torch.cat(stream.hidden), torch.cat(seen))


def test_the_tokens_of_inputs_do_not_count_padding():
    ids, mask = random_ids(1, 2, 6), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.ones(2, 3)}
    assert Inputs([batch, {"input_ids": ids}], "test").n_tokens == 10 + 12
    assert Inputs([{"pixel_values": torch.ones(5, 3)}], "test").n_tokens == 5


@pytest.mark.parametrize("calibration", ["ids", "text", "builtin"])
def test_text_for_a_model_of_images_is_refused_by_name(calibration, tokenizer):
    given = {"ids": random_ids(1, 4, 8), "text": "All happy families are alike.", "builtin": None}
    with pytest.raises(
        ValueError,
        match="such as pixel_values, for ViTModel, which does not read text alone, got text or token ids; call ",
    ):
        prune(tiny("ViTModel"), tokenizer, calibration=given[calibration], **COMMON)


def test_an_error_of_the_model_itself_is_named():
    with pytest.raises(
        ValueError, match=r"ViTModel: expected a model that runs on its .*got: Input image size"
    ):
        prune(tiny("ViTModel"), None, calibration={"pixel_values": torch.randn(2, 3, 24, 24)}, **COMMON)


def test_an_argument_that_is_no_tensor_is_refused_by_name():
    images = torch.randn(2, 3, 16, 16)
    model = tiny("ViTModel")
    with pytest.raises(ValueError, match="expected a tensor or array for pixel_values, got list"):
        prune(model, None, calibration=[{"pixel_values": images.tolist()}], **COMMON)
    given = {"pixel_values": images.numpy(), "head_mask": None, "name": ["first", "second"]}
    (batch,) = calibration_windows(model, None, given, Settings()).batches
    assert batch.keys() == {"pixel_values"}
    assert torch.equal(batch["pixel_values"], images)


def test_an_iterator_is_read_once_and_in_full(windows):
    model = tiny("LlamaForCausalLM")
    found = calibration_windows(model, None, iter(windows.split(5)), Settings())
    assert torch.equal(torch.stack(list(found.sequences)), windows)
    given = batches("T5ForConditionalGeneration")
    found = calibration_windows(tiny("T5ForConditionalGeneration"), None, iter(given), Settings())
    assert len(found) == 2


def test_types_of_tokens_are_read_and_make_a_difference():
    ids, types = random_ids(0, 24, 16), torch.zeros(24, 16, dtype=torch.long)
    types[:, 9:] = 1

    def kept(calibration):
        model = tiny("BertModel")
        report = prune(model, None, calibration=calibration, **COMMON)
        return [layer.kept.tolist() for layer in report.layers], state_of(model)

    def batches(**names):
        return [
            {"input_ids": ids[i : i + 4]} | {n: v[i : i + 4] for n, v in names.items()}
            for i in range(0, 24, 4)
        ]

    plain, pairs = kept(batches()), kept(batches(token_type_ids=types))
    assert plain[0] != pairs[0]
    expected = kept(Inputs(batches(token_type_ids=types), "as they are"))
    assert pairs[0] == expected[0]
    assert all(torch.equal(value, expected[1][name]) for name, value in pairs[1].items())
    rows = [{"input_ids": i.tolist(), "token_type_ids": t.tolist()} for i, t in zip(ids, types, strict=True)]
    assert kept(rows)[0] == expected[0]  # as a data set gives them
    # A tokenizer gives type 0 to all tokens of single sentences, which says nothing.
    assert kept(batches(token_type_ids=0 * types))[0] == plain[0]
