"""Files that gensim saves, made and read by Python's own pickle with classes of the same names.

What is in them: ``SaveLoad`` in gensim/utils.py, ``KeyedVectors`` in gensim/models/keyedvectors.py, 4.4.0.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import types

import numpy as np

CLASSES = {
    "keyedvectors": ("KeyedVectors", "Word2VecKeyedVectors", "Vocab"),
    "word2vec": ("Word2Vec",),
    "doc2vec": ("Doc2Vec",),
    "fasttext": ("FastText", "FastTextKeyedVectors"),
}


@contextlib.contextmanager
def classes():
    """Empty classes under the names of gensim, by their names; the modules are gone afterwards."""
    found = {}
    modules = {"gensim": types.ModuleType("gensim"), "gensim.models": types.ModuleType("gensim.models")}
    for module, names in CLASSES.items():
        path = f"gensim.models.{module}"
        modules[path] = types.ModuleType(path)
        for name in names:
            found[name] = type(name, (), {"__module__": path})
            setattr(modules[path], name, found[name])
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield found
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def attributes(tokens, matrix, **others):
    """The attributes of KeyedVectors."""
    return {
        "vector_size": matrix.shape[1],
        "index_to_key": [*tokens],
        "next_index": 0,
        "key_to_index": {token: row for row, token in enumerate(tokens)},
        "vectors": matrix,
        "norms": None,
        "expandos": {"count": np.arange(len(tokens), dtype=np.int64) + 3},
        "mapfile_path": None,
        "__scipys": [],
        "__ignoreds": [],
        "__recursive_saveloads": [],
        **others,
    }


def save(path, kind, held, *, protocol=4, apart=(), inner=()):
    """Save an object of the class ``kind``.

    Args:
        path: where.
        kind: name of its class.
        held: its attributes; the values of ``inner`` are pairs of class and attributes.
        protocol: of the pickle.
        apart: names of arrays that get a file of their own, in every object.
        inner: names of attributes that are objects.
    """

    def made(found, kind, held, prefix):
        thing, names = found[kind](), [name for name in apart if name in held]
        for name, value in held.items():
            if name in inner:
                setattr(thing, name, made(found, *value, f"{prefix}.{name}"))
            elif name not in names:
                setattr(thing, name, value)
        for name in names:
            np.save(path.with_name(f"{prefix}.{name}.npy"), held[name])
        vars(thing)["__numpys"] = names
        return thing

    with classes() as found:
        path.write_bytes(pickle.dumps(made(found, kind, held, path.name), protocol))
    return path


def write(path, tokens, matrix):
    save(path, "KeyedVectors", attributes(tokens, matrix))


def load(path):
    """The object in a file, with its arrays."""
    with classes():
        made = pickle.loads(path.read_bytes())
    for name in vars(made)["__numpys"]:
        setattr(made, name, np.load(path.with_name(f"{path.name}.{name}.npy")))
    return made
