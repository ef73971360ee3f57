"""The script a user writes today, against which ``bench_factorize.py`` measures: load, decompose, save.

    python torch_script.py svd|svd_lowrank INPUT OUTPUT

It halves the bytes of the table in memory, without any check of what it wrote.
"""

import sys

import torch
from safetensors.torch import load_file, save_file

TABLE = "embeddings.word_embeddings"

method, source, target = sys.argv[1:]
state = load_file(source)
table = state.pop(f"{TABLE}.weight")
rows, columns = table.shape
rank = int(0.5 * rows * columns / (rows + columns))
if method == "svd":
    u, s, vh = torch.linalg.svd(table, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], vh[:rank].T
else:
    torch.manual_seed(0)
    u, s, v = torch.svd_lowrank(table, q=rank)
state[f"{TABLE}.0.weight"] = (u * s).contiguous()
state[f"{TABLE}.1.weight"] = v.contiguous()
save_file(state, target)
