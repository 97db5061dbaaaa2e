"""The fields of every project's configurations, one table for each class of them.

A name is the field of the spec that it is compared with, a tuple lists the values that the towers follow, and ANY
changes no feature.
"""

from typing import Any

ANY = object()
ABSENT = (None, False)


def _any(fields: str) -> dict[str, Any]:
    return dict.fromkeys(fields.split(), ANY)


def _absent(fields: str) -> dict[str, Any]:
    return dict.fromkeys(fields.split(), ABSENT)


_BLOCKS: dict[str, Any] = {
    "hidden_size": "width",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_act": "activation",
    **_any("attention_dropout attention_probs_dropout_prob hidden_dropout_prob drop_path_rate"),
    **_any("initializer_range initializer_factor projection_dim"),  # the projection_dim of both towers is CLIPConfig's
}
_VISION = {**_BLOCKS, "image_size": "image_size", "patch_size": "patch_size", "num_channels": "channels"}
_DINOV2 = {
    **_VISION,
    "qkv_bias": "qkv_bias",
    "mlp_ratio": "mlp_width",
    "num_register_tokens": "registers",
    "use_swiglu_ffn": ANY,  # _read_transformers takes the activation and the width of the MLP from it
    **_any("layerscale_value use_mask_token"),  # of training
    **_any("_out_features _out_indices apply_layernorm reshape_hidden_states"),  # of a backbone
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "clip": {
        "projection_dim": "embed_dim",
        **_any("vision_config text_config logit_scale_init_value initializer_factor"),
    },
    "clip_vision_model": {**_VISION, "intermediate_size": "mlp_width"},
    "clip_text_model": {
        **_BLOCKS,
        "intermediate_size": "mlp_width",
        "vocab_size": "vocabulary",
        "max_position_embeddings": "context",
        "eos_token_id": "end_token",
        **_any("bos_token_id pad_token_id"),  # a causal tower reads nothing behind the end token
    },
    "siglip": _any("vision_config text_config initializer_factor"),
    "siglip_vision_model": {**_VISION, "intermediate_size": "mlp_width", "vision_use_head": (True,)},
    "siglip_text_model": {
        **_BLOCKS,
        "intermediate_size": "mlp_width",
        "vocab_size": "vocabulary",
        "max_position_embeddings": "context",
        "projection_size": "embed_dim",
        **_any("bos_token_id eos_token_id pad_token_id"),  # CLIP's, whatever the tokenizer: the tokenizer's own count
    },
    "vit": {
        **_VISION,
        "intermediate_size": "mlp_width",
        "qkv_bias": "qkv_bias",
        **_any("encoder_stride pooler_output_size pooler_act"),  # of heads
    },
    **dict.fromkeys(("dinov2", "dinov2_with_registers"), _DINOV2),
    "tipsv2": _any("vision_config text_config temperature_init_value"),
    "tipsv2_vision_model": {**_DINOV2, "qkv_bias": (True,), "use_swiglu_ffn": (False,)},
    "tipsv2_text_model": {
        **_BLOCKS,
        "intermediate_size": "mlp_width",
        "vocab_size": "vocabulary",
        "max_position_embeddings": "context",
        "pad_token_id": (0, None),
        **_any("bos_token_id eos_token_id"),  # the tokenizer adds none
        "scale_sqrt_depth": (True,),
        "pooling_epsilon": (1e-8,),  # less than the last place of a count
    },
    "dinov3_vit": {
        **_VISION,
        "intermediate_size": "mlp_width",
        "num_register_tokens": "registers",
        "rope_theta": "rope_theta",
        "key_bias": "key_bias",
        **dict.fromkeys(("query_bias", "value_bias", "proj_bias", "mlp_bias"), (True,)),
        "use_gated_mlp": (False,),
        **_any("layerscale_value pos_embed_shift pos_embed_jitter pos_embed_rescale"),  # of training
        **_any("_out_features _out_indices apply_layernorm reshape_hidden_states"),  # of a backbone
    },
}
# MetaCLIP 2 has the fields of CLIP.
TRANSFORMERS |= {name.replace("clip", "metaclip_2"): row for name, row in TRANSFORMERS.items() if "clip" in name}


# open_clip's, of 3.3 and before.
_OPEN_CLIP_TOWER: dict[str, Any] = {
    "width": "width",
    "layers": "depth",
    "mlp_ratio": "mlp_width",
    "act_kwargs": (None, {}),
    "norm_kwargs": ANY,  # compared by itself
    "final_ln_after_pool": ANY,  # a LayerNorm of one token is the same before and after that token is taken
    "output_tokens": ANY,
    "block_type": (None, "default"),
    **_absent("ls_init_value qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc"),
}
OPEN_CLIP_VISION: dict[str, Any] = {
    **_OPEN_CLIP_TOWER,
    "head_width": "num_heads",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "patch_dropout": ANY,  # of training
    **_absent("attentional_pool no_ln_pre input_patchnorm global_average_pool"),
    **_any("attn_pooler_queries attn_pooler_heads"),  # of attentional_pool
    "pos_embed_type": ("learnable", "sin_cos_2d"),  # the file holds both kinds
    "pool_type": ("tok",),
    "timm_model_name": (None, ""),
    **_any("timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path"),  # of timm_model_name
}
OPEN_CLIP_TEXT: dict[str, Any] = {
    **_OPEN_CLIP_TOWER,
    "heads": "num_heads",
    "vocab_size": "vocabulary",
    "context_length": "context",
    "hf_tokenizer_name": ANY,  # model_folder.py then wants that tokenizer beside the weights
    "tokenizer_mode": (None,),
    "tokenizer_kwargs": (None, {}),
    **_absent("embed_cls no_causal_mask proj_bias"),
    "pad_id": ANY,  # a causal tower reads nothing behind the end token
    "eos_id": ANY,  # of pool_type "eos"
    "pool_type": ("argmax", "eos"),
    "proj": ("linear",),
    "proj_type": ("linear",),
    "hf_model_name": (None, ""),
    **_any("hf_model_pretrained hf_proj_type hf_pooler_type pooler_type"),  # of hf_model_name
}
OPEN_CLIP_MODEL: dict[str, Any] = {
    "embed_dim": "embed_dim",
    "vision_cfg": ANY,
    "text_cfg": ANY,
    "quick_gelu": (None, False, True),  # not "false", which Python takes for true
    "custom_text": ANY,  # names the text tower's tensors otherwise
    "multimodal_cfg": (None, {}),
    **_any("init_logit_scale init_logit_bias nonscalar_logit_scale"),  # of the logits
    **_any("cast_dtype output_dict preprocess_cfg"),
}

TIMM_ARGUMENTS: dict[str, Any] = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_width",
    "qkv_bias": "qkv_bias",
    "reg_tokens": "registers",
    "in_chans": "channels",
    "pos_embed": ("learn",),
    "class_token": (True,),
    **_absent("pre_norm qk_norm"),
    # They show in the tensors, or belong to training and to classification.
    **_any("no_embed_class init_values dynamic_img_size num_classes global_pool"),
    **_any("drop_rate pos_drop_rate patch_drop_rate proj_drop_rate"),
    **_any("attn_drop_rate drop_path_rate weight_init fix_init strict_img_size"),
}
