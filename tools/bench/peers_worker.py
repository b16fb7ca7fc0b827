"""One peer of peers.py in a process of its own: it loads, answers, and says what that took, a JSON line a step.

Run by whatever Python the peer is installed in, so nothing but the standard library is imported at the top. A new peer
is a function from a Job to its versions and steps, and a line in PEERS. A step answers one question, greedily, and says
{"prompt_n", "prompt_s", "token_s", and with a picture "image_s"}: the prompt's tokens, the seconds until the first
token is there (without the picture's encoding), the seconds of each further token.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

Step = Callable[[], dict[str, Any]]
Peer = tuple[dict[str, str], dict[str, Step]]

IMAGE = "<|image|>"
KEPT: list[Any] = []  # what C calls
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"


@dataclass(frozen=True)
class Job:
    """What every peer does.

    Attributes:
        checkpoint: directory of Hugging Face's form.
        text, mmproj: the GGUF files made of it.
        picture: a PNG file; empty: only text.
        threads: of the CPU.
        question: the user's message, with and without a picture.
        tokens: to be generated.
        repeats: of each step.
        spawned: time.time() when the process was started.
    """

    checkpoint: str
    text: str
    mmproj: str
    picture: str
    threads: int
    question: str
    tokens: int
    repeats: int
    spawned: float

    @property
    def messages(self) -> dict[str, list[dict[str, Any]]]:
        """By step, in OpenAI's shape."""
        parts = [
            {"type": "image_url", "image_url": {"url": self.picture}},
            {"type": "text", "text": self.question},
        ]
        return {
            "text": [{"role": "user", "content": self.question}],
            "picture": [{"role": "user", "content": parts}],
        }


def ours(job: Job) -> Peer:
    """This package, as a Python program uses it."""
    import pyvllama

    llm = pyvllama.load(job.text, job.mmproj, n_threads=job.threads, image_cache_bytes=0)
    ends = dict.fromkeys(llm.model.tokenizer.eog, -100)

    def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
        llm._session.truncate(0)  # or the last question's beginning would not be read again
        timings = llm.chat(messages, max_tokens=job.tokens, temperature=0, logit_bias=ends)["timings"]
        return {
            "image_s": timings["image_encode_ms"] / 1000,
            "prompt_n": timings["prompt_n"],
            "prompt_s": timings["prompt_ms"] / 1000,
            "token_s": timings["predicted_ms"] / 1000 / (timings["predicted_n"] - 1),
        }

    versions = {name: version(name) for name in ("pyvllama", "llama-cpp-python")}
    return versions, {name: lambda m=m: ask(m) for name, m in job.messages.items()}


def stock(job: Job) -> Peer:
    """llama.cpp on the text GGUF, through llama_cpp's low-level API."""
    import llama_cpp

    KEPT.append(llama_cpp.llama_log_callback(lambda *_: None))
    llama_cpp.llama_log_set(KEPT[0], ctypes.c_void_p(0))
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(job.text.encode(), params)
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = 4096, 512, 512
    options.n_threads = options.n_threads_batch = job.threads
    context = llama_cpp.llama_init_from_model(model, options)
    sampler = llama_cpp.llama_sampler_init_greedy()
    chat = f"<|begin_of_text|>{HEADER.format('user')}{job.question}<|eot_id|>{HEADER.format('assistant')}".encode()
    room = (llama_cpp.llama_token * len(chat))()
    vocab = llama_cpp.llama_model_get_vocab(model)
    prompt = room[: llama_cpp.llama_tokenize(vocab, chat, len(chat), room, len(room), False, True)]

    def decode(tokens: list[int]) -> int:
        several = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(several, len(tokens))) != 0:
            raise RuntimeError("llama_decode failed")
        return llama_cpp.llama_sampler_sample(sampler, context, -1)

    def text() -> dict[str, Any]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        start = time.perf_counter()
        token = decode(prompt)
        first = time.perf_counter()
        for _ in range(job.tokens - 1):
            token = decode([token])
        token_s = (time.perf_counter() - first) / (job.tokens - 1)
        return {"prompt_n": len(prompt), "prompt_s": first - start, "token_s": token_s}

    return {"llama-cpp-python": version("llama-cpp-python")}, {"text": text}


def transformers(job: Job) -> Peer:
    """MllamaForConditionalGeneration in bf16 on the CPU: `generate`, with SDPA."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, AutoTokenizer, MllamaForConditionalGeneration

    torch.set_num_threads(job.threads)
    model = MllamaForConditionalGeneration.from_pretrained(job.checkpoint, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None  # goes on to the last token
    encoding = {"start": 0.0, "seconds": 0.0}

    def begin(*_: Any) -> None:
        encoding["start"] = time.perf_counter()

    def end(*_: Any) -> None:
        encoding["seconds"] = time.perf_counter() - encoding["start"]

    model.model.vision_model.register_forward_pre_hook(begin)
    model.model.multi_modal_projector.register_forward_hook(end)

    class Clock:
        """`generate` calls it with the prompt, and then with every token."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, _tokens: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def ask(inputs: Any) -> dict[str, Any]:
        clock, encoding["seconds"] = Clock(), 0.0
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=job.tokens, do_sample=False, streamer=clock, pad_token_id=0)
        begun, first, *_, last = clock.times
        return {
            "image_s": encoding["seconds"],
            "prompt_n": inputs["input_ids"].shape[1],
            "prompt_s": first - begun - encoding["seconds"],
            "token_s": (last - first) / (len(clock.times) - 2),
        }

    def text() -> dict[str, Any]:
        tokenizer = AutoTokenizer.from_pretrained(job.checkpoint)
        template = {
            "chat_template": json.loads(Path(job.checkpoint, "chat_template.json").read_text())["chat_template"]
        }
        chat = tokenizer.apply_chat_template(
            job.messages["text"], add_generation_prompt=True, tokenize=False, **template
        )
        return ask(tokenizer(chat, add_special_tokens=False, return_tensors="pt"))

    def picture() -> dict[str, Any]:
        processor = AutoProcessor.from_pretrained(job.checkpoint)
        content = [{"type": "image"}, {"type": "text", "text": job.question}]
        chat = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(Image.open(job.picture), chat, add_special_tokens=False, return_tensors="pt")
        return ask(inputs.to(torch.bfloat16))

    return {name: version(name) for name in ("torch", "transformers")}, {"text": text, "picture": picture}


def mistralrs(job: Job) -> Peer:
    """mistral.rs with in-situ quantization to Q4K, as its own example for this model has it."""
    import mistralrs as m

    which = getattr(m.Which, "MultimodalPlain", None) or m.Which.VisionPlain
    kind = getattr(m, "MultimodalArchitecture", None) or m.VisionArchitecture
    return _mistralrs(job, m, which(model_id=job.checkpoint, arch=kind.VLlama), "Q4K", pictures=True)


def mistralrs_gguf(job: Job) -> Peer:
    """mistral.rs on the same text GGUF as stock llama.cpp."""
    import mistralrs as m

    text = Path(job.text)
    which = m.Which.GGUF(quantized_model_id=str(text.parent), quantized_filename=text.name)
    return _mistralrs(job, m, which, None, pictures=False)


def _mistralrs(job: Job, m: Any, which: Any, isq: str | None, pictures: bool) -> Peer:
    runner = m.Runner(which=which, in_situ_quant=isq, max_seqs=1, prefix_cache_n=0, token_source="none")

    def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
        request = m.ChatCompletionRequest(model="default", messages=messages, max_tokens=job.tokens, temperature=0.0)
        answer = runner.send_chat_completion_request(request)
        usage = answer.usage
        if usage.completion_tokens < 2:
            raise RuntimeError(f"{usage.completion_tokens} tokens, finish_reason {answer.choices[0].finish_reason!r}")
        return {
            "prompt_n": usage.prompt_tokens,
            "prompt_s": usage.total_prompt_time_sec,  # with the picture
            "token_s": usage.total_completion_time_sec / (usage.completion_tokens - 1),
            "generated": usage.completion_tokens,
        }

    steps = {name: (lambda messages=messages: ask(messages)) for name, messages in job.messages.items()}
    if pictures:
        typed = json.loads(json.dumps(job.messages["picture"]))
        typed[0]["content"][1]["text"] = IMAGE + job.question
        steps[f"picture, {IMAGE} typed by the user"] = lambda: ask(typed)
    else:
        del steps["picture"]
    return {"mistralrs": version("mistralrs")}, steps


# name -> (what it does, the package that it needs, how to install it)
PEERS: dict[str, tuple[Callable[[Job], Peer], str, str]] = {
    "ours": (ours, "pyvllama", "pip install ."),
    "stock llama.cpp": (stock, "llama_cpp", "pip install llama-cpp-python"),
    "transformers": (transformers, "transformers", "pip install '.[reference]'"),
    "mistral.rs": (mistralrs, "mistralrs", "in a virtual environment of its own: pip install mistralrs; --mistralrs "
                   "VENV/bin/python"),
    "mistral.rs, GGUF": (mistralrs_gguf, "mistralrs", "as mistral.rs"),
}  # fmt: skip


def memory() -> dict[str, int]:
    """Of this process, in bytes: the largest resident set so far, and what is its own now (no mapped files)."""
    keys = {"VmHWM": "peak", "VmRSS": "resident", "RssAnon": "anonymous"}
    lines = (line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {keys[name]: 1024 * int(value.split()[0]) for name, value in lines if name in keys}


def say(step: str, **what: Any) -> None:
    """A line for peers.py."""
    print(json.dumps({"step": step, **what}), flush=True)


def main() -> None:
    name, job = sys.argv[1], Job(**json.loads(sys.argv[2]))
    # where memory runs out, it is this process that ends, and nobody else's
    Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        versions, steps = PEERS[name][0](job)
    except BaseException as e:  # Rust's panics are no Exceptions
        say("load", error=f"{type(e).__name__}: {e}")
        return
    cpu = sum(os.times()[:2])
    say("load", versions=versions, seconds=time.time() - job.spawned, cpu_seconds=cpu, **memory())
    for step, function in steps.items():
        if step != "text" and not job.picture:
            continue
        say(step, begins=True)
        runs = []
        try:
            for _ in range(job.repeats):
                cpu, start = sum(os.times()[:2]), time.perf_counter()
                run = function()
                took = time.perf_counter() - start
                runs.append({**run, "seconds": took, "cpu_share": (sum(os.times()[:2]) - cpu) / took / job.threads})
        except BaseException as e:
            say(step, error=f"{type(e).__name__}: {e}", **memory())
            continue
        say(step, runs=runs, **memory())
    os._exit(0)  # what a peer does at its end does not matter here


if __name__ == "__main__":
    main()
