"""The configurations of small models, four layers of width 256, one for each architecture."""

from typing import Any

SIZES = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
DISTILBERT = {"dim": 256, "hidden_dim": 1024, "n_layers": 4, "n_heads": 4, "vocab_size": 8192, "pad_token_id": 0}
DEBERTA = {"relative_attention": True, "position_buckets": 64, "norm_rel_ebd": "layer_norm", "share_att_key": True}
DEBERTA |= {"pos_att_type": "p2c|c2p", "position_biased_input": False, "type_vocab_size": 0}
ENDS = {"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {  # name -> (model_type, fields)
    "BERT": ("bert", SIZES),
    "DistilBERT": ("distilbert", DISTILBERT),
    "RoBERTa": ("roberta", SIZES | {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}),
    "ELECTRA": ("electra", SIZES | {"embedding_size": 128}),
    "DeBERTa-v2, -v3": ("deberta-v2", SIZES | DEBERTA),
    "ALBERT": ("albert", SIZES | {"embedding_size": 128}),
    "MPNet": ("mpnet", SIZES | {"max_position_embeddings": 514, "pad_token_id": 1}),
    "ModernBERT": ("modernbert", SIZES | ENDS | {"local_attention": 32, "global_attn_every_n_layers": 3}),
}
