"""Geometries that are small enough for tests, whichever there are."""

from tokentrim.bench import GEOMETRIES, Geometry


def weights(geometry: Geometry) -> int:
    """Numbers of the decoder, about: narrower heads for keys and values are not looked at."""
    layer = 4 * geometry.hidden_size**2 + 3 * geometry.hidden_size * geometry.intermediate_size
    return geometry.n_layers * layer + 2 * geometry.vocab_size * geometry.hidden_size


SMALL = tuple(name for name, geometry in GEOMETRIES.items() if weights(geometry) < 1_000_000)
FULL = tuple(name for name, geometry in GEOMETRIES.items() if weights(geometry) > 5_000_000_000)


def counterpart(name: str) -> str:
    """The smallest geometry of the same family."""
    kind = type(GEOMETRIES[name])
    return min((one for one in GEOMETRIES if type(GEOMETRIES[one]) is kind), key=lambda one: weights(GEOMETRIES[one]))
