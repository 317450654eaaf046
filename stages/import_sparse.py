"""A sparse checkpoint of others enters where `sparsify` would have made one: its zeros are the pattern, locked from here on.

reads   source        sparse checkpoint: any model whose linears hold zeros    fetch or fetch_local
        base_folder   dense model of the same sizes, the teacher's begin       fetch
writes  model_folder  its body bit for bit; the names of the pruned layers     in place of `sparsify`
"""

from pipeline.params.sections import Common
from pipeline.stage import Dep, Metrics, Out, main
from pruneonce import sparse_import
from pruneonce.models import checkpoint
from pruneonce.sparsity import masks


def run(source: Dep, base_folder: Dep, model_folder: Out, *, common: Common) -> Metrics:
    found = sparse_import.inspect(source)
    print(*found.lines(), sep="\n")
    sparse_import.check_same(source, base_folder)
    sparse_import.write(source, base_folder, found, model_folder)
    # As `finetune` will read it: whole, finite, and with these zeros.
    model = checkpoint.load_masked_lm(model_folder, attention=common.attention)
    sparsity = masks.sparsity(masks.zeros(model, checkpoint.load_pruned(model_folder, model)))
    return {"linears": len(found.zeros), "sparsity": sparsity, "pattern": found.pattern}


if __name__ == "__main__":
    main(run)
