"""Models in Hugging Face folders, and what a step of training costs."""
