"""The export to GGUF: the same model and tokenizer for llama.cpp."""

import numpy as np
import pytest
import torch
from conftest import VOCAB_SIZE, tiny_model

from dataset import prompt_ids
from infra.checkpoint import save_model
from model import rope_tables, rotate
from tools.export_gguf import export_gguf, interleave

TEXT = "3加4等于几？ Hello"


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    """(the folder of a checkpoint, its model)."""
    model = tiny_model()
    save_model(model, tmp_path, tokenizer, context=128)
    return tmp_path, model


def test_interleaved_queries_and_keys_have_the_same_products_under_rotation_of_neighbours():
    heads, D, T = 3, 8, 5
    q, k, x = torch.randn(heads * D, 12), torch.randn(heads * D, 12), torch.randn(T, 12)
    cos, sin = rope_tables(T, D, 1e4)

    def rotated_halves(weight):
        return rotate((x @ weight.T).view(T, heads, D).transpose(0, 1)[None], cos, sin)[0]

    def rotated_neighbours(weight):
        projected = x @ torch.from_numpy(interleave(weight.numpy(), heads)).T
        pairs = torch.view_as_complex(projected.view(T, heads, D // 2, 2))
        frequencies = torch.tensor([1e4 ** (-2 * i / D) for i in range(D // 2)])
        angles = torch.arange(T)[:, None, None] * frequencies
        turned = pairs * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).flatten(2).transpose(0, 1)

    found = rotated_neighbours(q) @ rotated_neighbours(k).mT
    torch.testing.assert_close(found, rotated_halves(q) @ rotated_halves(k).mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_gguf_holds_every_tensor(half, checkpoint):
    from gguf import GGUFReader

    folder, model = checkpoint
    tensors = {tensor.name: tensor for tensor in GGUFReader(export_gguf(folder, folder / "a", half)).tensors}
    assert len(tensors) == 1 + 3 * 9 + 1  # the embedding, which is also the head, the layers, the last norm
    down = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    found = tensors["blk.1.ffn_down.weight"].data.reshape(down.shape)
    assert found.dtype == (np.float16 if half else np.float32)
    assert np.allclose(found, down, atol=1e-3 if half else 0)
    key = model.model.layers[2].self_attn.k_proj.weight.detach().numpy()
    found = tensors["blk.2.attn_k.weight"].data.reshape(key.shape)
    assert np.allclose(found[1], key[4], atol=1e-3) and np.allclose(found[8 + 3], key[8 + 5], atol=1e-3)
    assert tensors["output_norm.weight"].data.dtype == np.float32


def test_an_untied_head_is_exported(tokenizer, tmp_path):
    from gguf import GGUFReader

    model = tiny_model(tie_word_embeddings=False)
    save_model(model, tmp_path, tokenizer, context=128)
    tensors = {tensor.name: tensor for tensor in GGUFReader(export_gguf(tmp_path, tmp_path / "a")).tensors}
    head = model.lm_head.weight.detach().numpy()
    assert np.array_equal(tensors["output.weight"].data.reshape(head.shape), head)


def test_gguf_tells_the_shape_the_vocabulary_and_the_chat_template(checkpoint):
    from gguf import GGUFReader

    folder, _ = checkpoint
    reader = GGUFReader(export_gguf(folder, folder / "model.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["general.architecture"], fields["tokenizer.ggml.pre"]) == ("llama", "qwen2")
    sizes = ("attention.head_count", "attention.head_count_kv", "rope.dimension_count")
    assert [fields[f"llama.{name}"] for name in sizes] == [6, 2, 8]
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens[:4] == ["<unk>", "<s>", "</s>", "<think>"] and len(tokens) == VOCAB_SIZE
    control, user_defined, normal = 3, 4, 1
    assert fields["tokenizer.ggml.token_type"][:8] == [control] * 3 + [user_defined] * 4 + [normal]
    assert "messages" in fields["tokenizer.chat_template"]


def test_folder_that_transformers_saved_is_exported_with_its_template(checkpoint):
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    folder, _ = checkpoint
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = theirs.chat_template.replace("WeakWater", "GoodWater")
    theirs.save_pretrained(folder)
    reader = GGUFReader(export_gguf(folder, folder / "model.gguf"))
    template = reader.fields["tokenizer.chat_template"].contents()
    assert "GoodWater" in template and "WeakWater" not in template


def test_template_of_the_export_says_the_same_without_marks_for_training(checkpoint):
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    folder, _ = checkpoint
    reader = GGUFReader(export_gguf(folder, folder / "model.gguf"))
    template, theirs = (
        reader.fields["tokenizer.chat_template"].contents(),
        AutoTokenizer.from_pretrained(folder),
    )
    assert "generation %}" in theirs.chat_template and "generation %}" not in template
    messages = [{"role": role, "content": TEXT} for role in ("user", "assistant", "user")]
    asked = {"tokenize": False, "add_generation_prompt": True}
    expected = theirs.apply_chat_template(messages, **asked)
    assert theirs.apply_chat_template(messages, chat_template=template, **asked) == expected


def test_export_promises_the_context_that_was_trained(checkpoint, tokenizer):
    from gguf import GGUFReader

    folder, model = checkpoint
    save_model(model, folder, tokenizer, context=64)
    reader = GGUFReader(export_gguf(folder, folder / "model.gguf"))
    assert reader.fields["llama.context_length"].contents() == 64


def test_llama_cpp_computes_the_same_logits_and_splits_text_alike(checkpoint, tokenizer):
    llama_cpp = pytest.importorskip("llama_cpp")
    folder, model = checkpoint
    path = str(export_gguf(folder, folder / "model.gguf"))
    llm = llama_cpp.Llama(path, n_ctx=128, logits_all=True, verbose=False, n_threads=1)
    ids = prompt_ids(tokenizer, [{"role": "user", "content": TEXT}])
    llm.eval(ids)
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    found = torch.tensor(np.array(llm.scores[: len(ids)]))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)  # its cache is float16
    assert llm.tokenize(TEXT.encode(), add_bos=False, special=False) == tokenizer.encode(TEXT)
