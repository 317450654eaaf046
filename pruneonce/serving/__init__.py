"""From text to answers with an exported file alone: its tokenizer and its labels are inside. No torch, no transformers."""
