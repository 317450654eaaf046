"""The metrics that a kind of task may have, for the sections and for the command line, which imports nothing large."""

# The metrics of a kind; the first one is its usual `score`. `pruneonce.tasks.kinds` computes all of them.
METRICS = {
    "classification": ("accuracy", "f1", "macro_f1", "mcc"),
    "regression": ("pearson", "spearman"),
    "multi_label": ("micro_f1", "macro_f1", "accuracy"),
    "token_classification": ("entity_f1", "token_accuracy"),
    "question_answering": ("f1", "exact_match"),
    "embedding": ("spearman", "ndcg", "recall", "neighbour"),
}
