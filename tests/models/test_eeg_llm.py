import copy
import resource

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    Phi3Config,
)

from datasets.description import load_description
from models import POOLINGS, choose, eeg_llm
from models.augmentations import Mirror
from models.eeg_llm import (
    ClassHead,
    EEGLanguageModel,
    EEGProjection,
    add_lora,
    load_language_model,
    load_lora,
    lora_facts,
    lora_targets,
    read_lora_settings,
)
from models.poolings import EEGTokenReducer
from models.token_encoders import EEGNet
from utils.errors import UserError

SYSTEM, USER = "You read brain recordings.", "Before {eeg} after it. What was imagined?"
SENTENCES = ["The person imagined moving the tongue.", "Feet imagery.", "The person imagined moving the left hand."]


@pytest.fixture(scope="module")
def model(demo):
    torch.manual_seed(0)
    language_model, tokenizer = load_language_model(str(demo.llm), torch.device("cpu"), False, torch.float32)
    language_model = add_lora(language_model)
    for name, parameter in language_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)  # an adapter that does something
    model = EEGLanguageModel(language_model, tokenizer, SYSTEM, USER, EEGProjection(128)).eval()
    model.read_prefix()
    return model


@pytest.fixture
def tokens():
    return torch.randn(3, 6, 200, generator=torch.Generator().manual_seed(1))


def targets(model, sentences):
    rows = [model.tokenizer(s, add_special_tokens=False).input_ids + [model.tokenizer.eos_token_id] for s in sentences]
    longest = max(map(len, rows))
    ids = torch.tensor([r + [5] * (longest - len(r)) for r in rows])
    return ids, torch.tensor([[True] * len(r) + [False] * (longest - len(r)) for r in rows])


def whole(model, tokens, row):
    """The embeddings of one trial's whole prompt, made without any cache."""
    embed = model.language_model.get_input_embeddings()
    parts = [embed(model.before_ids[0]), model.projection(tokens[row]), embed(model.after_ids[0])]
    return torch.cat(parts)[None]


# ---------------------------------------------------------------- sizes


def test_parameter_counts_are_the_published_ones():
    assert sum(p.numel() for p in EEGProjection().parameters()) == 4_616_192
    tinyllama = LlamaConfig(  # TinyLlama/TinyLlama-1.1B-Chat-v1.0
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4,
    )  # fmt: skip
    with torch.device("meta"):
        language_model = add_lora(LlamaForCausalLM(tinyllama))
    assert sum(p.numel() for n, p in language_model.named_parameters() if "lora_" in n) == 1_126_400
    assert sum(p.numel() for n, p in language_model.named_parameters() if "lora_" not in n) == 1_100_048_384


def montage_of(dataset):
    return load_description(dataset).montage


def reducer(dataset, pooling) -> EEGTokenReducer:
    """The pooling of features in the encoder's order, region by region."""
    montage = montage_of(dataset)
    electrodes = [montage.electrodes[k] for k in montage.sorted_indices]
    regions = [montage.region_names[k] for k in montage.sorted_indices]
    return EEGTokenReducer(choose(POOLINGS, pooling)(electrodes, regions), len(electrodes))


@pytest.mark.parametrize(
    "dataset, pooling, groups",
    [("BCICIV2a", "region", 3), ("BCICIV2a", "hemisphere", 7), ("BCICIV2a", "electrode", 22), ("VI", "region", 5),
     ("VI", "hemisphere", 14), ("FACED", "region", 5), ("BCICIV2b", "region", 1), ("BCICIV2b", "hemisphere", 3)],
)  # fmt: skip
def test_the_reducer_gives_groups_times_patches_tokens(dataset, pooling, groups):
    pooled = reducer(dataset, pooling)
    tokens = pooled(torch.randn(2, len(montage_of(dataset).electrodes), 4, 200))
    assert tokens.shape == (2, groups * 4, 200)
    assert list(pooled.parameters()) == [] and pooled.state_dict() == {}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dataset", ["BCICIV2a", "BCICIV2b", "VI", "FACED"])
def test_every_pooling_puts_every_electrode_into_one_group(dataset, pooling):
    groups = reducer(dataset, pooling).groups.values()
    assert sorted(k for group in groups for k in group) == list(range(len(montage_of(dataset).electrodes)))


def test_a_token_is_the_mean_of_its_groups_electrodes_group_major():
    montage = montage_of("BCICIV2a")
    names = [montage.electrodes[i] for i in montage.sorted_indices]  # the encoder's order
    features = torch.randn(1, 22, 4, 200)
    by_name = dict(zip(names, features[0], strict=True))
    region = reducer("BCICIV2a", "region")(features)[0].view(3, 4, 200)
    assert torch.allclose(region[0], by_name["Fz"])
    assert torch.allclose(region[1], sum(by_name[n] for n in ("P1", "Pz", "P2", "POz")) / 4, atol=1e-6)
    sides = reducer("BCICIV2a", "hemisphere")
    assert list(sides.groups) == [
        "frontal midline", "parietal left", "parietal midline", "parietal right", "central left", "central midline",
        "central right",
    ]  # fmt: skip
    left = sum(by_name[n] for n in ("FC3", "FC1", "C5", "C3", "C1", "CP3", "CP1")) / 7
    assert torch.allclose(sides(features)[0].view(7, 4, 200)[4], left, atol=1e-6)


def test_an_encoder_that_mixes_electrodes_has_one_position_to_pool():
    features = torch.randn(2, 1, 16, 16)
    assert torch.equal(EEGTokenReducer({"all electrodes": [0]}, 1)(features), features[:, 0])


def test_montages_have_the_published_electrodes_and_regions():
    vi, bcic = montage_of("VI"), montage_of("BCICIV2a")
    assert len(vi.electrodes) == len(vi.brain_regions) == 32 and sum(map(len, vi.topology.values())) == 32
    assert bcic.brain_regions == [0] + [4] * 17 + [1] * 4


# ---------------------------------------------------------------- prompt


def test_the_eeg_stands_in_the_users_turn_and_no_placeholder_is_left(model):
    before, after = (model.tokenizer.decode(ids[0]) for ids in (model.before_ids, model.after_ids))
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER.replace("{eeg}", "")}]
    written = model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert (before + after).replace(" ", "") == written.replace(" ", "")
    assert before.rstrip().endswith("Before") and "<|user|>" in before
    assert "assistant" not in before and "after it" in after and after.rstrip().endswith("<|assistant|>")


def test_a_tokenizer_without_chat_template_is_refused(model):
    plain = copy.deepcopy(model.tokenizer)
    plain.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        EEGLanguageModel(model.language_model, plain, SYSTEM, USER, model.projection)


NO_SYSTEM_ROLE = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
SYSTEM_LEFT_OUT = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<turn ' + m['role'] + '>' + m['content'] + '</turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn model>' }}{% endif %}"
)


@pytest.mark.parametrize("template", [NO_SYSTEM_ROLE + TURNS, SYSTEM_LEFT_OUT + TURNS], ids=["raises", "ignores"])
def test_without_a_system_role_the_system_prompt_begins_the_users_turn(model, tokens, template):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    other = EEGLanguageModel(model.language_model, tokenizer, SYSTEM, USER, model.projection).eval()
    before, after = (tokenizer.decode(ids[0]) for ids in (other.before_ids, other.after_ids))
    expected = f"<s><turn user>{SYSTEM}\n\n{USER.replace('{eeg}', '')}</turn><turn model>"
    assert (before + after).replace(" ", "") == expected.replace(" ", "")
    other.read_prefix()
    assert len(other.decode(tokens, SENTENCES, max_new_tokens=2)[0]) == 3


def test_a_chat_template_that_loses_the_users_turn_is_refused(model):
    for template in ("{{ messages[0]['role'] }}", "{{ raise_exception('never') }}"):
        tokenizer = copy.deepcopy(model.tokenizer)
        tokenizer.chat_template = template
        with pytest.raises(UserError, match="chat template"):
            EEGLanguageModel(model.language_model, tokenizer, SYSTEM, USER, model.projection)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}" + "{% endfor %}" * 3


@pytest.mark.parametrize("template, message", [
    (ENDLESS, "not read after"),
    ("{% macro m(n) %}{% for k in range(99999) %}{{ m(n) if n < 0 }}{% endfor %}{% endmacro %}"
     "{% for a in range(99999) %}{{ m(1) }}{% endfor %}", "not read after"), ("{{ (7 ** (10**8)) % 3 }}",
     "not read after"),
    ("{{ 'x' * 10**11 }}", "more memory"), ("{{ [0] * 10**10 }}", "more memory"), ("{{ '%2000000000d' % 1 }}",
    "more memory"),
    ("{% set s = namespace(v='x' * 10**7) %}{% for k in range(60) %}{% set s.v = s.v ~ s.v %}{% endfor %}",
    "more memory|not read"),
    ("{# " + "x" * 100_000 + " #}" + TURNS, "more than 100000 characters"),
    (TURNS + "{% for a in range(99999) %}0123456789{% endfor %}0123456789", "makes 1000... characters"),
    (TURNS + "{{ 'x' * 50_000 }}", "makes 5.... characters"),  # whose prompt would take gigabytes
], ids=lambda value: value[:30])  # fmt: skip
def test_a_chat_template_may_take_neither_time_nor_memory(model, monkeypatch, template, message):
    monkeypatch.setattr(eeg_llm, "TEMPLATE_SECONDS", 0.5)
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=f"its chat template.*({message})"):
        EEGLanguageModel(model.language_model, tokenizer, SYSTEM, USER, model.projection)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700 << 10  # kilobytes


@pytest.mark.parametrize("template", [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{{ a.b.c }}", "{{ 1 + 'a' }}",
    "{{ 1 // 0 }}",
    "{{ '%d' % 'a' }}", "{{ range(10**9) | list }}", "{{ [] | first | upper | attr('x') + 1 }}", "{% for %}", "{{",
    "{% include '/etc/passwd' %}", TURNS + "{{ '\\ud800' }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}",
    "{{ " + "not " * 20_000 + "1 }}",
    "{% for a in [1] %}" * 300 + "{% endfor %}" * 300, "{{ messages | tojson(indent='x' * 9) | int(base='a') }}",
], ids=lambda template: template[:30])  # fmt: skip
def test_a_chat_template_that_fails_in_any_way_is_refused_in_one_line(model, template):
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match="its chat template") as error:
        EEGLanguageModel(model.language_model, tokenizer, SYSTEM, USER, model.projection)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- loss


def test_the_loss_is_cross_entropy_on_the_target_only(model, tokens):
    ids, mask = targets(model, SENTENCES)
    total, count = 0.0, 0
    with torch.no_grad():
        loss = model(tokens, ids, mask)
        for row in range(3):
            target = ids[row][mask[row]]
            prompt = whole(model, tokens, row)
            answer = model.language_model.get_input_embeddings()(target)[None]
            logits = model.language_model(inputs_embeds=torch.cat([prompt, answer], 1)).logits[0]
            predicted = logits[prompt.shape[1] - 1 : -1]
            total += F.cross_entropy(predicted, target, reduction="sum")
            count += len(target)
    assert torch.allclose(loss, total / count, atol=1e-4)


def test_label_smoothing_is_pytorchs_on_the_target_only(model, tokens):
    ids, mask = targets(model, SENTENCES)
    total = 0.0
    with torch.no_grad():
        loss = model(tokens, ids, mask, label_smoothing=0.2)
        for row in range(3):
            target = ids[row][mask[row]]
            prompt = whole(model, tokens, row)
            answer = model.language_model.get_input_embeddings()(target)[None]
            logits = model.language_model(inputs_embeds=torch.cat([prompt, answer], 1)).logits[0]
            total += F.cross_entropy(logits[prompt.shape[1] - 1 : -1], target, reduction="sum", label_smoothing=0.2)
    assert torch.allclose(loss, total / mask.sum(), atol=1e-4)


def test_the_end_token_is_learned_and_padding_is_not(model, tokens):
    ids, mask = targets(model, SENTENCES)
    with torch.no_grad():
        loss = model(tokens, ids, mask)
        padded = ids.masked_fill(~mask, model.tokenizer.eos_token_id)
        assert torch.allclose(model(tokens, padded, mask), loss, atol=1e-5)
        shorter = mask.clone()
        shorter[torch.arange(3), mask.sum(1) - 1] = False  # as if the end token were masked by its id
        assert not torch.allclose(model(tokens, ids, shorter), loss, atol=1e-3)


def test_phases_train_the_projection_then_lora_as_well(model, tokens):
    ids, mask = targets(model, SENTENCES)
    for joint in (False, True):
        trained, of_encoder, _ = model.set_phase(joint)
        assert of_encoder == []
        model.zero_grad()
        model.train()(tokens, ids, mask).backward()
        with_gradient = {id(p) for p in model.parameters() if p.grad is not None}
        assert with_gradient == {id(p) for p in trained}
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.projection.parameters())
        assert joint == any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.lora_parameters())
    model.zero_grad()
    model.eval().requires_grad_(False)


@pytest.mark.parametrize("train_encoder, phases", [("never", []), ("joint", [True]), ("always", [False, True])])
def test_the_encoder_is_trained_when_it_is_said_to_be(model, train_encoder, phases):
    torch.manual_seed(0)
    encoder, whole_trial = EEGNet(22, 512), EEGTokenReducer({"all electrodes": [0]}, 1)
    reading = EEGLanguageModel(
        model.language_model, model.tokenizer, SYSTEM, USER, EEGProjection(128, encoder.width), encoder, whole_trial,
        train_encoder,
    )  # fmt: skip
    reading.read_prefix()
    ids, mask = targets(reading, SENTENCES)
    x = torch.randn(3, 22, 512)
    means = encoder.temporal[2].running_mean.clone()
    for joint in (False, True):
        trained, of_encoder, _ = reading.set_phase(joint)
        reading.zero_grad()
        reading.train()(x, ids, mask).backward()
        wanted = [*encoder.parameters()] if joint in phases else []
        assert {id(p) for p in of_encoder} == {id(p) for p in wanted} and not {id(p) for p in trained} & {
            id(p) for p in encoder.parameters()
        }
        assert [p for p in encoder.parameters() if p.grad is not None] == wanted
        assert encoder.training == (joint in phases)  # what is frozen drops nothing out and keeps its running means
        assert torch.equal(means, encoder.temporal[2].running_mean) == (not any(j in phases for j in (False, joint)))
    model.zero_grad()
    model.requires_grad_(False)


def test_loras_gradient_includes_the_shared_part_of_the_prompt(model, tokens):
    ids, mask = targets(model, SENTENCES)
    model.set_phase(joint=True)
    model.eval()
    model(tokens, ids, mask).backward()
    cached = [p.grad.clone() for p in model.lora_parameters()]
    model.zero_grad()
    loss = 0.0
    for row in range(3):
        target = ids[row][mask[row]]
        prompt = whole(model, tokens, row)
        answer = model.language_model.get_input_embeddings()(target)[None]
        logits = model.language_model(inputs_embeds=torch.cat([prompt, answer], 1)).logits[0]
        loss = loss + F.cross_entropy(logits[prompt.shape[1] - 1 : -1], target, reduction="sum")
    (loss / mask.sum()).backward()
    for mine, plain in zip(cached, (p.grad for p in model.lora_parameters()), strict=True):
        assert torch.allclose(mine, plain, atol=1e-5)
    model.zero_grad()
    model.requires_grad_(False)


# ---------------------------------------------------------------- read-outs


def test_greedy_text_equals_the_librarys_generation(model, tokens):
    texts, _ = model.decode(tokens, SENTENCES, max_new_tokens=20)
    for row in range(3):
        ids = model.language_model.generate(
            inputs_embeds=whole(model, tokens, row), max_new_tokens=20, do_sample=False,
            attention_mask=torch.ones(1, whole(model, tokens, row).shape[1]),
        )  # fmt: skip
        assert texts[row] == model.tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def test_scores_are_mean_log_probabilities_of_the_sentences(model, tokens):
    _, scores = model.decode(tokens, SENTENCES, max_new_tokens=1)
    with torch.no_grad():
        for row in range(3):
            for k, sentence in enumerate(SENTENCES):
                ids, _ = targets(model, [sentence])
                prompt = whole(model, tokens, row)
                answer = model.language_model.get_input_embeddings()(ids)
                logits = model.language_model(inputs_embeds=torch.cat([prompt, answer], 1)).logits[0]
                expected = -F.cross_entropy(logits[prompt.shape[1] - 1 : -1], ids[0])
                assert torch.allclose(scores[row, k], expected, atol=1e-4)


def test_a_trials_decoding_does_not_depend_on_its_batch(model, tokens):
    texts, scores = model.decode(tokens, SENTENCES)
    alone = [model.decode(tokens[i : i + 1], SENTENCES) for i in range(3)]
    assert texts == [text for (text,), _ in alone]
    assert torch.allclose(scores, torch.cat([s for _, s in alone]), atol=1e-4)


def test_the_shared_prompt_is_read_when_it_is_said_and_only_then(model, tokens, monkeypatch):
    read = []
    original = EEGLanguageModel._prefix_states
    monkeypatch.setattr(EEGLanguageModel, "_prefix_states", lambda self: read.append(1) or original(self))
    _, before = model.decode(tokens, SENTENCES)
    model.decode(tokens, SENTENCES)
    assert read == []
    parameter = model.lora_parameters()[1]
    with torch.no_grad():
        parameter.add_(0.1)
    try:
        model.read_prefix()
        _, after = model.decode(tokens, SENTENCES)
        model.decode(tokens, SENTENCES)
        fresh = EEGLanguageModel(model.language_model, model.tokenizer, SYSTEM, USER, model.projection).eval()
        with pytest.raises(RuntimeError, match="read_prefix"):
            fresh.decode(tokens, SENTENCES)
        fresh.read_prefix()
        assert len(read) == 2 and not torch.allclose(before, after)
        assert torch.equal(after, fresh.decode(tokens, SENTENCES)[1])
    finally:
        with torch.no_grad():
            parameter.sub_(0.1)
        model.read_prefix()
    assert torch.allclose(model.decode(tokens, SENTENCES)[1], before, atol=1e-5)


def test_decoding_leaves_the_shared_prompt_as_it_was(model, tokens):
    texts, scores = model.decode(tokens, SENTENCES)
    with torch.no_grad():
        ids, mask = targets(model, SENTENCES)
        loss = model(tokens, ids, mask)
    again_texts, again_scores = model.decode(tokens, SENTENCES)
    assert texts == again_texts and torch.equal(scores, again_scores)
    with torch.no_grad():
        assert torch.equal(loss, model(tokens, ids, mask))


# ---------------------------------------------------------------- the class head, the mirror image


@pytest.fixture
def with_head(model):
    torch.manual_seed(2)
    made = EEGLanguageModel(model.language_model, model.tokenizer, SYSTEM, USER, model.projection,
                            head=ClassHead(6, 200, 3, normalise=True)).eval()  # fmt: skip
    made.read_prefix()
    return made


def test_a_head_is_a_read_out_of_its_own_and_changes_no_other(model, with_head, tokens):
    plain, both = model.read(tokens, SENTENCES), with_head.read(tokens, SENTENCES)
    expected = with_head.head.linear(F.layer_norm(tokens, (200,)).flatten(1)).softmax(dim=-1)
    for k, ((text, of), (text_too, of_both)) in enumerate(zip(plain, both, strict=True)):
        assert text == text_too and set(of) == {"likelihood"} and set(of_both) == {"likelihood", "head"}
        assert of["likelihood"] == of_both["likelihood"] and sum(of["likelihood"]) == pytest.approx(1, abs=1e-5)
        assert of_both["head"] == pytest.approx(expected[k].tolist(), abs=1e-6)


def test_the_loss_is_the_texts_and_the_heads_times_its_weight(model, with_head, tokens):
    ids, mask = targets(model, SENTENCES)
    labels = torch.tensor([2, 0, 1])
    with torch.no_grad():
        text, cls = model(tokens, ids, mask), F.cross_entropy(with_head.head(tokens), labels)
        assert torch.allclose(with_head(tokens, ids, mask, 0.0, labels, (0.5, 0.7)), 0.5 * text + 0.7 * cls)
        assert torch.allclose(model(tokens, ids, mask, 0.0, labels, (1.0, 0.7)), text)  # nothing to weigh


def test_the_head_is_trained_in_both_phases_and_the_encoder_learns_from_it(with_head, tokens):
    ids, mask = targets(with_head, SENTENCES)
    for joint in (False, True):
        trained = with_head.set_phase(joint)[2]
        assert any(p is with_head.head.linear.weight for p in trained)
        x = tokens.clone().requires_grad_(True)
        both = torch.autograd.grad(with_head(x, ids, mask, 0.0, torch.tensor([2, 0, 1]), (1.0, 5.0)), x)[0]
        text = torch.autograd.grad(with_head(x, ids, mask, 0.0, torch.tensor([2, 0, 1]), (1.0, 0.0)), x)[0]
        assert not torch.allclose(both, text)
    with_head.requires_grad_(False)


def test_mirrored_decoding_is_the_mean_with_the_classes_exchanged(with_head, tokens):
    """Tokens stand for the signal that an encoder reads: the first two electrodes mirror each other."""
    plain = with_head.read(tokens, SENTENCES)
    swapped = with_head.read(tokens[:, [1, 0, 2, 3, 4, 5]], SENTENCES)
    with_head.mirror = Mirror([1, 0, 2, 3, 4, 5], [0, 2, 1])
    mean = with_head.read(tokens, SENTENCES)
    for (text, of), (_, other), (text_too, averaged) in zip(plain, swapped, mean, strict=True):
        assert text == text_too
        for name in ("likelihood", "head"):
            expected = [(of[name][k] + other[name][label]) / 2 for k, label in enumerate([0, 2, 1])]
            assert averaged[name] == pytest.approx(expected, abs=1e-6)
    # a trial and its mirror image say the same, sides exchanged
    for (_, a), (_, b) in zip(mean, with_head.read(tokens[:, [1, 0, 2, 3, 4, 5]], SENTENCES), strict=True):
        assert a["head"] == pytest.approx([b["head"][k] for k in (0, 2, 1)], abs=1e-6)


# ---------------------------------------------------------------- loading


def test_nf4_weights_load_from_a_local_folder(demo):
    plain, _ = load_language_model(str(demo.llm), torch.device("cpu"), False, torch.float32)
    quantised, _ = load_language_model(str(demo.llm), torch.device("cpu"), True, torch.float32)
    layer = quantised.model.layers[0].self_attn.q_proj
    assert (
        type(layer).__name__ == "Linear4bit" and layer.weight.quant_type == "nf4" and layer.weight.compress_statistics
    )
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        a, b = plain(ids).logits.flatten(), quantised(ids).logits.flatten()
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9


def test_an_adapter_is_never_wrapped_around_an_adapter(model):
    with pytest.raises(ValueError, match="adapter"):
        add_lora(model.language_model)


def test_rank_scale_and_layers_of_lora_are_the_ones_asked_for(demo, tmp_path):
    plain = load_language_model(str(demo.llm), torch.device("cpu"), False, torch.float32)[0]
    adapted = add_lora(plain, 3, 12, ["k_proj", "down_proj"])
    shapes = {n.split(".lora_")[0].rsplit(".", 1)[1]: p.shape for n, p in adapted.named_parameters() if "lora_A" in n}
    assert {name: shape[0] for name, shape in shapes.items()} == {"k_proj": 3, "down_proj": 3}
    layer = adapted.base_model.model.model.layers[0].self_attn.k_proj
    assert layer.scaling["default"] == 4.0
    adapted.save_pretrained(tmp_path)
    assert read_lora_settings(tmp_path) == {"r": 3, "alpha": 12.0, "targets": ["down_proj", "k_proj"]}


def test_layers_that_the_model_does_not_have_are_one_line(demo):
    plain = load_language_model(str(demo.llm), torch.device("cpu"), False, torch.float32)[0]
    with pytest.raises(UserError, match="--lora_targets no_such_layer: ") as error:
        add_lora(plain, targets=["no_such_layer"])
    assert "\n" not in str(error.value)


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OTHERS = {  # a config → which layers get LoRA by default, of which layers
    "phi3": (Phi3Config(**SMALL, intermediate_size=8, pad_token_id=0), "o_proj qkv_proj", "gate_up_proj, down_proj"),
    "gpt2": (GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2), "c_attn attn.c_proj", "c_attn, c_proj, c_fc"),
    "gpt_neox": (GPTNeoXConfig(**SMALL, intermediate_size=8), "query_key_value dense", "dense_h_to_4h"),
    "llama": (LlamaConfig(**SMALL, intermediate_size=8), "q_proj v_proj", "q_proj, k_proj, v_proj, o_proj"),
    "mamba": (MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1), None, "in_proj, x_proj"),
}


@pytest.mark.parametrize("config, wanted, layers", OTHERS.values(), ids=OTHERS)
def test_lora_goes_to_attention_whatever_its_layers_are_called(config, wanted, layers, tmp_path, capsys):
    config.save_pretrained(tmp_path)  # no weights: what fits is known before they are loaded
    with pytest.raises(UserError, match=f"has no linear layer no_such_layer; it has .*{layers}") as error:
        lora_targets(str(tmp_path), ["no_such_layer"])
    assert "\n" not in str(error.value)
    if wanted is None:
        with pytest.raises(UserError, match=f"has no attention; name some of its linear layers: {layers}"):
            lora_targets(str(tmp_path), None)
        return
    assert lora_targets(str(tmp_path), None) == wanted.split()
    assert ("LoRA goes to its attention" in capsys.readouterr().out) == (wanted != "q_proj v_proj")
    assert lora_targets(str(tmp_path), wanted.split()[:1]) == wanted.split()[:1]
    adapted = add_lora(AutoModelForCausalLM.from_config(config), targets=wanted.split())
    changed = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if "lora_" in name}
    assert all("att" in name for name in changed) and len(changed) == 2
    adapted.save_pretrained(tmp_path / "lora")  # GPT-2's layers are transposed: peft notes it, and it reads back
    again = add_lora(AutoModelForCausalLM.from_config(config), **read_lora_settings(tmp_path / "lora"))
    load_lora(again, tmp_path / "lora", lora_facts(adapted))


@pytest.mark.parametrize("content, message", [
    (None, "not a LoRA folder"), ("{", "is damaged"), ('{"r": 8}', "is damaged"), ("[]", "holds a list"),
    ('{"r": "eight", "lora_alpha": 16, "target_modules": ["q_proj"]}', "is damaged"),
    ('{"r": 8, "lora_alpha": 16, "target_modules": 3}', "is damaged"),
])  # fmt: skip
def test_an_adapters_settings_that_are_none_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_lora_settings(tmp_path)


def test_adapters_round_trip_and_wrong_ones_are_refused(model, demo, tmp_path):
    model.language_model.save_pretrained(tmp_path / "lora")
    fresh = add_lora(load_language_model(str(demo.llm), torch.device("cpu"), False, torch.float32)[0])
    load_lora(fresh, tmp_path / "lora")
    saved = [p for n, p in fresh.named_parameters() if "lora_" in n]
    assert all(torch.equal(a, b) for a, b in zip(saved, model.lora_parameters(), strict=True))
    with pytest.raises(UserError, match="not a LoRA folder"):
        load_lora(fresh, tmp_path / "nowhere")
    small = add_lora(LlamaForCausalLM(LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)))  # fmt: skip
    with pytest.raises(UserError, match="another model"):
        load_lora(small, tmp_path / "lora")
    (tmp_path / "lora/adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="is damaged"):
        load_lora(fresh, tmp_path / "lora")


@pytest.mark.parametrize("name", ["empty", "no/such_model", "no such address", "../x/y/z"])
def test_a_model_that_is_not_there_is_one_line(tmp_path, name):
    (tmp_path / "empty").mkdir()
    place = str(tmp_path / name) if name == "empty" else name
    with pytest.raises(UserError, match="--llm") as error:
        load_language_model(place, torch.device("cpu"), False, torch.float32)
    assert "cannot be loaded" in str(error.value) and "\n" not in str(error.value)
