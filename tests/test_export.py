"""The export to GGUF: the same model and tokenizer for llama.cpp."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import VOCAB_SIZE, conversation, tiny_model, write_jsonl
from transformers import AutoTokenizer

from dataset import prompt_ids
from infra.checkpoint import save_model
from infra.cli import UserError
from model import rope_tables, rotate
from tools import gguf_report
from tools.export_gguf import TYPES, export_gguf, interleave
from tools.gguf_proof import logits_of, open_llama, prove
from tools.modelfile import write_modelfile

TEXT = "3加4等于几？ Hello"
WIDE = {"hidden_size": 192, "intermediate_size": 96}  # rows of whole blocks of 32
RENDERED_BY_GO = """package main

import ("encoding/json"; "os"; "text/template")

func main() {
    type message struct { Role, Content string }
    var asked struct { Template string; Messages []message }
    if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil { panic(err) }
    parsed := template.Must(template.New("").Parse(asked.Template))
    if err := parsed.Execute(os.Stdout, map[string]any{"Messages": asked.Messages}); err != nil { panic(err) }
}
"""


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


@pytest.mark.parametrize("type", ["f32", "f16"])
def test_gguf_holds_every_tensor(type, checkpoint):
    from gguf import GGUFReader

    folder, model = checkpoint
    tensors = {tensor.name: tensor for tensor in GGUFReader(export_gguf(folder, folder / "a", type)).tensors}
    assert len(tensors) == 1 + 3 * 9 + 1  # the embedding, which is also the head, the layers, the last norm
    down = model.model.layers[1].mlp.down_proj.weight.detach().numpy()
    found = tensors["blk.1.ffn_down.weight"].data.reshape(down.shape)
    assert found.dtype == (np.float16 if type == "f16" else np.float32)
    assert np.allclose(found, down, atol=1e-3 if type == "f16" else 0)
    key = model.model.layers[2].self_attn.k_proj.weight.detach().numpy()
    found = tensors["blk.2.attn_k.weight"].data.reshape(key.shape)
    assert np.allclose(found[1], key[4], atol=1e-3) and np.allclose(found[8 + 3], key[8 + 5], atol=1e-3)
    assert tensors["output_norm.weight"].data.dtype == np.float32


def test_q8_0_of_a_matrix_is_what_its_definition_says(tokenizer, tmp_path):
    """32 neighbours share a scale in float16, their largest magnitude / 127, and are multiples of it."""
    from gguf import GGUFReader

    model = tiny_model(**WIDE)
    save_model(model, tmp_path, tokenizer, context=128)
    tensors = {one.name: one for one in GGUFReader(export_gguf(tmp_path, tmp_path / "a", "q8_0")).tensors}
    weight = model.model.layers[1].mlp.up_proj.weight.detach().numpy().reshape(-1, 32)
    blocks = tensors["blk.1.ffn_up.weight"].data.reshape(-1, 2 + 32)
    scales, numbers = blocks[:, :2].copy().view(np.float16), blocks[:, 2:].view(np.int8)
    assert np.allclose(scales[:, 0], np.abs(weight).max(1) / 127, rtol=1e-3)
    assert (np.abs(scales.astype(np.float32) * numbers - weight) <= 0.57 * scales.astype(np.float32)).all()


def test_small_types_spare_the_gains_the_embedding_and_rows_of_no_whole_blocks(tokenizer, tmp_path):
    from gguf import GGUFReader

    save_model(tiny_model(**WIDE | {"intermediate_size": 80}), tmp_path, tokenizer, context=128)
    reader = GGUFReader(export_gguf(tmp_path, tmp_path / "a", "q4_0"))
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert (types["blk.0.attn_q.weight"], types["blk.0.ffn_up.weight"]) == ("Q4_0", "Q4_0")
    assert (types["blk.0.ffn_down.weight"], types["token_embd.weight"]) == ("F16", "Q8_0")
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert reader.fields["general.file_type"].contents() == 2  # LLAMA_FTYPE_MOSTLY_Q4_0
    save_model(tiny_model(**WIDE, tie_word_embeddings=False), tmp_path, tokenizer, context=128)
    reader = GGUFReader(export_gguf(tmp_path, tmp_path / "a", "q4_0"))
    assert "Q8_0" in {one.tensor_type.name for one in reader.tensors if one.name == "output.weight"}


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

    folder, _ = checkpoint
    theirs = AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = theirs.chat_template.replace("WeakWater", "GoodWater")
    theirs.save_pretrained(folder)
    reader = GGUFReader(export_gguf(folder, folder / "model.gguf"))
    template = reader.fields["tokenizer.chat_template"].contents()
    assert "GoodWater" in template and "WeakWater" not in template


def test_template_of_the_export_says_the_same_without_marks_for_training(checkpoint):
    from gguf import GGUFReader

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
    pytest.importorskip("llama_cpp")
    folder, model = checkpoint
    llama = open_llama(export_gguf(folder, folder / "model.gguf"), 128)
    ids = prompt_ids(tokenizer, [{"role": "user", "content": TEXT}])
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0]
    torch.testing.assert_close(logits_of(llama, ids), expected, rtol=0, atol=0.02)  # its cache is float16
    assert llama.tokenize(TEXT.encode(), add_bos=False, special=False) == tokenizer.encode(TEXT)


@pytest.mark.parametrize(
    "type, number", [("bf16", 32), ("q8_0", 7), ("q5_1", 9), ("q5_0", 8), ("q4_1", 3), ("q4_0", 2)]
)
def test_quantized_matrices_are_those_of_llama_cpp_to_the_byte(type, number, tokenizer, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    from gguf import GGUFReader

    save_model(tiny_model(**WIDE), tmp_path, tokenizer, context=128)
    source, theirs = export_gguf(tmp_path, tmp_path / "source"), tmp_path / "theirs"
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = number
    assert llama_cpp.llama_model_quantize(bytes(source), bytes(theirs), how) == 0
    ours = {tensor.name: tensor for tensor in GGUFReader(export_gguf(tmp_path, tmp_path / "a", type)).tensors}
    layers = [tensor for tensor in GGUFReader(theirs).tensors if tensor.name.startswith("blk.")]
    assert len(layers) == 3 * 9
    assert all(np.array_equal(ours[tensor.name].data, tensor.data) for tensor in layers)


@pytest.mark.parametrize("context", [24, 128])  # with room for fewer tokens than the proof would like
def test_export_is_proved_in_llama_cpp(context, tokenizer, tmp_path):
    pytest.importorskip("llama_cpp")
    save_model(tiny_model(), tmp_path, tokenizer, context)
    assert "hard texts equal" in prove(tmp_path, export_gguf(tmp_path, tmp_path / "model.gguf"))


def test_export_with_the_queries_of_one_layer_in_another_order_is_not_proved(checkpoint, tokenizer, tmp_path):
    pytest.importorskip("llama_cpp")
    folder, model = checkpoint
    query = model.model.layers[1].self_attn.q_proj.weight
    with torch.no_grad():
        query.copy_(torch.from_numpy(interleave(query.numpy().copy(), 6)))
    save_model(model, tmp_path / "other", tokenizer, context=128)
    path = export_gguf(tmp_path / "other", tmp_path / "model.gguf")
    with pytest.raises(UserError, match="logits differ from the checkpoint's by .* do not use it"):
        save_model(tiny_model(), folder, tokenizer, context=128)
        prove(folder, path)


def test_report_has_a_row_for_each_type_and_our_loss(tokenizer, tmp_path, capsys):
    pytest.importorskip("llama_cpp")
    model, texts = tiny_model(**WIDE), ["3加4等于7。", "你好，再见。" * 40]
    save_model(model, tmp_path, tokenizer, context=128)
    write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    write_jsonl(tmp_path / "questions.jsonl", [{"conversations": conversation("3", "7")}])
    gguf_report.main(
        [
            str(tmp_path),
            *f"--texts {tmp_path}/texts.jsonl".split(),
            *f"--questions {tmp_path}/questions.jsonl".split(),
        ]
    )
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == list(TYPES)
    ids = [[1, *tokenizer.encode(text)][:129] for text in texts]
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(torch.tensor([one[:-1]]))[0], torch.tensor(one[1:]), reduction="sum")
            for one in ids
        ]
    expected = sum(losses) / sum(len(one) - 1 for one in ids)
    assert float(rows[0][2]) == pytest.approx(expected.item(), abs=2e-3)


def test_modelfile_is_one_that_ollama_reads(checkpoint, tokenizer):
    folder, model = checkpoint
    tokenizer.save(folder, 64)  # the rows that it was trained on were shorter than the model's context
    path = write_modelfile(folder, folder / "model.gguf")
    assert path == folder / "model.Modelfile"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "FROM ./model.gguf"
    assert {"PARAMETER num_ctx 64", "PARAMETER num_predict 32", "PARAMETER stop </s>"} <= set(lines)


def test_modelfile_asks_ollama_for_our_prompt(checkpoint, tokenizer, tmp_path):
    """By Go's text/template, which Ollama renders with; it puts SYSTEM before the messages."""
    if not shutil.which("go"):
        pytest.skip("needs the Go compiler")
    folder, _ = checkpoint
    text = write_modelfile(folder, folder / "model.gguf").read_text(encoding="utf-8")
    system, template = (re.search(f'{name} """(.*?)"""', text, re.S)[1] for name in ("SYSTEM", "TEMPLATE"))
    messages = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "7"}]
    messages.append({"role": "user", "content": "为什么？"})
    (tmp_path / "main.go").write_text(RENDERED_BY_GO)
    asked = json.dumps({"template": template, "messages": [{"role": "system", "content": system}, *messages]})
    settings = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off"}
    command = ["go", "run", str(tmp_path / "main.go")]
    found = subprocess.run(
        command, input=asked, env=settings, capture_output=True, text=True, check=True
    ).stdout
    theirs = AutoTokenizer.from_pretrained(folder)
    assert found == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
