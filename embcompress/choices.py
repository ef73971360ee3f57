"""What a user can choose from, and what is taken when nothing is chosen.

Every list of names and every default is written here once. The command line, the workflows and the
registries read them from here, and ``tests/test_choices.py`` checks that each registry offers exactly
these names. This module imports nothing, so that ``embcompress --help`` answers at once.
"""

from __future__ import annotations

# ---- what to compress, and how

TARGETS = ("rank", "ratio", "energy", "max_error", "max_size")
"""Kinds of target; exactly one is given."""

METHODS = {
    "svd": "svd",
    "pq": "pq",
    "lplr": "lplr",
    "int8": "integer",
    "int4": "integer",
    "int3": "integer",
    "screen": "screen",
}
"""Methods of compressing a table, in the order in which they are compared, and the folder of ``methods/``
that holds each. This line is all it takes to register one."""

SCREENED = "screen+METHOD"
"""How a method is named whose least used rows are dropped first."""

AUTO = "auto"
"""Stands for the method with the smallest predicted error. No output is written under this name."""

NO_WEIGHTS = "none"
"""Stands for no weights of tokens, as ``AUTO`` does for those that the vocabulary suggests."""

DEFAULT_METHOD = "svd"

SPLITS = ("left", "even", "right")
"""Where the singular values go: into the left factor, half into each, or into the right one."""

DEFAULT_SPLIT, CLASSIFIER_SPLIT = "left", "even"
"""Where they go if nothing is said: of any model, and of a classifier written by ``train``, which is most
likely retrained. There it changes the scale of gradients; see examples/paper/RESULTS.md."""

LAYOUTS = ("native", "sequential", "embcompress")
"""How factors are stored: in the form of the model's own library; under the names of
``nn.Sequential(nn.Embedding, nn.Linear)``; or in whatever form this package reads, which for two float
factors is the same as ``"sequential"``."""

NANS = ("error", "zero")
"""What to do with a table that holds NaN or infinity: refuse it, or read such numbers as zeros."""

DEFAULT_NAN = "error"

DTYPES = ("float32", "float16", "bfloat16", "float64")
"""Element types of tables and factors, as PyTorch names them."""

SMOOTHING = 0.5
"""Exponent s of a token's weight (count + 1)^s, the one that measured best. With 1 the few most frequent
tokens take everything; with 0 all tokens count alike, even those that never occur."""

SMOOTHINGS = (1.0, 0.5, 0.0)
"""Exponents that ``compress`` tries. With 1 the error is the one seen on the training texts. With 0 all rows
count alike, which is better where so few components are kept that the most frequent tokens, which say
nothing about labels, would take them all."""

# ---- texts

TEXT_COLUMN, LABEL_COLUMN = "text", "label"
"""Headers of a CSV of texts."""

TEXT_FORMATS = ("csv", "jsonl", "fasttext", "lines")
"""How a file of texts is written: CSV; a JSON object in each line; lines of fastText, where ``__label__``
begins each label; or a text in each line."""

QUOTINGS = ("standard", "none")
"""Quotes in a CSV: as in RFC 4180, or characters like any other."""

DEFAULT_QUOTING = "standard"

ENCODING = "utf-8"
"""Character encoding of texts."""

MAX_LENGTH = 256
"""Tokens that are read of a text."""

METRIC_TEXTS = 2000
"""Most texts from which a metric is computed; of more, a sample is drawn."""

DEV_SHARE = 0.1
"""Share of the texts that is set aside to choose the best epoch."""

LEAST_TEXTS = 10
"""Distinct texts needed to compare two models: the share of nearest neighbours kept means nothing below."""

CHECK_TEXTS = 2000
"""Most texts that ``factorize --check`` reads, so that it takes seconds and not hours."""

# ---- classifiers and their training

ARCHITECTURES = ("dan", "lstm")
DEFAULT_ARCHITECTURE = "lstm"

HIDDEN = {"dan": (1024, 512), "lstm": (150,)}
"""Units of each hidden layer, by architecture (Acharya et al. 2019, arXiv:1811.00641)."""

DROPOUT = 0.4
"""Share of units dropped in training."""

DIMENSION = 300
"""Width of a table without pretrained vectors, that of the vectors in the same paper."""

TOKENIZERS = ("words", "whitespace")
"""Rules that split texts into tokens; a tokenizer.json file can take their place."""

DEFAULT_TOKENIZER = "words"

DEVICES = ("auto", "cpu", "cuda", "mps")
"""Where to compute; auto is the first of cuda, mps and cpu that is present."""

DEFAULT_DEVICE = "auto"

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "adagrad", "adadelta")
SCHEDULES = ("calr", "clr", "cosine", "linear", "constant")
