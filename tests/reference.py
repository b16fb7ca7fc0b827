"""The numeric oracle: transformers in float32, made to follow Meta's rules where it departs from them.

"Meta" is PyPI `llama-models`, llama3/multimodal/model.py; "HF" is transformers 5.23, models/mllama/modeling_mllama.py.

1. Text rows before the first image pass a cross-attention layer unchanged. Meta multiplies the output of the attention
   and that of the feed-forward by full_text_row_masked_out_mask (CrossAttention, CrossAttentionTransformerBlock); HF's
   MllamaCrossAttentionDecoderLayer.forward only the second (transformers issue 39379).
2. `intermediate_layers_indices` names states ENTERING a layer: Meta's ImageTransformer.forward appends x to its output
   before the layer changes it. HF's MllamaVisionEncoder.forward records what leaves it (transformers PR 39785).
3. Attention is eager: through SDPA, calls without a mask become causal (transformers issues 48172, 48218).

Nothing is patched globally: the two methods are replaced on the instances of one model. Which row sees which image is
decided by cases.images_seen, which shares nothing with the package. Needs torch and transformers.
"""

import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cases import Image, images_seen
from torch import Tensor
from transformers import AutoTokenizer, MllamaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.mllama import modeling_mllama as hf


def _cross_layer_forward(
    self: hf.MllamaCrossAttentionDecoderLayer,
    hidden_states: Tensor,
    cross_attention_states: Tensor,
    cross_attention_mask: Tensor,
    attention_mask: Tensor,
    full_text_row_masked_out_mask: Tensor | None,
    past_key_values: object = None,
    **kwargs: object,
) -> Tensor:
    sees_image = 1 if full_text_row_masked_out_mask is None else full_text_row_masked_out_mask[:, 0]
    attended, _ = self.cross_attn(
        hidden_states=self.input_layernorm(hidden_states),
        attention_mask=cross_attention_mask,
        cross_attention_states=cross_attention_states,
        past_key_values=past_key_values,
    )
    hidden_states = hidden_states + self.cross_attn_attn_gate.tanh() * (sees_image * attended)
    fed_forward = self.mlp(self.post_attention_layernorm(hidden_states))
    return hidden_states + self.cross_attn_mlp_gate.tanh() * (sees_image * fed_forward)


def _encoder_forward(
    self: hf.MllamaVisionEncoder, hidden_states: Tensor, attention_mask: Tensor | None = None
) -> BaseModelOutput:
    entering = []
    for layer in self.layers:
        entering.append(hidden_states)
        hidden_states = layer(hidden_states, attention_mask=attention_mask)
    return BaseModelOutput(last_hidden_state=hidden_states, hidden_states=tuple(entering))


class Oracle:
    """One checkpoint in float32 with Meta's semantics.

    Args:
        checkpoint: a directory in Hugging Face's form.
        meta_rules: False leaves transformers as it is, to show that the tests can tell the difference.
    """

    def __init__(self, checkpoint: Path, *, meta_rules: bool = True) -> None:
        self.checkpoint = checkpoint
        self.model = MllamaForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.config = self.model.config
        self.image_token: int = self.config.image_token_index
        self.cross_attention_layers: list[int] = self.config.text_config.cross_attention_layers
        if meta_rules:
            for module in self.model.modules():
                if isinstance(module, hf.MllamaCrossAttentionDecoderLayer):
                    module.forward = types.MethodType(_cross_layer_forward, module)
                elif isinstance(module, hf.MllamaVisionEncoder):
                    module.forward = types.MethodType(_encoder_forward, module)

    def _vision_inputs(self, images: Sequence[Image]) -> dict[str, Tensor]:
        n_tiles, size = self.config.vision_config.max_num_tiles, self.config.vision_config.image_size
        pixels = np.zeros((1, len(images), n_tiles, 3, size, size), np.float32)
        mask = np.zeros((1, len(images), n_tiles), np.int64)
        for k, (tiles, _) in enumerate(images):
            pixels[0, k, : len(tiles)] = tiles
            mask[0, k, : len(tiles)] = 1
        return {
            "pixel_values": torch.from_numpy(pixels),
            "aspect_ratio_mask": torch.from_numpy(mask),
            "aspect_ratio_ids": torch.tensor([[ratio_id for _, ratio_id in images]]),
        }

    @torch.no_grad()
    def vision_states(self, image: Image) -> np.ndarray:
        """cross_attention_states of the real tiles, float32 [num_tiles, n_positions, hidden_size]."""
        features = self.model.model.vision_model(**self._vision_inputs([image])).last_hidden_state
        return self.model.model.multi_modal_projector(features)[0, 0, : len(image[0])].numpy()

    @torch.no_grad()
    def cross_kv(self, image: Image) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Cross layer's index -> (K normed, V), float32 [num_tiles * n_positions, n_kv_heads, head_dim] each."""
        states = torch.from_numpy(self.vision_states(image)).flatten(0, 1)
        n_head_kv = self.config.text_config.num_key_value_heads
        kv = {}
        for i in self.cross_attention_layers:
            attention = self.model.model.language_model.layers[i].cross_attn
            k, v = (proj(states).view(len(states), n_head_kv, -1) for proj in (attention.k_proj, attention.v_proj))
            kv[i] = (attention.k_norm(k).numpy(), v.numpy())
        return kv

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int], images: Sequence[Image] = ()) -> np.ndarray:
        """Logits of every row, float32 [n_tokens, vocab_size]; the k-th image token stands for images[k]."""
        ids = torch.tensor([list(token_ids)])
        if not images:
            return self.model(input_ids=ids, use_cache=False).logits[0].numpy()
        mask = torch.zeros(1, len(token_ids), len(images), self.config.vision_config.max_num_tiles, dtype=torch.int64)
        for row, seen in enumerate(images_seen(token_ids, self.image_token)):
            for k in seen:
                mask[0, row, k, : len(images[k][0])] = 1
        inputs = self._vision_inputs(images)
        return self.model(input_ids=ids, cross_attention_mask=mask, use_cache=False, **inputs).logits[0].numpy()

    def greedy(self, token_ids: Sequence[int], images: Sequence[Image], max_tokens: int) -> list[int]:
        """Greedy continuation, without a cache, up to and without an end-of-generation token."""
        end = set(np.atleast_1d(self.model.generation_config.eos_token_id).tolist())
        ids = list(token_ids)
        for _ in range(max_tokens):
            token = int(self.logits(ids, images)[-1].argmax())
            if token in end:
                break
            ids.append(token)
        return ids[len(token_ids) :]


def render(checkpoint: Path, messages: list[dict]) -> list[int]:
    """Token ids of messages by transformers' own template engine and tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def preprocess(checkpoint: Path, image: object) -> Image:
    """Tiles of a PIL image by transformers' PIL image processor."""
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    out = MllamaImageProcessorPil.from_pretrained(checkpoint)([image], return_tensors="np")
    n_tiles = int(out["aspect_ratio_mask"][0, 0].sum())
    return out["pixel_values"][0, 0, :n_tiles].astype(np.float32), int(out["aspect_ratio_ids"][0, 0])
