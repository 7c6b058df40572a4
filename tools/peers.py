"""What benchmark.py compares with: transformers' Llama, a plain training loop with AdamW, and llama.cpp."""

import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F

import trainer
from Config import LLMConfig
from infra.device import pick_device, synchronize
from infra.distributed import Process


class Peer(torch.nn.Module):
    """transformers' Llama behind the forward that the training loop calls. It ignores the mask."""

    def __init__(self, config: LLMConfig):
        from transformers import LlamaConfig, LlamaForCausalLM

        super().__init__()
        self.config = config
        llama = LlamaForCausalLM(LlamaConfig(**asdict(config)))
        self.model, self.lm_head = llama.model, llama.lm_head
        self.llama = [llama]  # in a list, so that its parameters have one name

    def forward(self, input_ids, mask, labels, loss_weights):
        logits = self.llama[0](input_ids).logits  # under its own causal mask
        losses = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
        return (losses * loss_weights.flatten()).sum()

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def train_with_adamw(model, rows, config) -> list[dict]:
    """Lines {seconds, tokens, loss} of a plain loop with AdamW, one each `log_every` steps.

    It is what most people run: no Muon, no rates by group, no watch for losses that make no sense.
    """
    device = pick_device(config.device)
    run = trainer.prepare(model, rows, config, device)
    scaler, optimizer = run.precision.scaler, torch.optim.AdamW(model.parameters(), fused=True)
    batches = iter(trainer.load_batches(rows, config, Process(0, 1, device), first_step=1))
    lines, total, start = [], 0, time.perf_counter()
    for step in range(1, config.max_steps + 1):
        micro_batches = [next(batches) for _ in range(config.accumulation_steps)]
        weight, tokens = trainer.step_totals(micro_batches)
        step_loss = torch.zeros((), device=device)
        for batch in micro_batches:
            with run.precision.autocast:
                loss = trainer.summed_loss(run.forward, batch.to(device), lambda document_ids: None) / weight
            scaler.scale(loss).backward()
            step_loss += loss.detach()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        total += tokens
        if step % config.log_every == 0 or step == config.max_steps:
            synchronize(device)
            seconds = time.perf_counter() - start
            lines.append({"loss": float(step_loss), "tokens": total, "seconds": seconds})
    return lines


def transformers_generator(shape: LLMConfig, device: torch.device):
    """A function (prompts, count) -> tokens generated for each prompt."""
    model = Peer(shape).llama[0].to(device).eval()

    @torch.inference_mode()
    def generate(prompts, count):
        ids = torch.tensor(prompts, device=device)
        how = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **how).shape[1] - ids.shape[1]

    return generate


def llama_cpp_generator(checkpoint: Path):
    """The same of a checkpoint in float32, for one prompt at a time."""
    import llama_cpp

    from tools.export_gguf import export_gguf

    path = export_gguf(checkpoint, checkpoint / "model.gguf")
    threads = {name: torch.get_num_threads() for name in ("n_threads", "n_threads_batch")}
    llm = llama_cpp.Llama(str(path), n_ctx=1024, n_batch=512, verbose=False, flash_attn=True, **threads)

    def generate(prompts, count):
        llm.reset()
        ids = [id % llm.n_vocab() for id in prompts[0]]
        return len(list(islice(llm.generate(ids, temp=0.0, top_k=1), count)))

    return generate
