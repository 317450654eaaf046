"""Models in Hugging Face folders: read, made, checked."""
